//! Samples a token from logits, on the host.

use std::sync::Arc;

use moi_kernels::{Distribution, Filters, distribution, draw, first_of_largest, shortlist};
use moi_sampling::{Breakers, Candidates, History, Past, Sampling};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{EngineError, speculation::Verification};

/// A sampled token.
///
/// # Examples
/// ```
/// use moi_engine::{Sampler, Sampling};
///
/// let mut sampler = Sampler::new(Sampling::default(), 0)?; // greedy
/// let sampled = sampler.sample(&[0.0, 2.0, 1.0])?;
/// assert_eq!(sampled.token, 1);
/// assert!(sampled.logprob < 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log-probability in the raw distribution, before temperature and filters.
    pub logprob: f64,
    /// The likeliest tokens of the raw distribution with their log-probabilities, as many as were asked for.
    pub likeliest: Vec<(u32, f64)>,
}

/// Samples the tokens of one sequence.
///
/// Each token takes one uniform number from a ChaCha stream of the seed. The inverse of the cumulative distribution,
/// over tokens in order of their ids and in float64, turns the number into a token. So a seed gives the same tokens
/// on every run, and on every backend whose logits are the same. Samplers that act at random use another stream of
/// the same seed.
///
/// # Examples
/// ```
/// use moi_engine::{Sampler, Sampling};
///
/// let sampling = Sampling { temperature: 0.8.into(), top_k: 2.into(), ..Sampling::default() };
/// let mut sampler = Sampler::new(sampling, 7)?.with_prompt(&[1, 2]);
/// for _ in 0..3 {
///     let sampled = sampler.sample(&[0.0, 4.0, 3.5])?;
///     assert_ne!(sampled.token, 0); // It is not among the two likeliest.
///     sampler.push(sampled.token);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    past: Past,
}

/// Which tokens may come, besides what the sampling settings say.
#[derive(Clone, Copy, Default)]
pub(crate) struct Allowed<'a> {
    /// Tokens that may not come.
    pub(crate) not: &'a [u32],
    /// Whether a token may come; `None` allows all.
    pub(crate) only: Option<&'a dyn Fn(u32) -> bool>,
    /// The token that is taken, whatever is drawn.
    pub(crate) forced: Option<u32>,
}

impl Allowed<'_> {
    pub(crate) fn is_all(&self) -> bool {
        self.not.is_empty() && self.only.is_none()
    }

    pub(crate) fn has(&self, token: u32) -> bool {
        !self.not.contains(&token) && self.only.is_none_or(|only| only(token))
    }
}

impl Sampler {
    /// A sampler at the start of its random stream, for a sequence without a prompt.
    ///
    /// # Errors
    /// If a value of `sampling` is not allowed.
    pub fn new(sampling: Sampling, seed: u64) -> Result<Self, EngineError> {
        sampling.check()?;
        Ok(Self { sampling, rng: ChaCha8Rng::seed_from_u64(seed), past: Past::default() })
    }

    /// Sets the prompt, which penalties look back at.
    pub fn with_prompt(mut self, prompt: &[u32]) -> Self {
        self.past.history = History::new(prompt);
        self
    }

    /// Sets the token sequences that [`moi_sampling::Dry::sequence_breakers`] stand for.
    pub fn with_breakers(mut self, breakers: Arc<Breakers>) -> Self {
        self.past.breakers = breakers;
        self
    }

    /// The sampling settings.
    pub(crate) fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Prompt and tokens so far.
    pub(crate) fn history(&self) -> &History {
        &self.past.history
    }

    /// Records the token that was generated.
    pub fn push(&mut self, token: u32) {
        self.past.history.push(token);
    }

    /// The next uniform number, at least 0 and below 1.
    pub(crate) fn draw(&mut self) -> f64 {
        uniform(&mut self.rng)
    }

    /// The uniform number of this step for samplers that act at random. It comes from a stream of its own at the
    /// position of the step, so that it is the same however often it is asked for.
    fn chance(&self) -> f64 {
        uniform(&mut self.stream(1, 2))
    }

    /// A stream of random numbers of its own, at the position of this step, where each step has so many words.
    pub(crate) fn stream(&self, stream: u64, words: u128) -> ChaCha8Rng {
        let mut rng = self.rng.clone();
        rng.set_stream(stream);
        rng.set_word_pos(words * self.past.history.generated(0).len() as u128);
        rng
    }

    /// Samples from raw logits `[vocab]`. The caller must then call [`Sampler::push`].
    ///
    /// # Errors
    /// If they hold NaN or +infinity, or nothing but -infinity; or if no token may be sampled.
    pub fn sample(&mut self, logits: &[f32]) -> Result<Sampled, EngineError> {
        let uniform = self.draw();
        self.choose(logits, uniform, Allowed::default(), 0).map(|(sampled, _)| sampled)
    }

