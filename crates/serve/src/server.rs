//! How a server answers, and the state that all of its connections share.

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

/// How a server answers.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Keys of clients; without any, whoever reaches the server may use it. [`crate::Reload`] replaces them.
    pub keys: Keys,
    /// Names by which the server may be reached where there are no keys, beside `localhost` and addresses.
    pub allowed_hosts: Vec<String>,
    /// Whether it may be reached by any name.
    pub any_host: bool,
    /// Origins whose pages may use the server: addresses such as `https://app.example`, or `*`.
    pub cors_origins: Vec<String>,
    /// Bytes of a body at most.
    pub max_body: usize,
    /// Connections at once at most.
    pub max_connections: usize,
    /// How long a stream may be silent before it has a comment: proxies close silent connections.
    pub ping: Duration,
    /// How long a client may not read before it is given up.
    pub stall_timeout: Duration,
    /// How long requests are still taken when the server is told to stop: so long may whoever asks `/readyz` take to find out.
    pub drain_delay: Duration,
    /// How long answers under way may take then.
    pub shutdown_timeout: Duration,
    /// What thoughts are called in answers of chat completions: `reasoning_content`, `reasoning`, or both.
    pub thought_fields: Vec<&'static str>,
    /// Whether `chat_template` of a request is taken.
    pub trust_request_templates: bool,
    /// The chat page.
    pub page: PageSource,
    /// The certificate by which connections are encrypted; none are where `None`.
    #[cfg(feature = "tls")]
    pub tls: Option<crate::TlsFiles>,
    /// What is told of each request that was answered.
    pub log: Option<fn(&LogLine)>,
    /// Whether prompts are part of what is told.
    pub log_prompts: bool,
    /// Where what concerns the server itself is told: that the engine does not turn any more, or does again.
    pub notes: Option<fn(&str)>,
    /// How long a round of the engine may take before the server counts as not alive.
    pub live_timeout: Duration,
    /// How long a request may wait for its turn before it is refused; as long as it has to where `None`.
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
    /// Those of the options, until others are given.
    keys: RwLock<Arc<Keys>>,
    /// What is used of the keys' quotas.
    pub(crate) used: Used,
    pub(crate) loaded: OnceLock<Arc<Loaded>>,
    /// Names that were given before it was loaded.
    renamed: Mutex<Option<Vec<String>>>,
    is_draining: AtomicBool,
    /// Whether no requests are taken any more.
    is_closed: watch::Sender<bool>,
    /// Answers under way.
    active: AtomicUsize,
    /// Places for large bodies that are read.
    large: Semaphore,
    /// How lines are written, and what writes them.
    write_line: RwLock<Option<WriteLine>>,
    logger: Option<Logger>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<crate::tls::Tls>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The name of a key, or an address.
    pub(crate) owner: String,
    pub(crate) quota: Option<Quota>,
    /// What is noted of the request.
    pub(crate) record: Arc<Record>,
}

/// Whom the tokens of an answer are counted for.
#[derive(Debug)]
pub(crate) struct Charge {
    pub(crate) server: Arc<Server>,
    pub(crate) caller: Caller,
    /// Tokens of the prompt, which are given back where the request is not taken after all.
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

/// An answer under way, as long as this is there.
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
        /// Large bodies that are read at once.
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

    /// The keys that are the ones now.
    pub(crate) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on these keys are the ones.
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

    /// A connection as it is answered: encrypted where that is wanted; `None` where the client does not agree.
    pub(crate) async fn secured(&self, stream: Box<dyn Stream>) -> Option<Box<dyn Stream>> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.accept(stream).await;
        }
        Some(stream)
    }

    /// From now on lines of requests are written so.
    pub(crate) fn set_log(&self, write: Option<WriteLine>) {
        *self.write_line.write().unwrap_or_else(PoisonError::into_inner) = write;
    }

    /// Whether lines of requests are written.
    pub(crate) fn logs(&self) -> bool {
        self.write_line.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Has a note written on the server itself, if notes are.
    pub(crate) fn note(&self, text: String) {
        if let (Some(write), Some(logger)) = (self.options.notes, &self.logger) {
            logger.note(write, text);
        }
    }

    /// Has the line of a request written, if lines are.
    pub(crate) fn tell(&self, line: LogLine) {
        let write = *self.write_line.read().unwrap_or_else(PoisonError::into_inner);
        if let (Some(write), Some(logger)) = (write, &self.logger) {
            logger.tell(write, line);
        }
    }

    /// From now on the model answers.
    pub(crate) fn load(&self, loaded: Loaded) -> Arc<Loaded> {
        let loaded = Arc::new(loaded);
        if let Some(names) = self.renamed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            loaded.set_names(names);
        }
        // A server is given one model.
        let _ = self.loaded.set(Arc::clone(&loaded));
        loaded
    }

    /// From now on these are the model's names, or as soon as it is loaded.
    pub(crate) fn rename(&self, names: Vec<String>) {
        match self.loaded.get() {
            Some(loaded) => loaded.set_names(names),
            None => *self.renamed.lock().unwrap_or_else(PoisonError::into_inner) = Some(names),
        }
    }

    /// The model.
    ///
    /// # Errors
    /// While it is being loaded.
    pub(crate) fn loaded(&self) -> Result<Arc<Loaded>, ApiError> {
        self.loaded.get().cloned().ok_or_else(|| ApiError::unavailable(LOADING))
    }

    /// Whether requests are taken, or why not.
    pub(crate) fn is_ready(&self) -> Result<(), &'static str> {
        match (self.is_draining(), self.loaded.get()) {
            (true, _) => Err(STOPPING),
            (false, None) => Err(LOADING),
            (false, Some(_)) => Ok(()),
        }
    }

    /// From now on the server says that it is not ready.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, SeqCst);
    }

    /// From now on no requests are taken.
    pub(crate) fn close(&self) {
        self.is_closed.send_replace(true);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(SeqCst)
    }

    /// A place for a body of so many bytes, which large ones wait for: to cut a text into tokens takes many times its memory.
    pub(crate) async fn place_for(&self, size: usize) -> Option<SemaphorePermit<'_>> {
        /// Bytes of a body that counts as large.
        const LARGE: usize = 1 << 20;
        match size > LARGE {
            true => self.large.acquire().await.ok(),
            false => None,
        }
    }

    /// Whether no requests are taken any more.
    pub(crate) fn is_closed(&self) -> bool {
        *self.is_closed.borrow()
    }

    /// Waits until no requests are taken any more.
    pub(crate) async fn closed(&self) {
        // The sender is there as long as the server is.
        let _ = self.is_closed.subscribe().wait_for(|is_closed| *is_closed).await;
    }

    /// Answers under way.
    pub(crate) fn active(&self) -> usize {
        self.active.load(SeqCst)
    }
}

const LOADING: &str = "loading model";
pub(crate) const STOPPING: &str = "the server is stopping";
