//! Requests to a hub: their headers, their redirects, and how often they are tried.

use std::{io, time::Duration};

use ureq::{
    Agent, Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use url::Url;

use crate::{
    FetchError, environment,
    redirect::{self, text},
    retry::{self, AttemptError, Retry},
};

/// How long the hub may take to answer before another source is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one answer may take to come in; what is left is then asked for anew, so that a connection that has died
/// without a word is noticed. Of a server that cannot send what is left alone it is all of it, with twice as long each
/// time.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a hub may take to say what a file or a repository is.
const METADATA_TIMEOUT: Duration = Duration::from_secs(30);
/// No document of a hub is longer.
const MOST_JSON_BYTES: u64 = 32 << 20;

/// A hub.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) endpoint: String,
    pub(crate) quiet: bool,
    /// Before the second attempt; twice as long before each further one.
    pub(crate) pause: Duration,
    /// How long the first answer may take to come in.
    pub(crate) patience: Duration,
    pub(crate) token: Option<String>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// What a file is, as the hub itself has it: redirects to other hosts, where contents lie, are not followed.
    Metadata,
    /// What lies at an address, wherever that leads, from this byte on.
    Content { from: u64 },
}

impl Client {
    pub(crate) fn new(endpoint: &str) -> Self {
        let endpoint = environment::trimmed(endpoint).to_owned();
        let token = environment::token();
        Self { endpoint, quiet: false, pause: Duration::from_secs(1), patience: BODY_TIMEOUT, token }
    }

    /// An agent that follows no redirects by itself.
    fn agent(&self, answer: Duration, body: Duration) -> Agent {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("moi/", env!("CARGO_PKG_VERSION")))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT * 2))
            .timeout_per_read(environment::download_timeout())
            .timeout_recv_response(Some(answer))
            .timeout_recv_body(Some(body));
        config.build().into()
    }

    /// An agent for small documents.
    fn metadata_agent(&self) -> Agent {
        let answer = environment::etag_timeout().unwrap_or(METADATA_TIMEOUT);
        self.agent(answer, BODY_TIMEOUT)
    }

    /// An agent for contents, of which one answer may take so long.
    pub(crate) fn content_agent(&self, patience: Duration) -> Agent {
        let answer = environment::download_timeout().unwrap_or(BODY_TIMEOUT);
        self.agent(answer, patience)
    }

    /// Whether the hub answers at all, whatever it says.
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
            // Somebody took the connection: the requests that follow are tried several times, this one is not.
            Err(ureq::Error::Io(error)) if is_reset(&error) => Ok(()),
            Err(error) => Err(self.unreachable(error.to_string())),
        }
    }

    pub(crate) fn unreachable(&self, reason: String) -> FetchError {
        FetchError::Unreachable { endpoint: self.endpoint.clone(), reason }
    }

    /// Sends one request and follows its redirects; answers that another attempt may change are errors.
    pub(crate) fn ask(
        &self,
        agent: &Agent,
        request: Request,
        url: &str,
    ) -> Result<Response<Body>, AttemptError> {
        let parsed = |address: &str| {
            Url::parse(address)
                .map_err(|error| AttemptError::Refused(format!("`{address}` is no address: {error}")))
        };
        let (endpoint, mut url) = (parsed(&self.endpoint)?, parsed(url)?);
        for _ in 0..=redirect::REDIRECTS {
            let answer = self.send(agent, request, &endpoint, &url)?;
            if let Some(failure) = retry::passing_failure(&answer) {
                return Err(AttemptError::Transient(failure));
            }
            let Some(target) = redirect::target(&url, &answer).map_err(AttemptError::Refused)? else {
                return Ok(answer);
            };
            if request == Request::Metadata && !redirect::stays_on_hub(&endpoint, &url, &target) {
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
        agent: &Agent,
        request: Request,
        endpoint: &Url,
        url: &Url,
    ) -> Result<Response<Body>, AttemptError> {
        let (mut builder, from) = match request {
            Request::Metadata => (agent.head(url.as_str()), 0),
            Request::Content { from } => (agent.get(url.as_str()), from),
        };
        // The length of a compressed answer is not the file's.
        builder = builder.header(header::ACCEPT_ENCODING, "identity");
        if let Some(token) = self.token.as_ref().filter(|_| redirect::may_see_token(endpoint, url)) {
            // The error of the request would not say which header is wrong.
            let value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| AttemptError::Refused(BAD_TOKEN.to_owned()))?;
            builder = builder.header(header::AUTHORIZATION, value);
        }
        if from > 0 {
            builder = builder.header(header::RANGE, format!("bytes={from}-"));
        }
        builder.call().map_err(AttemptError::from)
    }

    /// What an attempt brings, repeated as long as a failure may pass; the error says whether the last one was refused.
    /// `say` is told what is waited for.
    pub(crate) fn repeat<T>(
        &self,
        what: &str,
        say: &mut dyn FnMut(&str),
        mut attempt: impl FnMut(&Agent) -> Result<T, AttemptError>,
    ) -> Result<T, NoAnswer> {
        let (agent, mut retry) = (self.metadata_agent(), Retry::new(what, self.pause));
        loop {
            match attempt(&agent) {
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

    /// A JSON document.
    ///
    /// # Errors
    /// `Unreachable` if there is no connection or the hub is in trouble for long, so that what was fetched before may be
    /// used.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        url: &str,
        what: &str,
        say: &mut dyn FnMut(&str),
    ) -> Result<T, FetchError> {
        let found = self.repeat(what, say, |agent| {
            let mut answer = self.ask(agent, Request::Content { from: 0 }, url)?;
            check(&answer).map_err(AttemptError::Refused)?;
            let body = answer.body_mut().with_config().limit(MOST_JSON_BYTES).read_to_vec();
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
    /// There is no connection, or each attempt failed in a way that may pass.
    Unreachable(String),
    /// The hub does not have what was asked for.
    Refused(String),
}

/// Whether a connection was made, and then broke off.
fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Refuses what is no success, and pages that something on the way has put in its place.
fn check(answer: &Response<Body>) -> Result<(), String> {
    check_status(answer)?;
    match is_page(answer) {
        true => Err(PAGE.to_owned()),
        false => Ok(()),
    }
}

/// Why a token is refused, which is itself in no message.
const BAD_TOKEN: &str = "the token has a character in it that no request can carry, a line break for example; set \
                         HF_TOKEN, or the file that HF_TOKEN_PATH names, to the token alone";

/// Why a page is refused.
pub(crate) const PAGE: &str =
    "it answered with an HTML page where a file was expected; a proxy or a login page may be in the way";

/// Whether an answer is an HTML page.
pub(crate) fn is_page(answer: &Response<Body>) -> bool {
    text(answer, "content-type").is_some_and(|kind| kind.starts_with("text/html"))
}

/// Refuses what is no success.
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

/// The number of bytes that an answer's header announces, if they are those of the file.
pub(crate) fn announced_length(answer: &Response<Body>) -> Option<u64> {
    match foreign_encoding(answer) {
        Some(_) => None,
        None => text(answer, "content-length")?.trim().parse().ok(),
    }
}

/// How the content is encoded, if it is not as the file is.
pub(crate) fn foreign_encoding(answer: &Response<Body>) -> Option<&str> {
    text(answer, "content-encoding").filter(|encoding| !encoding.eq_ignore_ascii_case("identity"))
}
