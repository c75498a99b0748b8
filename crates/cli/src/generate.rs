//! `moi generate`.

use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::backend::Backend;
use moi_engine::{Engine, InputRule, Request, TokenEvent};
use moi_models::Decoder;
use moi_pretrained::Pretrained;
use moi_text::Tokenizer;

use crate::{
    Ended,
    args::{Format, GenerateArgs},
    backend::{Device, Job},
    decoding::{self, Decoding},
    interrupt::Interrupt,
    model::{self, Loading},
    output::{self, Answer, Names, Report, StopReason, Timing},
    prompt, runner, ui,
};

/// Generates, prints and reports.
pub(crate) fn run(args: GenerateArgs) -> Result<Ended> {
    let rule = decoding::rule(&args.rule)?;
    let path = model::find(&args.model.model, args.model.revision.as_deref())?;
    let begun = Instant::now();
    let pretrained = model::open_at(&args.model, &path)?;
    let device = Device::chosen(args.model.device);
    device.run(Generate { args, device, pretrained, rule, begun })
}

struct Generate {
    args: GenerateArgs,
    device: Device,
    pretrained: Pretrained,
    rule: InputRule,
    begun: Instant,
}

impl Job for Generate {
    type Output = Ended;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Ended> {
        let Self { args, device: device_name, pretrained, rule, begun } = self;
        let samples = usize::from(args.output.n);
        // The prompt is tokenized while the weights are loaded, so the length of a text is unknown here; 1 is the
        // minimum.
        let given = args.prompt.tokens.as_ref().map_or(1, Vec::len);
        let least = model::positions(&pretrained, given, args.stop.limit()) * samples;
        let loading = Loading::<B>::begin(pretrained, &args.model, (device_name, device), least)?;
        let pretrained = loading.pretrained();
        let prompt = prompt::ids(&args.prompt, &args.model.model, pretrained)?;
        let decoding =
            Decoding::new(pretrained, &args.rule.scope, &args.sampling, Some(&args.grammar), &args.stop)?;
        decoding.note_idle(&[rule], samples);
        let interrupt = Interrupt::install()?;
        let positions = model::positions(pretrained, prompt.len(), decoding.stop.max_tokens) * samples;
        let (engine, form) = loading.finish(positions)?;
        let engine = decoding.engine(engine, &args.model, device_name)?.with_progress(runner::prefill_bar()?);
        let load = begun.elapsed();
        let streams = args.output.format == Format::Text;
        let request = |sample| Request {
            // Text output does not show the weights of mixtures.
            top: if streams { 0 } else { args.output.top },
            logprobs: args.output.logprobs,
            ..decoding.request::<B>(&prompt, rule, sample)
        };
        interrupt.begin();
        let ran = match samples {
            1 => one(&engine, request(0), streams, &interrupt)?,
            _ => many(&engine, (0..samples).map(request).collect(), streams, &interrupt)?,
        };
        note_unknown(ran.rows.iter().flatten().map(|step| step.token), engine.tokenizer());
        let timing = Timing::new(load, [prompt.len(), ran.reused], ran.prefill, &ran.rows, ran.decode);
        let stop_reason = |row: usize| StopReason::of(&ran.rows[row], ran.early(row));
        if !streams {
            let (device, dtype) = (device_name.to_string(), output::dtype_name(form));
            let mix_tolerance = engine.mix_tolerance();
            let names = Names { model: &args.model.model, device: &device, dtype, mix_tolerance };
            let seeds = (0..).map(|sample| decoding.seed.wrapping_add(sample));
            let answers = ran.rows.iter().zip(seeds).enumerate();
            let answers = answers
                .map(|(row, (steps, seed))| Answer::new(seed, steps, ran.early(row), engine.tokenizer()))
                .collect();
            Report::new(names, rule, &decoding, &prompt, answers, timing).print()?;
        }
        if args.output.stats {
            let weights = engine.model().bytes_per_token();
            ui::say!("{}", timing.line(&rule, decoding.seed, stop_reason(samples - 1), weights));
            for report in ran.rows.iter().filter_map(|steps| output::speculation(steps)) {
                ui::say!("{}", output::speculation_line(report));
            }
        }
        let interrupted = ran.interrupted;
        match ran.error(|row| format!("sample {} of {samples}", row + 1)) {
            Some(error) => Err(error),
            None => Ok(if interrupted { Ended::Interrupted } else { Ended::Normally }),
        }
    }
}

