//! The router: serves the routes of the table, and checks, logs and counts each request before its handler.

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, Response, Uri, header},
    middleware::{Next, from_fn_with_state},
    routing::{MethodFilter, on},
};
use serde_json::json;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{
    auth::{check_host, check_origin},
    error::ApiError,
    json::{MAX_LISTED_VALUES, MAX_VALUES, check_values, read},
    log::{LogLine, Record, trace},
    openapi,
    quota::Quota,
    routes::{
        self, info, json, new_id,
        table::{Handler, ROUTES, Route},
        tokenize,
    },
    server::{Caller, Peer, STOPPING, ServeOptions, Server},
};

/// The service of all routes.
pub(crate) fn router(server: &Arc<Server>) -> Router {
    let mut router = Router::new();
    for &Route { method, path, what, .. } in ROUTES {
        let filter = if method == "POST" { MethodFilter::POST } else { MethodFilter::GET };
        let handler =
            move |State(server): State<Arc<Server>>, request: Request| answer(what, server, request);
        router = router.route(path, on(filter, handler));
    }
    let mut router = router
        .fallback(|uri: Uri| async move { ApiError::no_route(uri.path()).response() })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::wrong_method(method.as_str(), uri.path()).response()
        })
        .layer(from_fn_with_state(Arc::clone(server), admit));
    if let Some(cors) = cors(&server.options.cors_origins) {
        router = router.layer(cors);
    }
    router.layer(from_fn_with_state(Arc::clone(server), note)).with_state(Arc::clone(server))
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let cors = CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST]);
    Some(cors.allow_headers(AllowHeaders::mirror_request()))
}

/// Gives a request its id, and logs and counts its outcome.
async fn note(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response<Body> {
    let given = request.headers().get("x-request-id").filter(|id| id.len() <= 256).cloned();
    let id = given
        .unwrap_or_else(|| HeaderValue::from_str(&new_id("req-")).unwrap_or(HeaderValue::from_static("req")));
    let path = request.uri().path().to_owned();
    let is_anthropic = path.starts_with("/v1/messages");
    let line = LogLine {
        id: id.to_str().unwrap_or_default().to_owned(),
        trace: trace(request.headers()),
        owner: "nobody".to_owned(),
        method: request.method().to_string(),
        path,
        status: CLIENT_LEFT,
        ..LogLine::default()
    };
    let record = Arc::new(Record::new(&server, line));
    request.extensions_mut().insert(Arc::clone(&record));
    // If the client leaves before it is answered, this is dropped with the request.
    let mut counted = CountOnDrop { server: &server, record, status: CLIENT_LEFT };
    let mut response = next.run(request).await;
    counted.status = response.status().as_u16();
    counted.record.note(|line| line.status = counted.status);
    drop(counted);
    if let Some(error) = response.extensions_mut().remove::<ApiError>()
        && is_anthropic
    {
        routes::messages::write_error(&error, &mut response);
    }
    let headers = response.headers_mut();
    headers.insert("x-request-id", id);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The status of a request whose client has left, as nginx has it.
const CLIENT_LEFT: u16 = 499;
/// The route of a path that matches none.
const OTHER: &str = "other";

/// Counts a request when it is dropped.
struct CountOnDrop<'a> {
    server: &'a Server,
    record: Arc<Record>,
    status: u16,
}

impl Drop for CountOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(loaded) = self.server.loaded.get() {
            loaded.status.metrics.http(self.record.route.get().unwrap_or(&OTHER), self.status);
        }
    }
}

