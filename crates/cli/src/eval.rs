//! `moi eval`: which rule solves more problems.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::backend::Backend;
use indicatif::ProgressBar;
use moi_engine::{Engine, EngineError, Event, InputRule, Request, RequestId, Scheduler, TokenEvent};
use moi_eval::{
    Countdown, Log, Merged, Problem, Sample, Shard, ShardFacts, Summary, Task, are_equal, configurations,
    page, table,
};
use moi_models::Decoder;
use moi_pretrained::Pretrained;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    Ended,
    args::{EvalArgs, Format, OrMinusOne, PromptArgs, StopArgs, value_name},
    backend::{Device, Job},
    bench::split_rules,
    config::nearest,
    decoding::Decoding,
    file,
    generate::note_kernels,
    interrupt::Interrupt,
    model,
    output::{self, StopReason, dtype_name},
    prompt,
    runner::all_at_once,
    ui,
};

/// Number of CountDown problems, if none is given.
const PROBLEMS: usize = 100;

/// Runs the missing samples and reports.
pub(crate) fn run(args: &EvalArgs) -> Result<Ended> {
    if let (false, Some(output)) = (args.merge.is_empty(), &args.output) {
        return merged(args, output);
    }
    let rules = split_rules(&args.rules)?;
    let task = task(args)?;
    check_names(args, &task, &rules)?;
    check_budgets(args, &rules, &[])?;
    if let Some(path) = &args.report {
        file::check(path)?;
    }
    let pretrained = model::open(&args.model)?;
    let stop = StopArgs {
        max_tokens: Some(OrMinusOne(Some(args.max_tokens))),
        min_tokens: 0,
        stop: Vec::new(),
        ignore_eos: false,
    };
    let mut decoding = Decoding::new(&pretrained, &args.scope, &args.sampling, None, &stop)?;
    // The seed is fixed, because a continued run must use the same seeds.
    decoding.seed = match args.sampling.seed {
        None => 0,
        Some(OrMinusOne(Some(seed))) => seed,
        Some(OrMinusOne(None)) => {
            bail!("--seed -1 draws a seed, and a run that goes on must have its own again; give one")
        }
    };
    // Some of several rules may gain nothing by drafts.
    decoding.speculation.optional = rules.len() > 1;
    decoding.note_idle(&rules, args.seeds.into());
    let prompts = prompts(args, &task, &pretrained)?;
    let context = pretrained.architecture.config.context_length;
    if let Some((problem, prompt)) =
        task.problems.iter().zip(&prompts).find(|(_, prompt)| prompt.len() > context)
    {
        bail!(
            "the problem `{}` has {} tokens but the model's context holds {context}",
            problem.id,
            prompt.len()
        );
    }
    let device = Device::chosen(args.model.device);
    device.run(Eval { args, device, pretrained, task, prompts, rules, decoding })
}

/// Merges the files of all shards, and reports the result.
fn merged(args: &EvalArgs, output: &Path) -> Result<Ended> {
    if let Some(path) = &args.report {
        file::check(path)?;
    }
    if output.exists() {
        bail!("{} is there already; give another --output, or move it away", output.display());
    }
    let Merged { run, rules, seeds, problems, samples } = moi_eval::merge(&args.merge)?;
    let mut lines = serde_json::to_string(&json!({"run": run}))? + "\n";
    for sample in &samples {
        lines += &(serde_json::to_string(sample)? + "\n");
    }
    file::write_whole(output, lines.as_bytes())?;
    ui::note(&format!(
        "wrote {} samples of {} shards to {}",
        samples.len(),
        args.merge.len(),
        output.display()
    ));
    let task = run["task"].as_str().unwrap_or_default();
    report(args, &run, &Summary::new(task, &problems, &rules, seeds, &samples))?;
    match failed(&samples) {
        Some(what) => bail!(what),
        None => Ok(Ended::Normally),
    }
}

/// A message about failed answers, if there are any.
fn failed(samples: &[Sample]) -> Option<String> {
    let failed = StopReason::Failed.to_string();
    let count = samples.iter().filter(|sample| sample.stop == failed).count();
    (count > 0).then(|| format!("{count} answers failed and count as wrong"))
}

/// Writes the report: a page if requested, and tables or JSON.
fn report(args: &EvalArgs, run: &Value, summary: &Summary) -> Result<()> {
    if let Some(path) = &args.report {
        let facts = run.as_object().into_iter().flatten();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let facts: Vec<(String, String)> = facts
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.replace('_', " "), text(value)))
            .collect();
        file::write_whole(path, page(summary, &facts).as_bytes())?;
        ui::note(&format!("wrote {}", path.display()));
    }
    match args.format {
        Format::Json => output::print_json(&json!({"run": run, "summary": summary})),
        Format::Text => output::print_bytes(table(summary).as_bytes()),
    }
}

