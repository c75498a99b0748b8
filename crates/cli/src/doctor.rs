//! `moi doctor`.

use std::time::Instant;

use anyhow::{Result, bail};
use burn::tensor::{FloatDType, backend::Backend};
use moi_backends::{
    Class, DeviceError, DeviceName, DeviceRequest, FloatType, Found, Kind, float_types, found,
};
use moi_engine::{Engine, InputRule, Prompt, Sampling, SelfCheck, Support, TokenEvent, self_check::Known};
use serde::Serialize;

use crate::{
    Ended,
    args::{DoctorArgs, Format},
    backend::{Device, Job, keep_kernels},
    output, version,
};

/// The findings for one device.
#[derive(Debug, Serialize)]
struct Report {
    device: String,
    description: Option<String>,
    driver: Option<String>,
    memory_bytes: Option<u64>,
    /// The results of the small model, one per number type.
    types: Vec<TypeReport>,
    /// The comparison of float32 decoding with the CPU; absent for the CPU itself.
    decoding: Option<Decoding>,
    seconds: f64,
    /// Whether the results are correct.
    right: bool,
    /// What the user can do, or should know.
    advice: Vec<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct TypeReport {
    dtype: &'static str,
    /// Largest difference from the known logits, relative to the largest logit.
    whole: f32,
    cached: f32,
    allowed: f32,
    right: bool,
}

/// Comparison of the tokens of several requests on the device with those on the CPU.
#[derive(Clone, Copy, Debug, Serialize)]
struct Decoding {
    tokens: usize,
    same: usize,
    /// Largest difference of an entropy or a gate, up to the first token that differs.
    entropy: f32,
    right: bool,
}

/// Checks the devices and prints a report; the exit code is 1 if a device is wrong.
pub(crate) fn run(args: &DoctorArgs) -> Result<Ended> {
    // Compiled kernels can be cached for a single GPU only.
    if args.device != DeviceRequest::Auto {
        keep_kernels();
    }
    let names = match args.device {
        DeviceRequest::Named(name) => vec![name],
        DeviceRequest::Auto => Kind::ALL.into_iter().flat_map(found).map(|found| found.name).collect(),
    };
    let cpu = Device::cpu();
    let expected = cpu.run(Decode)?;
    let reports: Vec<Report> =
        names.into_iter().map(|name| examine(name, cpu, &expected)).collect::<Result<_>>()?;
    match args.format {
        Format::Json => output::print_json(&reports)?,
        Format::Text => output::print_bytes(text(&reports, args.device == DeviceRequest::Auto).as_bytes())?,
    }
    Ok(if reports.iter().all(|report| report.right) { Ended::Normally } else { Ended::Unwell })
}

fn examine(name: DeviceName, cpu: Device, expected: &[TokenEvent]) -> Result<Report> {
    let begun = Instant::now();
    let device = Device(name);
    let found = device.found();
    let examined = moi_backends::run(name, Examine { decodes: name != cpu.0 });
    let (types, decoding, mut advice) = match examined {
        Ok(Ok((types, steps))) => {
            let exact = types.iter().any(|t| t.dtype == "f32" && t.whole.max(t.cached) <= SelfCheck::EXACT);
            let decoding = steps.as_ref().map(|steps| match steps {
                Ok(steps) => compare(steps, expected, exact),
                Err(_) => Decoding { tokens: expected.len(), same: 0, entropy: f32::NAN, right: false },
            });
            let mut advice = advise(found.as_ref(), &types, decoding.as_ref(), exact);
            advice.extend(steps.and_then(Result::err));
            (types, decoding, advice)
        }
        Ok(Err(error)) => bail!(error),
        // The device was named but is not available: the error says everything.
        Err(error @ (DeviceError::NotCompiled { .. } | DeviceError::Absent { .. })) if found.is_none() => {
            bail!(error)
        }
        Err(error) => (Vec::new(), None, vec![error.to_string()]),
    };
    let right = !types.is_empty() && types.iter().all(|t| t.right) && decoding.is_none_or(|d| d.right);
    if !right && !types.is_empty() {
        advice.push(format!("do not use `{name}` as it is: update its driver, or use --device {cpu}"));
    }
    let (description, driver, memory_bytes) =
        found.map_or((None, None, None), |f| (Some(f.description), f.driver, f.memory));
    let seconds = begun.elapsed().as_secs_f64();
    let device = name.to_string();
    Ok(Report { device, description, driver, memory_bytes, types, decoding, seconds, right, advice })
}

/// Runs the small model in every number type, and decodes in float32 if requested.
struct Examine {
    decodes: bool,
}

impl moi_backends::Job for Examine {
    type Output = Result<(Vec<TypeReport>, Option<Result<Vec<TokenEvent>, String>>)>;

