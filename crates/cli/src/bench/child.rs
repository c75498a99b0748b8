//! The process that measures one group: it loads the model, measures the rows in turns, and writes them as JSON
//! lines.

use std::{
    path::Path,
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use indicatif::{ProgressBar, ProgressStyle};
use moi_engine::{DepthReport, DrafterChoice, Engine, InputRule, SpeculationReport, Verify};
use moi_models::{Activations, Decoder, default_kernels};
use moi_pretrained::Pretrained;

use super::{
    accuracy::{self, Accuracy},
    bandwidth,
    energy::{self, Meter},
    launches, machine,
    plan::{Group, Source, Test},
    references::Task,
    row::BenchRow,
    shape,
    statistics::Statistics,
    timing::{self, Drafts, first_token},
};
use crate::{
    Ended,
    args::ModelArgs,
    backend::{Device, Job},
    draft_model::{Speculate, with_draft_model},
    file, memory, model, output, ui,
};

/// Measures the group that the JSON describes.
///
/// # Errors
/// If the model cannot be loaded, or the device fails.
pub(super) fn run(group: &str) -> Result<Ended> {
    let begun = Instant::now();
    let group: Group = serde_json::from_str(group)
        .context("internal error: --group cannot be parsed; only `moi bench` itself sets it")?;
    let args = group.model_args()?;
    let pretrained = match &group.source {
        Source::Model { path, .. } => Some(model::open_at(&args, path)?),
        Source::Shape { .. } => None,
    };
    let counted = if group.launches { Some(launches::count()?) } else { None };
    let device = Device::chosen(args.device);
    let whole = device.run(Measure { group: &group, args: &args, device, pretrained, begun })?;
    drop(counted);
    Ok(if whole { Ended::Normally } else { Ended::Unwell })
}

struct Measure<'a> {
    group: &'a Group,
    args: &'a ModelArgs,
    device: Device,
    pretrained: Option<Pretrained>,
    begun: Instant,
}

/// The results of the repetitions.
struct Samples {
    /// Seconds of each repetition, for every row.
    seconds: Vec<Vec<f64>>,
    /// Joules of each repetition, for every row, if the platform counts energy.
    joules: Vec<Vec<Option<f64>>>,
    energy_source: Option<&'static str>,
    /// Kernel launches per step, for every row that generates.
    launches: Vec<Option<f64>>,
    /// Bandwidth of a memory copy, in bytes per second.
    copy: f64,
    peak_memory: Option<u64>,
}

impl Job for Measure<'_> {
    /// Whether every row was measured.
    type Output = bool;

    fn run<B: Backend>(self, device: &B::Device) -> Result<bool> {
        let Self { group, args, device: name, pretrained, begun } = self;
        let context = match (&pretrained, &group.source) {
            (Some(pretrained), _) => pretrained.architecture.config.context_length,
            (None, source) => shape::find(source.name())?.context,
        };
        let text = group.text.as_ref().map(|path| tokens_of(path, pretrained.as_ref())).transpose()?;
        let tests = fitting(group, context, text.as_deref());
        let compared = if group.accuracy.is_some() { accuracy::POSITIONS.min(context) } else { 1 };
        let positions = tests.iter().map(|test| test.batch.saturating_mul(test.positions()));
        let positions = positions.max().unwrap_or(1).max(compared);
        let (engine, form) = match (pretrained, &group.source) {
            (Some(pretrained), _) => model::engine::<B>(pretrained, args, (name, device), positions)?,
            (None, source) => shape::find(source.name())?.engine::<B>(args, (name, device), positions)?,
        };
        let engine = match drafters(&tests).find(|drafter| drafter.drafter() == DrafterChoice::Model) {
            Some(model) => with_draft_model(engine, &model, args, name)?,
            None => engine,
        };
        let drafts = Drafts { text: text.as_deref(), verify: group.verify, temperature: group.temperature };
        if let Some(Task::Write(path)) = &group.accuracy {
            accuracy::write(&engine, device, path)?;
            return Ok(true);
        }
        let tests = drafting(&engine, tests, (group, &drafts));
        let load_seconds = begun.elapsed().as_secs_f64();
        first_token(&engine)?;
        let first_token_cold_seconds = begun.elapsed().as_secs_f64();
        let mut warm = f64::INFINITY;
        for _ in 0..3 {
            warm = warm.min(first_token(&engine)?.as_secs_f64());
        }
        let whole = tests.len() == group.tests.len();
        let samples = samples(&engine, (name, device), &tests, (group, &drafts))?;
        let reports =
            tests.iter().map(|test| timing::report(&engine, test, &drafts)).collect::<Result<Vec<_>>>()?;
        // This runs after the measurements, so that it does not change speed and peak memory.
        let (accuracy, is_compared) = compared_with_reference(&engine, device, group);
        let pass_cost = |positions: usize| {
            let costs = engine.pass_costs();
            costs.measured().iter().any(|of| of.0 == positions).then(|| costs.relative(positions))
        };
        let common = BenchRow {
            device: name.to_string(),
            backend: B::name(device),
            dtype: output::dtype_name(form).to_owned(),
            load_seconds,
            first_token_cold_seconds,
            first_token_warm_seconds: warm,
            accuracy,
            pass_cost_2: pass_cost(2),
            pass_cost_4: pass_cost(4),
            pass_cost_8: pass_cost(8),
            ..common(group, name, engine.model())
        };
        for (row, report) in rows(common, &tests, &samples).into_iter().zip(reports) {
            let row = with_report(row, report);
            let mut line = serde_json::to_vec(&row)?;
            line.push(b'\n');
            output::print_bytes(&line)?;
        }
        Ok(whole && is_compared)
    }
}

