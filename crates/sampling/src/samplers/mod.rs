//! The samplers: one file each, with its knobs and its function.

mod dry;
mod frequency;
mod logit_bias;
mod min_p;
mod mirostat;
mod no_repeat_ngram;
mod presence;
mod repetition;
mod temperature;
mod top_k;
mod top_n_sigma;
mod top_p;
mod typical;
mod xtc;

pub use self::{
    dry::{Breakers, Dry},
    frequency::Frequency,
    logit_bias::LogitBias,
    min_p::{MinP, min_p},
    mirostat::Mirostat,
    no_repeat_ngram::NoRepeatNgram,
    presence::Presence,
    repetition::Repetition,
    temperature::{Temperature, temperature},
    top_k::{TopK, top_k},
    top_n_sigma::TopNSigma,
    top_p::{TopP, top_p},
    typical::Typical,
    xtc::Xtc,
};

#[cfg(test)]
mod tests {
    use crate::Candidates;

    /// Probabilities that most tests filter.
    pub(super) const P: &[f32] = &[0.1, 0.4, 0.2, 0.2, 0.05, 0.05];

    pub(super) fn of(p: &[f32]) -> Candidates {
        Candidates::new(&p.iter().map(|p| p.ln()).collect::<Vec<_>>())
    }

    /// The ids that a filter leaves, in order.
    pub(super) fn kept(p: &[f32], filter: impl Fn(&mut Candidates)) -> Vec<u32> {
        let mut candidates = of(p);
        filter(&mut candidates);
        let mut ids: Vec<u32> = candidates.iter().map(|candidate| candidate.id).collect();
        ids.sort_unstable();
        ids
    }

    /// The logits 2, -1 and 0.5 after a change.
    pub(super) fn logits(change: impl Fn(&mut Candidates)) -> Vec<f64> {
        let mut candidates = Candidates::new(&[2.0, -1.0, 0.5]);
        change(&mut candidates);
        candidates.iter().map(|candidate| candidate.logit).collect()
    }
}
