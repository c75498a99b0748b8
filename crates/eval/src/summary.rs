//! Compares rules with each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::{
    Sample,
    statistics::{Interval, McNemar, bootstrap_difference, mcnemar, wilson},
};

/// The results of some rules on the same problems with the same seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The task's name.
    pub task: String,
    /// The number of problems.
    pub problems: usize,
    /// The number of samples of each problem by each rule.
    pub samples: usize,
    /// Whether no sample is missing.
    pub complete: bool,
    /// The rules, in the order in which they were given.
    pub rules: Vec<RuleSummary>,
    /// The comparison of each later rule with the first rule.
    pub differences: Vec<Difference>,
    /// The number of configurations that were tried of each rule, including those of earlier comparisons in the same
    /// file.
    pub configurations: BTreeMap<String, usize>,
}

/// The results of one rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleSummary {
    /// The rule as text, which parses back to the same rule.
    pub rule: String,
    /// The number of samples.
    pub samples: usize,
    /// The number of samples that solve their problem.
    pub correct: usize,
    /// The share of samples that solve their problem.
    pub accuracy: f64,
    /// The 95% interval (Wilson) of `accuracy`. It assumes independent samples, but samples of one problem are not
    /// quite independent.
    pub interval: Interval,
    /// The number of problems that at least one sample solves.
    pub solved: usize,
    /// The mean number of tokens of an answer.
    pub tokens: f64,
    /// The number of answers that a limit cut off.
    pub cut_off: usize,
    /// The number of answers in which nothing was found that could be judged.
    pub without_answer: usize,
}

/// The comparison of a rule with the first rule, paired by problem and seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The rule.
    pub rule: String,
    /// The first rule.
    pub from: String,
    /// The number of pairs.
    pub pairs: usize,
    /// The mean difference in accuracy.
    pub mean: f64,
    /// The 95% interval of `mean`, by bootstrap over problems.
    pub interval: Interval,
    /// McNemar's test of whether the difference can be chance.
    pub mcnemar: McNemar,
}

impl Summary {
    /// Summarises samples. If a sample is there twice, the first one counts; samples of other rules or problems are
    /// ignored. `problems` are ids, `rules` are texts, and `samples_each` is the number of samples that each problem
    /// and rule should have.
    pub fn new(
        task: &str,
        problems: &[String],
        rules: &[String],
        samples_each: usize,
        samples: &[Sample],
    ) -> Self {
        let mut known: HashMap<(&str, &str, usize), &Sample> = HashMap::with_capacity(samples.len());
        for sample in samples.iter().filter(|sample| sample.sample < samples_each) {
            known.entry((&sample.problem, &sample.rule, sample.sample)).or_insert(sample);
        }
        let of = |rule: &str, problem: &str| -> Vec<Option<&Sample>> {
            (0..samples_each).map(|at| known.get(&(problem, rule, at)).copied()).collect()
        };
        let summaries: Vec<RuleSummary> = rules
            .iter()
            .map(|rule| {
                let of_problems: Vec<Vec<&Sample>> = problems
                    .iter()
                    .map(|problem| of(rule, problem).into_iter().flatten().collect())
                    .collect();
                RuleSummary::new(rule, &of_problems)
            })
            .collect();
        let pairs = |rule: &str, problem: &str| -> Vec<(bool, bool)> {
            let first = of(&rules[0], problem).into_iter();
            let pairs = first.zip(of(rule, problem));
            pairs.filter_map(|(first, other)| Some((first?.correct, other?.correct))).collect()
        };
        let differences = rules.iter().skip(1).map(|rule| {
            let of_problems = problems.iter().map(|problem| pairs(rule, problem));
            Difference::new(&rules[0], rule, &of_problems.collect::<Vec<_>>())
        });
        Self {
            task: task.to_owned(),
            problems: problems.len(),
            samples: samples_each,
            complete: summaries.iter().all(|rule| rule.samples == problems.len() * samples_each),
            differences: differences.collect(),
            rules: summaries,
            configurations: configurations(rules, samples),
        }
    }

    /// Whether the same number of configurations was tried of every rule; otherwise the rule with more had more
    /// chances.
    pub fn has_equal_budgets(&self) -> bool {
        are_equal(&self.configurations)
    }
}

/// The number of configurations that were tried of each rule: those that are compared, and those that have samples
/// already.
pub fn configurations(rules: &[String], samples: &[Sample]) -> BTreeMap<String, usize> {
    let all: BTreeSet<&String> = rules.iter().chain(samples.iter().map(|sample| &sample.rule)).collect();
    let mut counts = BTreeMap::new();
    for rule in all {
        *counts.entry(rule.split(':').next().unwrap_or(rule).to_owned()).or_insert(0) += 1;
    }
    counts
}