/// The rows whose drafters can gain something, and those without. A message on stderr names the others.
fn drafting<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    tests: Vec<Test>,
    (group, drafts): (&Group, &Drafts<'_>),
) -> Vec<Test> {
    let can = |test: &Test| match timing::cannot_draft(engine, test, drafts) {
        Some(why) => {
            let (name, drafter) = (test.name(), test.speculate.as_deref().unwrap_or_default());
            ui::say!("moi: left out, {group}: {name} with drafts by {drafter}: {why}");
            false
        }
        None => true,
    };
    tests.into_iter().filter(can).collect()
}

/// The tokens of a text file.
///
/// # Errors
/// If it cannot be read, holds no token, or the model has no tokenizer.
fn tokens_of(path: &Path, pretrained: Option<&Pretrained>) -> Result<Vec<u32>> {
    let text = file::read_text(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let tokenizer = pretrained.and_then(|pretrained| pretrained.tokenizer.as_ref().ok()?.as_ref());
    let Some(tokenizer) = tokenizer else { bail!("--text needs a model with a tokenizer") };
    let ids = tokenizer.encode(&text, true)?;
    if ids.is_empty() {
        bail!("{} holds no text to continue", path.display());
    }
    Ok(ids)
}

/// The drafters of some rows.
fn drafters(tests: &[Test]) -> impl Iterator<Item = Speculate> {
    tests.iter().filter_map(|test| test.speculate.as_ref()?.parse().ok())
}

/// Adds what speculation did to a row.
fn with_report(row: BenchRow, report: Option<SpeculationReport>) -> BenchRow {
    let Some(report) = report else { return row };
    let share = |depth: &DepthReport| format!("{:.2}", depth.accepted as f64 / depth.reached.max(1) as f64);
    let best =
        |depth: &DepthReport| depth.optimal.map_or_else(|| "-".to_owned(), |share| format!("{share:.2}"));
    let joined =
        |of: &dyn Fn(&DepthReport) -> String| report.by_depth.iter().map(of).collect::<Vec<_>>().join(" ");
    let verified = report.verify != Verify::Match;
    let name = row.speculate.clone().unwrap_or_default();
    BenchRow {
        speculate: Some(if verified { format!("{name}, {}", report.verify) } else { name }),
        tokens_per_pass: Some(report.tokens_per_round()),
        accepted_by_depth: Some(joined(&share)).filter(|text| !text.is_empty()),
        optimal_by_depth: Some(joined(&best)).filter(|text| verified && !text.is_empty()),
        ..row
    }
}

/// Compares the device with the reference, and returns whether that succeeded. If there is no reference, the process
/// that failed to compute it has already printed why.
fn compared_with_reference<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    device: &B::Device,
    group: &Group,
) -> (Option<Accuracy>, bool) {
    match &group.accuracy {
        Some(Task::Compare(path)) if path.exists() => match accuracy::compare(engine, device, path) {
            Ok(accuracy) => (Some(accuracy), true),
            Err(error) => {
                ui::say!("moi: not compared: {group}: {error:#}");
                (None, false)
            }
        },
        _ => (None, true),
    }
}

