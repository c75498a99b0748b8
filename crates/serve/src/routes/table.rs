//! All routes, as data: the router, the keys that are asked for, metrics and openapi.json are made of it.

/// A route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// Whether it answers without a key.
    pub(crate) is_open: bool,
    pub(crate) summary: &'static str,
    pub(crate) what: What,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Chat,
    Completions,
    Models,
    Model,
    Tokenize,
    Detokenize,
    TokenizerInfo,
    Rules,
    Runs,
    Health,
    Live,
    Ready,
    Version,
    Load,
    Ping,
    Metrics,
    OpenApi,
    Docs,
}

const fn route(method: &'static str, path: &'static str, what: What, summary: &'static str) -> Route {
    Route { method, path, is_open: false, summary, what }
}

const fn open(path: &'static str, what: What, summary: &'static str) -> Route {
    Route { method: "GET", path, is_open: true, summary, what }
}

/// All routes.
pub(crate) const ROUTES: &[Route] = &[
    route("POST", "/v1/chat/completions", What::Chat, "Answer a conversation"),
    route("POST", "/v1/completions", What::Completions, "Continue texts"),
    route("GET", "/v1/models", What::Models, "List the model's names"),
    route("GET", "/v1/models/{*model}", What::Model, "Tell of a model by its name"),
    route("POST", "/tokenize", What::Tokenize, "Give the tokens of a text or a conversation"),
    route("POST", "/detokenize", What::Detokenize, "Give the text of tokens"),
    route("GET", "/tokenizer_info", What::TokenizerInfo, "Tell of the tokenizer"),
    route("GET", "/v1/moi/rules", What::Rules, "List the input rules and their knobs"),
    route("GET", "/v1/moi/runs", What::Runs, "Tell how much is in progress"),
    open("/health", What::Health, "Tell whether requests are taken"),
    open("/v1/health", What::Health, "Tell whether requests are taken"),
    open("/livez", What::Live, "Tell whether the engine works"),
    open("/readyz", What::Ready, "Tell whether requests are taken"),
    route("GET", "/version", What::Version, "Tell the server's version"),
    route("GET", "/load", What::Load, "Tell how many requests are in progress"),
    route("GET", "/ping", What::Ping, "Answer"),
    route("GET", "/metrics", What::Metrics, "Give metrics in Prometheus's text format"),
    route("GET", "/openapi.json", What::OpenApi, "Describe all routes"),
    route("GET", "/docs", What::Docs, "Show all routes"),
];