    /// Logits with bias and penalties, and -infinity for tokens that may not come. They are for rules that pick
    /// tokens by filters of their own.
    pub(crate) fn narrowed(&self, logits: &[f32], allowed: Allowed<'_>) -> Vec<f32> {
        let mut candidates = Candidates::new(logits);
        if !allowed.is_all() {
            candidates.retain(|candidate| allowed.has(candidate.id));
        }
        self.sampling.penalise(&mut candidates, &self.past);
        let mut narrowed = vec![f32::NEG_INFINITY; logits.len()];
        candidates.iter().for_each(|candidate| narrowed[candidate.id as usize] = candidate.logit as f32);
        narrowed
    }

    /// Chooses the token for a uniform number. Returns it and what it was drawn from. `likeliest` is how many of the
    /// most likely tokens of the raw distribution are reported.
    pub(crate) fn choose(
        &mut self,
        logits: &[f32],
        uniform: f64,
        allowed: Allowed<'_>,
        likeliest: usize,
    ) -> Result<(Sampled, Drawn), EngineError> {
        self.choose_by(logits, allowed, likeliest, &mut Pick::Number(uniform))
    }

    /// As [`Sampler::choose`], with a verifier in place of the number, if there is one.
    pub(crate) fn choose_by(
        &mut self,
        logits: &[f32],
        allowed: Allowed<'_>,
        likeliest: usize,
        pick: &mut Pick<'_>,
    ) -> Result<(Sampled, Drawn), EngineError> {
        let Distribution { max, ln_sum, .. } = distribution(logits, false);
        if let Some(what) = broken(max) {
            return Err(EngineError::BadLogits {
                step: self.past.history.generated(0).len(),
                what,
                origin: None,
            });
        }
        let (token, drawn) = match pick {
            Pick::Number(uniform) if allowed.is_all() && self.sampling.is_plain() => {
                self.choose_plainly(logits, max, *uniform)?
            }
            _ => {
                let mut candidates = Candidates::new(logits);
                if !allowed.is_all() {
                    candidates.retain(|candidate| allowed.has(candidate.id));
                }
                if self.sampling.needs_chance() {
                    self.past.chance = self.chance();
                }
                self.sampling.apply(&mut candidates, &self.past)?;
                let token = allowed.forced.unwrap_or_else(|| pick.draw(&mut candidates, logits.len()));
                self.sampling.observe(&mut candidates, token, &mut self.past);
                (token, Drawn::From(candidates))
            }
        };
        let (token, drawn) = match (allowed.forced, drawn) {
            (Some(forced), Drawn::One(_)) => (forced, Drawn::One(forced)),
            (Some(forced), drawn) => (forced, drawn),
            (None, drawn) => (token, drawn),
        };
        let likeliest = moi_speculation::likeliest(logits, likeliest)
            .into_iter()
            .map(|id| (id, logprob(logits, id, max, ln_sum)));
        let sampled =
            Sampled { token, logprob: logprob(logits, token, max, ln_sum), likeliest: likeliest.collect() };
        Ok((sampled, drawn))
    }

    /// Chooses from all tokens by temperature, top-k, top-p and min-p, without a look at every token where possible.
    fn choose_plainly(&self, logits: &[f32], max: f32, uniform: f64) -> Result<(u32, Drawn), EngineError> {
        let sampling = &self.sampling;
        let (temperature, top_k) = (sampling.temperature.0, sampling.top_k.0);
        if temperature == 0.0 {
            let token = first_of_largest(logits, max).unwrap_or(0) as u32;
            return Ok((token, Drawn::One(token)));
        }
        let (top_p, min_p) = (sampling.top_p.0, sampling.min_p.0);
        let filters = Filters { scale: (1.0 / temperature) as f32, top_k, top_p, min_p };
        let mut candidates = match shortlist(logits, &filters) {
            Some(list) => Candidates::of_likely(logits, &list.tokens, list.rest),
            None if top_k == 0 => {
                return Ok((draw(logits, filters.scale, uniform), Drawn::All { temperature }));
            }
            None => Candidates::new(logits),
        };
        self.sampling.apply(&mut candidates, &self.past)?;
        Ok((candidates.draw(uniform), Drawn::From(candidates)))
    }
}

/// The next number of a stream, at least 0 and below 1.
pub(crate) fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// What decides among the candidates for a token.
pub(crate) enum Pick<'a> {
    /// A uniform number.
    Number(f64),
    /// A verifier, with the drafts and the distribution `[vocab]` from which they were drawn.
    Verified(&'a mut Verification),
}

