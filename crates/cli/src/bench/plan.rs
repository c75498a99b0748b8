//! The plan of the measurements: groups of rows, one process per group.

use std::{fmt, path::PathBuf};

use anyhow::{Error, Result, bail};
use clap::ValueEnum;
use moi_backends::DeviceRequest;
use moi_engine::{InputRule, Verify};
use serde::{Deserialize, Serialize};

use super::{
    args::{BenchArgs, Pair},
    references::Task,
    targets::Target,
};
use crate::args::{AskedActivations, ModelArgs, Quantize, float_type};

/// The work of one process: a model, a device, a number type, and the rows to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) source: Source,
    /// Device, number type, quantisation and activations are written as on the command line.
    pub(super) device: String,
    pub(super) dtype: String,
    pub(super) quantize: Option<String>,
    pub(super) activations: Option<String>,
    pub(super) threads: Option<u16>,
    pub(super) repetitions: u16,
    /// Whether kernel launches are counted.
    pub(super) launches: bool,
    pub(super) tests: Vec<Test>,
    /// How drafts are verified, where a model drafts.
    #[serde(default)]
    pub(super) verify: Verify,
    /// The temperature of generations.
    #[serde(default)]
    pub(super) temperature: f64,
    /// The file of the text that generations continue; random tokens without one.
    #[serde(default)]
    pub(super) text: Option<PathBuf>,
    /// The role of the group in a comparison of devices.
    #[serde(default)]
    pub(super) accuracy: Option<Task>,
}

/// The source of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Source {
    /// A file or directory.
    Model { name: String, path: PathBuf },
    /// Random weights in the sizes of a known model.
    Shape { name: String },
}

/// One row: a prompt, a generation, or a prompt with a generation after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Test {
    /// Tokens of the prompt, which is read at once.
    pub(super) prompt: usize,
    /// Number of generated tokens.
    pub(super) decode: usize,
    /// Positions in the cache before the measurement.
    pub(super) depth: usize,
    /// Number of sequences that run at the same time.
    pub(super) batch: usize,
    /// The input rule of a generation; a prompt alone has none.
    pub(super) rule: Option<InputRule>,
    /// What drafts tokens of a generation, as written on the command line.
    #[serde(default)]
    pub(super) speculate: Option<String>,
}

impl Source {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Model { name, .. } | Self::Shape { name } => name,
        }
    }
}

impl Test {
    /// The name in tables, such as `tg128 @ d512 b8`.
    pub(super) fn name(&self) -> String {
        let mut name = lengths(self.prompt, self.decode);
        if self.depth > 0 {
            name += &format!(" @ d{}", self.depth);
        }
        if self.batch > 1 {
            name += &format!(" b{}", self.batch);
        }
        name
    }

    /// The number of positions of one sequence.
    pub(super) fn positions(&self) -> usize {
        // A generation needs at least one token to continue from.
        self.depth.saturating_add(self.prompt).max(1).saturating_add(self.decode)
    }

    /// The number of tokens that the speed counts.
    pub(super) fn tokens(&self) -> usize {
        self.batch * (self.prompt + self.decode)
    }

    /// The same row with few tokens, to warm up: it starts the threads and brings the weights into memory.
    pub(super) fn shortened(&self) -> Self {
        Self {
            prompt: self.prompt.min(16),
            decode: self.decode.min(2),
            depth: self.depth.min(16),
            ..self.clone()
        }
    }
}

/// The lengths as `pp512`, `tg128` or `pp512+tg128`.
pub(super) fn lengths(prompt: usize, decode: usize) -> String {
    match (prompt, decode) {
        (_, 0) => format!("pp{prompt}"),
        (0, _) => format!("tg{decode}"),
        _ => format!("pp{prompt}+tg{decode}"),
    }
}

