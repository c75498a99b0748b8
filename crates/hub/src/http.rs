//! HTTP requests to a hub: headers, redirects and retries. Addresses, and the requests for lists and contents, are
//! those of the crate hf-hub; docs/architecture/hub.md explains what is implemented here instead, and why.

use std::{io, path::PathBuf, sync::OnceLock, time::Duration};

use hf_hub::{
    Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiRepo},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::{
    Agent, Body, RequestBuilder,
    http::{HeaderValue, Response, StatusCode, header},
    typestate::WithoutBody,
};
use url::Url;

use crate::{
    FetchError, environment,
    redirect::{self, text},
    retry::{self, AttemptError, Retry},
};

/// Timeout for the hub to answer before another source is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for the content of one answer. The rest is then requested anew, so that a silently dead connection is
/// noticed. A server that cannot resume must send the whole file within the timeout, which therefore doubles each
/// time.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout for a hub to return the metadata of a file or a repository.
const METADATA_TIMEOUT: Duration = Duration::from_secs(30);
/// The characters that are escaped in a revision: all except RFC 3986's unreserved characters. Slashes are escaped,
/// because they are part of a revision's name.
const REVISION: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The characters that are escaped in the path of a file, whose slashes stay.
const FILE: &AsciiSet = &REVISION.remove(b'/');
/// Most bytes of a hub's JSON document.
const MAX_JSON_BYTES: u64 = 32 << 20;

/// A client of one hub.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) endpoint: String,
    pub(crate) quiet: bool,
    /// The pause before the second attempt; it doubles before each further one.
    pub(crate) pause: Duration,
    /// The timeout for the content of the first answer.
    pub(crate) patience: Duration,
    pub(crate) token: Option<String>,
    /// The directory of the hub's own cache, which holds repositories outside the catalogue and other tools'
    /// downloads.
    pub(crate) hub_cache: Option<PathBuf>,
    /// hf-hub's client with these settings, built at the first request: requests share its connections. Whoever changes
    /// a setting replaces it.
    pub(crate) api: OnceLock<Api>,
    /// The agent of HEAD requests.
    agent: Agent,
}

/// The timeouts of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// The timeout until the answer begins.
    answer: Duration,
    /// The timeout until the whole answer is received.
    body: Duration,
}

impl Timeouts {
    /// The timeouts for small documents.
    fn of_metadata() -> Self {
        Self { answer: environment::etag_timeout().unwrap_or(METADATA_TIMEOUT), body: BODY_TIMEOUT }
    }

    /// The timeouts for contents, where one answer may take as long as `body`.
    pub(crate) fn of_content(body: Duration) -> Self {
        Self { answer: environment::download_timeout().unwrap_or(BODY_TIMEOUT), body }
    }

    /// Sets the timeouts, and turns off ureq's redirects: they are followed by this client, which knows what hosts
    /// may see the token.
    fn apply(self, request: RequestBuilder<WithoutBody>) -> RequestBuilder<WithoutBody> {
        request
            .config()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT * 2))
            .timeout_per_read(environment::download_timeout())
            .timeout_recv_response(Some(self.answer))
            .timeout_recv_body(Some(self.body))
            .build()
    }
}

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpRequest {
    /// The metadata of a file from the hub itself: redirects to other hosts, which store the contents, are not
    /// followed.
    Metadata,
    /// The content at an address, following all redirects, from this byte on.
    Content { from: u64 },
}

impl Client {
    pub(crate) fn new(endpoint: &str) -> Self {
        let endpoint = environment::trimmed(endpoint).to_owned();
        let token = environment::token();
        let (pause, patience) = (Duration::from_secs(1), BODY_TIMEOUT);
        let (hub_cache, agent) = (environment::hub_cache(), Agent::new_with_defaults());
        Self { endpoint, quiet: false, pause, patience, token, hub_cache, api: OnceLock::new(), agent }
    }

