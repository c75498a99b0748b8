//! Decides how often, and after which pauses, a request is retried: the same for metadata, JSON and contents.

use std::{io, thread, time::Duration};

use ureq::{
    Body,
    http::{Response, StatusCode},
};

use crate::{FetchError, redirect::text};

/// Most attempts in a row without progress, as in huggingface_hub.
const ATTEMPTS: u32 = 6;
/// The longest pause, as a multiple of the first one.
const MAX_PAUSE: u32 = 8;
/// The longest pause that a server may ask for. All attempts together then last five minutes, the period after which
/// the public hub resets its rate limit.
const MAX_ASKED: Duration = Duration::from_secs(60);

/// Why an attempt failed.
pub(crate) enum AttemptError {
    /// The connection broke or the server is busy; another attempt may succeed.
    Transient(Failure),
    /// There is no connection, and another attempt would not make one.
    Unreachable(String),
    /// The server does not have the file, or the request is invalid.
    Refused(String),
    /// The file cannot be written.
    Disk(io::Error),
}

/// A temporary failure.
pub(crate) struct Failure {
    pub(crate) reason: String,
    /// The pause that the server asked for.
    pub(crate) asked: Option<Duration>,
}

impl AttemptError {
    /// A broken connection, or another temporary failure without a requested pause.
    pub(crate) fn transient(reason: impl Into<String>) -> Self {
        Self::Transient(Failure { reason: reason.into(), asked: None })
    }
}

impl AttemptError {
    /// The error for a request that is not retried.
    pub(crate) fn refusal(self, what: &str) -> FetchError {
        let reason = match self {
            Self::Transient(failure) => failure.reason,
            Self::Unreachable(reason) | Self::Refused(reason) => reason,
            Self::Disk(error) => error.to_string(),
        };
        FetchError::Hub { what: what.to_owned(), reason }
    }
}

impl From<ureq::Error> for AttemptError {
    /// Converts the error of a request that got no answer.
    fn from(error: ureq::Error) -> Self {
        match is_lasting(&error) {
            true => Self::Unreachable(error.to_string()),
            false => Self::transient(error.to_string()),
        }
    }
}

