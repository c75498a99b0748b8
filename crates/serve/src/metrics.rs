//! Metrics, under vLLM's names, which routers and dashboards read, and under our own.

use std::time::{Duration, Instant};

use moi_engine::{Refusal, StopReason};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Collector,
};

use crate::status::Gauges;

/// Why requests are refused.
const INVALID: &str = "invalid";
const TOO_LARGE: &str = "too_large";
const QUEUE_FULL: &str = "queue_full";
const QUOTA: &str = "quota";
const TIMEOUT: &str = "timeout";

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
    /// Its client left, or the server stopped.
    Abort,
    Error,
}

impl Finish {
    /// The kind of end for a reason of the engine.
    pub(crate) fn of(stop: StopReason) -> Self {
        match stop {
            StopReason::Eos | StopReason::Stop | StopReason::Grammar | StopReason::Rule => Self::Stop,
            StopReason::Length | StopReason::Context => Self::Length,
        }
    }

    /// Its name, as in metrics and in answers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}

/// What a generation asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestInfo {
    /// Number of positions of its prompt.
    pub(crate) prompt: usize,
    pub(crate) max_tokens: Option<usize>,
    /// The name of its rule.
    pub(crate) rule: &'static str,
}

/// The times of the events of a generation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    submitted: Instant,
    admitted: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    prompt: usize,
    max_tokens: Option<usize>,
    rule: &'static str,
    /// Number of generated tokens.
    pub(crate) tokens: usize,
}

impl Times {
    /// The times of a generation that is submitted now.
    pub(crate) fn new(RequestInfo { prompt, max_tokens, rule }: RequestInfo) -> Self {
        let submitted = Instant::now();
        Self { submitted, admitted: None, first: None, last: None, prompt, max_tokens, rule, tokens: 0 }
    }

    /// Notes that the generation takes part from this time on.
    pub(crate) fn admitted(&mut self, at: Instant) {
        self.admitted = Some(at);
    }

    /// Whether it takes part.
    pub(crate) fn has_begun(&self) -> bool {
        self.admitted.is_some()
    }

    /// How long it has waited for its turn so far; 0 if its turn has come.
    pub(crate) fn waited(&self) -> Duration {
        if self.has_begun() { Duration::ZERO } else { self.submitted.elapsed() }
    }
}

/// All metrics of one server.
pub(crate) struct Metrics {
    registry: Registry,
    running: IntGauge,
    waiting: IntGauge,
    cache_usage: [Gauge; 2],
    cache_bytes: IntGauge,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    prefix_queries: [IntCounter; 2],
    prefix_hits: [IntCounter; 2],
    finished: IntCounterVec,
    first_token: Histogram,
    between_tokens: [Histogram; 2],
    whole: Histogram,
    queued: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_lengths: Histogram,
    generation_lengths: Histogram,
    asked_n: Histogram,
    asked_max_tokens: Histogram,
    round_tokens: Histogram,
    rounds: Histogram,
    refused: IntCounterVec,
    preemptions: IntCounter,
    mixed: IntCounterVec,
    http: IntCounterVec,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// Bounds of histograms, as vLLM has them.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0,
    100000.0,
];
const COUNTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const ROUND_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

/// Registers metrics of a model.
struct Register<'a> {
    registry: Registry,
    model: &'a str,
}

impl Register<'_> {
    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_label("model_name", self.model).const_label("engine", "0")
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> prometheus::Result<C> {
        let collector = collector?;
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::with_opts(self.opts(name, help)))
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::with_opts(self.opts(name, help)))
    }

    fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> prometheus::Result<Histogram> {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(bounds.to_vec());
        self.add(Histogram::with_opts(opts))
    }
}

