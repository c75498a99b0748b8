//! A rule under way: what a row of a batch carries from step to step.

use crate::{
    InputRule, RuleError,
    rule::{Gated, Markers, Plan, Start, Steps, View},
    scope::Scope,
};

/// A sequence with its rule, from its first generated token on: remembers where it is, and what the rule remembers.
#[derive(Debug)]
pub struct Row {
    rule: InputRule,
    scope: Scope,
    markers: Option<Markers>,
    /// Whether the token before was the first of the markers.
    opened: bool,
    /// Between the markers.
    thinking: bool,
    /// Tokens generated.
    step: usize,
    /// Of a rule that is more than a gate.
    steps: Option<Box<dyn Steps>>,
    /// What the token was drawn from.
    candidates: Option<Vec<(u32, f64)>>,
}

/// What is done in a step.
#[derive(Debug)]
pub(crate) enum Decision {
    Gated(Gated),
    Plan(Plan),
}

impl Row {
    /// A row before its first generated token.
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

    /// Its rule.
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

    /// Whether the rule mixes what tokens are drawn from: see [`Row::drawn_from`].
    pub fn wants_candidates(&self) -> bool {
        self.steps.as_ref().is_some_and(|steps| steps.wants_candidates())
    }

    /// Tells what the next step's token was drawn from: tokens and probabilities that sum to 1, in any order.
    /// Where this is not told, the raw distribution is taken for it.
    pub fn drawn_from(&mut self, candidates: Vec<(u32, f64)>) {
        self.candidates = Some(candidates);
    }

    /// The gate of the next step, where it is known whatever token is sampled, so that a device can do the step by
    /// itself. [`Row::pass`] must follow then.
    pub fn gated_ahead(&self) -> Option<Gated> {
        let gated = self.rule.gated()?;
        match self.scope {
            Scope::Thinking => None,
            Scope::All | Scope::Range { .. } => Some(if self.is_inside() { gated } else { Gated::TOKEN }),
        }
    }

    /// Counts a step that was done by [`Row::gated_ahead`].
    pub fn pass(&mut self) {
        self.step += 1;
    }

    /// Follows the markers of thinking: tells which token came to count as generated, where that was not decided by
    /// [`crate::mix`] with a look at it. To be told one twice does no harm.
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

    /// Whether the next step is within the scope.
    fn is_inside(&self) -> bool {
        match self.scope {
            Scope::All => true,
            Scope::Thinking => self.thinking,
            Scope::Range { from, to } => self.step >= from && to.is_none_or(|to| self.step < to),
        }
    }

    /// Whether a token leaves the scope: what ends the thinking is fed as it is.
    fn leaves(&self, token: u32) -> bool {
        self.scope == Scope::Thinking && self.markers.is_some_and(|markers| markers.close == token)
    }

    /// Decides a step on the host.
    pub(crate) fn decide(&mut self, logits: &[f32], sampled: u32) -> Decision {
        let candidates = self.candidates.take();
        let mut view = View::new(logits, sampled, candidates.as_deref());
        (view.step, view.markers, view.thinking) = (self.step, self.markers, self.thinking);
        let is_inside = self.is_inside();
        let decision = match &mut self.steps {
            None => {
                let gated = self.rule.gated().filter(|_| is_inside && !self.leaves(sampled));
                Decision::Gated(gated.unwrap_or(Gated::TOKEN))
            }
            Some(steps) => {
                let plan = if is_inside { steps.next(&view) } else { steps.outside(&view) };
                let ends = plan.ends;
                Decision::Plan(match self.leaves(plan.token) {
                    true => Plan { ends, ..view.token(plan.token) },
                    false => plan,
                })
            }
        };
        let token = match &decision {
            Decision::Gated(_) => sampled,
            Decision::Plan(plan) => plan.token,
        };
        self.follow(token);
        self.step += 1;
        decision
    }
}