fn task(args: &EvalArgs) -> Result<Task> {
    if args.task == "countdown" {
        let options =
            Countdown { numbers: args.numbers.into(), seed: args.task_seed, ..Countdown::default() };
        return Ok(Task::countdown(&options, args.problems.map_or(PROBLEMS, |count| count as usize)));
    }
    let path = PathBuf::from(&args.task);
    if !path.is_file() {
        let near = nearest(&args.task, ["countdown"].into_iter());
        bail!("there is no task `{}`: it is `countdown`, or a JSONL file{near}", args.task);
    }
    let template = args.template.as_ref().map(|path| {
        file::read_text(path).with_context(|| format!("the template {} cannot be read", path.display()))
    });
    let mut task = Task::read(&path, template.transpose()?.as_deref())?;
    if let Some(count) = args.problems {
        task.problems.truncate(count as usize);
    }
    Ok(task)
}

/// Checks that the names of problems and rules are unique.
fn check_names(args: &EvalArgs, task: &Task, rules: &[InputRule]) -> Result<()> {
    let mut seen = HashSet::new();
    if let Some(twice) = task.problems.iter().find(|problem| !seen.insert(&problem.id)) {
        bail!("two problems of `{}` have the id `{}`", args.task, twice.id);
    }
    let specs = specs(rules);
    match specs.iter().enumerate().find(|(at, spec)| specs[..*at].contains(spec)) {
        Some((_, spec)) => bail!("the rule `{spec}` is given twice"),
        None => Ok(()),
    }
}

fn specs(rules: &[InputRule]) -> Vec<String> {
    rules.iter().map(InputRule::spec).collect()
}

/// Checks that all rules have the same number of configurations, including earlier ones in the same file, unless
/// --unequal-budgets is given.
fn check_budgets(args: &EvalArgs, rules: &[InputRule], samples: &[Sample]) -> Result<()> {
    let tried = configurations(&specs(rules), samples);
    if args.unequal_budgets || are_equal(&tried) {
        return Ok(());
    }
    let counts: Vec<String> = tried.iter().map(|(rule, count)| format!("{rule} {count}")).collect();
    bail!(
        "some rules have more configurations than others ({}): the best of more looks better by chance alone; give each as \
         many, or say --unequal-budgets",
        counts.join(", ")
    )
}

/// A hash of a problem's prompt and answer, to detect another problem with the same name.
fn digest(prompt: &[u32], problem: &Problem) -> Result<String> {
    let mut hash = Sha256::new();
    prompt.iter().for_each(|id| hash.update(id.to_le_bytes()));
    hash.update(serde_json::to_vec(&problem.scorer)?);
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

/// Checks that the samples of the file belong to the problems of this task.
fn check_samples(path: &Path, task: &Task, digests: &[String], samples: &[Sample]) -> Result<()> {
    let now: HashMap<&str, &String> =
        task.problems.iter().map(|problem| problem.id.as_str()).zip(digests).collect();
    let changed =
        |sample: &&Sample| now.get(sample.problem.as_str()).is_some_and(|now| **now != sample.digest);
    match samples.iter().find(changed) {
        Some(sample) => bail!(
            "{} has samples of another problem `{}`: what is asked or how it is judged has changed; give another file, \
             or move that one away",
            path.display(),
            sample.problem
        ),
        None => Ok(()),
    }
}

/// Judges the samples of the file again, because an earlier version may have judged them differently.
fn judge_again(task: &Task, samples: &mut [Sample]) {
    let problems: HashMap<&str, &Problem> =
        task.problems.iter().map(|problem| (problem.id.as_str(), problem)).collect();
    let failed = StopReason::Failed.to_string();
    for sample in samples.iter_mut().filter(|sample| sample.stop != failed) {
        if let Some(problem) = problems.get(sample.problem.as_str()) {
            let score = problem.scorer.score(&sample.text);
            (sample.correct, sample.found) = (score.correct, score.found);
        }
    }
}

/// The prompt tokens of each problem.
fn prompts(args: &EvalArgs, task: &Task, pretrained: &Pretrained) -> Result<Vec<Vec<u32>>> {
    let ids = |text: &String| {
        let given = PromptArgs {
            prompt: Some(text.clone()),
            tokens: None,
            system: args.system.clone(),
            raw: args.raw,
        };
        prompt::ids_of(&given, Some(text), &args.model.model, pretrained)
    };
    task.problems.iter().map(|problem| ids(&problem.prompt)).collect()
}

struct Eval<'a> {
    args: &'a EvalArgs,
    device: Device,
    pretrained: Pretrained,
    task: Task,
    prompts: Vec<Vec<u32>>,
    rules: Vec<InputRule>,
    decoding: Decoding,
}

/// A sample that has to be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    problem: usize,
    rule: usize,
    sample: usize,
}

