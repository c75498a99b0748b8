//! Soft Thinking: Zhang et al., arXiv 2505.15778; its Gumbel noise: Wu et al., arXiv 2508.03440.

use moi_sampling::{Candidates, filters};
use serde::{Deserialize, Serialize};

use super::{
    Plan, Rule, RuleError, Start, Steps, View,
    knobs::{KnobText, knobs},
};
use crate::noise::Noise as Random;

/// Noise on the weights of a mixture.
///
/// # Examples
/// ```
/// use moi::{InputRule, Noise, SoftThinking};
///
/// let noisy = SoftThinking { noise: Noise::Dirichlet, alpha: 4.0, ..SoftThinking::default() };
/// assert_eq!(InputRule::from(noisy).spec(), "soft-thinking:noise=dirichlet:alpha=4");
/// assert_eq!(SoftThinking::default().noise, Noise::None);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Noise {
    /// No noise.
    #[default]
    None,
    /// Weights are softmax((ln q + g) / tau), g drawn from the Gumbel distribution.
    Gumbel,
    /// Weights are drawn from Dirichlet(alpha q).
    Dirichlet,
}

impl KnobText for Noise {
    const EXPECTED: &'static str = "none, gumbel or dirichlet";

    fn read(text: &str) -> Option<Self> {
        [Self::None, Self::Gumbel, Self::Dirichlet].into_iter().find(|noise| noise.write() == text)
    }

    fn write(&self) -> String {
        match self {
            Self::None => "none",
            Self::Gumbel => "gumbel",
            Self::Dirichlet => "dirichlet",
        }
        .to_owned()
    }
}

knobs! {
    /// While thinking, the mean embedding of a few likely tokens; the likeliest is recorded (Soft Thinking)
    ///
    /// The mixed distribution is the raw one after this rule's own temperature and filters; the sampler's do not
    /// apply. Ordinary sampling continues after thinking.
    ///
    /// # Examples
    /// ```
    /// use moi::{InputRule, Noise, RuleState, SoftThinking, Start};
    ///
    /// let rule = SoftThinking { noise: Noise::Gumbel, tau: 0.3, ..SoftThinking::default() };
    /// let rule = InputRule::from(rule);
    /// assert_eq!(rule.spec(), "soft-thinking:noise=gumbel:tau=0.3");
    /// // The seed is that of the noise.
    /// let row = RuleState::new(rule, &Start { seed: 7, ..Start::default() })?;
    /// assert!(row.picks_tokens());
    /// # Ok::<(), moi::RuleError>(())
    /// ```
    SoftThinking = "soft-thinking" {
        /// Divides the logits
        temperature: f64 = 0.6,
        /// Keeps the K most likely tokens; 0 keeps all
        top_k: usize = 30,
        /// Keeps the fewest tokens whose probabilities reach this sum
        top_p: f64 = 0.95,
        /// Keeps tokens at least this probable relative to the most likely one
        min_p: f64 = 0.001,
        /// Tokens in the mixture at most, the paper's range is 5 to 30; `auto` is 10, with noise 15
        max_topk: Option<usize> = None,
        /// Noise on the weights: none, gumbel or dirichlet
        noise: Noise = Noise::None,
        /// gumbel: temperature of the weights; small ones pick a token
        tau: f64 = 0.5,
        /// dirichlet: large ones give the weights without noise
        alpha: f64 = 1.0,
        /// So many steps of low entropy in a row end the thinking, or the reply behind it; 0 is never, `auto` is 256,
        /// with noise 0
        cold_stop: Option<usize> = None,
        /// An entropy, in nats after the temperature, below which a step is cold
        cold_entropy: f64 = 0.01,
    }
}

impl SoftThinking {
    fn tokens(&self) -> usize {
        self.max_topk.unwrap_or(if self.noise == Noise::None { 10 } else { 15 })
    }