    fn run<B: Backend>(self, device: &B::Device) -> Self::Output {
        let mut types = Vec::new();
        for kind in float_types::<B>(device) {
            types.push(TypeReport::new(kind, SelfCheck::run::<B>(device, kind.dtype())?));
        }
        // Logits that are NaN or infinite are an error in a generation; here they are a finding.
        let steps = self.decodes.then(|| Decode.run::<B>(device).map_err(|error| format!("{error:#}")));
        Ok((types, steps))
    }
}

impl TypeReport {
    fn new(kind: FloatType, check: SelfCheck) -> Self {
        let SelfCheck { dtype, whole, cached } = check;
        let allowed = SelfCheck::allowed(dtype);
        Self { dtype: kind.name(), whole, cached, allowed, right: check.is_right() }
    }
}

/// Decodes with the small model under several rules, greedy and sampled, in one batch.
struct Decode;

/// Number of tokens per request.
const TOKENS: usize = 12;

impl Job for Decode {
    type Output = Vec<TokenEvent>;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Vec<TokenEvent>> {
        let known = Known::read();
        let model = known.model::<B>(device, FloatDType::F32)?;
        // The engine's own self-check is off, because this command reports the error itself.
        let engine = Engine::new(model, device.clone()).without_self_check();
        let mut batch = engine.batch();
        let sampled =
            Sampling { temperature: 0.8.into(), top_k: 40.into(), top_p: 0.95.into(), ..Sampling::default() };
        for (index, rule) in [
            InputRule::TOKEN,
            InputRule::moi(1.0, Support::Full)?,
            InputRule::moi(0.5, Support::TopK(20))?,
            InputRule::direct(Support::TopK(20))?,
        ]
        .into_iter()
        .enumerate()
        {
            let prompt = known.tokens[index..12 + 3 * index].to_vec();
            let mut request = moi_engine::Request::new(Prompt::Ids(prompt));
            (request.rule, request.seed) = (rule, 7 + index as u64);
            request.sampling = if index % 2 == 0 { Sampling::default() } else { sampled.clone() };
            request.stop.max_tokens = Some(TOKENS);
            batch.add(request)?;
        }
        let mut steps = Vec::new();
        while !batch.is_empty() {
            for step in batch.step()? {
                steps.push(step?);
            }
        }
        Ok(steps)
    }
}

/// Compares steps. A device with exact float32 must give the tokens of the CPU; on others a token may differ.
fn compare(found: &[TokenEvent], expected: &[TokenEvent], exact: bool) -> Decoding {
    let same = |row: usize| {
        let of =
            |steps: &[TokenEvent]| steps.iter().filter(|step| step.row.0 == row).cloned().collect::<Vec<_>>();
        let pairs = of(found).into_iter().zip(of(expected));
        pairs.take_while(|(f, e)| f.token == e.token).collect::<Vec<_>>()
    };
    let rows = expected.iter().map(|step| step.row.0 + 1).max().unwrap_or(0);
    let pairs: Vec<(TokenEvent, TokenEvent)> = (0..rows).flat_map(same).collect();
    let off = |(f, e): &(TokenEvent, TokenEvent)| [(f.entropy - e.entropy).abs(), (f.gate - e.gate).abs()];
    // NaN counts as the largest difference.
    let entropy = pairs.iter().flat_map(off).fold(0.0f32, |max, d| if d <= max { max } else { d });
    let right = match exact {
        true => pairs.len() == expected.len() && entropy <= 1e-4,
        false => pairs.len() * 2 >= expected.len() && entropy <= 2e-2,
    };
    Decoding { tokens: expected.len(), same: pairs.len(), entropy, right }
}

fn advise(
    found: Option<&Found>,
    types: &[TypeReport],
    decoding: Option<&Decoding>,
    exact: bool,
) -> Vec<String> {
    let mut advice = Vec::new();
    if found.is_some_and(|found| found.class == Class::Software) {
        advice.push("a processor in place of a GPU: --device cpu is faster".to_owned());
    }
    if !exact && types.iter().any(|t| t.dtype == "f32" && t.right) {
        advice.push(
            "its f32 is rounded in products (NVIDIA's TF32, or the like): use cpu for exact logits"
                .to_owned(),
        );
    }
    if found.is_some_and(|found| found.name.kind().is_gpu()) && types.len() == 1 {
        advice.push("it computes in f32 alone: a model takes twice the memory of a 16-bit one".to_owned());
    }
    if decoding.is_some_and(|decoding| !decoding.right) && types.iter().all(|t| t.right) {
        advice.push("its logits are right, but what it samples and mixes is not the CPU's".to_owned());
    }
    advice
}

fn text(reports: &[Report], all: bool) -> String {
    let mut text = String::new();
    for report in reports {
        let what = report.description.as_deref().unwrap_or("unknown");
        let driver = report.driver.as_ref().map_or(String::new(), |driver| format!("; driver {driver}"));
        text += &format!("{}: {what}{driver}\n", report.device);
        for &TypeReport { dtype, whole, cached, allowed, right } in &report.types {
            let verdict = if right { "right" } else { "WRONG" };
            text += &format!(
                "  {dtype:8}  {verdict}: logits off by {whole:.1e} at once, {cached:.1e} with a cache (of {allowed})\n"
            );
        }
        if let Some(Decoding { tokens, same, entropy, right }) = report.decoding {
            let verdict = if right { "right" } else { "WRONG" };
            text += &format!(
                "  decoding  {verdict}: {same} of {tokens} tokens are the CPU's, entropies off by {entropy:.1e}\n"
            );
        }
        for advice in &report.advice {
            text += &format!("  {advice}\n");
        }
        let verdict = if report.right { "works" } else { "does not work" };
        text += &format!("  {verdict} ({:.1} s)\n", report.seconds);
    }
    let missing = |kind: &Kind| {
        kind.is_gpu() && kind.is_compiled() && !reports.iter().any(|r| r.device.starts_with(kind.name()))
    };
    for kind in Kind::ALL.iter().filter(|kind| all && missing(kind)) {
        text += &format!("{kind}: no device; `moi doctor --device {kind}` says what is missing\n");
    }
    text += &format!("\nFor a report of a fault, the lines above and these:\n\n{}", version::about());
    text
}
