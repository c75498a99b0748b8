//! The routes as data, and what stands before each of them.

use std::{
    net::IpAddr,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, Method, Response, Uri, header},
    middleware::{Next, from_fn_with_state},
    routing::{MethodFilter, on},
};
use serde_json::json;
use tokio::sync::{Semaphore, SemaphorePermit};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::{
    auth::{Keys, check_host, check_origin},
    error::ApiError,
    json::read,
    log::{LogLine, Logger},
    model::Loaded,
    openapi,
    quota::{Quota, Used},
    routes::{
        self, info, json, new_id,
        page::PageSource,
        table::{Handler, ROUTES, Route},
        tokenize,
    },
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
    /// What is told of each request that was answered.
    pub log: Option<fn(&LogLine)>,
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
            log: None,
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
    loaded: OnceLock<Arc<Loaded>>,
    is_draining: AtomicBool,
    /// Whether no requests are taken any more.
    is_closed: AtomicBool,
    /// Answers under way.
    active: AtomicUsize,
    /// Places for large bodies that are read.
    large: Semaphore,
    log: Option<Logger>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The name of a key, or an address.
    pub(crate) owner: String,
    pub(crate) quota: Option<Quota>,
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
    pub(crate) fn new(options: ServeOptions) -> Self {
        /// Large bodies that are read at once.
        const LARGE: usize = 2;
        let (is_draining, is_closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let active = AtomicUsize::new(0);
        let (large, log) = (Semaphore::new(LARGE), options.log.and_then(Logger::start));
        let (keys, used) = (RwLock::new(Arc::new(options.keys.clone())), Used::default());
        Self { options, keys, used, loaded: OnceLock::new(), is_draining, is_closed, active, large, log }
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on these keys are the ones.
    pub(crate) fn set_keys(&self, keys: Keys) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
    }

    /// From now on the model answers.
    pub(crate) fn load(&self, loaded: Loaded) -> Arc<Loaded> {
        let loaded = Arc::new(loaded);
        // A server is given one model.
        let _ = self.loaded.set(Arc::clone(&loaded));
        loaded
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
        self.is_closed.store(true, SeqCst);
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

    /// Answers under way.
    pub(crate) fn active(&self) -> usize {
        self.active.load(SeqCst)
    }
}

const LOADING: &str = "loading model";
const STOPPING: &str = "the server is stopping";

/// The service of all routes.
pub(crate) fn router(server: &Arc<Server>) -> Router {
    let mut router = Router::new();
    for &Route { method, path, what, .. } in ROUTES {
        let filter = if method == "POST" { MethodFilter::POST } else { MethodFilter::GET };
        let handler =
            move |State(server): State<Arc<Server>>, request: Request| answer(what, server, request);
        router = router.route(path, on(filter, handler));
    }
    let mut router = router
        .fallback(|uri: Uri| async move { ApiError::no_route(uri.path()).response() })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            ApiError::wrong_method(method.as_str(), uri.path()).response()
        })
        .layer(from_fn_with_state(Arc::clone(server), admit));
    if let Some(cors) = cors(&server.options.cors_origins) {
        router = router.layer(cors);
    }
    router.layer(from_fn_with_state(Arc::clone(server), note)).with_state(Arc::clone(server))
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    let cors = CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST]);
    Some(cors.allow_headers(AllowHeaders::mirror_request()))
}