/// The rows that fit in the model's context. A message on stderr names the others.
fn fitting(group: &Group, context: usize, text: Option<&[u32]>) -> Vec<Test> {
    let behind_text = |test: &Test| match text.filter(|_| test.rule.is_some()) {
        Some(text) => Test { depth: text.len(), ..test.clone() },
        None => test.clone(),
    };
    let (fitting, too_long): (Vec<Test>, Vec<Test>) =
        group.tests.iter().map(behind_text).partition(|test| test.positions() <= context);
    for test in too_long {
        let (name, needed) = (test.name(), test.positions());
        ui::say!("moi: left out, {group}: {name} takes {needed} positions, the context holds {context}");
    }
    fitting
}

/// Runs every row once to warm up, then measures all rows in turns, so that a change of the machine's speed affects
/// all rows.
fn samples<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    (name, device): (Device, &B::Device),
    tests: &[Test],
    (group, drafts): (&Group, &Drafts<'_>),
) -> Result<Samples> {
    let on_gpu = name.0.kind().is_gpu();
    let bar = bar(tests.len() as u64 * (1 + u64::from(group.repetitions)))?;
    let say = |test: &Test| {
        let rule = test.rule.map(|rule| format!(" {}", rule.spec())).unwrap_or_default();
        bar.set_message(format!("{}{rule}", test.name()));
    };
    for test in tests {
        say(test);
        // A GPU chooses and compiles kernels by the sizes of the tensors, so it needs the full row to warm up.
        let test = if on_gpu { test.clone() } else { test.shortened() };
        timing::run(engine, device, &test, drafts, None)?;
        bar.inc(1);
    }
    let launches = match group.launches && on_gpu {
        true => tests.iter().map(|test| launches::of_step(engine, device, test)).collect::<Result<_>>()?,
        false => vec![None; tests.len()],
    };
    let meter = name.found().as_ref().and_then(Meter::of);
    let mut samples = Samples {
        seconds: vec![Vec::new(); tests.len()],
        joules: vec![Vec::new(); tests.len()],
        energy_source: meter.as_ref().map(Meter::name),
        launches,
        copy: 0.0,
        peak_memory: None,
    };
    for round in 0..group.repetitions {
        for (index, test) in tests.iter().enumerate() {
            say(test);
            let used = timing::run(engine, device, test, drafts, meter.as_ref())?;
            samples.seconds[index].push(used.seconds);
            samples.joules[index].push(used.joules);
            bar.inc(1);
        }
        if round == 0 {
            // Read the peak before the bandwidth copy allocates its own memory. Later rounds need no more than the
            // first.
            samples.peak_memory = memory::peak_memory();
        }
        let copy = match on_gpu {
            true => bandwidth::of_device::<B>(device, name.found().and_then(|found| found.memory))?,
            false => bandwidth::of_processor(threads(group)),
        };
        samples.copy = samples.copy.max(copy);
    }
    bar.finish_and_clear();
    Ok(samples)
}

/// A progress bar on a terminal.
fn bar(length: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len} {msg}")?;
    Ok(ProgressBar::new(length).with_style(style))
}

/// The number of CPU threads.
fn threads(group: &Group) -> usize {
    group.threads.map_or_else(machine::cores, usize::from)
}

/// The fields that all rows of the group share, as far as the model and the machine provide them.
fn common<B: Backend>(group: &Group, device: Device, model: &Decoder<B>) -> BenchRow {
    let found = device.found();
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    BenchRow {
        model: group.source.name().to_owned(),
        random_weights: matches!(group.source, Source::Shape { .. }),
        parameters: model.config().num_params(),
        weight_bytes: model.num_bytes(),
        bytes_per_token: model.bytes_per_token(),
        device_description: found.as_ref().map(|found| found.description.clone()),
        driver: found.and_then(|found| found.driver),
        quantize: group.quantize.clone(),
        activations: model.activations().map(|asked| rounded_to::<B>(asked).to_owned()),
        threads: (!device.0.kind().is_gpu()).then(|| threads(group)),
        instruction_set: default_kernels::<B>()
            .rounds_activations()
            .then(|| moi_backends::instruction_set().to_owned()),
        repetitions: group.repetitions.into(),
        processor: machine::processor(),
        cores: machine::cores(),
        memory_bytes: machine::memory_bytes(),
        system: machine::system(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        unix_time: since_1970.as_secs(),
        ..BenchRow::default()
    }
}

/// How activations are actually rounded, as written on the command line.
fn rounded_to<B: Backend>(asked: Activations) -> &'static str {
    match asked {
        Activations::Mixed if default_kernels::<B>().rounds_activations() => "mixed",
        Activations::Int8 if default_kernels::<B>().rounds_activations() => "int8",
        Activations::Int16 if default_kernels::<B>().rounds_activations() => "int16",
        _ => "f32",
    }
}

