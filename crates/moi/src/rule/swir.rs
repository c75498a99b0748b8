//! Switching between soft and discrete thinking: Shi et al., arXiv 2510.05069 (SwiReasoning).

use super::{Plan, Rule, RuleError, Start, Steps, View, knobs::knobs};

knobs! {
    /// Blocks of mean embeddings and blocks of sampled tokens, by whether entropy falls or rises (SwiReasoning)
    ///
    /// Thinking begins soft: inputs are mean embeddings of the raw distribution. It becomes discrete as soon as the
    /// entropy is below that of the last switch, and soft again when it is above and the block has lasted `dwell`
    /// steps. Where the model's markers of thinking are known, a soft block begins with `<think>` mixed in, and a
    /// discrete one with `</think>`.
    ///
    /// # Examples
    /// ```
    /// use moi::{InputRule, Markers, RuleState, Start, Swir};
    ///
    /// let rule = InputRule::from(Swir { dwell: 64, cap: 3, ..Swir::default() });
    /// // The cap ends the thinking, so it needs the token that does.
    /// assert!(RuleState::new(rule, &Start::default()).is_err());
    /// let start = Start { markers: Some(Markers::new(7, 8)), ..Start::default() };
    /// assert!(RuleState::new(rule, &start).is_ok());
    /// ```
    Swir = "swir" {
        /// Steps that a discrete block lasts at least
        dwell: usize = 512,
        /// Weight of the mixture beside `<think>` where a soft block begins; it grows to 1 over the reply
        a0: f64 = 0.5,
        /// Weight of the token beside `</think>` where a discrete block begins; it grows to 1 over the reply
        b0: f64 = 0.7,
        /// So many soft blocks end the thinking; 0 is no limit
        cap: usize = 0,
    }
}

impl Rule for Swir {
    fn check(&self) -> Result<(), RuleError> {
        for (knob, value) in [("a0", self.a0), ("b0", self.b0)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(RuleError::value(knob, "between 0 and 1", value));
            }
        }
        Ok(())
    }

    fn steps(&self, start: &Start) -> Result<Option<Box<dyn Steps>>, RuleError> {
        if self.cap > 0 && start.markers.is_none() {
            return Err(RuleError::NoMarkers("a cap of swir, which ends the thinking,"));
        }
        Ok(Some(Box::new(Blocks {
            rule: *self,
            limit: start.limit,
            block: None,
            soft_blocks: 0,
            over: false,
        })))
    }

    fn thinks(&self) -> bool {
        true
    }
}

/// Consecutive steps that are all soft or all discrete.
#[derive(Clone, Copy, Debug)]
struct Block {
    soft: bool,
    /// The entropy at its first step, in nats.
    reference: f64,
    /// Steps since then.
    steps: usize,
}

#[derive(Clone, Debug)]
struct Blocks {
    rule: Swir,
    limit: Option<usize>,
    block: Option<Block>,
    /// Soft blocks that have ended.
    soft_blocks: usize,
    /// Whether the cap has ended the thinking.
    over: bool,
}

impl Blocks {
    /// Advances by a step with this entropy: whether its block is soft, and whether the block begins with this step.
    fn advance(&mut self, entropy: f64) -> (bool, bool) {
        let begin = |soft| Block { soft, reference: entropy, steps: 0 };
        let (block, begins) = match self.block {
            None => (begin(true), true),
            Some(block) => {
                let steps = block.steps + 1;
                let lasted = block.soft || steps >= self.rule.dwell;
                let turns = if block.soft { entropy < block.reference } else { entropy > block.reference };
                match turns && lasted {
                    true => (begin(!block.soft), true),
                    false => (Block { steps, ..block }, false),
                }
            }
        };
        self.block = Some(block);
        self.soft_blocks += usize::from(begins && !block.soft);
        (block.soft, begins)
    }

    /// A weight that grows from `first` to 1 over the reply.
    fn grown(&self, first: f64, step: usize) -> f64 {
        match self.limit {
            Some(limit) if limit > 0 => first + (1.0 - first) * (step as f64 / limit as f64).min(1.0),
            _ => first,
        }
    }
}

impl Steps for Blocks {
    fn next(&mut self, view: &View<'_>) -> Plan {
        if self.over {
            return view.token(view.sampled);
        }
        let (soft, begins) = self.advance(view.raw().nats);
        // Outside thinking the markers would put thoughts into the answer.
        let markers = view.markers.filter(|_| view.thinking);
        let at_border = markers.filter(|_| begins);
        if soft {
            let a = at_border.map_or(1.0, |_| self.grown(self.rule.a0, view.step));
            let marker =
                at_border.map(|markers| (markers.open, (1.0 - a) as f32)).filter(|&(_, weight)| weight > 0.0);
            return view.mean(view.sampled, a as f32, marker.into_iter().collect());
        }
        if begins && self.rule.cap > 0 && self.soft_blocks >= self.rule.cap {
            self.over = true;
            return markers.map_or_else(|| view.token(view.sampled), |markers| view.token(markers.close));
        }
        match at_border {
            Some(markers) => {
                let b = self.grown(self.rule.b0, view.step);
                let weights = vec![(view.sampled, b), (markers.close, 1.0 - b)];
                Plan { gate: (1.0 - b) as f32, ..view.mixture(view.sampled, weights) }
            }
            None => view.token(view.sampled),
        }
    }

    fn clone_box(&self) -> Box<dyn Steps> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `s` for a soft step, `d` for a discrete one, capitals where a block begins.
    fn blocks(rule: Swir, entropies: &[f64]) -> String {
        let mut blocks = Blocks { rule, limit: None, block: None, soft_blocks: 0, over: false };
        let letter = |&entropy: &f64| match blocks.advance(entropy) {
            (true, true) => 'S',
            (true, false) => 's',
            (false, true) => 'D',
            (false, false) => 'd',
        };
        entropies.iter().map(letter).collect()
    }

    #[test]
    fn blocks_follow_a_scripted_entropy() {
        let rule = Swir { dwell: 3, ..Swir::default() };
        // Falls below 2.0 at once; rises above 1.5 early, but the block has to last three steps; falls below 1.8.
        assert_eq!(blocks(rule, &[2.0, 2.0, 2.5, 1.5, 1.9, 1.9, 1.8, 1.8, 1.7, 9.0]), "SssDddSsDd");
        // Never below the reference: soft to the end.
        assert_eq!(blocks(rule, &[1.0, 1.0, 2.0, 1.5]), "Ssss");
        // No dwell: the block switches with every change of direction around the last switch.
        assert_eq!(blocks(Swir { dwell: 0, ..rule }, &[2.0, 1.0, 1.5, 1.4, 1.4, 1.6]), "SDSDdS");
    }
}
