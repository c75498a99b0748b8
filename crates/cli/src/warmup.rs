//! `moi warmup`.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use burn::tensor::backend::Backend;
use moi_backends::{KernelCache, kernel_cache};
use moi_engine::{Engine, InputRule, Prompt, Request, Support};
use moi_models::{CausalLm, Decoder};
use moi_pretrained::Pretrained;

use crate::{
    args::WarmupArgs,
    backend::{Device, Job},
    model, ui,
};

/// Lengths of the prompts; GPUs choose kernels by the sizes of the tensors.
const PROMPTS: [usize; 5] = [1, 8, 20, 64, 512];
/// Length of the prompt whose first token is timed.
const TIMED: usize = 20;
/// Number of tokens after each prompt.
const TOKENS: usize = 4;
/// Number of mixture weights per step, as JSON output lists them.
const LISTED: usize = 5;

/// Compiles the kernels that a model needs, and prints the times.
pub(crate) fn run(args: &WarmupArgs) -> Result<()> {
    let path = model::find(&args.model.model, args.model.revision.as_deref())?;
    let begun = Instant::now();
    let pretrained = model::open_at(&args.model, &path)?;
    let device = Device::chosen(args.model.device);
    let took = device.run(Warmup { args, device, pretrained, begun })?;
    ui::say!(
        "moi: {device}: first token of {TIMED} after {:.2} s from the start of the program ({:.2} s after loading), \
         now after {:.2} s",
        took.from_start.as_secs_f64(),
        took.first.as_secs_f64(),
        took.again.as_secs_f64(),
    );
    match kernel_cache() {
        None => ui::say!("moi: {device} compiles no kernels; there is nothing to keep"),
        Some(KernelCache::At(path)) => {
            ui::say!("moi: kernels are kept in {} ({:.1} MB)", path.display(), size(path) as f64 / 1e6);
        }
        Some(KernelCache::Nowhere { why }) => ui::say!("moi: kernels are not kept: {why}"),
    }
    Ok(())
}

struct Warmup<'a> {
    args: &'a WarmupArgs,
    device: Device,
    pretrained: Pretrained,
    begun: Instant,
}

struct Took {
    from_start: Duration,
    first: Duration,
    again: Duration,
}

impl Job for Warmup<'_> {
    type Output = Took;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Took> {
        let Self { args, device: name, pretrained, begun } = self;
        let context = pretrained.architecture.config.context_length;
        let positions = (PROMPTS[PROMPTS.len() - 1] + TOKENS).min(context);
        let (engine, _) = model::engine::<B>(pretrained, &args.model, (name, device), positions)?;
        let first = first_token(&engine)?;
        let from_start = begun.elapsed();
        let rules = [InputRule::TOKEN, InputRule::default(), InputRule::moi(1.0, Support::TopK(20))?];
        for &length in PROMPTS.iter().filter(|&&length| length + TOKENS <= context) {
            // JSON output lists mixture weights and text output does not, and the two use different mixing kernels.
            for (rule, top) in rules.into_iter().flat_map(|rule| [(rule, 0), (rule, LISTED)]) {
                let request = Request { top, ..request(&engine, length, rule, TOKENS) };
                for step in engine.generate(request)? {
                    step?;
                }
            }
        }
        let again = first_token(&engine)?;
        Ok(Took { from_start, first, again })
    }
}

fn first_token<B: Backend>(engine: &Engine<B, Decoder<B>>) -> Result<Duration> {
    let begun = Instant::now();
    let mut steps = engine.generate(request(engine, TIMED, InputRule::default(), 1))?;
    steps.next().ok_or_else(|| anyhow!("the model gave no token"))??;
    Ok(begun.elapsed())
}

fn request<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    length: usize,
    rule: InputRule,
    tokens: usize,
) -> Request<B> {
    // The token ids do not matter. The context may be shorter than the prompt length.
    let (vocab, context) = (engine.model().config().vocab_size, engine.model().context_length());
    let ids = (0..length.min(context)).map(|i| (i * 7919 % vocab) as u32).collect();
    let mut request = Request::new(Prompt::Ids(ids));
    request.rule = rule;
    request.stop.max_tokens = Some(tokens);
    request.stop.ignore_eos = true;
    request
}

/// Bytes of all readable files in a directory.
fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size(&entry.path()),
        _ => entry.metadata().map_or(0, |metadata| metadata.len()),
    };
    entries.map(of).sum()
}