/// Lets requests pass that are allowed.
async fn admit(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response<Body> {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = path.and_then(|path| ROUTES.iter().find(|route| route.path == path));
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
    let Some(record) = request.extensions().get::<Arc<Record>>().cloned() else {
        return ApiError::internal("internal error: the request has no log entry").response();
    };
    let (owner, quota) = match admitted(&server, route, request.headers(), peer) {
        Ok(owner) => owner,
        Err(error) => return error.response(),
    };
    record.note(|line| line.owner.clone_from(&owner));
    if let Some(route) = route {
        // This cannot fail, because a request passes here only once.
        let _ = record.route.set(route.path);
    }
    if server.is_closed() && request.method() == Method::POST {
        return ApiError::unavailable(STOPPING).response();
    }
    request.extensions_mut().insert(Caller { owner, quota, record });
    next.run(request).await
}

/// The owner that a request counts for, and the quota of its key.
fn admitted(
    server: &Server,
    route: Option<&Route>,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
) -> Result<(String, Option<Quota>), ApiError> {
    let ServeOptions { allowed_hosts, any_host, cors_origins, .. } = &server.options;
    let keys = server.keys();
    let address = || (peer.map_or_else(|| "local".to_owned(), |peer| peer.to_string()), None);
    if keys.is_empty() {
        // A Unix socket is reached by its path. No other site can lead a browser to it by a name, so the name that a
        // proxy uses for it is not checked.
        if !any_host && peer.is_some() {
            check_host(headers, allowed_hosts)?;
        }
        if !any_host {
            check_origin(headers, cors_origins)?;
        }
        return Ok(address());
    }
    match keys.check(headers) {
        Ok((name, quota)) => Ok((name.to_owned(), quota)),
        Err(_) if route.is_some_and(|route| route.is_open) => Ok(address()),
        Err(error) => Err(error),
    }
}

async fn answer(what: Handler, server: Arc<Server>, request: Request) -> Response<Body> {
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return ApiError::internal("internal error: the request has no client identity").response();
    };
    let (parts, body) = request.into_parts();
    let result = match what {
        Handler::Chat
        | Handler::Render
        | Handler::Completions
        | Handler::Responses
        | Handler::Messages
        | Handler::CountTokens
        | Handler::Tokenize
        | Handler::Detokenize => post(what, &server, caller, &parts.headers, body).await,
        Handler::Page => routes::page::file(&server.options.page, parts.uri.path(), &parts.headers),
        _ => get(what, &server, &caller, parts.uri.path()),
    };
    result.unwrap_or_else(|error| error.response())
}

async fn post(
    what: Handler,
    server: &Arc<Server>,
    caller: Caller,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let loaded = server.loaded()?;
    let body = read(headers, body, server.options.max_body).await?;
    check_values(
        &body,
        match what {
            Handler::Completions | Handler::Detokenize => MAX_LISTED_VALUES,
            _ => MAX_VALUES,
        },
    )?;
    match what {
        Handler::Render => {
            let trusts = server.options.trust_request_templates;
            aside(server, body.len(), move || tokenize::render(&body, &loaded, trusts)).await
        }
        Handler::Tokenize => aside(server, body.len(), move || tokenize::tokenize(&body, &loaded)).await,
        Handler::Detokenize => aside(server, body.len(), move || tokenize::detokenize(&body, &loaded)).await,
        Handler::CountTokens => {
            let size = body.len();
            aside(server, size, move || routes::messages::count_tokens(&body, &loaded)).await
        }
        Handler::Completions => routes::completions::completions(Arc::clone(server), caller, body).await,
        Handler::Responses => routes::responses::responses(Arc::clone(server), caller, body).await,
        Handler::Messages => routes::messages::messages(Arc::clone(server), caller, body).await,
        _ => routes::chat::chat(Arc::clone(server), caller, body).await,
    }
}

/// Does work that may take long on a thread where no connection waits for it.
async fn aside(
    server: &Server,
    size: usize,
    work: impl FnOnce() -> Result<serde_json::Value, ApiError> + Send + 'static,
) -> Result<Response<Body>, ApiError> {
    let _place = server.place_for(size).await;
    let done = tokio::task::spawn_blocking(work).await;
    let value = done.map_err(|error| ApiError::internal(format!("the tokenizer failed: {error}")))??;
    Ok(json(&value))
}

fn get(what: Handler, server: &Server, caller: &Caller, path: &str) -> Result<Response<Body>, ApiError> {
    let value = match what {
        Handler::Health | Handler::Ready => return Ok(info::health(server)),
        Handler::Docs => return Ok(openapi::page()),
        Handler::Live => info::live(server)?,
        Handler::Version => json!({"version": env!("CARGO_PKG_VERSION")}),
        Handler::Ping => json!({}),
        Handler::Rules => info::rules(),
        Handler::OpenApi => openapi::document(),
        _ => {
            let loaded = server.loaded()?;
            match what {
                Handler::Metrics => return Ok(info::metrics(&loaded)),
                Handler::Models => info::models(&loaded),
                Handler::Model => info::model(&loaded, &name(path))?,
                Handler::TokenizerInfo => tokenize::info(&loaded),
                Handler::Load => json!({"server_load": server.active()}),
                _ => info::runs(&loaded, &caller.owner),
            }
        }
    };
    Ok(json(&value))
}

/// The name at the end of `/v1/models/NAME`, in which slashes may be written as they are or escaped.
fn name(path: &str) -> String {
    let name = path.strip_prefix("/v1/models/").unwrap_or_default();
    percent_encoding::percent_decode_str(name).decode_utf8_lossy().into_owned()
}
