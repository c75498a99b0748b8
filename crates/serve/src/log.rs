//! Log lines of answered requests. A thread of its own writes them, because their reader may be slow.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use axum::http::HeaderMap;

use crate::server::Server;

/// What is logged of a request when its answer has ended, or when its client has left before there was one (status
/// 499).
#[derive(Clone, Debug, Default)]
pub struct LogLine {
    /// The `x-request-id` of the request.
    pub id: String,
    /// The trace that it is part of, if its `traceparent` names one (W3C Trace Context).
    pub trace: Option<String>,
    /// The name of the key, or the address, that it came from.
    pub owner: String,
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
    /// How long the answer took, including all of a stream.
    pub took: Duration,
    /// Its prompts, if [`crate::ServeOptions::log_prompts`] asks for them.
    pub prompts: Vec<String>,
    /// What was generated, if it asked for that.
    pub served: Option<Served>,
}

/// What was generated for a request.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// Number of tokens of its prompts.
    pub prompt_tokens: usize,
    /// Number of these tokens that were cached.
    pub cached_tokens: usize,
    /// Number of generated tokens.
    pub completion_tokens: usize,
    /// Time from the request to its first token.
    pub first_token: Option<Duration>,
    /// Why its choices ended: `stop`, `length`, `tool_calls`, `error`, or `abort` where the client left. Each reason once.
    pub finish: Vec<&'static str>,
}

/// The function that writes a log line.
pub(crate) type WriteLine = fn(&LogLine);

/// The thread that writes log lines.
#[derive(Debug)]
pub(crate) struct Logger(SyncSender<Line>);

/// A line to write, and the function that writes it.
#[derive(Debug)]
enum Line {
    Request(WriteLine, Box<LogLine>),
    Note(fn(&str), String),
}

impl Logger {
    /// Starts the thread; `None` if it cannot be started.
    pub(crate) fn start() -> Option<Self> {
        /// How many lines may wait to be written.
        const LINES: usize = 4096;
        let (sender, lines) = sync_channel(LINES);
        let thread = thread::Builder::new().name("log".to_owned());
        let write = |line| match line {
            Line::Request(write, line) => write(&line),
            Line::Note(write, text) => write(&text),
        };
        thread.spawn(move || lines.iter().for_each(write)).ok()?;
        Some(Self(sender))
    }

    /// Queues a log line. It is lost if thousands wait already, because no request should wait for the log.
    pub(crate) fn tell(&self, write: WriteLine, line: LogLine) {
        let _ = self.0.try_send(Line::Request(write, Box::new(line)));
    }

    /// Queues a note about the server. It is lost in the same case.
    pub(crate) fn note(&self, write: fn(&str), text: String) {
        let _ = self.0.try_send(Line::Note(write, text));
    }
}

/// Collects what is logged of a request while it is answered. The line is written when the last user of the record is
/// gone.
#[derive(Debug)]
pub(crate) struct Record {
    server: Arc<Server>,
    pub(crate) begun: Instant,
    /// The route that its path belongs to.
    pub(crate) route: OnceLock<&'static str>,
    line: Mutex<LogLine>,
}

impl Record {
    pub(crate) fn new(server: &Arc<Server>, line: LogLine) -> Self {
        let (route, line) = (OnceLock::new(), Mutex::new(line));
        Self { server: Arc::clone(server), begun: Instant::now(), route, line }
    }

    /// Changes the log line.
    pub(crate) fn note(&self, note: impl FnOnce(&mut LogLine)) {
        note(&mut self.line.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The id of the request.
    pub(crate) fn id(&self) -> String {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).id.clone()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let mut line = std::mem::take(self.line.get_mut().unwrap_or_else(PoisonError::into_inner));
        line.took = self.begun.elapsed();
        self.server.tell(line);
    }
}

/// The trace that a request is part of.
pub(crate) fn trace(headers: &HeaderMap) -> Option<String> {
    let parent = headers.get("traceparent")?.to_str().ok()?;
    let [version, trace, span, _flags] = parent.split('-').take(4).collect::<Vec<_>>().try_into().ok()?;
    let is_hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_known = is_hex(version, 2) && version != "ff" && is_hex(trace, 32) && is_hex(span, 16);
    (is_known && trace.bytes().any(|byte| byte != b'0')).then(|| trace.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn traces_are_read_as_w3c_has_them() {
        let of = |parent: &str| {
            trace(&HeaderMap::from_iter([("traceparent".parse().unwrap(), parent.parse().unwrap())]))
        };
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(of(&format!("00-{id}-00f067aa0ba902b7-01")).as_deref(), Some(id));
        // A later version may have more behind it.
        assert_eq!(of(&format!("01-{id}-00f067aa0ba902b7-01-more")).as_deref(), Some(id));
        let zeros = "0".repeat(32);
        for wrong in [
            String::new(),
            format!("ff-{id}-00f067aa0ba902b7-01"),
            format!("00-{zeros}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
            format!("00-{id}-01"),
        ] {
            assert_eq!(of(&wrong), None, "{wrong}");
        }
        assert_eq!(trace(&HeaderMap::new()), None);
    }
}
