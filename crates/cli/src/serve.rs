//! `moi serve`.

use std::{
    fs,
    net::{IpAddr, ToSocketAddrs},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::backend::Backend;
use moi_engine::{Engine, GrammarLimits, InputRule, Prompt, Request, Sampling, SchedulerOptions};
use moi_models::{CausalLm, is_gpu};
use moi_pretrained::Pretrained;
#[cfg(feature = "tls")]
use moi_serve::TlsFiles;
use moi_serve::{
    Address, Keys, Listening, LogLine, PageSource, Place, Reload, ServeOptions, Served, ServedModel, listen,
};
use moi_text::ChatTemplate;

use crate::{
    Ended, INTERRUPTED,
    args::{AccessArgs, Command, Defaults, LogFormat, ServeArgs, StopArgs, ThoughtField},
    backend::{Device, Job},
    command_line,
    decoding::{self, Decoding},
    file, memory,
    model::{self, Loading},
    service::{self, Happens},
    signals, ui,
};

/// The remedy in the error for a server that other machines can reach without a key.
const NEEDS_KEY: &str = "give --api-key-file FILE, or --insecure-no-key if everybody may";

/// Time limit to compile the grammar of a request.
const GRAMMAR_TIME: Duration = Duration::from_secs(2);

/// Serves until the process is asked to stop.
pub(crate) fn run(args: ServeArgs) -> Result<Ended> {
    let rule = decoding::rule(&args.rule)?;
    let options = options(&args)?;
    let is_open = options.keys.is_empty() && !args.access.insecure_no_key;
    let listening = listen(&address(&args), options)?;
    // A socket that the service manager opened may be reachable from other machines, whatever --host says.
    if let (true, Place::Tcp(place)) = (is_open, listening.place())
        && !place.ip().is_loopback()
    {
        bail!("the socket at {place} lets others than this machine use the server: {NEEDS_KEY}");
    }
    ui::note(&format!("listening at {}, and loading `{}`", listening.url(), args.model.model));
    let path = model::find(&args.model.model, args.model.revision.as_deref())?;
    let pretrained = model::open_at(&args.model, &path)?;
    let device = Device::chosen(args.model.device);
    device.run(Serve { args, device, pretrained, rule, listening })
}

/// The address to listen on.
fn address(args: &ServeArgs) -> Address {
    if let Some(path) = &args.listen.unix {
        return Address::Unix(path.clone());
    }
    // The socket comes from a service manager, and it is meant for this process only.
    let own = std::process::id().to_string();
    if std::env::var("LISTEN_PID").is_ok_and(|pid| pid == own) {
        return Address::Inherited;
    }
    let host = &args.listen.host;
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.clone() };
    Address::Tcp(format!("{host}:{}", args.listen.port))
}

/// The API keys of the flags and of the key file.
fn keys(access: &AccessArgs) -> Result<Keys> {
    let mut keys = match &access.api_key_file {
        Some(path) => {
            let wrong = || format!("the keys {} cannot be read", path.display());
            let text = file::read_text(path).with_context(wrong)?;
            Keys::parse(&text).map_err(|what| anyhow!(what)).with_context(wrong)?
        }
        None => Keys::default(),
    };
    if keys.is_empty() && access.api_key_file.is_some() {
        bail!("the file of --api-key-file has no keys");
    }
    for (at, key) in access.api_key.iter().enumerate() {
        if key.trim().is_empty() {
            bail!("--api-key is empty");
        }
        keys.add(&format!("--api-key {}", at + 1), key.trim(), None);
    }
    Ok(keys)
}

/// Reloads keys, model names and the log format on request. If they cannot be read, nothing changes.
fn reload(own: String, reload: Reload) -> impl FnMut() + Send {
    move || {
        #[cfg(feature = "tls")]
        match reload.certificate() {
            Ok(true) => ui::note("the certificate was read again"),
            Ok(false) => {}
            Err(error) => ui::note(&format!("the certificate stays as it was: {error}")),
        }
        let read = command_line::parsed().and_then(|args| match args.command {
            Command::Serve(args) => Ok((keys(&args.access)?, args)),
            _ => bail!("the command is another one now"),
        });
        match read {
            Ok((keys, _)) if !reload.keys(keys.clone()) => {
                ui::note(
                    "the settings stay as they were: there are no keys any more, and everybody could use the server",
                );
            }
            Ok((_, args)) => {
                reload.names(names(&args, &own));
                reload.log(writer(args.listen.log));
                ui::note("keys, names and the form of log lines were read again");
            }
            Err(error) => ui::note(&format!("the settings stay as they were: {error:#}")),
        }
    }
}

/// The names under which the model is served.
fn names(args: &ServeArgs, own: &str) -> Vec<String> {
    match args.listen.alias.is_empty() {
        true => vec![own.to_owned()],
        false => args.listen.alias.clone(),
    }
}