    /// hf-hub's client for this hub.
    fn api(&self) -> Result<&Api, AttemptError> {
        self.bearer()?;
        if let Some(api) = self.api.get() {
            return Ok(api);
        }
        // Without a path, hf-hub searches its cache itself, and panics if there is no home directory.
        let cache = hf_hub::Cache::new(self.hub_cache.clone().unwrap_or_default());
        let builder = ApiBuilder::from_cache(cache)
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_user_agent("moi", env!("CARGO_PKG_VERSION"));
        let api = builder.build().map_err(|error| AttemptError::Refused(error.to_string()))?;
        Ok(self.api.get_or_init(|| api))
    }

    /// A revision of a repository, as hf-hub addresses it. hf-hub only escapes the slashes of revisions, so other
    /// characters are escaped here.
    fn repository(&self, id: &str, revision: &str) -> Result<ApiRepo, AttemptError> {
        let revision = utf8_percent_encode(revision, REVISION).to_string();
        Ok(self.api()?.repo(Repo::with_revision(id.to_owned(), RepoType::Model, revision)))
    }

    /// The address of a file on the hub.
    pub(crate) fn file_url(&self, id: &str, revision: &str, file: &str) -> Result<String, AttemptError> {
        Ok(self.repository(id, revision)?.url(&utf8_percent_encode(file, FILE).to_string()))
    }

    /// The address at which the hub describes a revision: its commit and its files.
    pub(crate) fn info_url(&self, id: &str, revision: &str) -> Result<String, AttemptError> {
        let request = self.repository(id, revision)?.info_request();
        let url = request.uri_ref().map(ToString::to_string);
        url.ok_or_else(|| AttemptError::Refused(format!("{}: no address", self.endpoint)))
    }

    /// Checks that the hub answers at all, with whatever status.
    pub(crate) fn check_reachable(&self) -> Result<(), FetchError> {
        if let Some(variable) = environment::offline() {
            return Err(self.unreachable(format!("{variable} is set")));
        }
        if !Url::parse(&self.endpoint).is_ok_and(|url| redirect::is_web(&url)) {
            let expected = "it is no address; HF_ENDPOINT has to be one like https://huggingface.co";
            return Err(self.unreachable(expected.to_owned()));
        }
        let config = Agent::config_builder()
            .timeout_global(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false);
        match Agent::from(config.build()).head(&self.endpoint).call() {
            Ok(_) => Ok(()),
            // A server accepted the connection, so the hub counts as reachable: later requests are retried, but this
            // one is not.
            Err(ureq::Error::Io(error)) if is_reset(&error) => Ok(()),
            Err(error) => Err(self.unreachable(error.to_string())),
        }
    }

    pub(crate) fn unreachable(&self, reason: String) -> FetchError {
        FetchError::Unreachable { endpoint: self.endpoint.clone(), reason }
    }

    /// Sends one request and follows its redirects. An answer that another attempt may change is an error.
    pub(crate) fn ask(
        &self,
        timeouts: Timeouts,
        request: HttpRequest,
        url: &str,
    ) -> Result<Response<Body>, AttemptError> {
        let parsed = |address: &str| {
            Url::parse(address)
                .map_err(|error| AttemptError::Refused(format!("`{address}` is no address: {error}")))
        };
        let (endpoint, mut url) = (parsed(&self.endpoint)?, parsed(url)?);
        for _ in 0..=redirect::REDIRECTS {
            let answer = self.send(timeouts, request, &endpoint, &url)?;
            if let Some(failure) = retry::passing_failure(&answer) {
                return Err(AttemptError::Transient(failure));
            }
            let Some(target) = redirect::target(&url, &answer).map_err(AttemptError::Refused)? else {
                return Ok(answer);
            };
            if request == HttpRequest::Metadata && !redirect::stays_on_hub(&endpoint, &url, &target) {
                return Ok(answer);
            }
            url = target;
        }
        Err(AttemptError::Refused(format!(
            "it redirects more than {} times, in a circle",
            redirect::REDIRECTS
        )))
    }

