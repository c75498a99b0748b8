//! Turns of a conversation that share a KV cache.

use burn::tensor::backend::Backend;
use moi_models::{BlockTable, CausalLm, KvPool};

/// The KV cache of earlier turns, ready to be continued: see [`crate::Engine::resume`].
///
/// Where earlier tokens were generated with a rule that mixes, their positions hold the mixtures, as in the
/// generation itself. The positions are reused for a later prompt only as far as it begins with the same tokens. From
/// the first different token on, all tokens run again with their plain embeddings. The whole prompt does so if a turn
/// goes beyond the positions up to which a KV cache of the model is valid ([`CausalLm::recompute_beyond`]).
///
/// # Examples
/// ```
/// use moi_engine::{Engine, Prompt, Request};
/// # use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let engine = Engine::new(model, device);
/// let mut request = Request::new(Prompt::Ids(vec![1, 2, 3]));
/// request.stop.max_tokens = Some(2);
/// let mut turn = engine.resume(engine.session(), request)?;
/// for step in turn.by_ref() {
///     step?;
/// }
/// let (_text, session) = turn.into_session()?;
/// assert_eq!(session.reusable_len(&[1, 2, 9]), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Session {
    table: BlockTable,
    /// The tokens of the positions in the table.
    ids: Vec<u32>,
}

impl Session {
    pub(crate) fn new(mut table: BlockTable, ids: &[u32]) -> Self {
        // The last token may not have run yet, and positions that ran ahead for a token that was not generated do not
        // count.
        let positions = table.len().min(ids.len());
        if positions > 0 && table.truncate(positions) {
            return Self { table, ids: ids[..positions].to_vec() };
        }
        table.clear();
        Self { table, ids: Vec::new() }
    }

    /// Number of positions in the cache.
    pub fn positions(&self) -> usize {
        self.ids.len()
    }

    /// Number of positions that can be reused for a prompt of these ids: all but one at most, because the last one's
    /// logits are needed.
    pub fn reusable_len(&self, prompt: &[u32]) -> usize {
        let same = prompt.iter().zip(&self.ids).take_while(|(a, b)| a == b).count();
        same.min(prompt.len().saturating_sub(1))
    }

    /// The table of the positions that a prompt begins with, if there are any.
    pub(crate) fn reuse_prefix<B: Backend, M: CausalLm<B>>(
        mut self,
        prompt: &[u32],
        model: &M,
        pool: &KvPool<B>,
    ) -> Option<BlockTable> {
        let known = self.reusable_len(prompt);
        let is_beyond = |positions: usize| model.recompute_beyond().is_some_and(|most| positions > most);
        let is_other =
            !pool.owns(&self.table) || is_beyond(prompt.len()) != is_beyond(self.table.sequence_length());
        (!is_other && known > 0 && self.table.truncate(known)).then_some(self.table)
    }
}
