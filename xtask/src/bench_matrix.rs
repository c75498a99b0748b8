//! `cargo xtask bench-matrix`: runs `moi bench` over models, devices, types and rules, and writes a part of
//! benches/RESULTS.md.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use moi_hub::DEFAULT_MODEL;
use serde_json::Value;

use crate::build::{executable, feature, root};

/// The generated section is between these markers; the rest of the file is not changed.
const BEGIN: &str = "<!-- bench-matrix:begin -->";
const END: &str = "<!-- bench-matrix:end -->";

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchMatrixArgs {
    /// Models to measure
    #[arg(long, value_name = "NAME|PATH", value_delimiter = ',', default_value = DEFAULT_MODEL)]
    models: Vec<String>,
    /// Devices to measure; the build gets their features
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "cpu")]
    devices: Vec<String>,
    /// Number types of the weights
    #[arg(long, value_name = "TYPE", value_delimiter = ',', default_value = "auto")]
    dtypes: Vec<String>,
    /// Quantisations of the weights; `none` uses --dtypes
    #[arg(long, value_name = "FORM", value_delimiter = ',', default_value = "none,file")]
    quantize: Vec<String>,
    /// Input rules to measure
    #[arg(long, value_name = "RULES", default_value = "token,moi,moi:support=20")]
    rules: String,
    /// Try it quickly: short prompts, few tokens, two repetitions
    #[arg(long)]
    quick: bool,
}

/// One call of `moi bench`.
struct Run {
    title: &'static str,
    /// The name of the chart's file.
    name: &'static str,
    args: Vec<String>,
}

/// The results of one call.
struct Measured {
    rows: Vec<Value>,
    /// Whether everything was measured.
    whole: bool,
}

/// Builds the binary, measures, and writes the results.
pub(crate) fn run(args: &BenchMatrixArgs) -> Result<()> {
    let moi = build(&args.devices)?;
    let directory = root().join("benches");
    fs::create_dir_all(directory.join("plots"))?;
    let (mut body, mut machine) = (String::new(), None);
    for run in runs(args) {
        let plot = format!("plots/{}.svg", run.name);
        let Measured { rows, whole } = measured(&moi, &run.args, &directory.join(&plot))?;
        machine = machine.or_else(|| rows.first().map(machine_of));
        let _ = writeln!(body, "### {}\n\n```sh\nmoi bench {}\n```\n", run.title, run.args.join(" "));
        if !whole {
            let _ = writeln!(body, "Not everything could be measured.\n");
        }
        let _ = writeln!(body, "{}\n![{}]({plot})\n", table(&rows), run.title);
    }
    let file = directory.join("RESULTS.md");
    let old = fs::read_to_string(&file).unwrap_or_else(|_| "# Results\n".to_owned());
    let section = format!("{}\n{}\n\n{body}", head(args), machine.unwrap_or_default());
    fs::write(&file, with_section(&old, section.trim_end()))
        .with_context(|| format!("{} cannot be written", file.display()))?;
    eprintln!("xtask: {} has the results", file.display());
    Ok(())
}

fn build(devices: &[String]) -> Result<PathBuf> {
    let mut features: Vec<String> = devices.iter().map(|device| feature(device)).collect();
    // The default build has `flex` and `ndarray`; `auto` is not a feature.
    features.retain(|feature| !["flex", "ndarray", "auto"].contains(&feature.as_str()));
    features.sort();
    features.dedup();
    let is_default = features.is_empty();
    features.push("moi-cli/plots".to_owned());
    let features = features.join(",");
    // Build the same packages as other commands do. With other packages, cargo selects other features for the
    // dependencies and rebuilds them all.
    let mut args = vec!["build", "--release", "--bin", "moi"];
    match is_default {
        true => args.extend(["--workspace", "--exclude", "moi-gpu"]),
        false => args.extend(["--package", "moi-cli", "--package", "moi-tests"]),
    }
    args.extend(["--features", &features]);
    executable(&args, "moi")
}

/// The calls: all combinations, then the first model by batch size and by depth.
fn runs(args: &BenchMatrixArgs) -> [Run; 3] {
    let pick = |quick: &'static str, long: &'static str| if args.quick { quick } else { long };
    let command = |models: &[String], lists: [&str; 4]| -> Vec<String> {
        let [prompt, tokens, depth, batch] = lists;
        let (models, devices, dtypes) = (models.join(","), args.devices.join(","), args.dtypes.join(","));
        let forms = args.quantize.join(",");
        let flags = [
            ("--model", models.as_str()),
            ("--device", devices.as_str()),
            ("--dtype", dtypes.as_str()),
            ("--quantize", forms.as_str()),
            ("--rules", args.rules.as_str()),
            ("--prompt", prompt),
            ("--gen", tokens),
            ("--depth", depth),
            ("--batch", batch),
            ("--repetitions", pick("2", "5")),
        ];
        flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value.to_owned()]).collect()
    };
    let first = &args.models[..args.models.len().min(1)];
    let tokens = pick("16", "64");
    [
        Run {
            title: "Models, devices, types and rules",
            name: "matrix",
            args: command(&args.models, [pick("64", "512"), pick("16", "128"), "0", "1"]),
        },
        Run {
            title: "Batches",
            name: "batch",
            args: command(first, ["0", tokens, "0", pick("1,4", "1,2,4,8")]),
        },
        Run {
            title: "Depths",
            name: "depth",
            args: command(first, ["0", tokens, pick("0,256", "0,512,2048"), "1"]),
        },
    ]
}

