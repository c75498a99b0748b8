//! A group's own process: loads the model, measures its rows in turns, and writes them as JSON lines.

use std::time::{Instant, SystemTime};

use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use indicatif::{ProgressBar, ProgressStyle};
use moi_engine::{Engine, InputRule};
use moi_models::{Activations, Decoder, default_kernels};
use moi_pretrained::Pretrained;

use super::{
    bandwidth, launches, machine,
    plan::{Group, Source, Test},
    row::Row,
    shape,
    statistics::Statistics,
    timing::{self, first_token},
};
use crate::{
    Ended,
    args::ModelArgs,
    backend::{Device, Job},
    memory, model, output, ui,
};

/// Measures what the JSON says.
///
/// # Errors
/// If the model cannot be loaded, or the device fails.
pub(super) fn run(group: &str) -> Result<Ended> {
    let begun = Instant::now();
    let group: Group = serde_json::from_str(group).context("--group is no group of measurements")?;
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

/// What the repetitions gave.
struct Samples {
    /// Seconds of each repetition, for every row.
    seconds: Vec<Vec<f64>>,
    /// Kernels of a step, for every row that generates.
    launches: Vec<Option<f64>>,
    /// Bytes per second.
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
        let tests = fitting(group, context);
        let positions =
            tests.iter().map(|test| test.batch.saturating_mul(test.positions())).max().unwrap_or(1);
        let (engine, form) = match (pretrained, &group.source) {
            (Some(pretrained), _) => model::engine::<B>(pretrained, args, (name, device), positions)?,
            (None, source) => shape::find(source.name())?.engine::<B>(args, (name, device), positions)?,
        };
        let load_seconds = begun.elapsed().as_secs_f64();
        first_token(&engine)?;
        let first_token_cold_seconds = begun.elapsed().as_secs_f64();
        let mut warm = f64::INFINITY;
        for _ in 0..3 {
            warm = warm.min(first_token(&engine)?.as_secs_f64());
        }
        let whole = tests.len() == group.tests.len();
        let samples = samples(&engine, (name, device), &tests, group)?;
        let common = Row {
            device: name.to_string(),
            backend: B::name(device),
            dtype: output::dtype_name(form).to_owned(),
            load_seconds,
            first_token_cold_seconds,
            first_token_warm_seconds: warm,
            ..common(group, name, engine.model())
        };
        for row in rows(common, &tests, &samples) {
            let mut line = serde_json::to_vec(&row)?;
            line.push(b'\n');
            output::print_bytes(&line)?;
        }
        Ok(whole)
    }
}

/// The rows that the model's context has room for. Says which it has not.
fn fitting(group: &Group, context: usize) -> Vec<Test> {
    let (fitting, too_long): (Vec<Test>, Vec<Test>) =
        group.tests.iter().cloned().partition(|test| test.positions() <= context);
    for test in too_long {
        let (name, needed) = (test.name(), test.positions());
        ui::say!("moi: left out, {group}: {name} takes {needed} positions, the context holds {context}");
    }
    fitting
}

