//! Connections: accepted, timed, and closed. `axum::serve` sets no timers, so that a client which sends its headers byte by
//! byte would hold a connection for ever.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_io_timeout::TimeoutStream;
use tower_service::Service as _;

use crate::{
    place::{Listener, Stream},
    router::router,
    server::{Peer, Server},
    status::Progress,
};

/// How long a client may take for the headers of a request, and how long a connection may be idle between two
/// requests.
const HEADERS: Duration = Duration::from_secs(10);
/// The most bytes of all headers.
const MAX_HEADERS: usize = 64 << 10;
/// The deadline where the configured time is too long to be added to an `Instant`.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// The least time that connections have to close after all answers.
const CLOSING: Duration = Duration::from_secs(2);

/// Accepts connections until the server is told to stop. Then waits for answers in progress, up to the shutdown
/// timeout. Returns whether all have come to their ends.
pub(crate) async fn serve(server: Arc<Server>, listener: Listener, mut stop: watch::Receiver<bool>) -> bool {
    let router = router(&server);
    tokio::spawn(tell_of_hangs(Arc::clone(&server)));
    let places = Arc::new(Semaphore::new(server.options.max_connections));
    let connections = GracefulShutdown::new();
    let mut drains = std::pin::pin!(async {
        // An error means that the sender is gone, so the server could not be told later.
        let _ = stop.wait_for(|stops| *stops).await;
        let delay = server.options.drain_delay;
        if delay.is_zero() {
            // Without a delay, a client that learns that the server is not ready must find it closed.
            server.close();
        }
        server.drain();
        sleep(delay).await;
        server.close();
        drained(&server).await
    });
    let (all_ended, until) = loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            ended = &mut drains => break ended,
        };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let (server, router, watcher) = (Arc::clone(&server), router.clone(), connections.watcher());
                    tokio::spawn(async move {
                        // A client that has not finished the TLS handshake has not asked for anything yet.
                        let secured = tokio::select! {
                            biased;
                            secured = server.secured(stream) => secured,
                            () = server.closed() => None,
                        };
                        if let Some(stream) = secured {
                            // It is not an error of the server if a client breaks off.
                            let _ = watcher.watch(connection(&server, &router, stream, peer)).await;
                        }
                        drop(place);
                    });
                }
                // Most likely too many files are open. Other connections will close.
                Err(_) => sleep(Duration::from_millis(50)).await,
            },
            ended = &mut drains => break ended,
        }
    };
    if let Ok(loaded) = server.loaded() {
        loaded.service.end();
    }
    // Connections close after their answers, which clients may still have to read. Unfinished answers get an error.
    let until = until.max(Instant::now() + CLOSING);
    timeout_at(until, connections.shutdown()).await.is_ok() && all_ended
}

/// Logs when the engine makes no progress any more, with the generations in progress, and when it does again.
async fn tell_of_hangs(server: Arc<Server>) {
    /// The most generations that are logged.
    const MAX_COUNT: usize = 100;
    let longest = server.options.live_timeout;
    let mut was_stuck = false;
    loop {
        sleep((longest / 4).clamp(Duration::from_millis(50), Duration::from_secs(1))).await;
        let Ok(loaded) = server.loaded() else { continue };
        let is_stuck = loaded.status.is_stuck(longest);
        if std::mem::replace(&mut was_stuck, is_stuck) == is_stuck {
            continue;
        }
        if !is_stuck {
            server.note("the engine turns again".to_owned());
            continue;
        }
        let gauges = loaded.status.gauges();
        server.note(format!(
            "the engine has not turned for {} s, with {} running and {} waiting:",
            longest.as_secs_f64(),
            gauges.running,
            gauges.waiting
        ));
        for Progress { request, owner, phase, prompt_tokens, generated_tokens } in
            loaded.status.progress().iter().take(MAX_COUNT)
        {
            server.note(format!(
                "  {request} of {owner:?}: {phase:?}, prompt of {prompt_tokens} tokens, {generated_tokens} generated"
            ));
        }
    }
}

/// Waits until no answer is in progress, up to the shutdown timeout. Returns whether that happened, and the deadline.
async fn drained(server: &Server) -> (bool, Instant) {
    let now = Instant::now();
    let until = now.checked_add(server.options.shutdown_timeout).unwrap_or(now + FOREVER);
    while server.active() > 0 {
        if Instant::now() >= until {
            return (false, until);
        }
        sleep(Duration::from_millis(10)).await;
    }
    (true, until)
}

fn connection(
    server: &Server,
    router: &Router,
    stream: Box<dyn Stream>,
    peer: Option<SocketAddr>,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send + use<> {
    let mut stream = TimeoutStream::new(Box::into_pin(stream));
    stream.set_write_timeout(Some(server.options.stall_timeout));
    let (router, peer) = (router.clone(), Peer(peer.map(|peer| peer.ip())));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut router = router.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        async move { router.call(request).await }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(Box::pin(stream)), service)
}