/// Generates one answer and prints it as it comes.
fn one<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    request: Request<B>,
    streams: bool,
    interrupt: &Interrupt,
) -> Result<runner::Ran> {
    let start = Instant::now();
    let limit = request.stop.max_tokens;
    let mut generation = engine.generate(request)?;
    note_kernels();
    let bar = (!streams).then(|| runner::rate(limit)).transpose()?;
    // The device may still be busy with loading; the first token waits for that, which counts as prefill.
    let mut prefill = None;
    let mut steps: Vec<TokenEvent> = Vec::new();
    let mut failed = None;
    for step in generation.by_ref() {
        let step = match step {
            Ok(step) => step,
            Err(error) => {
                failed = Some(error);
                break;
            }
        };
        prefill.get_or_insert_with(|| start.elapsed());
        if streams {
            output::stream(&step.text)?;
        }
        steps.push(step);
        if let Some(bar) = &bar {
            bar.inc(1);
        }
        if interrupt.is_set() {
            break;
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let reused = generation.reused_positions();
    // `finish` returns text that was held back if an interrupt or a failure ended the generation.
    let held = generation.finish()?;
    if let Some(last) = steps.last_mut() {
        if streams {
            output::stream(&held)?;
        }
        last.text += &held;
    }
    if streams {
        output::finish_stream(&steps)?;
    }
    let prefill: Duration = prefill.unwrap_or_default();
    let interrupted = steps.last().is_none_or(|step| step.stop.is_none());
    Ok(runner::Ran {
        rows: vec![steps],
        reused,
        prefill,
        decode: start.elapsed() - prefill,
        interrupted,
        errors: vec![None],
        failed,
    })
}

/// Generates several samples in one batch.
fn many<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    requests: Vec<Request<B>>,
    prints: bool,
    interrupt: &Interrupt,
) -> Result<runner::Ran> {
    let seeds: Vec<u64> = requests.iter().map(|request| request.seed).collect();
    let ran = runner::together(engine, requests, interrupt)?;
    note_kernels();
    if prints {
        for (index, (steps, seed)) in ran.rows.iter().zip(&seeds).enumerate() {
            let text: String = steps.iter().map(|step| step.text.as_str()).collect();
            let line = if text.ends_with('\n') { "" } else { "\n" };
            output::print_bytes(
                format!("== {} of {}, seed {seed}\n{text}{line}", index + 1, seeds.len()).as_bytes(),
            )?;
        }
    }
    Ok(ran)
}

/// Prints a note if generated tokens are not in the tokenizer; they print nothing.
pub(crate) fn note_unknown(tokens: impl Iterator<Item = u32>, tokenizer: Option<&Tokenizer>) {
    let Some(tokenizer) = tokenizer else { return };
    let (unknown, known): (Vec<u32>, Vec<u32>) = tokens.partition(|&token| tokenizer.token(token).is_none());
    if let Some(first) = unknown.first() {
        ui::note(&format!(
            "warning: {} of {} tokens, at first {first}, print nothing: the tokenizer, of {} tokens, does not have them; \
             is it of another model than the weights?",
            unknown.len(),
            unknown.len() + known.len(),
            tokenizer.vocab_size()
        ));
    }
}

/// Prints a note if our GPU kernels were found wrong and turned off.
pub(crate) fn note_kernels() {
    if moi_engine::self_check::kernels_failed() {
        ui::note(
            "our own kernels compute wrong numbers on this device, so they are off and it is slower; please report it \
             with the output of `moi doctor`",
        );
    }
}
