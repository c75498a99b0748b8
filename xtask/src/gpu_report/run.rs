//! Runs the checks and writes their results. A failed check becomes a line of the report, and the other checks
//! continue.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs::{self, File},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{MODELS, Tools, golden::Run};

/// Number types for the real models: the exact one, and the device's default.
const DTYPES: [&str; 2] = ["f32", "auto"];

/// A model size whose speed is measured with random weights.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    /// Numbers of sequences that run at the same time.
    batches: &'static str,
    rules: &'static str,
}

/// The sizes with speed goals, and the smallest one, where kernel launches matter most.
const SHAPES: [Shape; 3] = [
    Shape { name: "qwen2-7b", batches: "1,64", rules: "token,moi,moi:support=20" },
    Shape { name: "qwen2-32b", batches: "1", rules: "token,moi,moi:support=20" },
    Shape { name: "smollm2-135m", batches: "1,8", rules: "token,moi" },
];

/// Runs all checks and returns the report in Markdown.
pub(crate) fn report(tools: &Tools, devices: &[String], bench: bool) -> String {
    let mut text = format!("## GPU report, {}\n\n", chrono::Local::now().format("%Y-%m-%d"));
    let _ = writeln!(text, "`cargo xtask gpu-report`, moi {}.\n", env!("CARGO_PKG_VERSION"));
    let mut section = |title: &str, body: Result<String>| {
        let body = body.unwrap_or_else(|error| format!("failed: {error:#}\n"));
        let _ = writeln!(text, "### {title}\n\n{body}");
    };
    section("Devices", fenced(tools, &["devices"]));
    for device in devices {
        section(&format!("{device}: start, cold and warm"), warm_starts(tools, device));
        section(&format!("{device}: moi doctor"), fenced(tools, &["doctor", "--device", device]));
        section(&format!("{device}: parity suite"), parity(tools, device));
        section(&format!("{device}: golden decodes of real models"), real_models(tools, device));
    }
    if bench {
        for device in devices {
            for shape in SHAPES {
                section(&format!("{device}: speed of {}", shape.name), speed(tools, device, shape));
            }
        }
        section("transformers, eager", eager(tools));
    }
    let _ = writeln!(text, "{:.0} s in all.", tools.begun.elapsed().as_secs_f64());
    text
}

fn moi(tools: &Tools, args: &[&str]) -> Result<Output> {
    eprintln!("xtask: moi {}", args.join(" "));
    let mut command = Command::new(&tools.moi);
    if let Some(cache) = &tools.cache {
        command.env("MOI_CACHE", cache);
    }
    output_of(tools, command.args(args))
        .with_context(|| format!("{} {}", tools.moi.display(), args.join(" ")))
}

/// Time limit of one check, because a driver that hangs must not block the other checks.
const LIMIT: Duration = Duration::from_secs(240);
/// Time limit of the whole report, because machines with GPUs are lent for minutes only.
pub(super) const WHOLE: Duration = Duration::from_secs(570);