impl Group {
    /// The model and its device, as the flags of the other commands.
    ///
    /// # Errors
    /// If a value is not allowed on the command line.
    pub(super) fn model_args(&self) -> Result<ModelArgs> {
        let form = |text: &String| <Quantize as ValueEnum>::from_str(text, false);
        let activations = |text: &String| <AskedActivations as ValueEnum>::from_str(text, false);
        Ok(ModelArgs {
            model: self.source.name().to_owned(),
            revision: None,
            device: self.device.parse()?,
            dtype: float_type(&self.dtype).map_err(Error::msg)?,
            quantize: self.quantize.as_ref().map(form).transpose().map_err(Error::msg)?,
            activations: self.activations.as_ref().map(activations).transpose().map_err(Error::msg)?,
            threads: self.threads,
        })
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Task::Write(_)) = self.accuracy {
            f.write_str("the reference: ")?;
        }
        write!(f, "{} on {}", self.source.name(), self.device)?;
        match &self.quantize {
            Some(form) => write!(f, ", {form}")?,
            None => write!(f, ", {}", self.dtype)?,
        }
        if let Some(activations) = &self.activations {
            write!(f, ", activations {activations}")?;
        }
        match self.threads {
            Some(threads) => write!(f, ", threads {threads}"),
            None => Ok(()),
        }
    }
}

/// All distinct combinations of the values.
///
/// # Errors
/// If there is nothing to measure.
pub(super) fn groups(
    args: &BenchArgs,
    targets: &[Target],
    sources: &[Source],
    rules: &[InputRule],
) -> Result<Vec<Group>> {
    let Some(first) = sources.first() else { bail!("there is no model to measure") };
    let tests = tests(args, rules);
    if tests.is_empty() {
        bail!("there is nothing to measure: no length in --prompt, --gen and --pg is above 0");
    }
    let group = Group {
        source: first.clone(),
        device: String::new(),
        dtype: String::new(),
        quantize: None,
        activations: None,
        threads: None,
        repetitions: args.repetitions,
        launches: args.launches,
        tests,
        verify: args.verify,
        temperature: args.temperature,
        text: args.text.clone(),
        accuracy: None,
    };
    let forms = args.forms();
    let mut groups = times(&[group], sources, |group, source| group.source = source.clone());
    groups = times(&groups, targets, |group, target| {
        group.device = target.device.clone();
        group.dtype = target.dtype.clone();
    });
    groups = times(&groups, &forms, |group, form| group.quantize = form.clone());
    groups = times(&groups, &args.activations(), |group, asked| group.activations = asked.clone());
    groups = times(&groups, &args.threads(), |group, threads| group.threads = *threads);
    for group in &mut groups {
        settle(group, &forms);
    }
    Ok(distinct(groups))
}

/// Combines every group with every value.
fn times<T>(groups: &[Group], values: &[T], set: impl Fn(&mut Group, &T)) -> Vec<Group> {
    let mut all = Vec::with_capacity(groups.len() * values.len());
    for group in groups {
        for value in values {
            let mut group = group.clone();
            set(&mut group, value);
            all.push(group);
        }
    }
    all
}

/// Clears settings that have no effect on a group, so that nothing is measured twice.
fn settle(group: &mut Group, forms: &[Option<String>]) {
    match group.quantize {
        None => group.activations = None,
        // `--dtype` is meant for the weights that are not quantised.
        Some(_) if forms.contains(&None) => group.dtype = "auto".to_owned(),
        Some(_) => {}
    }
    if let Ok(DeviceRequest::Named(name)) = group.device.parse::<DeviceRequest>()
        && name.kind().is_gpu()
    {
        group.threads = None;
    }
}

