//! SSE streams: events are written as they come, for as long as somebody reads them.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use bytes::Bytes;
use hyper::body::Frame;
use tokio::{sync::mpsc, time::Instant};

use crate::answer::Event;

/// The two ends of a stream's channel: events are written to one and read from the other.
pub(crate) fn frames() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
    /// How many writes may wait to be read.
    const FRAMES: usize = 16;
    mpsc::channel(FRAMES)
}

/// Writes events. Its methods return `None` if nobody reads them any more.
pub(crate) struct Writer {
    frames: mpsc::Sender<Bytes>,
    stall_timeout: Duration,
    /// The time of the last write.
    last: Mutex<Instant>,
}

impl Writer {
    /// A writer that gives up if its reader has no room for `stall_timeout`.
    pub(crate) fn new(frames: mpsc::Sender<Bytes>, stall_timeout: Duration) -> Self {
        Self { frames, stall_timeout, last: Mutex::new(Instant::now()) }
    }

    /// Waits until nobody reads any more.
    pub(crate) async fn closed(&self) {
        self.frames.closed().await;
    }

    /// The time of the last write.
    pub(crate) fn wrote(&self) -> Instant {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes events, all in one piece.
    pub(crate) async fn send(&self, events: &[Event]) -> Option<()> {
        let mut text = String::new();
        for Event { name, data } in events {
            if let Some(name) = name {
                text += &format!("event: {name}\n");
            }
            text += &format!("data: {data}\n\n");
        }
        self.text(&text).await
    }

    pub(crate) async fn comment(&self) -> Option<()> {
        self.text(": ping\n\n").await
    }

    pub(crate) async fn text(&self, text: &str) -> Option<()> {
        if text.is_empty() {
            return Some(());
        }
        let sent = self.frames.send(Bytes::copy_from_slice(text.as_bytes()));
        tokio::time::timeout(self.stall_timeout, sent).await.ok()?.ok()?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Some(())
    }
}

/// A response that streams events as they come.
pub(crate) fn event_stream(receiver: mpsc::Receiver<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Events(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Without this header, nginx would collect the events before it sends any.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A response body from a channel.
struct Events(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
