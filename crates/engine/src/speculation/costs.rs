//! What an engine keeps for speculation: what passes cost, and what drafters share.

use std::sync::{Arc, Mutex};

use burn::tensor::{Tensor, backend::Backend};
use moi::EmbeddingRows;
use moi_models::{CausalLm, ForwardBatch, with_values};
use moi_speculation::{PassCosts, RecyclingTable};

use super::DraftModel;
use crate::{Engine, EngineError, round::Clock, rows::ids_tensor};

/// Numbers of positions for which passes are measured.
const SIZES: [usize; 4] = [1, 2, 4, 8];
/// How often each is measured, after once that does not count; the shortest time counts.
const REPEATS: usize = 10;
/// How many successors of a token are kept.
const SUCCESSORS: usize = 8;

impl<B: Backend, M: CausalLm<B>> Engine<B, M> {
    /// Sets a model that drafts for requests with [`crate::DrafterChoice::Model`]: a smaller one, or some layers of
    /// this one ([`moi_models::Decoder::with_layers`]). Its tokens must mean the same. It keeps a cache of its own.
    ///
    /// # Errors
    /// If it has layers with states, which cannot be taken back.
    pub fn with_draft_model<D>(mut self, model: D) -> Result<Self, EngineError>
    where
        D: CausalLm<B> + Send + Sync + 'static,
    {
        if model.has_states() {
            return Err(EngineError::NoSpeculation(
                "layers of the draft model keep states, which cannot be taken back",
            ));
        }
        self.draft_model = Some(Box::new(Arc::new(DraftModel::new(model, self.device.clone()))));
        Ok(self)
    }

    /// Sets what passes cost, in any unit, in place of measuring it.
    #[must_use]
    pub fn with_pass_costs(mut self, costs: PassCosts) -> Self {
        self.pass_costs = costs.into();
        self
    }

    /// What passes through the model cost, in seconds, by their number of positions. It is measured at the first
    /// call, which takes about as long as 85 tokens. On targets without a clock, every position costs the same, so that
    /// drafters that adapt draft nothing.
    pub fn pass_costs(&self) -> &PassCosts {
        self.pass_costs
            .get_or_init(|| self.measure_pass_costs().unwrap_or_else(|_| PassCosts::new(Vec::new())))
    }

    /// Measures what passes cost. The sizes take turns, so that what else the machine does meets all of them.
    fn measure_pass_costs(&self) -> Result<PassCosts, EngineError> {
        if Clock::start().elapsed().is_none() {
            return Ok(PassCosts::new(Vec::new()));
        }
        let sizes = SIZES.map(|size| size.min(self.model.context_length()));
        let mut best = sizes.map(|size| (size, f64::INFINITY));
        for repeat in 0..=REPEATS {
            for (size, best) in &mut best {
                let begun = Clock::start();
                self.pass(*size)?;
                let time = begun.elapsed().map_or(f64::INFINITY, |time| time.as_secs_f64());
                // The first pass of a size may compile kernels, or begin with cold memory.
                *best = if repeat == 0 { *best } else { best.min(time) };
            }
        }
        self.pool().shrink();
        Ok(PassCosts::new(best.to_vec()))
    }

    /// Runs some positions behind nothing, up to their logits on the host.
    fn pass(&self, positions: usize) -> Result<(), EngineError> {
        let inputs = self.embedded(&vec![0; positions]);
        let mut table = self.pool().table();
        let hidden = self.model.forward(ForwardBatch::one(inputs, &mut table), &mut self.pool())?;
        with_values(&self.model.logits(hidden), |logits| std::hint::black_box(logits.first().copied()));
        Ok(())
    }

    /// The embeddings of tokens as they are fed behind a token `[ids, d]`.
    pub(crate) fn embedded(&self, ids: &[u32]) -> Tensor<B, 2> {
        self.rows().rows(ids_tensor::<B>(ids, &self.device))
    }

    /// Sets the table of likeliest successors, such as one that was kept from an earlier run
    /// ([`RecyclingTable::from_bytes`]), in place of an empty one. It must be of the model's vocabulary.
    #[must_use]
    pub fn with_recycling_table(mut self, table: RecyclingTable) -> Self {
        self.recycled = Arc::new(Mutex::new(table)).into();
        self
    }

    /// The table of likeliest successors, which all sequences of this engine share.
    pub fn recycling_table(&self) -> &Arc<Mutex<RecyclingTable>> {
        let vocab = self.model.embedding().dims()[0];
        self.recycled.get_or_init(|| Arc::new(Mutex::new(RecyclingTable::new(vocab, SUCCESSORS))))
    }
}
