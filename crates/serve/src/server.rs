//! The options of a server, and the state that all of its connections share.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::sync::{Semaphore, SemaphorePermit, watch};

use crate::{
    ServeError,
    auth::Keys,
    error::ApiError,
    log::{LogLine, Logger, Record, WriteLine},
    model::Loaded,
    place::Stream,
    quota::{Quota, Used},
    routes::page::PageSource,
};

/// Options of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Keys of clients. Without any, whoever reaches the server may use it. [`crate::Reload`] replaces them.
    pub keys: Keys,
    /// Host names by which a server without keys may be reached, beside `localhost` and addresses.
    pub allowed_hosts: Vec<String>,
    /// Whether a server without keys may be reached by any host name and from any origin.
    pub any_host: bool,
    /// Origins whose pages may use the server: addresses such as `https://app.example`, or `*`.
    pub cors_origins: Vec<String>,
    /// The most bytes of a request body.
    pub max_body: usize,
    /// The most connections at once.
    pub max_connections: usize,
    /// How long a stream may be silent before a comment is sent, because proxies close silent connections.
    pub ping: Duration,
    /// How long a client may read nothing before its request is cancelled.
    pub stall_timeout: Duration,
    /// How long requests are still accepted after the server is told to stop, so that whoever polls `/readyz` can
    /// find out.
    pub drain_delay: Duration,
    /// How long answers in progress may take after that.
    pub shutdown_timeout: Duration,
    /// The field names of thoughts in chat completions: `reasoning_content`, `reasoning`, or both.
    pub thought_fields: Vec<&'static str>,
    /// Whether the `chat_template` of a request is used.
    pub trust_request_templates: bool,
    /// The chat page.
    pub page: PageSource,
    /// The certificate by which connections are encrypted; `None` encrypts none.
    #[cfg(feature = "tls")]
    pub tls: Option<crate::TlsFiles>,
    /// Writes the log line of each answered request.
    pub log: Option<fn(&LogLine)>,
    /// Whether log lines include prompts.
    pub log_prompts: bool,
    /// Writes notes about the server itself: that the engine makes no progress any more, or does again.
    pub notes: Option<fn(&str)>,
    /// How long a round of the engine may take before the server counts as not alive.
    pub live_timeout: Duration,
    /// How long a request may wait for its turn before it is refused; `None` is no limit.
    pub queue_timeout: Option<Duration>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            keys: Keys::default(),
            allowed_hosts: Vec::new(),
            any_host: false,
            cors_origins: Vec::new(),
            max_body: 16 << 20,
            max_connections: 1024,
            ping: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(60),
            drain_delay: Duration::ZERO,
            shutdown_timeout: Duration::from_secs(30),
            thought_fields: vec!["reasoning_content"],
            trust_request_templates: false,
            page: PageSource::BuiltIn,
            #[cfg(feature = "tls")]
            tls: None,
            log: None,
            log_prompts: false,
            notes: None,
            live_timeout: Duration::from_secs(60),
            queue_timeout: None,
        }
    }
}

/// A server's state, which all connections share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) options: ServeOptions,
    /// The keys of the options, until they are replaced.
    keys: RwLock<Arc<Keys>>,
    /// How much of the keys' quotas is used.
    pub(crate) used: Used,
    pub(crate) loaded: OnceLock<Arc<Loaded>>,
    /// Names that were set before the model was loaded.
    renamed: Mutex<Option<Vec<String>>>,
    is_draining: AtomicBool,
    /// Whether new requests are refused.
    is_closed: watch::Sender<bool>,
    /// Number of answers in progress.
    active: AtomicUsize,
    /// Permits to prepare large bodies.
    large: Semaphore,
    /// How log lines are written, and the thread that writes them.
    write_line: RwLock<Option<WriteLine>>,
    logger: Option<Logger>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<crate::tls::Tls>,
}

/// The client of a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The name of its key, or its address.
    pub(crate) owner: String,
    pub(crate) quota: Option<Quota>,
    /// The log record of the request.
    pub(crate) record: Arc<Record>,
}

/// Charges the tokens of an answer to its caller.
#[derive(Debug)]
pub(crate) struct Charge {
    pub(crate) server: Arc<Server>,
    pub(crate) caller: Caller,
    /// Tokens of the prompt, which are given back if the prompt does not run after all.
    pub(crate) prompt: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.caller.quota.is_some() {
            self.server.used.give_back(&self.caller.owner, self.prompt);
        }
    }
}

impl Charge {
    /// Counts tokens that were generated.
    pub(crate) fn add(&self, tokens: usize) {
        if let Some(quota) = self.caller.quota {
            self.server.used.add(&self.caller.owner, quota, tokens);
        }
    }
}

/// The address that a connection came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) Option<IpAddr>);

/// Counts an answer as in progress until it is dropped.
#[derive(Debug)]
pub(crate) struct Active(Arc<Server>);