fn tests(args: &BenchArgs, rules: &[InputRule]) -> Vec<Test> {
    let mut tests = Vec::new();
    let decodes = args.decode.iter().map(|&decode| Pair { prompt: 0, decode });
    let decodes: Vec<Pair> = decodes.chain(args.pg.iter().copied()).filter(|pair| pair.decode > 0).collect();
    for &depth in &args.depth {
        for batch in args.batch.iter().map(|&batch| usize::from(batch)) {
            let prompts = args.prompt.iter().copied().filter(|&prompt| prompt > 0);
            let of_prompt = |prompt| Test { prompt, decode: 0, depth, batch, rule: None, speculate: None };
            tests.extend(prompts.map(of_prompt));
            for &Pair { prompt, decode } in &decodes {
                for &rule in rules {
                    let row = |speculate: Option<String>| Test {
                        prompt,
                        decode,
                        depth,
                        batch,
                        rule: Some(rule),
                        speculate,
                    };
                    tests.extend(args.speculate().into_iter().map(row));
                }
            }
        }
    }
    distinct(tests)
}

fn distinct<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    all.into_iter().fold(Vec::new(), |mut seen, one| {
        if !seen.contains(&one) {
            seen.push(one);
        }
        seen
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn planned(line: &str) -> Vec<Group> {
        let args = Line::try_parse_from(["bench"].into_iter().chain(line.split_whitespace())).unwrap().args;
        let sources = [Source::Shape { name: "a".into() }, Source::Shape { name: "b".into() }];
        let rules = super::super::args::split_rules(&args.rules).unwrap();
        groups(&args, &super::super::targets::asked(&args), &sources, &rules).unwrap()
    }

    fn names(group: &Group) -> Vec<String> {
        let rule = |test: &Test| test.rule.map_or("-".to_owned(), |rule| rule.spec());
        group.tests.iter().map(|test| format!("{} {}", test.name(), rule(test))).collect()
    }

    #[test]
    fn lists_make_a_product() {
        let groups = planned("--device cpu,ndarray --dtype f32,bf16 --threads 1,2");
        assert_eq!(groups.len(), 16);
        assert_eq!(groups[0].to_string(), "a on cpu, f32, threads 1");
        assert_eq!(groups[15].to_string(), "b on ndarray, bf16, threads 2");
        assert_eq!(names(&groups[3]), ["pp512 -", "tg128 token", "tg128 moi"]);
        let read: Group = serde_json::from_str(&serde_json::to_string(&groups[3]).unwrap()).unwrap();
        assert_eq!(read, groups[3]);
    }

    #[test]
    fn rows_are_named_by_what_they_do() {
        let line = "--prompt 0,8 --gen 4 --pg 8+4 --depth 0,32 --batch 1,2 --rules moi,support=20";
        let group = &planned(line)[0];
        let rule = "moi:support=20";
        let expected = [
            "pp8 -".to_owned(),
            format!("tg4 {rule}"),
            format!("pp8+tg4 {rule}"),
            "pp8 b2 -".to_owned(),
            format!("tg4 b2 {rule}"),
            format!("pp8+tg4 b2 {rule}"),
            "pp8 @ d32 -".to_owned(),
            format!("tg4 @ d32 {rule}"),
            format!("pp8+tg4 @ d32 {rule}"),
            "pp8 @ d32 b2 -".to_owned(),
            format!("tg4 @ d32 b2 {rule}"),
            format!("pp8+tg4 @ d32 b2 {rule}"),
        ];
        assert_eq!(names(group), expected);
        assert_eq!(group.tests[11].positions(), 44);
        assert_eq!(group.tests[11].tokens(), 24);
        assert_eq!(group.tests[1].positions(), 5);
    }

    #[test]
    fn what_does_not_count_is_measured_once() {
        let line =
            "--device cpu,cuda --dtype f32,bf16 --quantize none,q8_0 --activations f32,int8 --threads 1,2";
        let groups = planned(line);
        // Each source runs on the CPU with two number types and two kinds of activations for the quantised weights,
        // by two thread counts; on the GPU the thread counts have no effect.
        assert_eq!(groups.len(), 2 * (2 + 2) * (2 + 1));
        assert!(groups.iter().all(|group| group.quantize.is_none() || group.dtype == "auto"));
        assert_eq!(planned("--dtype f32 --quantize q8_0")[0].dtype, "f32");
    }
}