fn rows(common: BenchRow, tests: &[Test], samples: &Samples) -> Vec<BenchRow> {
    let common = BenchRow {
        copy_gb_per_second: Some(samples.copy / 1e9),
        peak_memory_bytes: samples.peak_memory,
        ..common
    };
    let fastest = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
    // The best step of `token` for the same row, to compare other rules with.
    let of_token = |test: &Test| {
        let same = Test { rule: Some(InputRule::TOKEN), ..test.clone() };
        tests.iter().position(|other| *other == same).map(|index| fastest(&samples.seconds[index]))
    };
    let row = |(index, test): (usize, &Test)| {
        let (seconds, launches) = (&samples.seconds[index], samples.launches[index]);
        let energy = energy::per_token(&samples.joules[index], test.tokens());
        let speeds: Vec<f64> = seconds.iter().map(|seconds| test.tokens() as f64 / seconds).collect();
        let Statistics { mean, deviation, largest } = Statistics::of(&speeds);
        let (best, is_generation) = (fastest(seconds), test.prompt == 0);
        // A step reads the weights once, whatever the batch. With drafts, it gives several tokens.
        let is_stepwise = is_generation && test.speculate.is_none();
        let read = is_stepwise.then(|| common.bytes_per_token as f64 * test.decode as f64 / best);
        let mixes = is_stepwise && test.rule.is_some_and(|rule| rule.mixes());
        BenchRow {
            rule: test.rule.map_or_else(|| "-".to_owned(), |rule| rule.spec()),
            speculate: test.speculate.clone(),
            prompt: test.prompt,
            decode: test.decode,
            depth: test.depth,
            batch: test.batch,
            test: test.name(),
            tokens_per_second: mean,
            deviation,
            best_tokens_per_second: largest,
            read_gb_per_second: read.map(|read| read / 1e9),
            share_of_copy: read.map(|read| read / samples.copy),
            launches_per_step: launches,
            energy_j_per_token: energy,
            energy_source: energy.and(samples.energy_source).map(str::to_owned),
            rule_share: mixes.then(|| of_token(test)).flatten().map(|token| 1.0 - token / best),
            ..common.clone()
        }
    };
    tests.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_the_samples_say() {
        let test = |prompt, decode, rule| Test { prompt, decode, depth: 0, batch: 2, rule, speculate: None };
        let tests = [
            test(8, 0, None),
            test(0, 4, Some(InputRule::TOKEN)),
            test(0, 4, Some(InputRule::default())),
            test(8, 4, Some(InputRule::default())),
        ];
        let seconds = vec![vec![2.0, 4.0], vec![1.0, 2.0], vec![2.0, 1.25], vec![3.0, 6.0]];
        let launches = vec![None, Some(29.0), None, None];
        let samples = Samples {
            seconds,
            joules: vec![vec![None; 2]; 4],
            energy_source: None,
            launches,
            copy: 20e9,
            peak_memory: Some(7),
        };
        let common = BenchRow { bytes_per_token: 1_000_000_000, ..BenchRow::default() };
        let rows = rows(common, &tests, &samples);
        assert_eq!(
            rows.iter().map(|row| row.rule.as_str()).collect::<Vec<_>>(),
            ["-", "token", "moi", "moi"]
        );
        assert_eq!(rows.iter().map(|row| row.tokens_per_second).collect::<Vec<_>>(), [6.0, 6.0, 5.2, 6.0]);
        assert_eq!(rows[1].best_tokens_per_second, 8.0);
        assert_eq!((rows[1].launches_per_step, rows[2].launches_per_step), (Some(29.0), None));
        // Four steps in a second, each of which reads all weights once.
        assert_eq!(rows[1].read_gb_per_second, Some(4.0));
        assert_eq!(rows[1].share_of_copy, Some(0.2));
        assert_eq!(
            rows.iter().map(|row| row.rule_share).collect::<Vec<_>>(),
            [None, None, Some(0.19999999999999996), None]
        );
        assert_eq!((rows[0].read_gb_per_second, rows[3].share_of_copy), (None, None));
        assert_eq!((rows[3].copy_gb_per_second, rows[3].peak_memory_bytes), (Some(20.0), Some(7)));
    }
}
