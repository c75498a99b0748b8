//! The response to a request that is refused or fails: its status, and OpenAI's error object.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use moi_engine::{EngineError, Refusal, TokenUse};
use moi_text::TextError;
use serde_json::{Value, json};

/// An error in the format of OpenAI's API.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// `type` of the error object.
    pub(crate) kind: &'static str,
    pub(crate) code: Option<&'static str>,
    /// The path of the value that is wrong: `messages[2].content[0].type`.
    pub(crate) param: Option<String>,
    pub(crate) message: String,
    /// Seconds after which the client may send the same request again.
    pub(crate) retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: Some(code), param: None, message: message.into(), retry_after: None }
    }

    /// An error that the client can fix.
    pub(crate) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, code, message)
    }

    /// A value that is not allowed.
    pub(crate) fn value(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid("invalid_value", message).of(param)
    }

    /// A field that is known but not implemented.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::invalid("unsupported_parameter", message).of(param)
    }

    /// Sets the path of the wrong value.
    pub(crate) fn of(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// Renames fields for an API other than chat completions. `words` are pairs of a field's name in chat completions
    /// and in the other API. Fields of a function's definition are fields of the tool itself in the other API.
    /// Without any words the API is that of chat completions, and nothing changes.
    pub(crate) fn in_words(mut self, words: &[(&str, &str)]) -> Self {
        let Some(path) = self.param.as_ref().filter(|_| !words.is_empty()) else { return self };
        let mut other = path.replace("].function.", "].");
        for (theirs, ours) in words {
            let ends = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
            if let Some(rest) = other.strip_prefix(theirs).filter(|rest| ends(rest)) {
                other = format!("{ours}{rest}");
            } else if let Some(rest) = other.strip_suffix(theirs).filter(|rest| rest.ends_with("].")) {
                other = format!("{rest}{ours}");
            }
        }
        if &other != path {
            // Without backticks, within a sentence, it is an ordinary word.
            self.message = self.message.replace(&format!("`{path}`"), &format!("`{other}`"));
            let ends = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_');
            if let Some(rest) = self.message.strip_prefix(path.as_str()).filter(|rest| ends(rest)) {
                self.message = format!("{other}{rest}");
            }
            self.param = Some(other);
        }
        self
    }

    /// The key is missing or wrong.
    pub(crate) fn unauthorized() -> Self {
        let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key", message)
    }

    /// A host or origin that is not allowed.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", "forbidden", message)
    }

    /// A route that does not exist.
    pub(crate) fn no_route(path: &str) -> Self {
        let message = format!("there is no route {path}; GET /openapi.json lists all");
        Self::new(StatusCode::NOT_FOUND, INVALID, "unknown_url", message)
    }

    /// A model that is not served.
    pub(crate) fn no_model(name: &str, served: &[String]) -> Self {
        let message = format!("the model `{name}` is not served here; there is: {}", served.join(", "));
        Self::new(StatusCode::NOT_FOUND, INVALID, "model_not_found", message).of("model")
    }

    /// A method that the route does not have.
    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", message)
    }

    /// A body that has too many bytes.
    pub(crate) fn too_large(most: usize) -> Self {
        let message = format!("the body has more than {most} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "request_too_large", message)
    }

    /// A body whose content type is not JSON.
    pub(crate) fn not_json() -> Self {
        let message = "the content type must be application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type", message)
    }

    /// A body that is compressed.
    pub(crate) fn encoded() -> Self {
        let message = "the body must not be compressed";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_media_type", message)
    }

    /// A body that does not arrive in time.
    pub(crate) fn slow_body() -> Self {
        let message = "the body did not come in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout", message)
    }

    /// Too much was asked for. The client may ask again after this many seconds.
    pub(crate) fn rate_limited(message: impl Into<String>, seconds: u32) -> Self {
        let (status, kind) = (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error");
        Self { retry_after: Some(seconds), ..Self::new(status, kind, "rate_limit_exceeded", message) }
    }

    /// The model is being loaded, or the server is about to stop.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, "unavailable", message);
        Self { retry_after: Some(1), ..error }
    }

    /// An error of the server itself.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { code: None, ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "", message) }
    }

    /// The error object.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        }})
    }

    /// The error as an HTTP response.
    pub(crate) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        /// The longest time, in seconds, that clients wait by themselves before they send a request again.
        const MAX_RETRY_AFTER: u32 = 60;
        let is_long = self.retry_after.is_some_and(|seconds| seconds > MAX_RETRY_AFTER);
        if self.status == StatusCode::INTERNAL_SERVER_ERROR || is_long {
            // OpenAI's clients would otherwise send the request twice more, and it would fail again.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::PromptTooLong { .. } => Self::invalid("context_length_exceeded", message),
            EngineError::Grammar(_) => Self::invalid("invalid_schema", message),
            EngineError::Text(error) => error.into(),
            EngineError::Busy(_) => Self::unavailable(message),
            EngineError::Rule(_) => Self::value("moi.rule", message),
            EngineError::UnknownToken { what, .. } => Self::value(field_of(what), message),
            EngineError::TokenOutsideVocabulary { .. } | EngineError::EmptyPrompt => {
                Self::value("prompt", message)
            }
            EngineError::NothingAllowed => Self::value("allowed_token_ids", message),
            EngineError::MinAboveMax { .. } => Self::value("min_tokens", message),
            EngineError::MaxTokensZero => Self::value("max_tokens", message),
            EngineError::EmptyStopString => Self::value("stop", message),
            EngineError::EmptyBadWord => Self::value("bad_words", message),
            EngineError::EmbeddingWidth { .. } => Self::value("prompt_embeds", message),
            EngineError::NoSpeculation(_) | EngineError::NoDraftModel => {
                Self::value("moi.speculate", message)
            }
            EngineError::DraftMinP { .. } => Self::value("moi.draft_min_p", message),
            EngineError::DraftTokensZero => Self::value("moi.draft_tokens", message),
            EngineError::DraftBudget { .. } => Self::value("moi.draft_budget", message),
            EngineError::NoSampledDrafts { .. } => Self::value("moi.verify", message),
            EngineError::SpeculateTolerance { .. } => Self::value("moi.speculate_tolerance", message),
            EngineError::SpeculateWindow { .. } => Self::value("moi.speculate_window", message),
            EngineError::Sampling(_)
            | EngineError::ForeignRequest
            | EngineError::NoTokenizer(_)
            | EngineError::NoBreakers => Self::invalid("invalid_value", message),
            EngineError::Model(_)
            | EngineError::Mix(_)
            | EngineError::Device(_)
            | EngineError::Round(_)
            | EngineError::BadLogits { .. }
            | EngineError::Reading(_) => Self::internal(message),
        }
    }
}