/// Whether a request fails in the same way on every attempt. A host name that is not found does not count, because
/// the name server may be busy.
fn is_lasting(error: &ureq::Error) -> bool {
    use ureq::Error;
    match error {
        Error::Http(_)
        | Error::BadUri(_)
        | Error::Protocol(_)
        | Error::InvalidProxyUrl
        | Error::Tls(_)
        | Error::Pem(_)
        | Error::Rustls(_)
        | Error::RequireHttpsOnly(_)
        | Error::LargeResponseHeader(..)
        | Error::TlsRequired => true,
        // Errors of rustls in a handshake, such as an untrusted certificate, have this kind.
        Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// Counts attempts without progress, and pauses between them.
pub(crate) struct Retry<'a> {
    /// The name of the file or document in messages to the user.
    what: &'a str,
    /// The pause before the second attempt; it doubles before each further one.
    pause: Duration,
    failed: u32,
}

impl<'a> Retry<'a> {
    pub(crate) fn new(what: &'a str, pause: Duration) -> Self {
        Self { what, pause, failed: 0 }
    }

    /// Pauses before the next attempt. An attempt with progress resets the count. `say` is told the reason and the
    /// length of the pause, unless the last attempt made progress: then the progress bar shows it, and the pause is
    /// short.
    ///
    /// # Errors
    /// The reason, if there were too many attempts without progress.
    pub(crate) fn again(
        &mut self,
        failure: Failure,
        progressed: bool,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), String> {
        self.failed = if progressed { 0 } else { self.failed + 1 };
        if self.failed >= ATTEMPTS {
            return Err(format!("{}, {} times in a row", failure.reason, self.failed));
        }
        let pause: Duration = pause(self.pause, self.failed, failure.asked);
        if !progressed {
            let (what, reason) = (self.what, &failure.reason);
            say(&format!("{what}: {reason}; attempt {} of {ATTEMPTS} in {pause:?}", self.failed + 1));
        }
        thread::sleep(pause);
        Ok(())
    }
}

/// The pause after this many failures.
fn pause(first: Duration, failed: u32, asked: Option<Duration>) -> Duration {
    match asked {
        Some(asked) => asked.min(MAX_ASKED),
        None => first * 2u32.saturating_pow(failed.saturating_sub(1)).min(MAX_PAUSE),
    }
}

/// The temporary failure in an answer; `None` if another attempt would not change the answer.
pub(crate) fn passing_failure(answer: &Response<Body>) -> Option<Failure> {
    let status = answer.status();
    if !is_passing(status) {
        return None;
    }
    let asked = text(answer, "ratelimit")
        .filter(|_| status == StatusCode::TOO_MANY_REQUESTS)
        .and_then(rate_limit_reset)
        .or_else(|| text(answer, "retry-after").and_then(seconds));
    Some(Failure { reason: format!("it answered {status}"), asked })
}

/// Whether a status is temporary: timeouts, rate limits, and errors of servers or gateways, except those that a
/// server will always return.
fn is_passing(status: StatusCode) -> bool {
    let never = [StatusCode::NOT_IMPLEMENTED, StatusCode::HTTP_VERSION_NOT_SUPPORTED];
    let limits = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    limits.contains(&status) || (status.is_server_error() && !never.contains(&status))
}

/// Parses a number of seconds; dates are ignored, as in huggingface_hub.
fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

/// The time until the public hub resets its rate limit, if no requests are left until then: `"api";r=0;t=55`.
fn rate_limit_reset(header: &str) -> Option<Duration> {
    let field = |name: &str| {
        let mut fields = header.split(';').filter_map(|field| field.split_once('='));
        fields.find(|(known, _)| known.trim() == name).map(|(_, value)| value.trim())
    };
    if field("r") != Some("0") {
        return None;
    }
    seconds(field("t")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        let first = Duration::from_secs(1);
        let pauses: Vec<u64> = (0..7).map(|failed| pause(first, failed, None).as_secs()).collect();
        assert_eq!(pauses, [1, 1, 2, 4, 8, 8, 8]);
        assert_eq!(pause(first, 1, Some(Duration::from_secs(3))).as_secs(), 3);
        assert_eq!(pause(first, 1, Some(Duration::from_secs(86_400))), MAX_ASKED);
        assert_eq!(pause(first, 1, Some(Duration::ZERO)), Duration::ZERO);
    }

    #[test]
    fn statuses_that_pass() {
        let passing = |status: u16| StatusCode::from_u16(status).is_ok_and(is_passing);
        assert!([408, 429, 500, 502, 503, 504, 520, 524].into_iter().all(passing));
        assert!(![200, 206, 302, 400, 401, 403, 404, 405, 410, 416, 501, 505].into_iter().any(passing));
    }

    #[test]
    fn what_servers_ask_for() {
        assert_eq!(seconds(" 120 "), Some(Duration::from_secs(120)));
        for other in ["", "-1", "1.5", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(seconds(other), None, "{other}");
        }
        assert_eq!(rate_limit_reset(r#""api";r=0;t=55"#), Some(Duration::from_secs(55)));
        assert_eq!(rate_limit_reset(r#""api"; r = 0; t = 5"#), Some(Duration::from_secs(5)));
        for other in [r#""api";r=12;t=55"#, r#""api";t=55"#, r#""api";r=0"#, ""] {
            assert_eq!(rate_limit_reset(other), None, "{other}");
        }
    }

    #[test]
    fn attempts_are_bounded_unless_they_bring_something() {
        let mut retry = Retry::new("a.gguf", Duration::ZERO);
        let failure = || Failure { reason: "it broke".to_owned(), asked: None };
        let mut said: Vec<String> = Vec::new();
        let mut say = |line: &str| said.push(line.to_owned());
        for _ in 0..20 {
            assert!(retry.again(failure(), true, &mut say).is_ok());
        }
        for _ in 1..ATTEMPTS {
            assert!(retry.again(failure(), false, &mut say).is_ok());
        }
        let last = retry.again(failure(), false, &mut say);
        assert_eq!(last, Err("it broke, 6 times in a row".to_owned()));
        assert_eq!(said.len(), 5);
        assert_eq!(said[0], "a.gguf: it broke; attempt 2 of 6 in 0ns");
    }

    #[test]
    fn errors_that_last() {
        let io_error = |kind: io::ErrorKind| ureq::Error::Io(kind.into());
        for error in [
            io_error(io::ErrorKind::InvalidData),
            ureq::Error::BadUri("x is missing host".to_owned()),
            ureq::Error::Tls("no name"),
            ureq::Error::TlsRequired,
        ] {
            assert!(is_lasting(&error), "{error}");
        }
        for error in [
            io_error(io::ErrorKind::ConnectionReset),
            io_error(io::ErrorKind::UnexpectedEof),
            io_error(io::ErrorKind::ConnectionRefused),
            ureq::Error::Timeout(ureq::Timeout::RecvResponse),
            ureq::Error::HostNotFound,
            ureq::Error::ConnectionFailed,
        ] {
            assert!(!is_lasting(&error), "{error}");
        }
    }
}
