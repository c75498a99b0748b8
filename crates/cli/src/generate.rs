//! `moi generate`.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use moi_engine::{InputRule, Prompt, Request, Sampling, Step, StopRules};
use moi_pretrained::{AdvisedSampling, Pretrained};

use crate::{
    Ended, INTERRUPTED,
    args::{Format, GenerateArgs, RuleArgs, RuleName, SamplingArgs},
    backend::{Device, Job},
    model,
    output::{self, Report, StopReason, Timing},
    prompt,
};

/// Generates, streams and reports.
pub(crate) fn run(args: GenerateArgs) -> Result<Ended> {
    let rule = rule(&args.rule)?;
    let path = model::find(&args.model.model, args.model.revision.as_deref())?;
    let begun = Instant::now();
    let pretrained = model::open_at(&args.model, &path)?;
    let prompt = prompt::ids(&args, &pretrained)?;
    let sampling = sampling(&args.sampling, pretrained.sampling);
    let seed = args.sampling.seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
    let device = Device::chosen(args.model.device);
    device.run(Generate { args, device, pretrained, prompt, rule, sampling, seed, begun })
}

struct Generate {
    args: GenerateArgs,
    device: Device,
    pretrained: Pretrained,
    prompt: Vec<u32>,
    rule: InputRule,
    sampling: Sampling,
    seed: u64,
    begun: Instant,
}

impl Job for Generate {
    type Output = Ended;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Ended> {
        let Self { args, device: device_name, pretrained, prompt, rule, sampling, seed, begun } = self;
        // The answer may end earlier, but not later; without an end, only what is needed for sure counts.
        let asked = prompt.len().saturating_add(args.stop.max_tokens.unwrap_or(1));
        let positions = asked.min(pretrained.architecture.config.context_length);
        let (engine, form) = model::engine::<B>(pretrained, &args.model, (device_name, device), positions)?;
        let load = begun.elapsed();
        let stop = StopRules {
            max_tokens: args.stop.max_tokens,
            strings: args.stop.stop,
            ignore_eos: args.stop.ignore_eos,
        };
        let prompt_tokens = prompt.clone();
        let request =
            Request { prompt: Prompt::Ids(prompt), rule, sampling, stop, seed, top: args.output.top };

        let interrupted = Arc::new(AtomicBool::new(false));
        on_interrupt(interrupted.clone())?;
        let start = Instant::now();
        let mut generation = engine.generate(request)?;
        if moi_engine::self_check::kernels_failed() {
            eprintln!("moi: {KERNELS_FAILED}");
        }
        // A device may still be at work on it; the first token waits for that and counts as prefill.
        let mut prefill = None;
        let mut steps: Vec<Step> = Vec::new();
        let streams = args.output.format == Format::Text;
        for step in generation.by_ref() {
            let step = step?;
            prefill.get_or_insert_with(|| start.elapsed());
            if streams {
                output::stream(&step.text)?;
            }
            steps.push(step);
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
        }
        // Nothing, unless an interrupt left something held back.
        let held = generation.finish()?;
        if let Some(last) = steps.last_mut() {
            if streams {
                output::stream(&held)?;
            }
            last.text += &held;
        }
        let prefill = prefill.unwrap_or_default();
        let timing = Timing::new(load, prompt_tokens.len(), prefill, steps.len(), start.elapsed() - prefill);
        let stop_reason =
            steps.last().and_then(|step| step.stop).map_or(StopReason::Interrupted, StopReason::from);
        if streams {
            output::finish_stream(&steps)?;
        } else {
            let (device, dtype) = (device_name.to_string(), output::dtype_name(form));
            let names = output::Names { model: &args.model.model, device: &device, dtype };
            Report::new(names, rule, seed, &prompt_tokens, &steps, stop_reason, timing).print()?;
        }
        if args.output.stats {
            eprintln!("{}", timing.line(&rule, seed, stop_reason, engine.model().bytes_per_token()));
        }
        Ok(if stop_reason == StopReason::Interrupted { Ended::Interrupted } else { Ended::Normally })
    }
}

const KERNELS_FAILED: &str = "our own kernels compute wrong numbers on this device, so they are off and it is slower; \
                              please report it with the output of `moi doctor`";

/// The first Ctrl-C ends the generation after the token under way, the second one at once.
fn on_interrupt(interrupted: Arc<AtomicBool>) -> Result<()> {
    ctrlc::set_handler(move || {
        if interrupted.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    })?;
    Ok(())
}

fn rule(args: &RuleArgs) -> Result<InputRule> {
    let &RuleArgs { rule, beta, support, gate } = args;
    let (takes_beta, takes_gate) = (rule == RuleName::Moi, rule == RuleName::Gate);
    for (flag, given, taken) in [
        ("--beta", beta.is_some(), takes_beta),
        ("--gate", gate.is_some(), takes_gate),
        ("--support", support.is_some(), rule != RuleName::Token),
    ] {
        if given && !taken {
            bail!("{flag} has no meaning for the rule `{}`", format!("{rule:?}").to_lowercase());
        }
    }
    let support = support.unwrap_or_default();
    Ok(match rule {
        RuleName::Token => InputRule::Token,
        RuleName::Moi => InputRule::moi(beta.unwrap_or(InputRule::DEFAULT_BETA), support)?,
        RuleName::Direct => InputRule::direct(support)?,
        RuleName::Gate => match gate {
            Some(gate) => InputRule::gate(gate, support)?,
            None => bail!("the rule `gate` needs --gate F, 0 to 1"),
        },
    })
}

/// What was asked for, else what the model's makers advise, else greedy and unfiltered.
fn sampling(args: &SamplingArgs, advised: AdvisedSampling) -> Sampling {
    let none = Sampling::default();
    Sampling {
        temperature: args.temperature.or(advised.temperature).unwrap_or(none.temperature),
        top_k: args.top_k.or(advised.top_k).unwrap_or(none.top_k),
        top_p: args.top_p.or(advised.top_p).unwrap_or(none.top_p),
        min_p: args.min_p.or(advised.min_p).unwrap_or(none.min_p),
    }
}

impl Timing {
    fn new(load: Duration, prefill_tokens: usize, prefill: Duration, steps: usize, decode: Duration) -> Self {
        Self {
            load_s: load.as_secs_f64(),
            prefill_tokens,
            prefill_s: prefill.as_secs_f64(),
            // The first token comes out of the prefill.
            decode_tokens: steps.saturating_sub(1),
            decode_s: decode.as_secs_f64(),
        }
    }
}
