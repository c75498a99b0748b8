//! All routes, as data. The router, the check of keys, metrics and openapi.json are made from this table.

/// A route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// Whether it answers without a key.
    pub(crate) is_open: bool,
    pub(crate) summary: &'static str,
    pub(crate) what: Handler,
}

/// The handler of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handler {
    Chat,
    Completions,
    Responses,
    Messages,
    CountTokens,
    Models,
    Model,
    Render,
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
    Page,
}

const fn route(method: &'static str, path: &'static str, what: Handler, summary: &'static str) -> Route {
    Route { method, path, is_open: false, summary, what }
}

const fn open(path: &'static str, what: Handler, summary: &'static str) -> Route {
    Route { method: "GET", path, is_open: true, summary, what }
}

/// All routes.
pub(crate) const ROUTES: &[Route] = &[
    route("POST", "/v1/chat/completions", Handler::Chat, "Answer a conversation"),
    route("POST", "/v1/completions", Handler::Completions, "Continue texts"),
    route(
        "POST",
        "/v1/responses",
        Handler::Responses,
        "Answer by OpenAI's newer API, which stores nothing here",
    ),
    route("POST", "/v1/messages", Handler::Messages, "Answer by Anthropic's API"),
    route(
        "POST",
        "/v1/messages/count_tokens",
        Handler::CountTokens,
        "Count the tokens of a conversation of Anthropic's",
    ),
    route("GET", "/v1/models", Handler::Models, "List the model's names"),
    route("GET", "/v1/models/{*model}", Handler::Model, "Tell of a model by its name"),
    route(
        "POST",
        "/v1/chat/completions/render",
        Handler::Render,
        "Give the prompt that a conversation becomes",
    ),
    route("POST", "/apply-template", Handler::Render, "The same by llama-server's name"),
    route("POST", "/tokenize", Handler::Tokenize, "Give the tokens of a text or a conversation"),
    route("POST", "/detokenize", Handler::Detokenize, "Give the text of tokens"),
    route("GET", "/tokenizer_info", Handler::TokenizerInfo, "Tell of the tokenizer"),
    route("GET", "/v1/moi/rules", Handler::Rules, "List the input rules and their knobs"),
    route("GET", "/v1/moi/runs", Handler::Runs, "Tell how much is in progress"),
    open("/health", Handler::Health, "Tell whether requests are taken"),
    open("/v1/health", Handler::Health, "Tell whether requests are taken"),
    open("/livez", Handler::Live, "Tell whether the engine works"),
    open("/readyz", Handler::Ready, "Tell whether requests are taken"),
    route("GET", "/version", Handler::Version, "Tell the server's version"),
    route("GET", "/load", Handler::Load, "Tell how many requests are in progress"),
    route("GET", "/ping", Handler::Ping, "Answer"),
    route("GET", "/metrics", Handler::Metrics, "Give metrics in Prometheus's text format"),
    route("GET", "/openapi.json", Handler::OpenApi, "Describe all routes"),
    route("GET", "/docs", Handler::Docs, "Show all routes"),
    open("/", Handler::Page, "Show the chat page"),
    open("/page/{file}", Handler::Page, "Give a file of the chat page"),
];
