//! An HTTP server over [`moi_engine::Scheduler`]: OpenAI's API, with an input rule for each request.
//!
//! One thread, the one that calls [`Listening::run`], owns the engine's rounds; HTTP is answered by others, which send it
//! requests and are sent tokens. [`listen`] binds first, so that a server answers that it is loading while it is.
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
    /// The address cannot be listened at.
    #[error("cannot listen at {address}: {error}")]
    Bind {
        /// What was asked for.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// The threads that answer cannot be started.
    #[error("cannot start the threads that answer: {0}")]
    Threads(io::Error),
    /// A certificate or its key cannot be used.
    #[cfg(feature = "tls")]
    #[error("{} cannot be used for TLS: {what}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Metrics of the same name.
    #[error("metrics: {0}")]
    Metrics(String),
}

/// A server that answers, if only that it is loading.
#[derive(Debug)]
pub struct Listening {
    server: Arc<Server>,
    place: Place,
    /// A socket of the file system that was made for this.
    made: Option<PathBuf>,
    stop: Stop,
    thread: JoinHandle<bool>,
}

/// Has the engine's thread end when it is dropped.
struct EndsEngine(Arc<Server>);

impl Drop for EndsEngine {
    fn drop(&mut self) {
        if let Ok(loaded) = self.0.loaded() {
            loaded.service.end();
        }
    }
}

/// Gives a server what can change while it runs.
#[derive(Clone, Debug)]
pub struct Reload(Arc<Server>);

impl Reload {
    /// From now on these keys are the ones, with their quotas; what is used of quotas stays used. A server that has keys is
    /// never left without any: it keeps those that it has, and this gives `false`.
    pub fn keys(&self, keys: Keys) -> bool {
        let would_open = keys.is_empty() && !self.0.keys().is_empty();
        if !would_open {
            self.0.set_keys(keys);
        }
        !would_open
    }

    /// From now on the model has these names; the metrics keep the name that it was loaded under.
    pub fn names(&self, names: Vec<String>) {
        self.0.rename(names);
    }

    /// Reads the certificate and its key again, from where they were; whether connections are encrypted.
    ///
    /// # Errors
    /// If they cannot be used; then those that were read before go on being used.
    #[cfg(feature = "tls")]
    pub fn certificate(&self) -> Result<bool, ServeError> {
        self.0.tls.as_ref().map_or(Ok(false), |tls| tls.reload().map(|()| true))
    }

    /// From now on log lines are written by this, or not at all.
    pub fn log(&self, write: Option<fn(&LogLine)>) {
        self.0.set_log(write);
    }
}

/// Tells whether a server works, for whoever restarts those that do not.
#[derive(Clone, Debug)]
pub struct Health(Arc<Server>);

impl Health {
    /// Whether the engine turns, or has nothing to do.
    pub fn is_live(&self) -> bool {
        routes::info::live(&self.0).is_ok()
    }
}

/// Tells a server to stop.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Stop {
    /// Answers under way come to their ends, no others begin, and then the server stops.
    pub fn stop(&self) {
        // Where nobody listens any more it has stopped.
        let _ = self.0.send(true);
    }
}

/// Begins to listen.
///
/// # Errors
/// If that cannot be done.
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
        // However this thread ends: without it nobody asks the engine for anything.
        let _ends = ends;
        let ended = runtime.block_on(async {
            match Listener::new(socket) {
                Ok(listener) => listen::serve(own, listener, stops).await,
                Err(_) => false,
            }
        });
        // What prepares requests may take long, and nobody waits for it any more.
        runtime.shutdown_background();
        ended
    });
    let thread = thread.map_err(ServeError::Threads)?;
    Ok(Listening { server, place, made, stop: Stop(Arc::new(stop)), thread })
}

impl Listening {
    /// Where it listens.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The same as clients name it.
    pub fn url(&self) -> String {
        let url = self.place.to_string();
        match self.server.is_encrypted() {
            true => url.replacen("http://", "https://", 1),
            false => url,
        }
    }

    /// What gives it other keys.
    pub fn reloader(&self) -> Reload {
        Reload(Arc::clone(&self.server))
    }

    /// What tells whether it works.
    pub fn health(&self) -> Health {
        Health(Arc::clone(&self.server))
    }

    /// What tells it to stop.
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves a model until the server is told to stop: this thread runs the engine's rounds, and calls `ready` when requests
    /// are taken. Whether all answers came to their ends.
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
        // It may have been told to stop while nobody was there to be told.
        if self.server.is_draining() || self.thread.is_finished() {
            loaded.service.end();
        }
        ready();
        worker.run(&WorkerOptions { scheduler, stall_timeout, queue_timeout }, &loaded.status);
        let all_ended = self.thread.join().unwrap_or(false);
        if let Some(path) = &self.made {
            // Whoever made it may have removed it.
            let _ = std::fs::remove_file(path);
        }
        Ok(all_ended)
    }
}