/// The output of a command, if it ends within the time limit.
fn output_of(tools: &Tools, command: &mut Command) -> Result<Output> {
    let limit = LIMIT.min(WHOLE.saturating_sub(tools.begun.elapsed()));
    if limit.is_zero() {
        bail!("the report has had its {} s", WHOLE.as_secs());
    }
    let directory = tempfile::tempdir()?;
    let [stdout, stderr] = ["stdout", "stderr"].map(|name| directory.path().join(name));
    command.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
    let (mut child, begun) = (command.spawn()?, Instant::now());
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if begun.elapsed() > limit => {
                child.kill()?;
                child.wait()?;
                bail!("it was ended after {} s", limit.as_secs());
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    Ok(Output { status, stdout: fs::read(stdout)?, stderr: fs::read(stderr)? })
}

/// The output of a command as a code block, with the exit code if it is not 0.
fn fenced(tools: &Tools, args: &[&str]) -> Result<String> {
    let out = moi(tools, args)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    let code = if out.status.success() { String::new() } else { format!("\n({})", out.status) };
    let said = if out.status.success() { String::new() } else { format!("\n{}", text(&out.stderr)) };
    Ok(format!("```text\n{}{said}{code}\n```\n", text(&out.stdout)))
}

/// The worst measurements of the parity suite, and its result.
fn parity(tools: &Tools, device: &str) -> Result<String> {
    eprintln!("xtask: parity suite on {device}");
    let mut suite = Command::new(&tools.parity);
    suite.arg("--nocapture").env("MOI_TEST_DEVICES", device).env("MOI_GOLDEN", &tools.golden);
    let kernels = std::env::temp_dir().join("moi-parity-kernels");
    let out = output_of(tools, suite.env("MOI_TEST_KERNELS", kernels)).context("the parity suite")?;
    let said = String::from_utf8_lossy(&out.stdout);
    let mut text = String::from("| checkpoint | full | cached | chunked |\n|---|---|---|---|\n");
    // The tests run in parallel, so their lines may alternate.
    let mut rows = BTreeMap::<&str, [String; 3]>::new();
    for line in said.lines() {
        // A line such as `cuda:0: gemma2 in bf16, cached: 1.0e-2; divergence ...`.
        let Some((what, measured)) = line.split_once(", ").filter(|(what, _)| what.starts_with(device))
        else {
            continue;
        };
        let checkpoint = what.split_once(": ").map_or(what, |(_, checkpoint)| checkpoint);
        let Some((way, measured)) = measured.split_once(": ") else { continue };
        // The measurement is `1.0e-2; divergence 8.5e-5 nats, ...`; the mean is enough here.
        let short = measured.split(" nats").next().unwrap_or(measured).replace("divergence ", "");
        let short = if short.len() < measured.len() { short + " nats" } else { short };
        if let Some(column) = ["full", "cached", "chunked"].iter().position(|known| *known == way) {
            rows.entry(checkpoint).or_default()[column] = short;
        }
    }
    for (checkpoint, [full, cached, chunked]) in rows {
        let _ = writeln!(text, "| {checkpoint} | {full} | {cached} | {chunked} |");
    }
    let ends = said.lines().filter(|line| line.starts_with("test "));
    let _ = writeln!(text, "\n```text\n{}", ends.collect::<Vec<_>>().join("\n"));
    if !out.status.success() {
        // The beginning of stderr describes the first failure.
        let errors = String::from_utf8_lossy(&out.stderr);
        let _ = writeln!(text, "{}", errors.lines().take(12).collect::<Vec<_>>().join("\n"));
    }
    Ok(text + "```\n")
}

/// Runs every golden decode of SmolLM2 and Gemma with the binary, as a user would.
fn real_models(tools: &Tools, device: &str) -> Result<String> {
    let mut text = String::from(
        "| model | type | decodes | tokens as transformers' | beyond float32's margin | tokens/s |\n|---|---|---|---|---|---|\n",
    );
    for model in MODELS {
        for dtype in DTYPES {
            let row = match decodes(tools, (model, device, dtype)) {
                Ok(row) => row,
                Err(error) => format!("failed: {error:#} | | |"),
            };
            let _ = writeln!(text, "| {model} | {dtype} | {row}");
        }
    }
    Ok(text)
}

fn decodes(tools: &Tools, (model, device, dtype): (&str, &str, &str)) -> Result<String> {
    let runs = Run::read(&tools.golden, model)?;
    let (mut same, mut all, mut wrong, mut best) = (0, 0, 0, 0.0f64);
    let mut computed = dtype.to_owned();
    for run in &runs {
        let ids: Vec<String> = run.prompt_ids.iter().map(u32::to_string).collect();
        let (tokens, count, rule) = (ids.join(","), run.ids.len().to_string(), run.rule());
        let mut args = vec!["generate", "--model", model, "--device", device, "--dtype", dtype];
        args.extend(["--tokens", &tokens, "--temperature", "0", "--max-tokens", &count, "--format", "json"]);
        args.extend(rule.iter().map(String::as_str));
        let out = moi(tools, &args)?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
        }
        let answer: Value = serde_json::from_slice(&out.stdout)?;
        let found = answer["tokens"].as_array().into_iter().flatten();
        let found: Vec<u32> = found.filter_map(Value::as_u64).map(|id| id as u32).collect();
        let agreement = run.compare(&found);
        (same, all) = (same + agreement.same, all + agreement.all);
        wrong += usize::from(agreement.wrong);
        computed = answer["dtype"].as_str().unwrap_or(dtype).to_owned();
        let (tokens, seconds) = (&answer["timing"]["decode_tokens"], &answer["timing"]["decode_s"]);
        if let (Some(tokens), Some(seconds)) = (tokens.as_f64(), seconds.as_f64().filter(|&s| s > 0.0)) {
            best = best.max(tokens / seconds);
        }
    }
    Ok(format!("{} in {computed} | {same} of {all} | {wrong} | {best:.1} |", runs.len()))
}

/// Runs `moi bench` with random weights made on the device, and counts the kernel launches per token.
fn speed(tools: &Tools, device: &str, shape: Shape) -> Result<String> {
    let Shape { name, batches, rules } = shape;
    let args = ["bench", "--shape", name, "--device", device, "--prompt", "512", "--gen", "64"];
    let more = ["--batch", batches, "--rules", rules, "--repetitions", "3", "--launches"];
    let out = moi(tools, &[&args[..], &more].concat())?;
    let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let _ = writeln!(text, "\n```text\n{}\n```", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(text)
}

/// Measures transformers' own `generate` on the same sizes, if Python has transformers.
fn eager(tools: &Tools) -> Result<String> {
    eprintln!("xtask: transformers");
    let out = output_of(tools, Command::new("python3").arg(&tools.eager))
        .context("python3 with torch and transformers is needed for it")?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs `moi warmup` twice: the first run compiles the kernels, the second finds them. Other checks fill the kernel
/// cache, so this one comes first.
fn warm_starts(tools: &Tools, device: &str) -> Result<String> {
    let mut text = String::from("```text\n");
    for _ in 0..2 {
        let out = moi(tools, &["warmup", "--model", MODELS[0], "--device", device])?;
        let said = String::from_utf8_lossy(&out.stderr);
        if !out.status.success() {
            bail!("{}", said.trim());
        }
        let _ = writeln!(text, "{}", said.trim_end());
    }
    Ok(text + "```\n")
}
