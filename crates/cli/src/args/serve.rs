//! `moi serve`.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::ValueEnum;

use super::{ModelArgs, RuleArgs, SamplingArgs};

/// Serve a model over HTTP: a chat page, and OpenAI's and Anthropic's APIs
///
/// The chat page is at the server's address. Chat and text completions, responses and messages are answered, streamed or whole,
/// for any client of these APIs; a request may name an input rule of its own in its field `moi`. GET /docs lists the routes and
/// GET /openapi.json describes each field.
///
/// Rule and sampling are those of requests that say nothing else. Ctrl-C, or SIGTERM, lets answers under way come to their
/// ends; a second one does not.
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
    /// What requests are sampled by that do not say: what the model's makers advise and the flags here, or OpenAI's
    /// defaults, temperature 1 and no filters
    #[arg(long, value_enum, default_value_t = Defaults::Model, help_heading = "Sampling (the model's advised values where not given)")]
    pub(crate) defaults: Defaults,
}

/// Where the server listens, and as what.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ListenArgs {
    /// The address to listen at; others than this machine's own need keys
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// The port; 0 for one that is free
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// A socket of the file system in the place of host and port, for a proxy on this machine
    #[arg(long, value_name = "PATH", conflicts_with_all = ["host", "port"])]
    pub(crate) unix: Option<PathBuf>,
    /// A certificate by which the server encrypts connections itself, as PEM; SIGHUP has the file read again. Without one it is
    /// for a proxy to do that
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE", requires = "tls_key", conflicts_with = "unix")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of the certificate, as PEM
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// A name under which the model is served, in the place of --model's; may be repeated for more
    #[arg(long, value_name = "NAME")]
    pub(crate) alias: Vec<String>,
    /// A chat template in the place of the model's own: a file of Jinja
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// Take any name of a model for the one that is served
    #[arg(long)]
    pub(crate) any_model: bool,
    /// What a model's thoughts are called in answers of chat completions
    #[arg(long, value_enum, value_name = "NAME", default_value_t = ThoughtField::ReasoningContent)]
    pub(crate) thoughts_as: ThoughtField,
    /// Serve no chat page
    #[arg(long)]
    pub(crate) no_page: bool,
    /// Serve the chat page's files from a directory, to work on them
    #[arg(long, value_name = "DIR", conflicts_with = "no_page")]
    pub(crate) page: Option<PathBuf>,
    /// A line on stderr for each request that was answered: without its prompt
    #[arg(long, value_enum, value_name = "FORM")]
    pub(crate) log: Option<LogFormat>,
    /// Prompts in these lines as well
    #[arg(long)]
    pub(crate) log_prompts: bool,
    /// Seconds for which requests are still taken when the server is told to stop, while /readyz says that it is not ready:
    /// more than a load balancer takes to find out
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) drain_delay: u64,
    /// Seconds that answers under way may take when the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) shutdown_timeout: u64,
    /// Seconds of silence after which a stream has a comment, as proxies close silent connections
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) ping: u64,
    /// Seconds after which a client is given up that does not read its answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) stall_timeout: u64,
    /// Seconds that a round of the model may take before /livez says that the server hangs, and what was in progress is told
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) live_timeout: u64,
}

/// Who may use the server.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArgs {
    /// A key that clients must have; may be repeated. MOI_API_KEY keeps it out of lists of processes
    #[arg(long, value_name = "KEY")]
    pub(crate) api_key: Vec<String>,
    /// A file of keys, one a line, with a name before it and a quota of tokens behind it if wanted: `ann KEY 100000/day`.
    /// SIGHUP has it read again, and of a file of --config the names and the form of log lines
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Let everybody use the server who can reach it
    #[arg(long)]
    pub(crate) insecure_no_key: bool,
    /// A name by which the server may be reached without a key, beside localhost and addresses; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) allowed_host: Vec<String>,
    /// Pages of this origin may use the server, such as `https://app.example`; may be repeated
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) cors_origin: Vec<String>,
    /// Take chat templates from requests
    #[arg(long)]
    pub(crate) trust_request_templates: bool,
}

/// What requests may take.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Sequences that run together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_rows: u16,
    /// Memory for keys and values, a quarter of it for prompts that begin alike [default: half of what is free]
    #[arg(long, value_name = "BYTES")]
    pub(crate) kv_memory: Option<ByteSize>,
    /// Requests that wait; more are refused with status 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_queue: usize,
    /// Tokens of the prompts of requests that wait
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    pub(crate) max_queue_tokens: usize,
    /// Seconds that a request waits for its turn before it is refused, with status 429 or in its stream [default: as long as
    /// it takes]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) queue_timeout: Option<u64>,
    /// Take `priority` from requests: those with smaller numbers come first, whoever has asked
    #[arg(long)]
    pub(crate) priority: bool,
    /// Tokens of an answer, whatever a request asks for
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Samples of a prompt
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_n: u16,
    /// Bytes of a request
    #[arg(long, value_name = "BYTES", default_value = "16MiB")]
    pub(crate) max_body: ByteSize,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: u32,
}

/// What requests are sampled by that do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Defaults {
    /// What the model's makers advise, and the flags
    Model,
    /// Temperature 1, and no filters
    Openai,
}

/// What thoughts are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ThoughtField {
    /// As llama-server, vLLM and DeepSeek have it
    #[value(name = "reasoning_content")]
    ReasoningContent,
    /// As Ollama and OpenRouter have it
    Reasoning,
    /// Under both names
    Both,
}

/// How requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// An object a line
    Json,
}
