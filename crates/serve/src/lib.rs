//! An HTTP server over [`moi_engine::Scheduler`]: OpenAI's API, with an input rule for each request.
//!
//! One thread, which calls [`Listening::run`], owns the engine's rounds. Other threads answer HTTP: they send it
//! requests, and it sends them tokens. [`listen`] binds the socket first, so that the server can answer while the
//! model is loading.
//!
//! ```no_run
//! use moi_engine::{Engine, SchedulerOptions};
//! use moi_models::CausalLm;
//! use moi_serve::{Address, ServeOptions, ServedModel, ServeError, listen};
//! use burn::tensor::backend::Backend;
//!
//! fn serve<B: Backend, M: CausalLm<B> + Send + Sync + 'static>(
//!     load: impl FnOnce() -> (Engine<B, M>, B::Device, ServedModel),
//! ) -> Result<bool, ServeError> {
//!     let listening = listen(&Address::Tcp("127.0.0.1:8080".to_owned()), ServeOptions::default())?;
//!     println!("{}", listening.place());
//!     let (engine, device, model) = load();
//!     listening.run(engine, device, model, SchedulerOptions::default(), || println!("ready"))
//! }
//! ```

mod answer;
mod auth;
mod blocks;
mod choice;
mod chunks;
mod constraint;
mod conversation;
mod error;
mod events;
mod job;
mod json;
mod knobs;
mod listen;
mod log;
mod metrics;
mod model;
mod openapi;
mod parts;
mod place;
mod plan;
mod quota;
mod readers;
mod responses_format;
mod router;
mod routes;
mod server;
mod status;
mod thoughts;
#[cfg(feature = "tls")]
mod tls;
mod tokens;
mod tools;
mod wire;
mod worker;

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
};

pub use auth::Keys;
use burn::tensor::backend::Backend;
pub use log::{LogLine, Served};
pub use model::ServedModel;
use moi_engine::{Engine, SchedulerOptions};
use moi_models::{BLOCK_POSITIONS, CausalLm};
pub use place::{Address, Place};
pub use quota::Quota;
pub use routes::page::PageSource;
pub use server::ServeOptions;
#[cfg(feature = "tls")]
pub use tls::TlsFiles;
use tokio::sync::watch;

use crate::{
    metrics::Metrics,
    model::Loaded,
    place::{Listener, Socket},
    server::Server,
    status::Status,
    worker::{WorkerOptions, worker},
};

/// Why a server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The server cannot listen at the address.
    #[error("cannot listen at {address}: {error}")]
    Bind {
        /// The address that was asked for.
        address: String,
        /// The system's error.
        error: io::Error,
    },
    /// The HTTP threads cannot be started.
    #[error("cannot start the threads that answer: {0}")]
    Threads(io::Error),
    /// A certificate or its key cannot be used.
    #[cfg(feature = "tls")]
    #[error("{} cannot be used for TLS: {what}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with the file.
        what: String,
    },
    /// Metrics cannot be registered, because two have the same name.
    #[error("metrics: {0}")]
    Metrics(String),
}

/// A server that answers requests, at first only that it is loading.
#[derive(Debug)]
pub struct Listening {
    server: Arc<Server>,
    place: Place,
    /// The Unix socket that was created for this server.
    made: Option<PathBuf>,
    stop: Stop,
    thread: JoinHandle<bool>,
}

/// Ends the engine's thread when it is dropped.
struct EndsEngine(Arc<Server>);

impl Drop for EndsEngine {
    fn drop(&mut self) {
        if let Ok(loaded) = self.0.loaded() {
            loaded.service.end();
        }
    }
}

/// Changes settings of a server while it runs.
#[derive(Clone, Debug)]
pub struct Reload(Arc<Server>);

impl Reload {
    /// Replaces the keys and their quotas; what is used of quotas stays used. A server that has keys is never left
    /// without any: if `keys` is empty, it keeps its keys, and this returns `false`.
    pub fn keys(&self, keys: Keys) -> bool {
        let would_open = keys.is_empty() && !self.0.keys().is_empty();
        if !would_open {
            self.0.set_keys(keys);
        }
        !would_open
    }

    /// Replaces the model's names. The metrics keep the name that the model was loaded under.
    pub fn names(&self, names: Vec<String>) {
        self.0.rename(names);
    }

