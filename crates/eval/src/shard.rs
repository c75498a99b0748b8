//! Shards of an evaluation: each shard has every n-th problem, and the samples of all shards can be merged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{EvalError, Log, Sample};

/// One of a number of shards, counted from 1: `1/4` has every fourth problem, beginning with the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    of: usize,
}

impl Shard {
    /// Whether the shard has the problem with this index in the task.
    pub fn has(self, problem: usize) -> bool {
        problem % self.of == self.index - 1
    }

    /// The number of problems of the shard, in a task of this many problems.
    fn count(self, problems: usize) -> usize {
        (0..problems).filter(|&problem| self.has(problem)).count()
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no shard, expected I/N with I from 1 to N");
        let (index, of) = text.split_once('/').ok_or_else(wrong)?;
        let (index, of) = (index.parse().map_err(|_| wrong())?, of.parse().map_err(|_| wrong())?);
        if (1..=of).contains(&index) { Ok(Self { index, of }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// The description of a shard in its file, as the field `shard` of its run. It suffices to check whether all samples
/// are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFacts {
    /// The shard, as text such as `1/4`.
    pub shard: String,
    /// The number of problems in the whole task.
    pub problems: usize,
    /// The rules, in order.
    pub rules: Vec<String>,
    /// The number of samples of each problem by each rule.
    pub seeds: usize,
}

/// The samples of all shards.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The run, without the shard.
    pub run: Value,
    /// The rules, in order.
    pub rules: Vec<String>,
    /// The number of samples of each problem by each rule.
    pub seeds: usize,
    /// The ids of the problems: the first of each shard, then the second of each, and so on.
    pub problems: Vec<String>,
    /// The samples, ordered by problem, sample and rule.
    pub samples: Vec<Sample>,
}

/// Merges the files of all shards of a run.
///
/// # Errors
/// If they belong to different runs, if a shard is missing or given twice, or if a shard lacks samples.
pub fn merge(paths: &[PathBuf]) -> Result<Merged, EvalError> {
    let mut common: Option<(PathBuf, Value, ShardFacts)> = None;
    let mut parts: BTreeMap<usize, (PathBuf, Vec<Sample>)> = BTreeMap::new();
    let mut of = 0;
    for path in paths {
        let wrong = |what: String| EvalError::Shards { path: path.clone(), what };
        let (mut run, samples) = Log::read(path)?;
        let facts = run.as_object_mut().and_then(|run| run.remove("shard"));
        let facts: ShardFacts = facts
            .and_then(|facts| serde_json::from_value(facts).ok())
            .ok_or_else(|| wrong("it is no shard's file".to_owned()))?;
        let shard: Shard = facts.shard.parse().map_err(&wrong)?;
        if let Some((first, first_run, first_facts)) = &common {
            let same = ShardFacts { shard: first_facts.shard.clone(), ..facts.clone() } == *first_facts;
            if run != *first_run || !same || shard.of != of {
                return Err(wrong(format!("it is of another run than {}", first.display())));
            }
        } else {
            of = shard.of;
            common = Some((path.clone(), run, facts.clone()));
        }
        check(path, shard, &facts, &samples)?;
        if let Some((other, _)) = parts.get(&shard.index) {
            return Err(wrong(format!("it is the shard {shard}, and so is {}", other.display())));
        }
        parts.insert(shard.index, (path.clone(), samples));
    }
    let Some((first, run, facts)) = common else {
        return Err(EvalError::Shards {
            path: PathBuf::new(),
            what: "there are no files to merge".to_owned(),
        });
    };
    let missing: Vec<String> =
        (1..=of).filter(|index| !parts.contains_key(index)).map(|index| format!("{index}/{of}")).collect();
    if !missing.is_empty() {
        let what = format!("of its {of} shards there is no {}", missing.join(", "));
        return Err(EvalError::Shards { path: first, what });
    }
    let ShardFacts { rules, seeds, .. } = facts;
    let problems = problems(parts.values().map(|(_, samples)| samples.as_slice()).collect());
    let mut seen = BTreeSet::new();
    if let Some(twice) = problems.iter().find(|problem| !seen.insert(*problem)) {
        let what = format!("the problem `{twice}` is in two shards");
        return Err(EvalError::Shards { path: first, what });
    }
    let place: BTreeMap<&String, usize> = problems.iter().zip(0..).collect();
    let rule = |name: &String| rules.iter().position(|rule| rule == name);
    let mut samples: Vec<Sample> = parts.into_values().flat_map(|(_, samples)| samples).collect();
    samples.sort_by_key(|sample| (place.get(&sample.problem).copied(), sample.sample, rule(&sample.rule)));
    Ok(Merged { run, rules, seeds, problems, samples })
}

/// Checks that a shard has each of its samples exactly once.
fn check(path: &Path, shard: Shard, facts: &ShardFacts, samples: &[Sample]) -> Result<(), EvalError> {
    let wrong = |what: String| Err(EvalError::Shards { path: path.to_owned(), what });
    let mut seen = BTreeSet::new();
    for Sample { problem, rule, sample, .. } in samples {
        if !facts.rules.contains(rule) || *sample >= facts.seeds {
            return wrong(format!(
                "it has a sample {sample} of `{problem}` by `{rule}`, which is none of its run's"
            ));
        }
        if !seen.insert((problem, rule, sample)) {
            return wrong(format!("it has the sample {sample} of `{problem}` by `{rule}` twice"));
        }
    }
    let expected = shard.count(facts.problems) * facts.rules.len() * facts.seeds;
    match samples.len() == expected {
        true => Ok(()),
        false => wrong(format!(
            "it has {} of the {expected} samples of shard {shard}; the command that began it goes on with it",
            samples.len()
        )),
    }
}

/// The problems of all shards, taken in turns.
fn problems(shards: Vec<&[Sample]>) -> Vec<String> {
    let of_shard = |samples: &[Sample]| {
        let mut names: Vec<String> = Vec::new();
        for sample in samples {
            if !names.contains(&sample.problem) {
                names.push(sample.problem.clone());
            }
        }
        names
    };
    let names: Vec<Vec<String>> = shards.into_iter().map(of_shard).collect();
    let longest = names.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|at| names.iter().filter_map(move |names| names.get(at).cloned())).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(problem: usize, rule: &str, sample: usize) -> Sample {
        Sample {
            problem: format!("p{problem}"),
            digest: String::new(),
            rule: rule.to_owned(),
            sample,
            seed: 1,
            correct: true,
            found: None,
            tokens: 1,
            stop: "eos".to_owned(),
            text: String::new(),
        }
    }

    /// The files of three shards of seven problems, two rules and two samples.
    fn shards(directory: &Path) -> Vec<PathBuf> {
        let write = |index: usize| {
            let path = directory.join(format!("{index}.jsonl"));
            let shard: Shard = format!("{index}/3").parse().unwrap();
            let rules = vec!["token".to_owned(), "moi".to_owned()];
            let facts = ShardFacts { shard: shard.to_string(), problems: 7, rules: rules.clone(), seeds: 2 };
            let (mut log, _) = Log::open(&path, &json!({"model": "m", "shard": facts})).unwrap();
            for problem in (0..7).filter(|&problem| shard.has(problem)) {
                for rule in rules.iter().rev() {
                    (0..2).for_each(|at| log.push(&sample(problem, rule, at)).unwrap());
                }
            }
            path
        };
        (1..=3).map(write).collect()
    }

    #[test]
    fn every_problem_is_in_one_shard() {
        for of in 1..9 {
            let shards: Vec<Shard> = (1..=of).map(|index| Shard { index, of }).collect();
            assert_eq!(shards.iter().map(|shard| shard.count(20)).sum::<usize>(), 20);
            assert!((0..20).all(|problem| shards.iter().filter(|shard| shard.has(problem)).count() == 1));
        }
        for wrong in ["", "1", "0/3", "4/3", "1/0", "a/b", "-1/2", "1/2/3"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn all_shards_make_the_whole() {
        let directory = tempfile::tempdir().unwrap();
        let mut paths = shards(directory.path());
        paths.reverse();
        let merged = merge(&paths).unwrap();
        assert_eq!(merged.run, json!({"model": "m"}));
        assert_eq!(merged.problems, ["p0", "p1", "p2", "p3", "p4", "p5", "p6"]);
        let expected: Vec<Sample> = (0..7)
            .flat_map(|problem| {
                (0..2).flat_map(move |at| ["token", "moi"].map(|rule| sample(problem, rule, at)))
            })
            .collect();
        assert_eq!(merged.samples, expected);
    }

    #[test]
    fn gaps_and_overlaps_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let paths = shards(directory.path());
        let said = |paths: &[PathBuf]| merge(paths).unwrap_err().to_string();
        assert!(said(&paths[1..]).contains("there is no 1/3"), "{}", said(&paths[1..]));
        assert!(said(&[&paths[..], &paths[..1]].concat()).contains("so is"));
        assert!(said(&[]).contains("no files"));
        let text = std::fs::read_to_string(&paths[1]).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (lines, what) in [
            (lines[..lines.len() - 1].to_vec(), "7 of the 8 samples"),
            ([&lines[..], &lines[1..2]].concat(), "twice"),
            ([&lines[..8], &[&lines[8].replace("p4", "p3")]].concat(), "in two shards"),
            ([&lines[..8], &[&lines[8].replace("\"token\"", "\"other\"")]].concat(), "none of its run's"),
            ([&[&*lines[0].replace("\"m\"", "\"n\"")], &lines[1..]].concat(), "another run"),
            ([&[&*lines[0].replace("2/3", "2/4")], &lines[1..]].concat(), "another run"),
            (vec!["{\"run\": {}}"], "no shard's file"),
        ] {
            std::fs::write(&paths[1], lines.join("\n") + "\n").unwrap();
            assert!(said(&paths).contains(what), "{what}: {}", said(&paths));
        }
    }
}
