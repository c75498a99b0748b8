//! Routes that report on the server.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use moi_engine::InputRule;
use serde_json::{Value, json};

use super::json;
use crate::{error::ApiError, model::Loaded, server::Server};

/// `GET /v1/models`.
pub(crate) fn models(loaded: &Loaded) -> Value {
    let data: Vec<Value> = loaded.names().iter().map(|name| entry(loaded, name)).collect();
    json!({"object": "list", "data": data})
}

/// `GET /v1/models/{id}`.
pub(crate) fn model(loaded: &Loaded, name: &str) -> Result<Value, ApiError> {
    let names = loaded.names();
    match names.iter().any(|known| known == name) {
        true => Ok(entry(loaded, name)),
        false => Err(ApiError::no_model(name, &names)),
    }
}

fn entry(loaded: &Loaded, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": loaded.model.created,
        "owned_by": "moi",
        "root": loaded.names().first(),
        "parent": null,
        "max_model_len": loaded.model.context_length,
        "moi": {"rule": loaded.model.rule.spec(), "sampling": loaded.model.sampling},
    })
}

/// `GET /health`, in llama-server's format.
pub(crate) fn health(server: &Server) -> Response<Body> {
    match server.is_ready() {
        Ok(()) => json(&json!({"status": "ok"})),
        Err(why) => {
            let error = json!({"message": why, "type": "unavailable_error", "param": null, "code": 503});
            let mut response = json(&json!({"error": error}));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            response
        }
    }
}

/// `GET /livez`: whether the engine makes progress, if it has work.
pub(crate) fn live(server: &Server) -> Result<Value, ApiError> {
    let longest = server.options.live_timeout;
    match server.loaded() {
        Ok(loaded) if loaded.status.is_stuck(longest) => {
            let longest = longest.as_secs_f64();
            Err(ApiError::unavailable(format!("a round of the engine takes more than {longest} s")))
        }
        _ => Ok(json!({"status": "ok"})),
    }
}

/// `GET /v1/moi/rules`.
pub(crate) fn rules() -> Value {
    let rule = |rule: &InputRule| json!({"rule": rule.name(), "help": rule.help(), "thinks": rule.thinks(), "knobs": rule.knobs()});
    json!({"object": "list", "data": InputRule::all().iter().map(rule).collect::<Vec<_>>()})
}

/// `GET /v1/moi/runs`: how much is in progress, and the state of the caller's own generations.
pub(crate) fn runs(loaded: &Loaded, owner: &str) -> Value {
    let gauges = loaded.status.gauges();
    let own = loaded.status.progress().into_iter().filter(|progress| progress.owner == owner);
    json!({
        "data": own.collect::<Vec<_>>(),
        "running": gauges.running,
        "waiting": gauges.waiting,
        "cache_bytes": gauges.cache_used,
        "cache_limit_bytes": gauges.cache_total,
    })
}

/// `GET /metrics`.
pub(crate) fn metrics(loaded: &Loaded) -> Response<Body> {
    let mut response = Response::new(Body::from(loaded.status.metrics.text(&loaded.status.gauges())));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