impl Job for Eval<'_> {
    type Output = Ended;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Ended> {
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let positions = model::positions(&self.pretrained, longest, Some(self.args.max_tokens));
        let Self { args, device: name, pretrained, task, prompts, rules, decoding } = self;
        let batch = usize::from(args.batch);
        let interrupt = Interrupt::install()?;
        let (engine, form) = model::engine::<B>(pretrained, &args.model, (name, device), positions * batch)?;
        let engine = decoding.engine(engine, &args.model, name)?;
        let mut run = described(args, &task, &decoding, name, dtype_name(form), engine.mix_tolerance());
        if let Some(shard) = args.shard {
            let (problems, rules, seeds) = (task.problems.len(), specs(&rules), args.seeds.into());
            run["shard"] = json!(ShardFacts { shard: shard.to_string(), problems, rules, seeds });
        }
        let path = args.output.clone().unwrap_or_else(|| {
            let shard = args.shard.map(|shard| format!("-{}", shard.to_string().replace('/', "-of-")));
            let name = task.name.replace([' ', ','], "-").replace("--", "-");
            PathBuf::from(format!("moi-eval-{name}{}.jsonl", shard.unwrap_or_default()))
        });
        let digests = prompts.iter().zip(&task.problems).map(|(prompt, problem)| digest(prompt, problem));
        let digests = digests.collect::<Result<Vec<_>>>()?;
        let (log, mut samples) = Log::open(&path, &run)?;
        check_samples(&path, &task, &digests, &samples)?;
        judge_again(&task, &mut samples);
        check_budgets(args, &rules, &samples)?;
        ui::note(&match samples.len() {
            0 => format!("samples go to {}", path.display()),
            known => format!("going on with {known} samples in {}", path.display()),
        });
        let mut work = Work {
            digests,
            task,
            prompts,
            rules,
            decoding,
            seeds: args.seeds.into(),
            shard: args.shard,
            log,
            samples,
            error: None,
        };
        interrupt.begin();
        let interrupted = work.run(&engine, batch, &interrupt)?;
        note_kernels();
        work.report(args, &run)?;
        // Failed answers of earlier runs are included, because the figures include them.
        if let Some(what) = failed(&work.samples) {
            return Err(match work.error {
                Some(first) => first.context(format!("{what}; the first of this run")),
                None => anyhow!(what),
            });
        }
        Ok(if interrupted { Ended::Interrupted } else { Ended::Normally })
    }
}

/// The parameters that must be the same to continue a run: everything but the rules and the numbers of problems and
/// samples.
fn described(
    args: &EvalArgs,
    task: &Task,
    decoding: &Decoding,
    device: Device,
    dtype: &str,
    mix_tolerance: f32,
) -> Value {
    let quantize = args.model.quantize.map(|form| format!("{:?}", form.0));
    json!({
        "task": task.name,
        "task_seed": args.task_seed,
        "template": args.template.as_ref().map(|path| path.display().to_string()),
        "system": args.system,
        "raw": args.raw,
        "model": args.model.model,
        "revision": args.model.revision,
        "activations": args.model.activations.as_ref().map(value_name),
        "markers": decoding.markers,
        "device": device.to_string(),
        "dtype": dtype,
        "quantize": quantize,
        "sampling": decoding.sampling,
        "scope": decoding.scope,
        "mix_tolerance": mix_tolerance,
        "max_tokens": args.max_tokens,
        "seed": decoding.seed,
    })
}

struct Work {
    task: Task,
    /// The hashes of the problems.
    digests: Vec<String>,
    prompts: Vec<Vec<u32>>,
    rules: Vec<InputRule>,
    decoding: Decoding,
    seeds: usize,
    shard: Option<Shard>,
    log: Log,
    samples: Vec<Sample>,
    /// The error of the first failed answer of this run, if there is one.
    error: Option<anyhow::Error>,
}

/// An answer in progress.
struct Answer {
    wanted: Wanted,
    steps: Vec<TokenEvent>,
}

impl Work {
    /// The problems of this shard, with their indexes in the task.
    fn problems(&self) -> impl Iterator<Item = (usize, &Problem)> {
        let all = self.task.problems.iter().enumerate();
        all.filter(|(at, _)| self.shard.is_none_or(|shard| shard.has(*at)))
    }

    /// The missing samples, problem by problem, so that samples of the same prompt are neighbours.
    fn missing(&self) -> Vec<Wanted> {
        let specs = specs(&self.rules);
        let known: HashSet<(&str, &str, usize)> = (self.samples.iter())
            .map(|sample| (sample.problem.as_str(), sample.rule.as_str(), sample.sample))
            .collect();
        let mut missing = Vec::new();
        for (problem, named) in self.problems() {
            for sample in 0..self.seeds {
                for (rule, spec) in specs.iter().enumerate() {
                    if !known.contains(&(named.id.as_str(), spec.as_str(), sample)) {
                        missing.push(Wanted { problem, rule, sample });
                    }
                }
            }
        }
        missing
    }