    /// Sends one request.
    fn send(
        &self,
        timeouts: Timeouts,
        request: HttpRequest,
        endpoint: &Url,
        url: &Url,
    ) -> Result<Response<Body>, AttemptError> {
        let may_see_token = redirect::may_see_token(endpoint, url);
        let (builder, from) = match request {
            HttpRequest::Metadata => (self.head(url, may_see_token)?, 0),
            HttpRequest::Content { from } => (self.get(url, may_see_token)?, from),
        };
        // The length of a compressed answer would differ from the file's.
        let mut builder = builder.header(header::ACCEPT_ENCODING, "identity");
        if from > 0 {
            builder = builder.header(header::RANGE, format!("bytes={from}-"));
        }
        timeouts.apply(builder).call().map_err(AttemptError::from)
    }

    /// hf-hub's request for this address, with its headers.
    fn get(&self, url: &Url, may_see_token: bool) -> Result<RequestBuilder<WithoutBody>, AttemptError> {
        let mut builder = self.api()?.model(String::new()).info_request().uri(url.as_str());
        if let Some(headers) = builder.headers_mut().filter(|_| !may_see_token) {
            headers.remove(header::AUTHORIZATION);
        }
        Ok(builder)
    }

    /// A HEAD request. hf-hub has none: it requests the first byte instead, which not every mirror can send.
    fn head(&self, url: &Url, may_see_token: bool) -> Result<RequestBuilder<WithoutBody>, AttemptError> {
        let builder = self
            .agent
            .head(url.as_str())
            .header(header::USER_AGENT, concat!("moi/", env!("CARGO_PKG_VERSION")));
        Ok(match self.bearer()?.filter(|_| may_see_token) {
            Some(token) => builder.header(header::AUTHORIZATION, token),
            None => builder,
        })
    }

    /// The authorization header with the user's token.
    fn bearer(&self) -> Result<Option<HeaderValue>, AttemptError> {
        let token = self.token.as_ref().map(|token| HeaderValue::try_from(format!("Bearer {token}")));
        // The error of a request would not say which header is invalid.
        token.transpose().map_err(|_| AttemptError::Refused(BAD_TOKEN.to_owned()))
    }

    /// Repeats an attempt while its failure may be temporary. The error says whether the last attempt was refused.
    /// `say` receives messages about pauses.
    pub(crate) fn repeat<T>(
        &self,
        what: &str,
        say: &mut dyn FnMut(&str),
        mut attempt: impl FnMut(Timeouts) -> Result<T, AttemptError>,
    ) -> Result<T, NoAnswer> {
        let (timeouts, mut retry) = (Timeouts::of_metadata(), Retry::new(what, self.pause));
        loop {
            match attempt(timeouts) {
                Ok(found) => return Ok(found),
                Err(AttemptError::Transient(failure)) => {
                    retry.again(failure, false, say).map_err(NoAnswer::Unreachable)?
                }
                Err(AttemptError::Unreachable(reason)) => return Err(NoAnswer::Unreachable(reason)),
                Err(AttemptError::Refused(reason)) => return Err(NoAnswer::Refused(reason)),
                Err(AttemptError::Disk(error)) => return Err(NoAnswer::Refused(error.to_string())),
            }
        }
    }