/// The request field that names a token for this use.
fn field_of(what: TokenUse) -> &'static str {
    match what {
        TokenUse::Biased => "logit_bias",
        TokenUse::Forced => "moi.force",
        TokenUse::Allowed => "allowed_token_ids",
        TokenUse::Banned | TokenUse::BadWord => "bad_words",
        TokenUse::Stop => "stop_token_ids",
        TokenUse::Marker => "model",
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::Template { what, .. } => {
                let message = format!("the model's chat template refuses the conversation: {what}");
                Self::invalid("template_error", message).of("messages")
            }
            error => Self::invalid("invalid_value", error.to_string()),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::Request(error) => error.into(),
            Refusal::TooMany { .. } => Self::value("n", message),
            Refusal::TooLarge { .. } => Self::invalid("context_length_exceeded", message),
            Refusal::QueueFull { .. } => Self::rate_limited(message, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_speak_the_words_of_each_api() {
        let words = [("stop", "stop_sequences"), ("parameters", "input_schema")];
        let renamed = |path: &str| {
            let error = ApiError::value(path, format!("`{path}` is wrong")).in_words(&words);
            (error.param.unwrap_or_default(), error.message)
        };
        let pair = |path: &str| (path.to_owned(), format!("`{path}` is wrong"));
        assert_eq!(renamed("stop"), pair("stop_sequences"));
        assert_eq!(renamed("stop[3]"), pair("stop_sequences[3]"));
        assert_eq!(renamed("stop_token_ids"), pair("stop_token_ids"));
        assert_eq!(renamed("tools[1].function.parameters"), pair("tools[1].input_schema"));
        assert_eq!(renamed("tools[1].function.name"), pair("tools[1].name"));
        assert_eq!(renamed("temperature"), pair("temperature"));
        let said = |path: &str, message: &str| ApiError::value(path, message).in_words(&words).message;
        let would = "an empty text, which would stop every answer";
        assert_eq!(said("stop", &format!("`stop` has {would}")), format!("`stop_sequences` has {would}"));
        assert_eq!(said("stop", "stop: stops"), "stop_sequences: stops");
        assert_eq!(said("stop", "stopping"), "stopping");
    }
}