/// Gives a request its id, and tells of it when it was answered.
async fn note(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response<Body> {
    let begun = Instant::now();
    let given = request.headers().get("x-request-id").filter(|id| id.len() <= 256).cloned();
    let id = given
        .unwrap_or_else(|| HeaderValue::from_str(&new_id("req-")).unwrap_or(HeaderValue::from_static("req")));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let is_anthropic = path.starts_with("/v1/messages");
    let noted = Arc::new(OnceLock::new());
    request.extensions_mut().insert(RouteAndOwner(Arc::clone(&noted)));
    let (text, method) = (id.to_str().unwrap_or_default().to_owned(), method.to_string());
    // Where the client leaves before it is answered, this is dropped with the request.
    let mut report =
        ReportOnDrop { server: &server, noted, begun, id: text, method, path, status: CLIENT_LEFT };
    let mut response = next.run(request).await;
    report.status = response.status().as_u16();
    drop(report);
    if let Some(error) = response.extensions_mut().remove::<ApiError>()
        && is_anthropic
    {
        routes::messages::write_error(&error, &mut response);
    }
    let headers = response.headers_mut();
    headers.insert("x-request-id", id);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The status of a request whose client has left, as nginx has it.
const CLIENT_LEFT: u16 = 499;

/// Tells of a request when it is dropped.
struct ReportOnDrop<'a> {
    server: &'a Server,
    noted: Arc<OnceLock<(&'static str, String)>>,
    begun: Instant,
    id: String,
    method: String,
    path: String,
    status: u16,
}

impl Drop for ReportOnDrop<'_> {
    fn drop(&mut self) {
        let (route, owner) = self.noted.get().cloned().unwrap_or_else(|| ("other", "nobody".to_owned()));
        if let Some(loaded) = self.server.loaded.get() {
            loaded.status.metrics.http(route, self.status);
        }
        if let Some(log) = &self.server.log {
            log.tell(LogLine {
                id: std::mem::take(&mut self.id),
                owner,
                method: std::mem::take(&mut self.method),
                path: std::mem::take(&mut self.path),
                status: self.status,
                took: self.begun.elapsed(),
            });
        }
    }
}

/// The route and the caller of a request, when they are known.
#[derive(Clone)]
struct RouteAndOwner(Arc<OnceLock<(&'static str, String)>>);

/// Lets those requests pass that may.
async fn admit(State(server): State<Arc<Server>>, mut request: Request, next: Next) -> Response<Body> {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = path.and_then(|path| ROUTES.iter().find(|route| route.path == path));
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
    let caller = match admitted(&server, route, request.headers(), peer) {
        Ok(caller) => caller,
        Err(error) => return error.response(),
    };
    if let Some(RouteAndOwner(noted)) = request.extensions().get::<RouteAndOwner>() {
        // Set once: a request passes here once.
        let _ = noted.set((route.map_or("other", |route| route.path), caller.owner.clone()));
    }
    if server.is_closed.load(SeqCst) && request.method() == Method::POST {
        return ApiError::unavailable(STOPPING).response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Whom a request counts for.
fn admitted(
    server: &Server,
    route: Option<&Route>,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
) -> Result<Caller, ApiError> {
    let ServeOptions { allowed_hosts, any_host, cors_origins, .. } = &server.options;
    let keys = server.keys();
    let address = || {
        let owner = peer.map_or_else(|| "local".to_owned(), |peer| peer.to_string());
        Caller { owner, quota: None }
    };
    if keys.is_empty() {
        if !any_host {
            check_host(headers, allowed_hosts)?;
            check_origin(headers, cors_origins)?;
        }
        return Ok(address());
    }
    match keys.check(headers) {
        Ok((name, quota)) => Ok(Caller { owner: name.to_owned(), quota }),
        Err(_) if route.is_some_and(|route| route.is_open) => Ok(address()),
        Err(error) => Err(error),
    }
}

async fn answer(what: Handler, server: Arc<Server>, request: Request) -> Response<Body> {
    let caller = request.extensions().get::<Caller>().cloned();
    let caller = caller.unwrap_or_else(|| Caller { owner: String::new(), quota: None });
    let (parts, body) = request.into_parts();
    let result = match what {
        Handler::Chat
        | Handler::Render
        | Handler::Completions
        | Handler::Responses
        | Handler::Messages
        | Handler::CountTokens
        | Handler::Tokenize
        | Handler::Detokenize => post(what, &server, caller, &parts.headers, body).await,
        Handler::Page => routes::page::file(&server.options.page, parts.uri.path(), &parts.headers),
        _ => get(what, &server, parts.uri.path()),
    };
    result.unwrap_or_else(|error| error.response())
}

async fn post(
    what: Handler,
    server: &Arc<Server>,
    caller: Caller,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let loaded = server.loaded()?;
    let body = read(headers, body, server.options.max_body).await?;
    match what {
        Handler::Render => {
            let trusts = server.options.trust_request_templates;
            aside(server, body.len(), move || tokenize::render(&body, &loaded, trusts)).await
        }
        Handler::Tokenize => aside(server, body.len(), move || tokenize::tokenize(&body, &loaded)).await,
        Handler::Detokenize => aside(server, body.len(), move || tokenize::detokenize(&body, &loaded)).await,
        Handler::CountTokens => {
            let size = body.len();
            aside(server, size, move || routes::messages::count_tokens(&body, &loaded)).await
        }
        Handler::Completions => routes::completions::completions(Arc::clone(server), caller, body).await,
        Handler::Responses => routes::responses::responses(Arc::clone(server), caller, body).await,
        Handler::Messages => routes::messages::messages(Arc::clone(server), caller, body).await,
        _ => routes::chat::chat(Arc::clone(server), caller, body).await,
    }
}

/// Does work that may take long where nobody waits behind it.
async fn aside(
    server: &Server,
    size: usize,
    work: impl FnOnce() -> Result<serde_json::Value, ApiError> + Send + 'static,
) -> Result<Response<Body>, ApiError> {
    let _place = server.place_for(size).await;
    let done = tokio::task::spawn_blocking(work).await;
    let value = done.map_err(|error| ApiError::internal(format!("the tokenizer failed: {error}")))??;
    Ok(json(&value))
}

fn get(what: Handler, server: &Server, path: &str) -> Result<Response<Body>, ApiError> {
    let value = match what {
        Handler::Health | Handler::Ready => return Ok(info::health(server)),
        Handler::Docs => return Ok(openapi::page()),
        Handler::Live => info::live(server)?,
        Handler::Version => json!({"version": env!("CARGO_PKG_VERSION")}),
        Handler::Ping => json!({}),
        Handler::Rules => info::rules(),
        Handler::OpenApi => openapi::document(),
        _ => {
            let loaded = server.loaded()?;
            match what {
                Handler::Metrics => return Ok(info::metrics(&loaded)),
                Handler::Models => info::models(&loaded),
                Handler::Model => info::model(&loaded, &name(path))?,
                Handler::TokenizerInfo => tokenize::info(&loaded),
                Handler::Load => json!({"server_load": server.active()}),
                _ => info::runs(&loaded),
            }
        }
    };
    Ok(json(&value))
}

/// The name at the end of `/v1/models/NAME`, in which slashes may be written as they are or escaped.
fn name(path: &str) -> String {
    let name = path.strip_prefix("/v1/models/").unwrap_or_default();
    percent_encoding::percent_decode_str(name).decode_utf8_lossy().into_owned()
}