    /// Requests a JSON document.
    ///
    /// # Errors
    /// `Unreachable` if there is no connection or every attempt failed in a way that may pass, so that the caller may use cached files.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        what: &str,
        say: &mut dyn FnMut(&str),
    ) -> Result<T, FetchError> {
        let found = self.repeat(what, say, |timeouts| {
            let mut answer = self.ask(timeouts, HttpRequest::Content { from: 0 }, url)?;
            check(&answer).map_err(AttemptError::Refused)?;
            let body = answer.body_mut().with_config().limit(MAX_JSON_BYTES).read_to_vec();
            let body: Vec<u8> = body.map_err(|error| match error {
                ureq::Error::BodyExceedsLimit(_) => AttemptError::Refused(error.to_string()),
                _ => AttemptError::transient(error.to_string()),
            })?;
            moi_files::json::<T>(&body).map_err(|error| {
                AttemptError::Refused(format!(
                    "the answer is not what a hub says: {error}; check HF_ENDPOINT"
                ))
            })
        });
        found.map_err(|none| match none {
            NoAnswer::Unreachable(reason) => self.unreachable(reason),
            NoAnswer::Refused(reason) => FetchError::Hub { what: what.to_owned(), reason },
        })
    }
}

/// Why there is no answer after all attempts.
pub(crate) enum NoAnswer {
    /// There is no connection, or every attempt failed temporarily.
    Unreachable(String),
    /// The hub does not have the requested file or document.
    Refused(String),
}

/// Whether a connection was made and then broke off.
fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Refuses unsuccessful answers, and HTML pages that a proxy has put in place of the file.
fn check(answer: &Response<Body>) -> Result<(), String> {
    check_status(answer)?;
    match is_page(answer) {
        true => Err(PAGE.to_owned()),
        false => Ok(()),
    }
}

/// The error for a token that cannot be sent; it must not contain the token itself.
const BAD_TOKEN: &str = "the token has a character in it that no request can carry, a line break for example; set \
                         HF_TOKEN, or the file that HF_TOKEN_PATH names, to the token alone";

/// The error for an HTML page.
pub(crate) const PAGE: &str =
    "it answered with an HTML page where a file was expected; a proxy or a login page may be in the way";

/// Whether an answer is an HTML page.
pub(crate) fn is_page(answer: &Response<Body>) -> bool {
    text(answer, "content-type").is_some_and(|kind| kind.starts_with("text/html"))
}

/// Refuses an unsuccessful status.
pub(crate) fn check_status(answer: &Response<Body>) -> Result<(), String> {
    let status = answer.status();
    let hint = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; it may be private or gated: accept its terms on the hub and set HF_TOKEN"
        }
        StatusCode::NOT_FOUND => "; there is no such file, revision or repository",
        _ => "",
    };
    match status.is_success() {
        true => Ok(()),
        false => Err(format!("it answered {status}{hint}")),
    }
}

/// The length that an answer's header announces, if it is the file's length.
pub(crate) fn announced_length(answer: &Response<Body>) -> Option<u64> {
    match foreign_encoding(answer) {
        Some(_) => None,
        None => text(answer, "content-length")?.trim().parse().ok(),
    }
}

/// The encoding of an answer's content, if it differs from the file's.
pub(crate) fn foreign_encoding(answer: &Response<Body>) -> Option<&str> {
    text(answer, "content-encoding").filter(|encoding| !encoding.eq_ignore_ascii_case("identity"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    fn file_url(endpoint: &str, revision: &str, file: &str) -> String {
        Client::new(endpoint).file_url("owner/name", revision, file).ok().unwrap()
    }

    #[test]
    fn addresses() {
        let url = file_url("http://hub/", "refs/pr/1", "a b/c.gguf");
        assert_eq!(url, "http://hub/owner/name/resolve/refs%2Fpr%2F1/a%20b/c.gguf");
        let stays = "azAZ09-._~";
        assert_eq!(file_url("", stays, stays), format!("/owner/name/resolve/{stays}/{stays}"));
        let url = file_url("", "+@", "a+b%20?#&=:\u{7f}\n/ü.gguf");
        assert_eq!(url, "/owner/name/resolve/%2B%40/a%2Bb%2520%3F%23%26%3D%3A%7F%0A/%C3%BC.gguf");
        let url = Client::new("http://hub/base").info_url("owner/name", "refs/pr/1").ok().unwrap();
        assert_eq!(url, "http://hub/base/api/models/owner/name/revision/refs%2Fpr%2F1");
    }
}
