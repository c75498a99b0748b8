//! Bias on the logits of some tokens.

use std::collections::{BTreeMap, HashMap};

use crate::{
    Candidates, Past, Sampling, SamplingError,
    declare::{Sampler, sampler},
};

sampler! {
    /// Adds to the logits of some tokens.
    ///
    /// # Examples
    /// ```
    /// use std::collections::BTreeMap;
    ///
    /// use moi_sampling::{Candidates, Past, Sampling};
    ///
    /// let sampling = Sampling { logit_bias: BTreeMap::from([(1, 2.0)]).into(), ..Sampling::default() };
    /// let mut candidates = Candidates::new(&[1.0, 0.0]);
    /// sampling.apply(&mut candidates, &Past::default())?;
    /// assert_eq!(candidates.draw(0.5), 1);
    /// # Ok::<(), moi_sampling::SamplingError>(())
    /// ```
    LogitBias(BTreeMap<u32, f64>) = "logit-bias" {
        /// Added to the logit of a token, by its id
        "logit_bias" => 0: BTreeMap<u32, f64> = BTreeMap::new();
    }
}

impl Sampler for LogitBias {
    fn is_penalty(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), SamplingError> {
        match self.0.iter().find(|(_, value)| !value.is_finite()) {
            Some((&id, &value)) => Err(SamplingError::Bias { id, value }),
            None => Ok(()),
        }
    }

    fn apply(&self, candidates: &mut Candidates, _past: &Past, _sampling: &Sampling) {
        if !self.0.is_empty() {
            let bias: HashMap<u32, f64> = self.0.iter().map(|(&id, &by)| (id, by)).collect();
            candidates.map_some(&bias, |logit, by| logit + by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samplers::tests::logits;

    #[test]
    fn a_bias_is_added() {
        let bias = LogitBias(BTreeMap::from([(2, 1.0), (9, 1.0)]));
        assert_eq!(logits(|c| bias.apply(c, &Past::default(), &Sampling::default())), [2.0, -1.0, 1.5]);
    }
}