impl Metrics {
    /// The metrics of a model that is served under this name, with a cache of `blocks` blocks of `block_positions`
    /// positions.
    ///
    /// # Errors
    /// If two metrics have the same name, which is not the case.
    pub(crate) fn new(model: &str, block_positions: usize, blocks: usize) -> prometheus::Result<Self> {
        let r = Register { registry: Registry::new(), model };
        let cache = IntGaugeVec::new(
            r.opts("vllm:cache_config_info", "Information of the cache"),
            &["block_size", "num_gpu_blocks", "cache_dtype"],
        );
        r.add(cache)?.with_label_values(&[&block_positions.to_string(), &blocks.to_string(), "auto"]).set(1);
        let reasons = IntCounterVec::new(
            r.opts("vllm:request_success_total", "Requests that have ended, by their reasons"),
            &["finished_reason"],
        );
        let finished = r.add(reasons)?;
        for finish in [Finish::Stop, Finish::Length, Finish::Abort, Finish::Error] {
            finished.with_label_values(&[finish.name()]);
        }
        let refused = IntCounterVec::new(
            r.opts("moi_queue_rejected_total", "Requests that were not taken"),
            &["reason"],
        );
        let refused = r.add(refused)?;
        for reason in [INVALID, TOO_LARGE, QUEUE_FULL, QUOTA, TIMEOUT] {
            refused.with_label_values(&[reason]);
        }
        let http = IntCounterVec::new(
            r.opts("moi_http_requests_total", "Answered HTTP requests"),
            &["route", "status"],
        );
        let usage = |name| {
            r.add(Gauge::with_opts(
                r.opts(name, "Share of the cache that requests in progress are counted with, 0 to 1"),
            ))
        };
        let between = "Seconds from a token to the next";
        Ok(Self {
            running: r.gauge("vllm:num_requests_running", "Requests that run")?,
            waiting: r.gauge("vllm:num_requests_waiting", "Requests that wait for their turn")?,
            cache_usage: [usage("vllm:kv_cache_usage_perc")?, usage("vllm:gpu_cache_usage_perc")?],
            cache_bytes: r
                .gauge("moi_kv_bytes", "Bytes of the cache that requests in progress are counted with")?,
            prompt_tokens: r.counter("vllm:prompt_tokens_total", "Tokens of prompts that have run")?,
            generation_tokens: r.counter("vllm:generation_tokens_total", "Tokens generated")?,
            prefix_queries: [
                r.counter("vllm:prefix_cache_queries_total", "Tokens of prompts that were looked up")?,
                r.counter("vllm:gpu_prefix_cache_queries_total", "Tokens of prompts that were looked up")?,
            ],
            prefix_hits: [
                r.counter("vllm:prefix_cache_hits_total", "Tokens of prompts that were cached")?,
                r.counter("vllm:gpu_prefix_cache_hits_total", "Tokens of prompts that were cached")?,
            ],
            finished,
            first_token: r.histogram(
                "vllm:time_to_first_token_seconds",
                "Seconds until the first token",
                FIRST_TOKEN,
            )?,
            between_tokens: [
                r.histogram("vllm:inter_token_latency_seconds", between, BETWEEN_TOKENS)?,
                r.histogram("vllm:time_per_output_token_seconds", between, BETWEEN_TOKENS)?,
            ],
            whole: r.histogram("vllm:e2e_request_latency_seconds", "Seconds of a request", REQUEST)?,
            queued: r.histogram("vllm:request_queue_time_seconds", "Seconds in the queue", REQUEST)?,
            inference: r.histogram(
                "vllm:request_inference_time_seconds",
                "Seconds behind the queue",
                REQUEST,
            )?,
            prefill: r.histogram("vllm:request_prefill_time_seconds", "Seconds of the prompt", REQUEST)?,
            decode: r.histogram(
                "vllm:request_decode_time_seconds",
                "Seconds behind the first token",
                REQUEST,
            )?,
            prompt_lengths: r.histogram("vllm:request_prompt_tokens", "Tokens of a prompt", TOKENS)?,
            generation_lengths: r.histogram(
                "vllm:request_generation_tokens",
                "Tokens generated for a request",
                TOKENS,
            )?,
            asked_n: r.histogram("vllm:request_params_n", "Samples that a request asked for", COUNTS)?,
            asked_max_tokens: r.histogram(
                "vllm:request_params_max_tokens",
                "Tokens that a request asked for",
                TOKENS,
            )?,
            round_tokens: r.histogram("vllm:iteration_tokens_total", "Tokens of a round", ROUND_TOKENS)?,
            rounds: r.histogram("moi_engine_loop_seconds", "Seconds of a round", FIRST_TOKEN)?,
            refused,
            mixed: r.add(IntCounterVec::new(
                r.opts("moi_mixed_tokens_total", "Tokens behind which a mixture was fed"),
                &["rule"],
            ))?,
            http: r.add(http)?,
            preemptions: r.counter("vllm:num_preemptions_total", "Requests that were parked for others")?,
            registry: r.registry,
        })
    }

