//! Untrusted model files, made by seeded mutations of valid ones. Reading one must end in a model or in a single
//! error that names the file. It must never panic, and never use more memory than the size of the file justifies.

pub mod bytes;
pub mod gguf;
pub mod json;
pub mod pytorch;
pub mod template;
pub mod tokenizer;
pub mod weights;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::allocations::{Usage, counted};

/// Number of mutations per format; `MOI_TEST_MUTATIONS` overrides it.
const CASES: u64 = 5000;

/// A random number generator with a seed, so that a case can be repeated.
#[derive(Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// The generator for a seed.
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A random number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end.max(1) as u64) as usize
    }

    /// True once in `times`, on average.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// A random element.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number that is likely to break a reader of sizes: the ends of integer types, powers of two and their
    /// neighbours, small numbers, and the neighbours of the right one.
    pub fn odd_number(&mut self, right: u64) -> u64 {
        match self.below(6) {
            0 => self.below(5) as u64,
            1 => [right.wrapping_sub(1), right.wrapping_add(1), right.wrapping_mul(2), right / 2]
                [self.below(4)],
            2 => (1u64 << self.below(64)).wrapping_sub(self.below(2) as u64),
            3 => *self.pick(&[
                u64::MAX,
                u64::MAX - 7,
                i64::MAX as u64,
                u32::MAX.into(),
                i32::MAX as u64,
                1 << 31,
            ]),
            4 => right.wrapping_add(1 << 63),
            _ => self.bits(),
        }
    }
}

/// The results of all mutations of one format.
#[derive(Debug, Default)]
struct Survey {
    opened: usize,
    refused: usize,
    /// Counts of the errors, by their text without numbers and names.
    errors: BTreeMap<String, usize>,
    /// The largest peak memory of a case.
    peak: usize,
    /// The slowest case, with its seed.
    slowest: (Duration, u64),
}

/// The result of reading a case: success, or the text of the error.
pub type Ending = Result<(), String>;

/// Reads seeded mutations. `make` writes the mutation of a seed and returns its size in bytes; `read` reads it. An
/// error must contain one of `names` and have a readable length, and no case may hold more than `allowance(bytes)` at
/// once.
///
/// # Panics
/// If a case breaks one of these rules. The message has its seed; `MOI_TEST_SEED` repeats that case alone.
pub fn survey(
    what: &str,
    names: &[&str],
    allowance: impl Fn(usize) -> usize,
    mut make: impl FnMut(&mut Dice) -> usize,
    read: impl Fn() -> Ending,
) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds = match number("MOI_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MOI_TEST_MUTATIONS").unwrap_or(CASES),
    };
    let single = seeds.end - seeds.start == 1;
    let mut survey = Survey::default();
    for seed in seeds.clone() {
        let bytes = make(&mut Dice::new(seed));
        let start = Instant::now();
        let (ending, Usage { peak, largest }) = counted(|| catch_unwind(AssertUnwindSafe(&read)));
        let repeat = format!("{what}: MOI_TEST_SEED={seed}");
        let ending = ending.unwrap_or_else(|_| panic!("{repeat}: a panic"));
        if single {
            println!("{repeat}: {ending:?}, {bytes} bytes, peak {peak}, largest {largest}");
        }
        assert!(peak <= allowance(bytes), "{repeat}: {bytes} bytes took {peak} bytes of memory ({ending:?})");
        survey.peak = survey.peak.max(peak);
        survey.slowest = survey.slowest.max((start.elapsed(), seed));
        match ending {
            Ok(()) => survey.opened += 1,
            Err(error) => {
                assert!(names.iter().any(|name| error.contains(name)), "{repeat}: names no file: {error}");
                assert!(error.len() < 4000, "{repeat}: an error of {} bytes", error.len());
                survey.refused += 1;
                *survey.errors.entry(without_details(&error)).or_default() += 1;
            }
        }
    }
    let (slowest, seed) = survey.slowest;
    println!(
        "{what}: {} refused, {} opened, {} bytes at once, {slowest:?} at most (seed {seed})",
        survey.refused, survey.opened, survey.peak
    );
    for (error, count) in &survey.errors {
        println!("{count:6} {error}");
    }
    // The survey only tests something if some mutations are refused and some are accepted.
    assert!(single || survey.refused > 0 && survey.opened > 0, "{survey:?}");
}

/// The text of an error without the parts that differ from case to case.
fn without_details(error: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    for c in error.chars() {
        match c {
            '`' | '"' => quoted = !quoted,
            _ if quoted || c.is_ascii_digit() => {}
            _ => out.push(c),
        }
    }
    out.chars().take(160).collect()
}