    /// Reads the certificate and its key again, from the same files. Returns whether connections are encrypted.
    ///
    /// # Errors
    /// If the files cannot be used. The previous certificate then stays in use.
    #[cfg(feature = "tls")]
    pub fn certificate(&self) -> Result<bool, ServeError> {
        self.0.tls.as_ref().map_or(Ok(false), |tls| tls.reload().map(|()| true))
    }

    /// Sets the function that writes log lines; `None` writes none.
    pub fn log(&self, write: Option<fn(&LogLine)>) {
        self.0.set_log(write);
    }
}

/// Reports whether a server works, for a supervisor that restarts servers which do not.
#[derive(Clone, Debug)]
pub struct Health(Arc<Server>);

impl Health {
    /// Whether the engine makes progress, or has nothing to do.
    pub fn is_live(&self) -> bool {
        routes::info::live(&self.0).is_ok()
    }
}

/// Tells a server to stop.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Stop {
    /// Stops the server: answers in progress come to their ends, no new ones begin, and then the server ends.
    pub fn stop(&self) {
        // If the receiver is gone, the server has already stopped.
        let _ = self.0.send(true);
    }
}

/// Binds the address and starts the threads that answer.
///
/// # Errors
/// If the address, the certificate or the threads cannot be used.
pub fn listen(address: &Address, options: ServeOptions) -> Result<Listening, ServeError> {
    let (socket, place) = Socket::open(address)?;
    let made = match address {
        Address::Unix(path) => Some(path.clone()),
        Address::Tcp(_) | Address::Inherited => None,
    };
    let server = Arc::new(Server::new(options)?);
    let (stop, stops) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(ServeError::Threads)?;
    let own = Arc::clone(&server);
    let ends = EndsEngine(Arc::clone(&server));
    let thread = thread::Builder::new().name("http".to_owned()).spawn(move || {
        // Ends the engine's thread however this thread ends, because nobody else sends it requests.
        let _ends = ends;
        let ended = runtime.block_on(async {
            match Listener::new(socket) {
                Ok(listener) => listen::serve(own, listener, stops).await,
                Err(_) => false,
            }
        });
        // Tasks that prepare requests may take long, and nobody waits for their results any more.
        runtime.shutdown_background();
        ended
    });
    let thread = thread.map_err(ServeError::Threads)?;
    Ok(Listening { server, place, made, stop: Stop(Arc::new(stop)), thread })
}

impl Listening {
    /// Where the server listens.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The server's URL, as clients use it.
    pub fn url(&self) -> String {
        let url = self.place.to_string();
        match self.server.is_encrypted() {
            true => url.replacen("http://", "https://", 1),
            false => url,
        }
    }

    /// A handle that changes settings while the server runs.
    pub fn reloader(&self) -> Reload {
        Reload(Arc::clone(&self.server))
    }

    /// A handle that reports whether the server works.
    pub fn health(&self) -> Health {
        Health(Arc::clone(&self.server))
    }

    /// A handle that stops the server.
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves a model until the server is told to stop: this thread runs the engine's rounds, and calls `ready` when
    /// requests are accepted. Returns whether all answers came to their ends.
    ///
    /// # Errors
    /// If metrics cannot be registered.
    pub fn run<B: Backend, M: CausalLm<B> + Send + Sync + 'static>(
        self,
        engine: Engine<B, M>,
        device: B::Device,
        model: ServedModel,
        scheduler: SchedulerOptions,
        ready: impl FnOnce(),
    ) -> Result<bool, ServeError> {
        let id = model.names.first().map_or("", String::as_str);
        let block = engine.bytes_for(BLOCK_POSITIONS).max(1);
        let total = scheduler.cache_bytes.unwrap_or(usize::MAX);
        let metrics = Metrics::new(id, BLOCK_POSITIONS, total / block);
        let metrics = metrics.map_err(|error| ServeError::Metrics(error.to_string()))?;
        let status = Status::new(metrics, total);
        let (client, worker) = worker(Arc::new(engine), device);
        let ServeOptions { stall_timeout, queue_timeout, .. } = self.server.options;
        let loaded = self.server.load(Loaded::new(model, Box::new(client), status));
        // The server may have been told to stop before the model was loaded, when there was no engine to end.
        if self.server.is_draining() || self.thread.is_finished() {
            loaded.service.end();
        }
        ready();
        worker.run(&WorkerOptions { scheduler, stall_timeout, queue_timeout }, &loaded.status);
        let all_ended = self.thread.join().unwrap_or(false);
        if let Some(path) = &self.made {
            // Somebody else may have removed the file already.
            let _ = std::fs::remove_file(path);
        }
        Ok(all_ended)
    }
}
