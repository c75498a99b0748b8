//! Tests of the sources of flag values.

use std::process::{Command, Stdio};

use moi_tests::process::{binary, ids, refused, tiny};
use serde_json::Value;

use super::text;

#[test]
fn flags_may_come_from_the_environment_and_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("some.toml");
    std::fs::write(
        &file,
        "[defaults]\ntemperature = 0.5\ntop-k = 7\nstop = [\"a\", \"b\"]\nsystem = \"S\"\n\
         [presets.warm]\ntemperature = 1.5\n[presets.some]\nmodels = [\"x/y\"]\nmin-p = 0.25\n",
    )
    .unwrap();
    let settings = |global: &[&str], flags: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["config", "--config", file.to_str().unwrap(), "--format", "json"]).args(global);
        command.args(["generate", "--"]).args(flags).env("MOI_TOP_P", "0.75").env_remove("MOI_DEVICE");
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
        let of = |flag: &str| {
            let rows = shown["settings"].as_array().unwrap().iter().filter(|row| row["flag"] == flag);
            rows.map(|row| format!("{} {}", row["value"].as_str().unwrap(), row["source"].as_str().unwrap()))
                .collect::<Vec<_>>()
                .join("; ")
        };
        ["temperature", "top-k", "top-p", "min-p", "stop", "seed"].map(of)
    };
    let plain =
        ["0.5 file", "7 file", "0.75 environment (MOI_TOP_P)", " default", "a file; b file", " default"];
    assert_eq!(settings(&[], &[]), plain);
    let flags = settings(&[], &["--temperature", "0", "--top-p", "0.5", "--stop", "c"]);
    assert_eq!(flags[0], "0 flag");
    assert_eq!(flags[2], "0.5 flag");
    assert_eq!(flags[4], "c flag");
    assert_eq!(settings(&["--preset", "warm"], &[])[0], "1.5 file, preset `warm`");
    assert_eq!(settings(&[], &["--model", "x/y"])[3], "0.25 file, preset `some`");

    // Switches, global flags, and values that exclude conflicting values of later sources.
    let shown = |environment: &[(&str, &str)], content: &str, args: &[&str]| {
        std::fs::write(&file, content).unwrap();
        let mut command = Command::new(binary());
        command.args(["--config", file.to_str().unwrap(), "config", "--format", "json"]).args(args);
        let out = command.envs(environment.iter().copied()).output().unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
        move |flag: &str| {
            let row =
                shown["settings"].as_array().unwrap().iter().find(|row| row["flag"] == flag).unwrap().clone();
            format!("{} {}", row["value"].as_str().unwrap(), row["source"].as_str().unwrap())
        }
    };
    let of = shown(&[("MOI_QUIET", "yes"), ("MOI_RAW", "0")], "[defaults]\nraw = true\nstats = true\n", &[]);
    assert_eq!(of("quiet"), "true environment (MOI_QUIET)");
    assert_eq!((of("raw"), of("stats")), ("false environment (MOI_RAW)".into(), "true file".into()));
    let of = shown(&[("MOI_REGEX", "a+")], "[defaults]\njson = true\nquantize = \"file\"\n", &[]);
    assert_eq!((of("regex"), of("json")), ("a+ environment (MOI_REGEX)".into(), "false default".into()));
    assert_eq!(of("quantize"), "file file");
    // Another command's flag of the same name does not accept this value.
    let of = shown(&[], "[defaults]\nquantize = \"file\"\n", &["convert", "--", "a", "--output", "b"]);
    assert_eq!(of("quantize"), " default");
    let of = shown(
        &[],
        "[presets.a]\nmodel = \"x/y\"\n[presets.b]\nmodels = [\"x/y\"]\nmin-p = 0.5\n",
        &["--preset", "a"],
    );
    assert_eq!((of("model"), of("min-p")), ("x/y file, preset `a`".into(), "0.5 file, preset `b`".into()));
    std::fs::write(&file, "[presets.generate]\ntop-k = 3\n").unwrap();
    let (golden, path) = tiny("llama");
    let mut named = Command::new(binary());
    named.args(["--config", file.to_str().unwrap(), "--preset", "generate", "generate", "--model", &path]);
    named.args(["--tokens", &ids(&golden.cases.tokens), "--max-tokens", "1", "--format", "json"]);
    let found: Value = serde_json::from_slice(&named.output().unwrap().stdout).unwrap();
    assert_eq!(found["sampling"]["top_k"], 3);
    std::fs::write(
        &file,
        "[defaults]\ntemperature = 0.5\ntop-k = 7\nstop = [\"a\", \"b\"]\nsystem = \"S\"\n",
    )
    .unwrap();

    // The values must reach the command, and values that conflict with a flag must be dropped.
    let (golden, path) = tiny("llama");
    let prompt = ids(&golden.cases.tokens);
    let mut command = Command::new(binary());
    command.args(["generate", "--config", file.to_str().unwrap(), "--model", &path, "--tokens", &prompt]);
    command.args(["--max-tokens", "1", "--format", "json"]).env("MOI_RULE", "direct").stdin(Stdio::null());
    let out = command.output().unwrap();
    // The error shows that the stop strings of the file were read.
    assert!(text(&out.stderr).contains("no tokenizer, so a stop string"), "{}", text(&out.stderr));
    std::fs::write(&file, "[defaults]\ntemperature = 0.5\nsystem = \"S\"\n").unwrap();
    let found: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    assert_eq!((&found["sampling"]["temperature"], &found["rule"]["rule"]), (&0.5.into(), &"direct".into()));

    let file = file.to_str().unwrap();
    let wrong = |content: &str, args: &[&str], parts: &[&str]| {
        std::fs::write(file, content).unwrap();
        refused(&[&["config", "--config", file], args].concat(), parts);
    };
    wrong("[defaults]\ntemprature = 1\n", &[], &[file, "`temprature`", "did you mean `temperature`?"]);
    wrong("[defaults]\nraw = \"perhaps\"\n", &[], &["--raw is on or off", "`perhaps`", "file"]);
    wrong("[defaults]\nformat = \"odt\"\n", &[], &["`format` cannot be `odt`"]);
    wrong("defaults = 3", &[], &[file]);
    wrong("[", &[], &[file]);
    wrong("[presets.a]\n", &["--preset", "b"], &["no preset `b`", "a"]);
    refused(&["config", "--config", "/no/such.toml"], &["/no/such.toml"]);
    refused(&["config", "genrate"], &["`genrate`", "did you mean `generate`?"]);
}