fn measured(moi: &Path, args: &[String], plot: &Path) -> Result<Measured> {
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("rows.jsonl");
    let mut command = Command::new(moi);
    command.arg("bench").args(args).args(["--format", "jsonl", "--output"]).arg(&output);
    command.arg("--plot").arg(plot);
    let status = command.status().with_context(|| format!("{} cannot be run", moi.display()))?;
    // Without a single row, there is no file.
    let Ok(text) = fs::read_to_string(&output) else {
        bail!("moi bench {} measured nothing ({status})", args.join(" "));
    };
    let rows = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    Ok(Measured { rows, whole: status.success() })
}

/// The heading of the section: the command, the date and the commit.
fn head(args: &BenchMatrixArgs) -> String {
    let commit = said("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "of no commit".to_owned());
    let changed = said("git", &["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    format!(
        "`cargo xtask bench-matrix --models {} --devices {} --dtypes {} --quantize {} --rules {}{}`, {}: moi {commit}{}, {}, burn {}.",
        args.models.join(","),
        args.devices.join(","),
        args.dtypes.join(","),
        args.quantize.join(","),
        args.rules,
        if args.quick { " --quick" } else { "" },
        chrono::Local::now().format("%Y-%m-%d"),
        if changed { " with changes" } else { "" },
        said("rustc", &["-V"]).unwrap_or_else(|| "an unknown rustc".to_owned()),
        burn_version().unwrap_or_else(|| "of an unknown version".to_owned()),
    )
}

/// The output of a program, if it can be run.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).current_dir(root()).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    out.status.success().then(|| text.trim().to_owned())
}

fn burn_version() -> Option<String> {
    let lock = fs::read_to_string(root().join("Cargo.lock")).ok()?;
    version_of("burn", &lock)
}

/// The version of a package in a lock file.
fn version_of(package: &str, lock: &str) -> Option<String> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    let version = lines.nth(1)?.strip_prefix("version = ")?;
    Some(version.trim_matches('"').to_owned())
}

fn machine_of(row: &Value) -> String {
    let memory = row["memory_bytes"].as_f64().map(|bytes| format!(", {:.1} GB of memory", bytes / 1e9));
    format!(
        "Machine: {}, {} cores{}, {}.",
        row["processor"].as_str().unwrap_or("a processor without a name"),
        row["cores"],
        memory.unwrap_or_default(),
        row["system"].as_str().unwrap_or("an unknown system"),
    )
}

/// A table in GitHub's Markdown.
fn table(rows: &[Value]) -> String {
    let mut text = String::from(
        "| model | device | weights | rule | test | tokens/s | GB/s read | of a copy | rule's share | first token \
         cold / warm, s | peak GB |\n|---|---|---|---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let of = |field: &str| row[field].as_str().unwrap_or_default();
        let number = |field: &str| row[field].as_f64();
        let weights = row["quantize"].as_str().unwrap_or(of("dtype"));
        let percent = |field: &str| number(field).map(|share| format!("{:.0}%", 100.0 * share));
        let _ = writeln!(
            text,
            "| {} | {} | {weights} | {} | {} | {:.1} ± {:.1} | {} | {} | {} | {:.2} / {:.2} | {} |",
            of("model"),
            of("device"),
            of("rule"),
            of("test"),
            number("tokens_per_second").unwrap_or(0.0),
            number("deviation").unwrap_or(0.0),
            number("read_gb_per_second").map(|read| format!("{read:.1}")).unwrap_or_default(),
            percent("share_of_copy").unwrap_or_default(),
            percent("rule_share").unwrap_or_default(),
            number("first_token_cold_seconds").unwrap_or(0.0),
            number("first_token_warm_seconds").unwrap_or(0.0),
            number("peak_memory_bytes").map(|bytes| format!("{:.2}", bytes / 1e9)).unwrap_or_default(),
        );
    }
    text
}

/// The file with its generated section replaced, or with the section at its end if it had none.
fn with_section(file: &str, section: &str) -> String {
    let section = format!("{BEGIN}\n\n{section}\n\n{END}");
    let parts = file.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    match parts {
        Some((before, behind)) => format!("{before}{section}{behind}"),
        None => format!("{}\n\n{section}\n", file.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_file_is_left_alone() {
        let first = with_section("# Results\n", "one");
        assert_eq!(first, format!("# Results\n\n{BEGIN}\n\none\n\n{END}\n"));
        let file = format!("{first}\nBy hand.\n");
        let second = with_section(&file, "two");
        assert_eq!(second, format!("# Results\n\n{BEGIN}\n\ntwo\n\n{END}\n\nBy hand.\n"));
    }

    #[test]
    fn versions_are_read_from_the_lock_file() {
        let lock = "[[package]]\nname = \"burn-core\"\nversion = \"1\"\n\n[[package]]\nname = \"burn\"\nversion = \"0.21.0\"\n";
        assert_eq!(version_of("burn", lock), Some("0.21.0".to_owned()));
        assert_eq!(version_of("torch", lock), None);
    }

    #[test]
    fn commands_name_every_list() {
        let args = BenchMatrixArgs {
            models: vec!["a".into(), "b".into()],
            devices: vec!["cpu".into()],
            dtypes: vec!["f32".into(), "bf16".into()],
            quantize: vec!["none".into()],
            rules: "token,moi".into(),
            quick: true,
        };
        let [matrix, batch, _] = runs(&args);
        let flags = "--model a,b --device cpu --dtype f32,bf16 --quantize none --rules token,moi --prompt 64 --gen 16 --depth 0 --batch 1 --repetitions 2";
        assert_eq!(matrix.args.join(" "), flags);
        assert!(
            batch.args.join(" ").contains("--model a --device") && batch.args.contains(&"1,4".to_owned())
        );
    }
}