/// The options of the server: access, limits, timeouts and logging.
fn options(args: &ServeArgs) -> Result<ServeOptions> {
    let keys = keys(&args.access)?;
    let host = &args.listen.host;
    let is_own = args.listen.unix.is_some() || is_own(host);
    if keys.is_empty() && !args.access.insecure_no_key && !is_own {
        bail!("--host {host} lets others than this machine use the server: {NEEDS_KEY}");
    }
    // A server that is open to everybody accepts any host name. With keys, host names are not checked.
    let any_host = args.access.insecure_no_key && !is_own;
    Ok(ServeOptions {
        keys,
        allowed_hosts: args.access.allowed_host.clone(),
        any_host,
        cors_origins: args.access.cors_origin.clone(),
        max_body: usize::try_from(args.limits.max_body.as_u64()).unwrap_or(usize::MAX),
        max_connections: args.limits.max_connections as usize,
        ping: Duration::from_secs(args.listen.ping),
        stall_timeout: Duration::from_secs(args.listen.stall_timeout),
        drain_delay: Duration::from_secs(args.listen.drain_delay),
        shutdown_timeout: Duration::from_secs(args.listen.shutdown_timeout),
        thought_fields: match args.listen.thoughts_as {
            ThoughtField::ReasoningContent => vec!["reasoning_content"],
            ThoughtField::Reasoning => vec!["reasoning"],
            ThoughtField::Both => vec!["reasoning_content", "reasoning"],
        },
        trust_request_templates: args.access.trust_request_templates,
        page: match &args.listen.page {
            _ if args.listen.no_page => PageSource::Off,
            Some(directory) => PageSource::Directory(directory.clone()),
            None => PageSource::BuiltIn,
        },
        #[cfg(feature = "tls")]
        tls: args
            .listen
            .tls_cert
            .clone()
            .zip(args.listen.tls_key.clone())
            .map(|(certificate, key)| TlsFiles { certificate, key }),
        log: writer(args.listen.log),
        log_prompts: args.listen.log_prompts,
        notes: Some(|text| ui::say!("moi: {text}")),
        live_timeout: Duration::from_secs(args.listen.live_timeout),
        queue_timeout: args.limits.queue_timeout.map(Duration::from_secs),
    })
}

/// Whether a host is a loopback address, which other machines cannot reach.
fn is_own(host: &str) -> bool {
    let addresses = (host.trim_matches(['[', ']']), 0).to_socket_addrs();
    addresses.is_ok_and(|mut all| all.all(|address| IpAddr::is_loopback(&address.ip())))
}

/// The function that writes the log line of a request.
fn writer(format: Option<LogFormat>) -> Option<fn(&LogLine)> {
    format.map(|format| match format {
        LogFormat::Text => log_text as fn(&LogLine),
        LogFormat::Json => log_json,
    })
}

fn log_text(line: &LogLine) {
    let LogLine { id, owner, method, path, status, took, .. } = line;
    let mut text = format!("{id} {owner:?} {method} {path} {status} {:.3} s", took.as_secs_f64());
    if let Some(served) = &line.served {
        let Served { prompt_tokens, cached_tokens, completion_tokens, first_token, finish } = served;
        text += &format!(
            ", {prompt_tokens} tokens of prompt ({cached_tokens} cached), {completion_tokens} generated"
        );
        if let Some(first) = first_token {
            text += &format!(", the first after {:.3} s", first.as_secs_f64());
        }
        text += &format!(", {}", finish.join(" "));
    }
    if let Some(trace) = &line.trace {
        text += &format!(", trace {trace}");
    }
    for prompt in &line.prompts {
        text += &format!(", prompt {prompt:?}");
    }
    ui::say!("{text}");
}

fn log_json(line: &LogLine) {
    let LogLine { id, trace, owner, method, path, status, took, prompts, served } = line;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    let mut line = serde_json::json!({
        "time": time, "id": id, "owner": owner, "method": method, "path": path, "status": status,
        "seconds": took.as_secs_f64(),
    });
    if let Some(trace) = trace {
        line["trace"] = trace.clone().into();
    }
    if let Some(Served { prompt_tokens, cached_tokens, completion_tokens, first_token, finish }) = served {
        line["prompt_tokens"] = (*prompt_tokens).into();
        line["cached_tokens"] = (*cached_tokens).into();
        line["completion_tokens"] = (*completion_tokens).into();
        line["first_token_seconds"] = first_token.map(|first| first.as_secs_f64()).into();
        line["finish"] = finish.clone().into();
    }
    if !prompts.is_empty() {
        line["prompts"] = prompts.clone().into();
    }
    ui::say!("{line}");
}

struct Serve {
    args: ServeArgs,
    device: Device,
    pretrained: Pretrained,
    rule: InputRule,
    listening: Listening,
}