    /// The seed of a sample, which is the same for every rule.
    fn seed(&self, wanted: Wanted) -> u64 {
        // The seeds of different problems are far enough apart that they never overlap.
        self.decoding.seed.wrapping_add((wanted.problem as u64) << 20).wrapping_add(wanted.sample as u64)
    }

    /// Generates the missing samples, up to `size` at a time; when one ends, the next begins. Returns whether Ctrl-C
    /// stopped it.
    fn run<B: Backend>(
        &mut self,
        engine: &Engine<B, Decoder<B>>,
        size: usize,
        interrupt: &Interrupt,
    ) -> Result<bool> {
        let missing = self.missing();
        let bar = ui::progress(
            Some(missing.len() as u64),
            "[{bar:30}] {pos}/{len} answers, {elapsed} gone, {eta} left{msg}",
        )?;
        let mut missing = missing.into_iter();
        let mut scheduler = all_at_once(engine, size);
        let mut answers: HashMap<RequestId, Answer> = HashMap::new();
        let (mut right, mut done) = (0, 0);
        while !interrupt.is_set() {
            // Grammars are compiled and prompts tokenized shortly before they are needed, not all in advance.
            let room = size.saturating_sub(answers.len());
            self.submit(&mut scheduler, &mut answers, missing.by_ref().take(room).collect())?;
            if scheduler.is_idle() {
                break;
            }
            for event in scheduler.round() {
                let (id, ended) = match event {
                    Event::Token(id, step) => {
                        let Some(answer) = answers.get_mut(&id) else { continue };
                        let ended = step.stop.is_some().then_some(StopReason::Interrupted);
                        answer.steps.push(step);
                        (id, ended)
                    }
                    // A failed round means that the model or the device failed, so all answers fail.
                    Event::Admitted(_) | Event::Prompt(..) => continue,
                    Event::Failed(_, error @ EngineError::Round(_), _) => return Err(error.into()),
                    Event::Failed(id, error, text) => {
                        if let Some(last) = answers.get_mut(&id).and_then(|answer| answer.steps.last_mut()) {
                            last.text += &text;
                        }
                        self.error.get_or_insert_with(|| error.into());
                        (id, Some(StopReason::Failed))
                    }
                };
                if let Some(early) = ended
                    && let Some(answer) = answers.remove(&id)
                {
                    done += 1;
                    right += usize::from(self.finish(answer, early)?);
                    tell(&bar, right, done);
                }
            }
        }
        bar.finish_and_clear();
        Ok(interrupt.is_set())
    }

    fn submit<B: Backend>(
        &self,
        scheduler: &mut Scheduler<'_, B, Decoder<B>>,
        answers: &mut HashMap<RequestId, Answer>,
        wanted: Vec<Wanted>,
    ) -> Result<()> {
        for wanted in wanted {
            let request = Request {
                seed: self.seed(wanted),
                top: 0,
                ..self.decoding.request::<B>(&self.prompts[wanted.problem], self.rules[wanted.rule], 0)
            };
            let id = scheduler.submit("", request)?;
            answers.insert(id, Answer { wanted, steps: Vec::new() });
        }
        Ok(())
    }

    /// Judges an answer and stores it. `early` is the reason for the end if the last step has none. Returns whether
    /// the answer is right; an answer that failed is wrong, whatever its text.
    fn finish(&mut self, Answer { wanted, steps }: Answer, early: StopReason) -> Result<bool> {
        let problem = &self.task.problems[wanted.problem];
        let text: String = steps.iter().map(|step| step.text.as_str()).collect();
        let mut score = problem.scorer.score(&text);
        score.correct &= early != StopReason::Failed;
        let sample = Sample {
            problem: problem.id.clone(),
            digest: self.digests[wanted.problem].clone(),
            rule: self.rules[wanted.rule].spec(),
            sample: wanted.sample,
            seed: self.seed(wanted),
            correct: score.correct,
            found: score.found,
            tokens: steps.len(),
            stop: StopReason::of(&steps, early).to_string(),
            text,
        };
        self.log.push(&sample)?;
        self.samples.push(sample);
        Ok(score.correct)
    }

    fn report(&self, args: &EvalArgs, run: &Value) -> Result<()> {
        let problems: Vec<String> = self.problems().map(|(_, problem)| problem.id.clone()).collect();
        let specs = specs(&self.rules);
        report(args, run, &Summary::new(&self.task.name, &problems, &specs, self.seeds, &self.samples))
    }
}

fn tell(bar: &ProgressBar, right: usize, done: usize) {
    bar.set_position(done as u64);
    bar.set_message(format!(", {right} right"));
}