/// Every row once for warming up, then all of them in turns, so that a machine that changes its speed changes it for
/// all.
fn samples<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    (name, device): (Device, &B::Device),
    tests: &[Test],
    group: &Group,
) -> Result<Samples> {
    let on_gpu = name.0.kind().is_gpu();
    let bar = bar(tests.len() as u64 * (1 + u64::from(group.repetitions)))?;
    let say = |test: &Test| {
        let rule = test.rule.map(|rule| format!(" {}", rule.spec())).unwrap_or_default();
        bar.set_message(format!("{}{rule}", test.name()));
    };
    for test in tests {
        say(test);
        // Kernels are chosen and compiled by the sizes of what they work on.
        let test = if on_gpu { test.clone() } else { test.shortened() };
        timing::run(engine, device, &test)?;
        bar.inc(1);
    }
    let launches = match group.launches && on_gpu {
        true => tests.iter().map(|test| launches::of_step(engine, device, test)).collect::<Result<_>>()?,
        false => vec![None; tests.len()],
    };
    let seconds = vec![Vec::new(); tests.len()];
    let mut samples = Samples { seconds, launches, copy: 0.0, peak_memory: None };
    for round in 0..group.repetitions {
        for (test, seconds) in tests.iter().zip(&mut samples.seconds) {
            say(test);
            seconds.push(timing::run(engine, device, test)?);
            bar.inc(1);
        }
        if round == 0 {
            // Before a copy takes memory of its own. Later rounds need no more than this one.
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

/// On a terminal.
fn bar(length: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("[{bar:30}] {pos}/{len} {msg}")?;
    Ok(ProgressBar::new(length).with_style(style))
}

/// Threads of the processor.
fn threads(group: &Group) -> usize {
    group.threads.map_or_else(machine::cores, usize::from)
}

/// What all rows of the group share, as far as the model and the machine tell.
fn common<B: Backend>(group: &Group, device: Device, model: &Decoder<B>) -> Row {
    let found = device.found();
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Row {
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
        memory_bytes: Device::cpu().found().and_then(|found| found.memory),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        unix_time: since_1970.as_secs(),
        ..Row::default()
    }
}

/// What activations are rounded to in fact, as on the command line.
fn rounded_to<B: Backend>(asked: Activations) -> &'static str {
    match asked {
        Activations::Mixed if default_kernels::<B>().rounds_activations() => "mixed",
        Activations::Int8 if default_kernels::<B>().rounds_activations() => "int8",
        Activations::Int16 if default_kernels::<B>().rounds_activations() => "int16",
        _ => "f32",
    }
}

fn rows(common: Row, tests: &[Test], samples: &Samples) -> Vec<Row> {
    let common = Row {
        copy_gb_per_second: Some(samples.copy / 1e9),
        peak_memory_bytes: samples.peak_memory,
        ..common
    };
    let fastest = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
    // The best step of `token` beside the same row under another rule.
    let of_token = |test: &Test| {
        let same = Test { rule: Some(InputRule::TOKEN), ..test.clone() };
        tests.iter().position(|other| *other == same).map(|index| fastest(&samples.seconds[index]))
    };
    let row = |((test, seconds), launches): ((&Test, &Vec<f64>), &Option<f64>)| {
        let speeds: Vec<f64> = seconds.iter().map(|seconds| test.tokens() as f64 / seconds).collect();
        let Statistics { mean, deviation, largest } = Statistics::of(&speeds);
        let (best, is_generation) = (fastest(seconds), test.prompt == 0);
        // A step reads the weights once, whatever the batch.
        let read = is_generation.then(|| common.bytes_per_token as f64 * test.decode as f64 / best);
        let mixes = is_generation && test.rule.is_some_and(|rule| rule.mixes());
        Row {
            rule: test.rule.map_or_else(|| "-".to_owned(), |rule| rule.spec()),
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
            launches_per_step: *launches,
            rule_share: mixes.then(|| of_token(test)).flatten().map(|token| 1.0 - token / best),
            ..common.clone()
        }
    };
    tests.iter().zip(&samples.seconds).zip(&samples.launches).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_the_samples_say() {
        let test = |prompt, decode, rule| Test { prompt, decode, depth: 0, batch: 2, rule };
        let tests = [
            test(8, 0, None),
            test(0, 4, Some(InputRule::TOKEN)),
            test(0, 4, Some(InputRule::default())),
            test(8, 4, Some(InputRule::default())),
        ];
        let seconds = vec![vec![2.0, 4.0], vec![1.0, 2.0], vec![2.0, 1.25], vec![3.0, 6.0]];
        let launches = vec![None, Some(29.0), None, None];
        let samples = Samples { seconds, launches, copy: 20e9, peak_memory: Some(7) };
        let common = Row { bytes_per_token: 1_000_000_000, ..Row::default() };
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
