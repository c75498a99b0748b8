//! Downloads contents from a hub: interrupted downloads are resumed, and the length is checked against the announced
//! one.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ureq::{
    Body,
    http::{Response, StatusCode},
};

use crate::{
    FetchError,
    http::{Client, HttpRequest, PAGE, Timeouts, announced_length, check_status, foreign_encoding, is_page},
    redirect::text,
    retry::{AttemptError, Retry},
};

/// The longest timeout for the content of one answer.
const MAX_BODY_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// Files below this many bytes have no progress bar, because they arrive at once.
const SMALL: u64 = 1 << 20;

/// A download in progress.
struct Transfer<'a> {
    url: &'a str,
    /// The file's length, once the hub or an answer has stated it.
    size: Option<u64>,
    file: File,
    bar: ProgressBar,
    /// Whether the last attempt had to discard the bytes downloaded before.
    began_anew: bool,
}

impl Transfer<'_> {
    fn have(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Discards the bytes downloaded so far.
    fn restart(&self) -> Result<(), AttemptError> {
        self.file.set_len(0).map_err(AttemptError::Disk)
    }
}

impl Client {
    /// Downloads a file into `part`, continuing after the bytes that an earlier attempt has left there. If the size
    /// is unknown, the first answer states it, or the end of the answer determines it. `say` receives messages about
    /// pauses.
    ///
    /// # Errors
    /// If the hub refuses the file, sends another number of bytes, or the connection breaks repeatedly; the bytes
    /// downloaded until then stay in `part`.
    pub(crate) fn fetch(
        &self,
        url: &str,
        size: Option<u64>,
        part: &Path,
        what: &str,
        say: &mut dyn FnMut(&str),
    ) -> Result<(), FetchError> {
        let io_error = |error| FetchError::Io { path: part.to_owned(), error };
        let refused = |reason: String| FetchError::Hub { what: what.to_owned(), reason };
        let file = File::options().create(true).append(true).open(part).map_err(io_error)?;
        let mut transfer = Transfer { url, size, file, bar: self.bar(size, what), began_anew: false };
        let mut have = transfer.have().map_err(io_error)?;
        if size.is_some_and(|size| have > size) {
            transfer.file.set_len(0).map_err(io_error)?;
            have = 0;
        }
        let mut patience = self.patience;
        let mut retry = Retry::new(what, self.pause);
        // The most bytes so far: a server that cannot resume may repeatedly get as far as before, which is no
        // progress.
        let mut most = have;
        while transfer.size != Some(have) {
            transfer.bar.set_position(have);
            transfer.began_anew = false;
            let before = have;
            let failure = match self.attempt(Timeouts::of_content(patience), &mut transfer) {
                Ok(()) => break,
                Err(AttemptError::Transient(failure)) => failure,
                Err(AttemptError::Unreachable(reason) | AttemptError::Refused(reason)) => {
                    return Err(refused(reason));
                }
                Err(AttemptError::Disk(error)) => return Err(io_error(error)),
            };
            have = transfer.have().map_err(io_error)?;
            let progressed = have > most || (have > before && !transfer.began_anew);
            most = most.max(have);
            if transfer.began_anew {
                patience = (patience * 2).min(MAX_BODY_TIMEOUT);
            }
            if transfer.size == Some(have) {
                break;
            }
            // The bar is suspended, because a line of text would corrupt it.
            let mut say_above_bar = |line: &str| transfer.bar.suspend(|| say(line));
            retry.again(failure, progressed, &mut say_above_bar).map_err(|reason| {
                let of = transfer.size.map(|size| format!(" of {size}")).unwrap_or_default();
                refused(format!("{reason}; {have}{of} bytes are kept for the next try"))
            })?;
        }
        transfer.bar.finish_and_clear();
        // The content must be on disk before the file is renamed.
        transfer.file.sync_all().map_err(io_error)
    }