impl Active {
    pub(crate) fn new(server: &Arc<Server>) -> Self {
        server.active.fetch_add(1, SeqCst);
        Self(Arc::clone(server))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, SeqCst);
    }
}

impl Server {
    /// # Errors
    /// If a certificate cannot be used.
    pub(crate) fn new(options: ServeOptions) -> Result<Self, ServeError> {
        /// How many large bodies are prepared at once.
        const LARGE: usize = 2;
        let (is_draining, is_closed) = (AtomicBool::new(false), watch::Sender::new(false));
        let active = AtomicUsize::new(0);
        let (large, write_line, logger) = (Semaphore::new(LARGE), RwLock::new(options.log), Logger::start());
        let (keys, used) = (RwLock::new(Arc::new(options.keys.clone())), Used::default());
        let loaded = OnceLock::new();
        #[cfg(feature = "tls")]
        let tls = options.tls.clone().map(crate::tls::Tls::new).transpose()?;
        Ok(Self {
            options,
            keys,
            used,
            loaded,
            renamed: Mutex::default(),
            is_draining,
            is_closed,
            active,
            large,
            write_line,
            logger,
            #[cfg(feature = "tls")]
            tls,
        })
    }

    /// The current keys.
    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the keys.
    pub(crate) fn set_keys(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// Whether connections are encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// The connection, encrypted if the server has a certificate; `None` if the TLS handshake fails.
    pub(crate) async fn secured(&self, stream: Box<dyn Stream>) -> Option<Box<dyn Stream>> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.accept(stream).await;
        }
        Some(stream)
    }

    /// Sets the function that writes log lines; `None` writes none.
    pub(crate) fn set_log(&self, write: Option<WriteLine>) {
        *self.write_line.write().unwrap_or_else(PoisonError::into_inner) = write;
    }

    /// Whether log lines are written.
    pub(crate) fn logs(&self) -> bool {
        self.write_line.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Writes a note about the server, if notes are written.
    pub(crate) fn note(&self, text: String) {
        if let (Some(write), Some(logger)) = (self.options.notes, &self.logger) {
            logger.note(write, text);
        }
    }

    /// Writes the log line of a request, if log lines are written.
    pub(crate) fn tell(&self, line: LogLine) {
        let write = *self.write_line.read().unwrap_or_else(PoisonError::into_inner);
        if let (Some(write), Some(logger)) = (write, &self.logger) {
            logger.tell(write, line);
        }
    }

    /// Sets the model, which answers requests from now on.
    pub(crate) fn load(&self, loaded: Loaded) -> Arc<Loaded> {
        let loaded = Arc::new(loaded);
        if let Some(names) = self.renamed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            loaded.set_names(names);
        }
        // This cannot fail, because a server is given only one model.
        let _ = self.loaded.set(Arc::clone(&loaded));
        loaded
    }

    /// Replaces the model's names, or keeps them for the model that is being loaded.
    pub(crate) fn rename(&self, names: Vec<String>) {
        match self.loaded.get() {
            Some(loaded) => loaded.set_names(names),
            None => *self.renamed.lock().unwrap_or_else(PoisonError::into_inner) = Some(names),
        }
    }

    /// The loaded model.
    ///
    /// # Errors
    /// If it is still being loaded.
    pub(crate) fn loaded(&self) -> Result<Arc<Loaded>, ApiError> {
        self.loaded.get().cloned().ok_or_else(|| ApiError::unavailable(LOADING))
    }

    /// Whether requests are accepted, or why not.
    pub(crate) fn is_ready(&self) -> Result<(), &'static str> {
        match (self.is_draining(), self.loaded.get()) {
            (true, _) => Err(STOPPING),
            (false, None) => Err(LOADING),
            (false, Some(_)) => Ok(()),
        }
    }

    /// Makes the server report that it is not ready.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, SeqCst);
    }

    /// Refuses new requests from now on.
    pub(crate) fn close(&self) {
        self.is_closed.send_replace(true);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(SeqCst)
    }

    /// A permit to prepare a body of this many bytes. Large bodies wait for it, because tokenizing a text takes many
    /// times its memory.
    pub(crate) async fn place_for(&self, size: usize) -> Option<SemaphorePermit<'_>> {
        /// Bytes above which a body counts as large.
        const LARGE: usize = 1 << 20;
        match size > LARGE {
            true => self.large.acquire().await.ok(),
            false => None,
        }
    }

    /// Whether new requests are refused.
    pub(crate) fn is_closed(&self) -> bool {
        *self.is_closed.borrow()
    }

    /// Waits until new requests are refused.
    pub(crate) async fn closed(&self) {
        // This cannot fail, because the sender lives as long as the server.
        let _ = self.is_closed.subscribe().wait_for(|is_closed| *is_closed).await;
    }

    /// Number of answers in progress.
    pub(crate) fn active(&self) -> usize {
        self.active.load(SeqCst)
    }
}

const LOADING: &str = "loading model";
pub(crate) const STOPPING: &str = "the server is stopping";