impl Pick<'_> {
    fn draw(&mut self, candidates: &mut Candidates, vocab: usize) -> u32 {
        match self {
            Self::Number(uniform) => candidates.draw(*uniform),
            Self::Verified(verification) => {
                let mut p = vec![0.0; vocab];
                candidates.shares().into_iter().for_each(|(token, share)| p[token as usize] = share);
                verification.choose(&p)
            }
        }
    }
}

/// What a token was drawn from.
#[derive(Debug)]
pub(crate) enum Drawn {
    One(u32),
    From(Candidates),
    /// All tokens at a temperature.
    All {
        temperature: f64,
    },
}

impl Drawn {
    /// Tokens with their probabilities.
    pub(crate) fn shares(self, logits: &[f32]) -> Vec<(u32, f64)> {
        match self {
            Self::One(token) => vec![(token, 1.0)],
            Self::From(mut candidates) => candidates.shares(),
            Self::All { temperature } => {
                let mut candidates = Candidates::new(logits);
                candidates.map(|logit| logit / temperature);
                candidates.shares()
            }
        }
    }
}

/// A token of a given text.
///
/// # Examples
/// ```
/// use moi_engine::Engine;
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let scored = engine.score(&[1, 5, 7], 3)?;
/// assert_eq!((scored[0].token, scored[1].token), (5, 7));
/// assert!(scored[0].logprob < 0.0);
/// assert_eq!(scored[0].likeliest.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Its log-probability given the tokens before it.
    pub logprob: f64,
    /// Entropy of the distribution, in nats.
    pub entropy: f64,
    /// The likeliest tokens with their log-probabilities.
    pub likeliest: Vec<(u32, f64)>,
}

impl Scored {
    pub(crate) fn new(
        logits: &[f32],
        token: u32,
        likeliest: usize,
        position: usize,
    ) -> Result<Self, EngineError> {
        let Distribution { max, ln_sum, entropy, .. } = distribution(logits, false);
        if let Some(what) = broken(max) {
            return Err(EngineError::BadLogits { step: position, what, origin: None });
        }
        let likeliest = moi_speculation::likeliest(logits, likeliest)
            .into_iter()
            .map(|id| (id, logprob(logits, id, max, ln_sum)));
        Ok(Self {
            token,
            logprob: logprob(logits, token, max, ln_sum),
            entropy: entropy.into(),
            likeliest: likeliest.collect(),
        })
    }
}

/// What is wrong with logits whose largest value is `max`.
fn broken(max: f32) -> Option<&'static str> {
    match max {
        _ if max.is_nan() => Some("NaN"),
        _ if max.is_finite() => None,
        _ if max > 0.0 => Some("infinity"),
        _ => Some("no finite value"),
    }
}

/// The log-probability of a token in the raw distribution.
pub(crate) fn raw_logprob(logits: &[f32], token: u32) -> f64 {
    let Distribution { max, ln_sum, .. } = distribution(logits, false);
    logprob(logits, token, max, ln_sum)
}

fn logprob(logits: &[f32], token: u32, max: f32, ln_sum: f32) -> f64 {
    f64::from(logits[token as usize] - max) - f64::from(ln_sum)
}

#[cfg(test)]
mod tests {
    use moi_sampling::Xtc;

    use super::*;

    #[test]
    fn a_seed_repeats_and_frequencies_follow_the_distribution() {
        let sampling = Sampling { temperature: 0.5.into(), ..Sampling::default() };
        let draw = |seed| {
            let mut sampler = Sampler::new(sampling.clone(), seed).unwrap();
            (0..20_000).map(|_| sampler.sample(&[0.0, 0.5, 1.0]).unwrap().token).collect::<Vec<_>>()
        };
        let tokens = draw(7);
        assert_eq!(tokens, draw(7));
        assert_ne!(tokens, draw(8));
        // At temperature 0.5 the logits are 0, 1, 2. Chi-square with 2 degrees of freedom, p = 1e-4: 18.4.
        let sum: f64 = (0..3).map(|i| f64::from(i).exp()).sum();
        let chi: f64 = (0..3u32)
            .map(|i| {
                let expected = 20_000.0 * f64::from(i).exp() / sum;
                let found = tokens.iter().filter(|&&t| t == i).count() as f64;
                (found - expected).powi(2) / expected
            })
            .sum();
        assert!(chi < 18.4, "chi-square {chi}");
    }