    /// Requests the missing bytes once; on success, the file is complete.
    fn attempt(&self, timeouts: Timeouts, transfer: &mut Transfer<'_>) -> Result<(), AttemptError> {
        let have = transfer.have().map_err(AttemptError::Disk)?;
        let mut answer = self.ask(timeouts, HttpRequest::Content { from: have }, transfer.url)?;
        let status = answer.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            transfer.restart()?;
            return Err(AttemptError::transient("it cannot resume"));
        }
        check_status(&answer).map_err(AttemptError::Refused)?;
        if let Some(encoding) = foreign_encoding(&answer) {
            return Err(AttemptError::Refused(format!(
                "it sends the file encoded, as {encoding}; a proxy may do that"
            )));
        }
        let partial = status == StatusCode::PARTIAL_CONTENT;
        let range = text(&answer, "content-range").filter(|_| partial).and_then(content_range);
        if partial && range.is_some_and(|range| range.start != have) {
            transfer.restart()?;
            return Err(AttemptError::transient("it resumes at another byte than it was asked for"));
        }
        // Some servers send the rest without stating which bytes it is.
        let offset = if partial { have } else { 0 };
        let total = range.and_then(|range| range.total);
        let total = total.or_else(|| Some(announced_length(&answer)?.saturating_add(offset)));
        announced(&answer, transfer.size, total, offset).map_err(AttemptError::Refused)?;
        if let (None, Some(total)) = (transfer.size, total) {
            transfer.size = Some(total);
            transfer.bar.set_length(total);
        }
        if offset < have {
            // The server cannot resume, and sends the whole file again.
            transfer.began_anew = true;
            transfer.restart()?;
            transfer.bar.set_position(0);
        }
        receive(&mut answer, transfer, offset)
    }

    fn bar(&self, size: Option<u64>, what: &str) -> ProgressBar {
        let style = ProgressStyle::with_template(
            "{msg} [{bar:30}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
        );
        let bar = ProgressBar::new(size.unwrap_or(0));
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        if self.quiet || size.is_some_and(|size| size < SMALL) {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.with_message(what.to_owned())
    }
}

/// Refuses an answer with another length than the file's, or an HTML page in place of the file.
fn announced(
    answer: &Response<Body>,
    size: Option<u64>,
    total: Option<u64>,
    offset: u64,
) -> Result<(), String> {
    // Some servers label every file as HTML, but an answer of the right length is no page.
    if is_page(answer) && (size.is_none() || total != size) {
        return Err(PAGE.to_owned());
    }
    match (total, size) {
        (Some(total), Some(size)) if total != size => {
            let [total, size] = [total, size].map(|length| length.saturating_sub(offset));
            Err(format!("it has {total} bytes to send, expected {size}"))
        }
        _ => Ok(()),
    }
}

/// Appends the body of an answer that begins at `offset`, and checks its length.
fn receive(
    answer: &mut Response<Body>,
    transfer: &mut Transfer<'_>,
    offset: u64,
) -> Result<(), AttemptError> {
    let missing = transfer.size.map(|size| size.saturating_sub(offset));
    // Reading up to one byte more than expected detects a body that is too long.
    let most = missing.map_or(u64::MAX, |missing| missing.saturating_add(1));
    let mut body = answer.body_mut().as_reader().take(most);
    let copied = copy(&mut body, &mut transfer.file, &transfer.bar)?;
    match (copied, missing) {
        (copied, Some(missing)) if copied < missing => {
            Err(AttemptError::transient("the connection broke off"))
        }
        (copied, Some(missing)) if copied > missing => {
            transfer.restart()?;
            let size = offset.saturating_add(missing);
            Err(AttemptError::Refused(format!("it sends more than the {size} bytes that were announced")))
        }
        // If no length was announced, a body that ends properly is complete.
        _ => Ok(()),
    }
}

fn copy(from: &mut impl Read, to: &mut File, bar: &ProgressBar) -> Result<u64, AttemptError> {
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(n) => {
                to.write_all(&buffer[..n]).map_err(AttemptError::Disk)?;
                copied += n as u64;
                bar.inc(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(AttemptError::transient(format!("the connection broke off ({error})"))),
        }
    }
}

/// The byte range of a partial answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentRange {
    start: u64,
    /// The whole file's length, if the server knows it.
    total: Option<u64>,
}

/// Parses the header `bytes 100-199/200`, or `bytes 100-199/*`.
fn content_range(header: &str) -> Option<ContentRange> {
    let (range, total) = header.trim().strip_prefix("bytes")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some(ContentRange { start: start.trim().parse().ok()?, total: total.trim().parse().ok() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let range = |start: u64, total: Option<u64>| Some(ContentRange { start, total });
        assert_eq!(content_range("bytes 100-199/200"), range(100, Some(200)));
        assert_eq!(content_range("bytes 100-199/*"), range(100, None));
        assert_eq!(content_range("bytes 0-0/1"), range(0, Some(1)));
        for other in ["", "bytes */200", "bytes 100-199", "items 1-2/3", "bytes x-2/3"] {
            assert_eq!(content_range(other), None, "{other}");
        }
    }
}