    /// Counts a prompt that has run, of which `reused` positions were cached.
    pub(crate) fn prompt(&self, times: &Times, reused: usize) {
        self.prompt_tokens.inc_by(times.prompt as u64);
        self.prefix_queries.iter().for_each(|counter| counter.inc_by(times.prompt as u64));
        self.prefix_hits.iter().for_each(|counter| counter.inc_by(reused as u64));
    }

    /// Counts a token. `mixed` says whether a mixture is fed behind it.
    pub(crate) fn token(&self, times: &mut Times, mixed: bool) {
        let now = Instant::now();
        match times.last.replace(now) {
            None => {
                times.first = Some(now);
                self.first_token.observe(seconds(times.submitted, now));
            }
            Some(last) => {
                self.between_tokens.iter().for_each(|histogram| histogram.observe(seconds(last, now)));
            }
        }
        times.tokens += 1;
        self.generation_tokens.inc();
        if mixed {
            self.mixed.with_label_values(&[times.rule]).inc();
        }
    }

    /// Counts a request that has ended.
    pub(crate) fn finished(&self, times: &Times, finish: Finish) {
        let now = Instant::now();
        self.finished.with_label_values(&[finish.name()]).inc();
        self.whole.observe(seconds(times.submitted, now));
        self.queued.observe(seconds(times.submitted, times.admitted.unwrap_or(now)));
        if let Some(admitted) = times.admitted {
            self.inference.observe(seconds(admitted, now));
            self.prefill.observe(seconds(admitted, times.first.unwrap_or(now)));
        }
        if let Some(first) = times.first {
            self.decode.observe(seconds(first, now));
        }
        self.prompt_lengths.observe(times.prompt as f64);
        self.generation_lengths.observe(times.tokens as f64);
        if let Some(max_tokens) = times.max_tokens {
            self.asked_max_tokens.observe(max_tokens as f64);
        }
    }

    /// Counts how many samples an accepted request asked for.
    pub(crate) fn asked(&self, n: usize) {
        self.asked_n.observe(n as f64);
    }

    /// Counts a request that was refused.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        let reason = match refusal {
            Refusal::Request(_) => INVALID,
            Refusal::TooLarge { .. } | Refusal::TooMany { .. } => TOO_LARGE,
            Refusal::QueueFull { .. } => QUEUE_FULL,
        };
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Counts a request that was refused because its key's quota is used up.
    pub(crate) fn over_quota(&self) {
        self.refused.with_label_values(&[QUOTA]).inc();
    }

    /// Counts requests that were refused because their turn did not come in time.
    pub(crate) fn waited_too_long(&self, requests: usize) {
        self.refused.with_label_values(&[TIMEOUT]).inc_by(requests as u64);
    }

    /// Counts a round, with the time that it took and the number of its tokens.
    pub(crate) fn round(&self, took: Duration, tokens: usize) {
        self.rounds.observe(took.as_secs_f64());
        self.round_tokens.observe(tokens as f64);
    }

    /// Sets how often requests were parked for others in all.
    pub(crate) fn preemptions(&self, count: usize) {
        self.preemptions.inc_by((count as u64).saturating_sub(self.preemptions.get()));
    }

    /// Counts an answered HTTP request.
    pub(crate) fn http(&self, route: &str, status: u16) {
        self.http.with_label_values(&[route, &status.to_string()]).inc();
    }

    /// All metrics in Prometheus's text format.
    pub(crate) fn text(&self, gauges: &Gauges) -> String {
        self.running.set(gauges.running as i64);
        self.waiting.set(gauges.waiting as i64);
        let usage = gauges.cache_used as f64 / gauges.cache_total.max(1) as f64;
        self.cache_usage.iter().for_each(|gauge| gauge.set(usage));
        self.cache_bytes.set(gauges.cache_used as i64);
        let mut text = Vec::new();
        // Writing to memory does not fail, and the registered metrics have valid names.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}