    #[test]
    fn likely_tokens_alone_give_what_all_give() {
        for (vocab, spread) in [(40usize, 3.0f32), (256, 9.0), (5_000, 12.0), (70_001, 30.0)] {
            let number = |i: usize| (i * 7919 % vocab) as f32 / vocab as f32;
            let logits: Vec<f32> = (0..vocab).map(|i| spread * number(i) * number(i + 1)).collect();
            for temperature in [0.3, 0.8, 1.0, 1.7] {
                for (top_k, top_p, min_p) in [
                    (0, 1.0, 0.0),
                    (0, 0.9, 0.0),
                    (0, 0.5, 0.01),
                    (0, 1.0, 0.2),
                    (1, 1.0, 0.0),
                    (20, 0.9, 0.05),
                    (40, 0.9, 0.01),
                    (60, 0.5, 0.3),
                    (100_000, 0.9, 0.0),
                ] {
                    let sampling = Sampling {
                        temperature: temperature.into(),
                        top_k: top_k.into(),
                        top_p: top_p.into(),
                        min_p: min_p.into(),
                        ..Sampling::default()
                    };
                    let mut sampler = Sampler::new(sampling.clone(), 0).unwrap();
                    let mut all = Candidates::new(&logits);
                    sampling.apply(&mut all, &Past::default()).unwrap();
                    for step in 0..40 {
                        let uniform = f64::from(step) / 40.0 + 1e-3;
                        let (found, drawn) = sampler.choose(&logits, uniform, Allowed::default(), 0).unwrap();
                        let expected = all.clone().draw(uniform);
                        assert_eq!(found.token, expected, "{vocab}, {sampling:?}, {uniform}");
                        if step == 0 {
                            let mut shares = drawn.shares(&logits);
                            shares.sort_unstable_by_key(|share| share.0);
                            let mut expected = all.shares();
                            expected.sort_unstable_by_key(|share| share.0);
                            assert_eq!(shares.len(), expected.len(), "{vocab}, {sampling:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn chance_is_of_the_step_and_not_of_the_draw() {
        let xtc = Xtc { probability: 0.5, threshold: 0.3 };
        let sampling = Sampling { temperature: 1.0.into(), xtc, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling.clone(), 7).unwrap();
        let (mut chances, mut excluded) = (Vec::new(), 0);
        for _ in 0..2000 {
            // The first two reach 0.3: half of the time the first is excluded.
            let uniform = sampler.draw();
            let logits = [0.5f32, 0.4, 0.1].map(f32::ln);
            let (sampled, drawn) = sampler.choose(&logits, uniform, Allowed::default(), 0).unwrap();
            let (again, _) = sampler.clone().choose(&logits, uniform, Allowed::default(), 0).unwrap();
            assert_eq!(again, sampled);
            excluded += i32::from(drawn.shares(&logits).len() == 2);
            chances.push((uniform, sampler.past.chance));
            sampler.push(sampled.token);
        }
        assert!((900..1100).contains(&excluded), "{excluded}");
        // The two numbers of a step are independent: their correlation is below 4 / sqrt(2000).
        let correlation: f64 =
            chances.iter().map(|(a, b)| (a - 0.5) * (b - 0.5) * 12.0).sum::<f64>() / 2000.0;
        assert!(correlation.abs() < 0.09, "{correlation}");
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::new(Sampling::default(), 0).unwrap();
        let sampled = sampler.sample(&[0.0, 2.0, 2.0]).unwrap();
        assert_eq!(sampled.token, 1);
        let expected = -(2.0 + (-2.0f64).exp()).ln();
        assert!((sampled.logprob - expected).abs() < 1e-6);
    }

    #[test]
    fn what_is_allowed_narrows_what_is_sampled() {
        let mut sampler = Sampler::new(Sampling::default(), 0).unwrap();
        let logits = [3.0, 2.0, 1.0, 0.0];
        let even = |token: u32| token.is_multiple_of(2);
        let mut token = |allowed| sampler.choose(&logits, 0.5, allowed, 2).map(|(sampled, _)| sampled);
        let sampled = token(Allowed { not: &[0], ..Allowed::default() }).unwrap();
        assert_eq!((sampled.token, sampled.likeliest.len(), sampled.likeliest[0].0), (1, 2, 0));
        assert_eq!(token(Allowed { not: &[0], only: Some(&even), forced: None }).unwrap().token, 2);
        let nothing =
            token(Allowed { not: &[0, 2], only: Some(&even), forced: None }).unwrap_err().to_string();
        assert!(nothing.contains("no token is left"), "{nothing}");
    }

    #[test]
    fn broken_logits_are_named() {
        let mut sampler = Sampler::new(Sampling::default(), 0).unwrap();
        for (logits, what) in [
            ([0.0, f32::NAN], "NaN"),
            ([0.0, f32::INFINITY], "infinity"),
            ([f32::NEG_INFINITY; 2], "no finite value"),
        ] {
            let error = sampler.sample(&logits).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("step 0"), "{error}");
        }
    }
}