    fn cold_steps(&self) -> usize {
        self.cold_stop.unwrap_or(if self.noise == Noise::None { 256 } else { 0 })
    }
}

impl Rule for SoftThinking {
    fn check(&self) -> Result<(), RuleError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let rules = [
            (
                "temperature",
                self.temperature,
                self.temperature.is_finite() && self.temperature >= 1e-4,
                "above 0 (from 0.0001 on), and finite",
            ),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1"),
            ("tau", self.tau, positive(self.tau), "above 0, and finite"),
            ("alpha", self.alpha, positive(self.alpha), "above 0, and finite"),
            ("cold_entropy", self.cold_entropy, self.cold_entropy >= 0.0, "0 or more"),
        ];
        for (knob, value, allowed, what) in rules {
            if !allowed {
                return Err(RuleError::value(knob, what, value));
            }
        }
        if self.tokens() == 0 {
            return Err(RuleError::value("max_topk", "1 or more", 0));
        }
        Ok(())
    }

    fn steps(&self, start: &Start) -> Result<Option<Box<dyn Steps>>, RuleError> {
        Ok(Some(Box::new(Thinking {
            rule: *self,
            cold: 0,
            thinking: start.thinking,
            random: Random::new(start.seed),
        })))
    }

    fn thinks(&self) -> bool {
        true
    }
}

#[derive(Clone, Debug)]
struct Thinking {
    rule: SoftThinking,
    /// Number of consecutive cold steps, counted within thinking or within the answer.
    cold: usize,
    /// Whether the last step was between the markers.
    thinking: bool,
    random: Random,
}

impl Thinking {
    /// The logits divided by the rule's temperature, and whether this step completes the number of cold steps that
    /// ends thinking or reply.
    fn tempered(&mut self, view: &View<'_>) -> (Candidates, bool) {
        let mut candidates = Candidates::new(view.logits);
        filters::temperature(&mut candidates, self.rule.temperature);
        // Cold steps of thinking and of the answer are counted separately.
        if view.thinking != self.thinking {
            (self.thinking, self.cold) = (view.thinking, 0);
        }
        let stop = self.rule.cold_steps();
        let is_cold = stop > 0 && candidates.entropy() < self.rule.cold_entropy;
        self.cold = if is_cold { self.cold + 1 } else { 0 };
        let stops = stop > 0 && self.cold >= stop;
        if stops {
            self.cold = 0;
        }
        (candidates, stops)
    }

    fn weights(&mut self, q: Vec<(u32, f64)>) -> Vec<(u32, f64)> {
        match self.rule.noise {
            Noise::None => q,
            Noise::Gumbel => self.random.gumbel_softmax(&q, self.rule.tau),
            Noise::Dirichlet => self.random.dirichlet(&q, self.rule.alpha),
        }
    }
}

impl Steps for Thinking {
    fn next(&mut self, view: &View<'_>) -> Plan {
        let (mut candidates, stops) = self.tempered(view);
        if stops {
            return match view.markers {
                Some(markers) if view.thinking => view.token(markers.close),
                _ => Plan { ends: true, ..view.token(view.sampled) },
            };
        }
        filters::top_k(&mut candidates, self.rule.top_k);
        filters::top_p(&mut candidates, self.rule.top_p);
        filters::min_p(&mut candidates, self.rule.min_p);
        filters::top_k(&mut candidates, self.rule.tokens());
        self.random.begin(view.step);
        let weights = self.weights(candidates.probabilities());
        let likeliest = weights.iter().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        let token = likeliest.map_or(view.sampled, |&(token, _)| token);
        view.mixture(token, weights)
    }

    fn outside(&mut self, view: &View<'_>) -> Plan {
        let (_, stops) = self.tempered(view);
        Plan { ends: stops, ..view.token(view.sampled) }
    }

    fn picks_tokens(&self) -> bool {
        true
    }

    fn clone_box(&self) -> Box<dyn Steps> {
        Box::new(self.clone())
    }
}
