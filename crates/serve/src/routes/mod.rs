//! The handlers of the routes.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod info;
pub(crate) mod messages;
pub(crate) mod page;
pub(crate) mod responses;
pub(crate) mod table;
pub(crate) mod tokenize;

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use moi_engine::InputRule;
use serde_json::Value;

use crate::{
    answer::{Answer, AnswerOptions, Format},
    choice::Choice,
    error::ApiError,
    job::Job,
    json::Ignored,
    model::Loaded,
    parts::PartParser,
    plan::Plan,
    server::{Active, Caller, Charge, Server},
};

/// What a request asks for.
pub(crate) struct Asked<F> {
    /// The prefix of its answers' ids.
    pub(crate) id: &'static str,
    pub(crate) plan: Plan,
    pub(crate) jobs: Vec<Job>,
    /// The parser of an answer's parts, for each prompt.
    pub(crate) parsers: Vec<PartParser>,
    pub(crate) format: F,
    /// Whether only the prompts are asked for, with their log-probabilities.
    pub(crate) prompt_only: bool,
    pub(crate) ignored: Ignored,
}

/// Reads the request in a body of `size` bytes on a blocking thread, generates, and answers. Errors use the field
/// names of the API: see [`ApiError::in_words`].
pub(crate) async fn answered<F: Format>(
    server: &Arc<Server>,
    caller: Caller,
    (size, words): (usize, &'static [(&'static str, &'static str)]),
    read: impl FnOnce(&Server) -> Result<Asked<F>, ApiError> + Send + 'static,
) -> Result<Response<Body>, ApiError> {
    let loaded = server.loaded()?;
    let active = Active::new(server);
    let (own, model) = (Arc::clone(server), Arc::clone(&loaded));
    let work = move || {
        let mut asked = read(&own).map_err(|error| error.in_words(words))?;
        let jobs = std::mem::take(&mut asked.jobs);
        let about: Vec<(InputRule, u64)> = jobs.iter().map(|job| (job.rule, job.seed)).collect();
        let firsts = || jobs.iter().step_by(asked.plan.per_prompt());
        let prompt_tokens: usize = firsts().map(|job| job.prompt.len()).sum();
        let tells = asked.plan.return_token_ids;
        let prompts =
            if tells { firsts().map(|job| job.prompt.ids().to_vec()).collect() } else { Vec::new() };
        if let Some(quota) = caller.quota {
            let taken = own.used.take(&caller.owner, quota, prompt_tokens);
            taken.inspect_err(|_| model.status.metrics.over_quota())?;
        }
        if own.options.log_prompts && own.logs() {
            let texts = firsts().map(|job| model.model.tokenizer.decode(job.prompt.ids()));
            let texts = texts.map(Result::unwrap_or_default).collect();
            caller.record.note(|line| line.prompts = texts);
        }
        let charge = Charge { server: own, caller: caller.clone(), prompt: prompt_tokens };
        let prepared = model.service.prepare(&caller, jobs).map_err(|error| {
            let field = asked.plan.constrained_by.filter(|_| error.code == Some("invalid_schema"));
            field.map_or(error.clone(), |field| error.of(field)).in_words(words)
        })?;
        Ok::<_, ApiError>((asked, prepared, about, prompt_tokens, prompts, charge))
    };
    let _place = server.place_for(size).await;
    let done = tokio::task::spawn_blocking(work).await;
    let failed = |error| ApiError::internal(format!("preparing the request failed: {error}"));
    let (asked, prepared, about, prompt_tokens, prompts, charge) = done.map_err(failed)??;
    let Asked { id, plan, parsers, format, prompt_only, ignored, .. } = asked;
    let runs = prepared.submit().await?;
    loaded.status.metrics.asked(plan.per_prompt());
    let per_prompt = plan.per_prompt();
    let choices = about
        .into_iter()
        .enumerate()
        .map(|(at, (rule, seed))| Choice::new(parsers[at / per_prompt].clone(), rule, seed, plan.traces));
    let choices: Vec<Choice> = choices.collect();
    let streams = plan.stream;
    let (ping, stall_timeout) = (server.options.ping, server.options.stall_timeout);
    let options =
        AnswerOptions { id: new_id(id), plan, prompt_tokens, prompts, prompt_only, ping, stall_timeout };
    let answer = Answer::new((loaded, active, charge), format, options, runs, choices);
    let mut response = match streams {
        true => answer.stream(),
        false => {
            let whole = answer.whole().await?;
            // An answer with long lists takes a while to be written as JSON.
            let written = tokio::task::spawn_blocking(move || json(&whole)).await;
            written
                .map_err(|error| ApiError::internal(format!("the answer could not be written: {error}")))?
        }
    };
    let ignored = ignored.paths().join(", ");
    if let Ok(value) = HeaderValue::from_str(&ignored)
        && !ignored.is_empty()
    {
        response.headers_mut().insert("x-moi-ignored", value);
    }
    Ok(response)
}

/// A response with a JSON body.
pub(crate) fn json(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An id that no other answer has; `prefix` includes its separator.
pub(crate) fn new_id(prefix: &str) -> String {
    let random = || RandomState::new().hash_one(0);
    format!("{prefix}{:016x}{:08x}", random(), random() >> 32)
}

/// Refuses a prompt that leaves no room for a token.
pub(crate) fn check_length(tokens: usize, loaded: &Loaded, param: &str) -> Result<(), ApiError> {
    let context = loaded.model.context_length;
    if tokens < context {
        return Ok(());
    }
    let message =
        format!("the prompt has {tokens} tokens, and the model's context holds {context}; shorten it");
    Err(ApiError::invalid("context_length_exceeded", message).of(param))
}