impl Job for Serve {
    type Output = Ended;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Ended> {
        let Self { args, device: device_name, mut pretrained, rule, listening } = self;
        let is_ready = Arc::new(AtomicBool::new(false));
        let (stop, ready) = (listening.stopper(), Arc::clone(&is_ready));
        let mut is_told = false;
        let end = move || {
            if is_told || !ready.load(Relaxed) {
                signals::exit_at_once(INTERRUPTED);
            }
            is_told = true;
            ui::note("stopping; a second signal stops at once");
            service::tell(Happens::Stopping);
            stop.stop();
        };
        #[cfg(feature = "tls")]
        let has_certificate = args.listen.tls_cert.is_some();
        #[cfg(not(feature = "tls"))]
        let has_certificate = false;
        if args.access.api_key_file.is_some() || has_certificate || command_line::is_named() {
            let again = reload(args.model.model.clone(), listening.reloader());
            signals::on_end_or_reload(end, again)?;
        } else {
            signals::on_end(end)?;
        }
        let never = StopArgs { max_tokens: None, min_tokens: 0, stop: Vec::new(), ignore_eos: false };
        let decoding = Decoding::new(&pretrained, &args.rule.scope, &args.sampling, None, &never)?;
        let own = std::mem::replace(&mut pretrained.chat_template, Ok(None));
        let template = match &args.listen.chat_template {
            Some(path) => Ok(Some(template_in(path, own.as_ref().ok().and_then(Option::as_ref))?)),
            None => own,
        };
        let context_length = pretrained.architecture.config.context_length;
        let eos = pretrained.eos.clone();
        let created = modified(&pretrained.path);
        let loading = Loading::<B>::begin(pretrained, &args.model, (device_name, device), 1)?;
        let weights = loading.weight_bytes();
        let (engine, _) = loading.finish(1)?;
        let Some(tokenizer) = engine.tokenizer().cloned() else {
            bail!(
                "the model `{}` has no tokenizer that can be used, and a server needs one",
                args.model.model
            )
        };
        let memory = match args.limits.kv_memory {
            Some(size) => usize::try_from(size.as_u64()).ok(),
            None => free::<B>(device_name, weights).map(|free| free / 2),
        };
        let mut engine = decoding
            .engine(engine, &args.model, device_name)?
            .with_grammar_limits(GrammarLimits { max_time: Some(GRAMMAR_TIME), ..GrammarLimits::default() });
        if let Some(memory) = memory {
            engine = engine.with_prefix_cache(memory / 4);
        }
        warm_up(&engine)?;
        let sampling = match args.defaults {
            Defaults::Model => decoding.sampling.clone(),
            Defaults::Openai => Sampling { temperature: 1.0.into(), ..Sampling::default() },
        };
        let [vocabulary, width] = engine.model().embedding().dims();
        let model = ServedModel {
            names: names(&args, &args.model.model),
            any_name: args.listen.any_model,
            created,
            template: match template {
                Ok(Some(template)) => Ok(template),
                Ok(None) => {
                    Err("the model has no chat template: it continues texts, by /v1/completions".to_owned())
                }
                Err(error) => Err(error.to_string()),
            },
            eos,
            markers: engine.markers(),
            context_length,
            embedding: [vocabulary, width],
            sampling,
            rule,
            scope: decoding.scope,
            speculation: decoding.speculation,
            max_tokens: args.limits.max_tokens,
            max_n: args.limits.max_n.into(),
            priorities: args.limits.priority,
            tokenizer,
        };
        let scheduler = SchedulerOptions {
            max_running: args.limits.max_rows.into(),
            max_queued: args.limits.max_queue,
            max_queued_tokens: args.limits.max_queue_tokens,
            cache_bytes: memory.map(|memory| memory - memory / 4),
            ..SchedulerOptions::default()
        };
        let (url, health) = (listening.url(), listening.health());
        let ready = move || {
            is_ready.store(true, Relaxed);
            ui::note(&format!("ready: {url}"));
            service::tell(Happens::Ready);
            service::watch(move || health.is_live());
        };
        match listening.run(engine, device.clone(), model, scheduler, ready)? {
            true => Ok(Ended::Normally),
            false => {
                ui::note("some answers had to be cut off");
                Ok(Ended::Unwell)
            }
        }
    }
}

/// Reads a chat template from a file, with the control tokens of the model's own template.
fn template_in(path: &Path, own: Option<&ChatTemplate>) -> Result<ChatTemplate> {
    let source = file::read_text(path)
        .with_context(|| format!("the chat template {} cannot be read", path.display()))?;
    let tokens = own.map(|own| own.tokens().clone()).unwrap_or_default();
    Ok(ChatTemplate::in_file(path, &source, tokens)?)
}

/// Generates a token, which checks the device and compiles its kernels.
fn warm_up<B: Backend, M: CausalLm<B>>(engine: &Engine<B, M>) -> Result<()> {
    let mut request = Request::new(Prompt::Ids(vec![0]));
    request.stop.max_tokens = Some(2);
    engine.generate(request)?.try_for_each(|step| step.map(drop))?;
    crate::generate::note_kernels();
    Ok(())
}

/// Bytes that are free for keys and values, if known.
fn free<B: Backend>(device: Device, weights: usize) -> Option<usize> {
    let bytes = match is_gpu::<B>() {
        true => device.found()?.memory?.saturating_sub(weights as u64),
        false => {
            memory::available().or_else(|| Some(device.found()?.memory?.saturating_sub(weights as u64)))?
        }
    };
    usize::try_from(bytes).ok()
}

/// The modification time of a model's files, in seconds since 1970.
fn modified(path: &Path) -> u64 {
    let time = fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or_else(|_| SystemTime::now());
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
