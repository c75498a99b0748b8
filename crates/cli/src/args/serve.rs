//! The flags of `moi serve`.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::ValueEnum;

use super::{ModelArgs, RuleArgs, SamplingArgs};

/// Serve a model over HTTP: a chat page, and the APIs of OpenAI and Anthropic
///
/// The chat page is at the server's address. The server answers chat completions, text completions, responses and
/// messages, streamed or whole, for any client of these APIs. A request may choose its own input rule in the field
/// `moi`. GET /docs lists the routes, and GET /openapi.json describes each field.
///
/// The rule and sampling flags are the defaults for requests that do not set them. Ctrl-C or SIGTERM stops the server
/// after the running answers have ended; a second signal stops it at once.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  moi serve
  moi serve --model ./Llama-3.2-1B --quantize q4_0 --port 8000
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], \"moi\": {\"rule\": \"moi\", \"beta\": 2}}'")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) listen: ListenArgs,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) rule: RuleArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    /// Sampling of requests that set none: that of the model, or OpenAI's defaults
    ///
    /// `model` takes the values that the model's makers advise and the flags of this command. `openai` is temperature
    /// 1 without filters.
    #[arg(long, value_enum, default_value_t = Defaults::Model, help_heading = "Sampling (the model's advised values where not given)")]
    pub(crate) defaults: Defaults,
}

/// Where the server listens, and what it offers.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ListenArgs {
    /// Address to listen on; any address but this machine's own needs an API key or --insecure-no-key
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// Unix socket to listen on instead of host and port, for a proxy on this machine
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    pub(crate) unix: Option<PathBuf>,
    /// TLS certificate (PEM), if the server encrypts connections itself
    ///
    /// SIGHUP reloads the file. Without a certificate, put a proxy in front of the server for TLS.
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with = "unix")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of the TLS certificate (PEM)
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Name that the model is served under, instead of the value of --model; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<String>,
    /// File with a Jinja chat template to use instead of the model's own
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// Accept any model name in requests
    #[arg(long)]
    pub(crate) any_model: bool,
    /// Field name of a model's thoughts in chat completions
    #[arg(long, value_enum, value_name = "NAME", default_value_t = ThoughtField::ReasoningContent)]
    pub(crate) thoughts_as: ThoughtField,
    /// Do not serve the chat page
    #[arg(long)]
    pub(crate) no_page: bool,
    /// Directory to serve the chat page's files from, for work on the page
    #[arg(long, value_name = "DIR", conflicts_with = "no_page")]
    pub(crate) page: Option<PathBuf>,
    /// Write one line to stderr per answered request, without the prompt
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) log: Option<LogFormat>,
    /// Include the prompts in the log lines
    #[arg(long)]
    pub(crate) log_prompts: bool,
    /// Seconds to accept requests after the signal to stop, while /readyz reports "not ready"
    ///
    /// Choose more than the load balancer needs to notice.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) drain_delay: u64,
    /// Seconds that running answers may take after the signal to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) shutdown_timeout: u64,
    /// Seconds of silence before a stream gets a comment, because proxies close silent connections
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) ping: u64,
    /// Seconds before the server drops a client that does not read its answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) stall_timeout: u64,
    /// Seconds that one model step may take before /livez reports a hang
    ///
    /// The server then also lists the requests in progress on stderr.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) live_timeout: u64,
}

/// Who may use the server.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArgs {
    /// API key that clients must send; may be repeated
    ///
    /// Set MOI_API_KEY instead to keep the key out of process lists.
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Vec<String>,
    /// File of API keys, one per line, with an optional name and token quota: `ann KEY 100000/day`
    ///
    /// SIGHUP reloads the file. It also reloads the keys, the model names and the log format of a file that --config
    /// names.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Let everybody who can reach the server use it without a key
    #[arg(long)]
    pub(crate) insecure_no_key: bool,
    /// Host name that requests without a key may use, besides localhost and IP addresses; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) allowed_host: Vec<String>,
    /// Origin whose web pages may use the server, such as `https://app.example`; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,
    /// Accept chat templates from requests
    #[arg(long)]
    pub(crate) trust_request_templates: bool,
}

/// How much requests may use.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Sequences that run at the same time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_rows: u16,
    /// Memory for keys and values, a quarter of it for the prefix cache [default: half of the free memory]
    #[arg(long, value_name = "BYTES")]
    pub(crate) kv_memory: Option<ByteSize>,
    /// Requests that may wait; the server refuses more with status 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_queue: usize,
    /// Total prompt tokens of the waiting requests
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) max_queue_tokens: usize,
    /// Seconds that a request may wait before it is refused [default: no limit]
    ///
    /// The refusal is status 429, or an error event if the stream has begun.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) queue_timeout: Option<u64>,
    /// Read the field `priority` of requests: smaller numbers run first, whoever sent them
    #[arg(long)]
    pub(crate) priority: bool,
    /// Largest number of tokens in an answer, whatever a request asks for
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Largest number of samples per prompt
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_n: u16,
    /// Largest size of a request body
    #[arg(long, value_name = "BYTES", default_value = "16MiB")]
    pub(crate) max_body: ByteSize,
    /// Largest number of open connections
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: u32,
}

/// The sampling of requests that set none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Defaults {
    /// The values that the model's makers advise, and the flags
    Model,
    /// Temperature 1, no filters
    Openai,
}

/// The field name of a model's thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ThoughtField {
    /// As in llama-server, vLLM and DeepSeek
    #[value(name = "reasoning_content")]
    ReasoningContent,
    /// As in Ollama and OpenRouter
    Reasoning,
    /// Both fields
    Both,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text for people
    Text,
    /// One JSON object per line
    Json,
}
