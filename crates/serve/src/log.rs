//! Lines of requests that were answered, written by a thread of their own: whoever reads them may be slow.

use std::{
    sync::mpsc::{SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// What is told of a request that was answered, or whose client has left (status 499). No prompt, and no answer.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// Of the request.
    pub id: String,
    /// The name of the key, or the address, that it came from.
    pub owner: String,
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
    /// How long the answer, or the beginning of a stream, took.
    pub took: Duration,
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct Logger(SyncSender<LogLine>);

impl Logger {
    /// Starts it; none where no thread can be started.
    pub(crate) fn start(write: fn(&LogLine)) -> Option<Self> {
        /// Lines that wait to be written.
        const LINES: usize = 4096;
        let (sender, lines) = sync_channel::<LogLine>(LINES);
        let thread = thread::Builder::new().name("log".to_owned());
        thread.spawn(move || lines.iter().for_each(|line| write(&line))).ok()?;
        Some(Self(sender))
    }

    /// Has a line written. It is lost where thousands wait already: nobody waits for a log.
    pub(crate) fn tell(&self, line: LogLine) {
        let _ = self.0.try_send(line);
    }
}
