//! The state of an input rule for one sequence, kept from step to step.

use crate::{
    InputRule, RuleError,
    rule::{Gated, Markers, Plan, Start, Steps, View},
    scope::Scope,
};

/// An input rule applied to one sequence, from its first generated token on. It tracks the position in the reply,
/// whether the model is thinking, and the rule's own state.
///
/// # Examples
/// ```
/// use moi::{Markers, RuleState, Scope, Start};
///
/// let markers = Some(Markers::new(7, 8)); // <think> and </think> of some vocabulary
/// let start = Start { markers, scope: Some(Scope::Thinking), ..Start::default() };
/// let mut row = RuleState::new("moi".parse()?, &start)?;
/// row.follow(7);
/// assert!(row.is_thinking());
/// row.follow(8);
/// assert!(!row.is_thinking());
/// # Ok::<(), moi::RuleError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RuleState {
    rule: InputRule,
    scope: Scope,
    markers: Option<Markers>,
    /// Whether the previous token was [`Markers::open`].
    opened: bool,
    /// Whether the next token is between the markers.
    thinking: bool,
    /// Number of tokens generated so far.
    step: usize,
    /// The state of a rule that is more than a gate.
    steps: Option<Box<dyn Steps>>,
    /// Tokens and probabilities from which the sampler draws the next token, if they were given.
    candidates: Option<Vec<(u32, f64)>>,
}

/// A rule's decision for one step.
#[derive(Debug)]
pub(crate) enum MixDecision {
    Gated(Gated),
    Plan(Plan),
}

impl RuleState {
    /// The state of a sequence before its first generated token.
    ///
    /// # Errors
    /// If the rule has a value it does not allow, or needs markers of thinking that the model lacks.
    pub fn new(rule: InputRule, start: &Start) -> Result<Self, RuleError> {
        let rule = rule.validated()?;
        let default = if rule.thinks() && start.markers.is_some() { Scope::Thinking } else { Scope::All };
        let scope = start.scope.unwrap_or(default);
        if let Some(Markers { open, close, .. }) = start.markers
            && open == close
        {
            return Err(RuleError::SameMarkers(open));
        }
        if scope == Scope::Thinking && start.markers.is_none() {
            return Err(RuleError::NoMarkers("the scope `thinking`"));
        }
        Ok(Self {
            rule,
            scope,
            markers: start.markers,
            opened: false,
            thinking: start.thinking && start.markers.is_some(),
            step: 0,
            steps: rule.steps(start)?,
            candidates: None,
        })
    }

    /// The rule.
    pub fn rule(&self) -> InputRule {
        self.rule
    }

    /// Which tokens the rule applies to.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Whether the next token is between the model's markers of thinking.
    pub fn is_thinking(&self) -> bool {
        self.thinking
    }

    /// Whether the rule itself picks tokens from the logits that it is given.
    pub fn picks_tokens(&self) -> bool {
        self.steps.as_ref().is_some_and(|steps| steps.picks_tokens())
    }

    /// Whether the rule mixes the tokens that the sampler draws from: see [`RuleState::drawn_from`].
    pub fn wants_candidates(&self) -> bool {
        self.steps.as_ref().is_some_and(|steps| steps.wants_candidates())
    }

    /// Sets the tokens from which the sampler drew the next step's token, with probabilities that sum to 1, in any
    /// order. Without this call the rule uses the raw distribution.
    pub fn drawn_from(&mut self, candidates: Vec<(u32, f64)>) {
        self.candidates = Some(candidates);
    }

    /// The gate of the next step, if it does not depend on the sampled token, so that a device can compute the step
    /// without the host. The caller must then call [`RuleState::pass`].
    pub fn gated_ahead(&self) -> Option<Gated> {
        let gated = self.rule.gated()?;
        match self.scope {
            Scope::Thinking => None,
            Scope::All | Scope::Range { .. } => Some(if self.is_inside() { gated } else { Gated::TOKEN }),
        }
    }

    /// Counts a step that was computed from [`RuleState::gated_ahead`].
    pub fn pass(&mut self) {
        self.step += 1;
    }

    /// Updates [`RuleState::is_thinking`] by a generated token, for steps that were not decided by [`crate::mix`] on
    /// the host. Repeating a call does no harm.
    pub fn follow(&mut self, token: u32) {
        if let Some(markers) = self.markers {
            (self.thinking, self.opened) = markers.behind((self.thinking, self.opened), token);
        }
    }

    /// The tokens between which the model thinks, where they are known.
    pub fn markers(&self) -> Option<Markers> {
        self.markers
    }

    /// Whether logits and tokens must be on the host to decide the next step.
    pub(crate) fn needs_host(&self) -> bool {
        self.gated_ahead().is_none()
    }

    /// Whether the rule applies to the next token: whether that is within its scope.
    pub fn is_inside(&self) -> bool {
        match self.scope {
            Scope::All => true,
            Scope::Thinking => self.thinking,
            Scope::Range { from, to } => self.step >= from && to.is_none_or(|to| self.step < to),
        }
    }

    /// Whether a token ends the scope: for the marker that ends thinking, its own embedding is fed.
    fn leaves(&self, token: u32) -> bool {
        self.scope == Scope::Thinking && self.markers.is_some_and(|markers| markers.close == token)
    }

    /// Decides a step on the host.
    pub(crate) fn decide(&mut self, logits: &[f32], sampled: u32) -> MixDecision {
        let candidates = self.candidates.take();
        let mut view = View::new(logits, sampled, candidates.as_deref());
        (view.step, view.markers, view.thinking) = (self.step, self.markers, self.thinking);
        let is_inside = self.is_inside();
        let decision = match &mut self.steps {
            None => {
                let gated = self.rule.gated().filter(|_| is_inside && !self.leaves(sampled));
                MixDecision::Gated(gated.unwrap_or(Gated::TOKEN))
            }
            Some(steps) => {
                let plan = if is_inside { steps.next(&view) } else { steps.outside(&view) };
                let ends = plan.ends;
                MixDecision::Plan(match self.leaves(plan.token) {
                    true => Plan { ends, ..view.token(plan.token) },
                    false => plan,
                })
            }
        };
        let token = match &decision {
            MixDecision::Gated(_) => sampled,
            MixDecision::Plan(plan) => plan.token,
        };
        self.follow(token);
        self.step += 1;
        decision
    }
}