/// Whether every rule has the same number of configurations.
pub fn are_equal(configurations: &BTreeMap<String, usize>) -> bool {
    let mut counts = configurations.values();
    let first = counts.next();
    counts.all(|count| Some(count) == first)
}

impl RuleSummary {
    fn new(rule: &str, of_problems: &[Vec<&Sample>]) -> Self {
        let samples: Vec<&Sample> = of_problems.iter().flatten().copied().collect();
        let count = |is: &dyn Fn(&Sample) -> bool| samples.iter().filter(|sample| is(sample)).count();
        let correct = count(&|sample| sample.correct);
        let n = samples.len().max(1) as f64;
        Self {
            rule: rule.to_owned(),
            samples: samples.len(),
            correct,
            accuracy: correct as f64 / n,
            interval: wilson(correct, samples.len()),
            solved: of_problems.iter().filter(|samples| samples.iter().any(|sample| sample.correct)).count(),
            tokens: samples.iter().map(|sample| sample.tokens as f64).sum::<f64>() / n,
            cut_off: count(&|sample| ["length", "context"].contains(&sample.stop.as_str())),
            without_answer: count(&|sample| sample.found.is_none()),
        }
    }
}

impl Difference {
    fn new(from: &str, rule: &str, of_problems: &[Vec<(bool, bool)>]) -> Self {
        let rate = |pairs: &[(bool, bool)], pick: fn(&(bool, bool)) -> bool| {
            pairs.iter().filter(|pair| pick(pair)).count() as f64 / pairs.len() as f64
        };
        let differences: Vec<f64> = (of_problems.iter().filter(|pairs| !pairs.is_empty()))
            .map(|pairs| rate(pairs, |pair| pair.1) - rate(pairs, |pair| pair.0))
            .collect();
        Self {
            rule: rule.to_owned(),
            from: from.to_owned(),
            pairs: of_problems.iter().map(Vec::len).sum(),
            mean: differences.iter().sum::<f64>() / differences.len().max(1) as f64,
            interval: bootstrap_difference(&differences, 0),
            mcnemar: mcnemar(of_problems.iter().flatten().copied()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(problem: usize, rule: &str, at: usize, correct: bool) -> Sample {
        Sample {
            problem: format!("p{problem}"),
            digest: String::new(),
            rule: rule.into(),
            sample: at,
            seed: 0,
            correct,
            found: correct.then(|| "1".into()),
            tokens: 10 + problem,
            stop: if problem == 0 { "length" } else { "eos" }.into(),
            text: String::new(),
        }
    }

    #[test]
    fn rules_are_paired_by_problem_and_sample() {
        let problems: Vec<String> = (0..3).map(|at| format!("p{at}")).collect();
        let rules = ["token".to_owned(), "moi".to_owned(), "moi:beta=2".to_owned()];
        let mut samples = Vec::new();
        for problem in 0..3 {
            for at in 0..2 {
                samples.push(sample(problem, "token", at, problem == 0));
                samples.push(sample(problem, "moi", at, problem == 0 || at == 1));
            }
        }
        // A repeated sample, one of another rule, and one beyond the number of samples: none of them counts.
        samples.push(sample(0, "token", 0, false));
        samples.push(sample(0, "direct", 0, true));
        samples.push(sample(0, "token", 5, true));
        samples.push(sample(1, "moi:beta=2", 0, true));
        let summary = Summary::new("t", &problems, &rules, 2, &samples);
        let [token, moi, other] = summary.rules.as_slice() else { panic!() };
        assert_eq!(
            (token.samples, token.correct, token.solved, token.cut_off, token.without_answer),
            (6, 2, 1, 2, 4)
        );
        assert_eq!((moi.correct, moi.solved, moi.tokens), (4, 3, 11.0));
        assert_eq!((other.samples, other.correct), (1, 1));
        let [moi, other] = summary.differences.as_slice() else { panic!() };
        assert_eq!((moi.pairs, moi.mcnemar.first_only, moi.mcnemar.second_only), (6, 0, 2));
        assert!((moi.mean - 1.0 / 3.0).abs() < 1e-12 && moi.interval.low >= 0.0 && moi.interval.high <= 0.5);
        assert_eq!((other.pairs, other.mean), (1, 1.0));
        assert!(!summary.complete && !summary.has_equal_budgets());
        assert_eq!(summary.configurations["moi"], 2);
        // A configuration that was tried before counts, even if it is not compared.
        let two = Summary::new("t", &problems, &rules[..2], 2, &samples);
        assert!(two.complete && !two.has_equal_budgets() && two.configurations["moi"] == 2);
        let samples: Vec<Sample> =
            samples.into_iter().filter(|sample| ["token", "moi"].contains(&&*sample.rule)).collect();
        assert!(Summary::new("t", &problems, &rules[..2], 2, &samples).has_equal_budgets());
    }
}
