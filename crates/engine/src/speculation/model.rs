//! Drafts of a model: a smaller one of the same vocabulary, or some layers of the model itself.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use burn::tensor::{Tensor, backend::Backend};
use moi_models::{BlockTable, CausalLm, ForwardBatch, KvPool, with_values};
use moi_speculation::{
    Chance, Draft, DraftError, DraftTree, Drafter, Growth, draft_dynamic, draft_greedy, draft_paths,
    likeliest_tree,
};

use crate::{DEFAULT_PREFILL_CHUNK, Verify, rows::ids_tensor};

/// Makes drafters that ask a model.
pub(crate) trait DraftSource: fmt::Debug + Send + Sync {
    /// A drafter of one sequence.
    fn drafter(&self, asked: Asked) -> Box<dyn Drafter>;

    /// Gives memory back that no sequence uses.
    fn shrink(&self);
}

/// What a sequence asks of a draft model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Nothing is drafted behind tokens that the model finds less likely than this.
    pub(crate) min_p: f64,
    /// How drafts are verified, which says how they are drawn.
    pub(crate) verify: Verify,
    /// The temperature at which they are drawn.
    pub(crate) temperature: f64,
    /// The number of tokens of the model that verifies them.
    pub(crate) vocab: usize,
}

/// A model that drafts, with the keys and values of all sequences that it drafts for.
pub(crate) struct DraftModel<B: Backend, M> {
    model: M,
    pool: Mutex<KvPool<B>>,
    device: B::Device,
}

impl<B: Backend, M> fmt::Debug for DraftModel<B, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DraftModel")
    }
}

impl<B: Backend, M: CausalLm<B>> DraftModel<B, M> {
    pub(crate) fn new(model: M, device: B::Device) -> Self {
        let pool = Mutex::new(model.new_pool(&device));
        Self { model, pool, device }
    }

    fn pool(&self) -> MutexGuard<'_, KvPool<B>> {
        self.pool.lock().unwrap_or_else(|poisoned| {
            // A thread that panicked may have left a layer without its blocks.
            let mut pool = poisoned.into_inner();
            *pool = self.model.new_pool(&self.device);
            self.pool.clear_poison();
            pool
        })
    }
}

impl<B: Backend, M: CausalLm<B> + Send + Sync + 'static> DraftSource for Arc<DraftModel<B, M>> {
    fn drafter(&self, asked: Asked) -> Box<dyn Drafter> {
        let table = self.pool().table();
        Box::new(ModelDrafter {
            source: Arc::clone(self),
            table,
            text: Vec::new(),
            cached: Vec::new(),
            asked,
        })
    }

    fn shrink(&self) {
        self.pool().shrink();
    }
}

/// Drafts of a model for one sequence: the tokens that it finds likeliest, or tokens that are drawn from it.
struct ModelDrafter<B: Backend, M> {
    source: Arc<DraftModel<B, M>>,
    table: BlockTable,
    text: Vec<u32>,
    /// The tokens whose keys and values are in the table: those of the text, and drafts behind them.
    cached: Vec<u32>,
    asked: Asked,
}

impl<B: Backend, M> fmt::Debug for ModelDrafter<B, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelDrafter").field("text", &self.text.len()).finish_non_exhaustive()
    }
}

impl<B: Backend, M: CausalLm<B>> ModelDrafter<B, M> {
    /// Runs what is not cached of the text and some drafts, one piece of it at most. Returns the hidden state behind
    /// the last token of that piece `[1, d]`, and whether it is the last one of all.
    fn run(&mut self, drafts: &[u32]) -> Result<(Tensor<B, 2>, bool), DraftError> {
        let source = &self.source;
        let wanted = || self.text.iter().chain(drafts);
        let all = self.text.len() + drafts.len();
        if !source.pool().owns(&self.table) {
            self.table = source.pool().table();
        }
        // The last token runs in any case, because the distribution behind it is asked for.
        let same = wanted().zip(&self.cached).take(all - 1).take_while(|(a, b)| a == b).count();
        if !self.table.truncate(same) {
            self.table.clear();
        }
        let begin = self.table.len();
        self.cached.truncate(begin);
        let piece: Vec<u32> = wanted().skip(begin).take(DEFAULT_PREFILL_CHUNK).copied().collect();
        self.table.set_sequence_length(all);
        let inputs = source.model.embed(ids_tensor::<B>(&piece, &source.device));
        let hidden = source.model.forward(ForwardBatch::one(inputs, &mut self.table), &mut source.pool())?;
        self.cached.extend(&piece);
        Ok((hidden.narrow(0, piece.len() - 1, 1), begin + piece.len() == all))
    }

    /// The distribution behind the text and some drafts `[vocab]`; nothing, if that is longer than the draft model's
    /// context, or if a long text has not run to its end yet: no round waits for more than a piece of it.
    fn row(&mut self, drafts: &[u32]) -> Result<Vec<f64>, DraftError> {
        // Not an error, because whether the tree comes to such a place depends on what was drawn.
        if self.text.len() + drafts.len() > self.source.model.context_length() {
            return Ok(Vec::new());
        }
        let (hidden, true) = self.run(drafts)? else { return Ok(Vec::new()) };
        let Asked { verify, temperature, vocab, .. } = self.asked;
        let temperature = if verify == Verify::Match { 1.0 } else { temperature };
        Ok(with_values(&self.source.model.logits(hidden), |logits| {
            // Rows of padding are no tokens.
            let logits = &logits[..vocab.min(logits.len())];
            let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut row: Vec<f64> = match temperature > 0.0 {
                true => logits.iter().map(|&logit| (f64::from(logit - most) / temperature).exp()).collect(),
                false => {
                    let first = logits.iter().position(|&logit| logit == most);
                    (0..logits.len()).map(|id| f64::from(u8::from(Some(id) == first))).collect()
                }
            };
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|weight| *weight /= sum);
            row.resize(vocab, 0.0);
            row
        }))
    }
}

impl<B: Backend, M: CausalLm<B> + Send + Sync> Drafter for ModelDrafter<B, M> {
    fn draft(
        &mut self,
        ahead: &[u32],
        growth: &Growth,
        source: &mut dyn Chance,
    ) -> Result<Draft, DraftError> {
        if self.text.is_empty() {
            return Ok(Draft::default());
        }
        let vocab = self.source.model.embedding().dims()[0];
        if let Some(unknown) = self.text.iter().chain(ahead).find(|&&token| token as usize >= vocab) {
            return Err(format!("the draft model has no token {unknown}").into());
        }
        let growth = Growth { min_p: self.asked.min_p, ..*growth };
        // Two drafts behind a node, or two chains of drafts.
        let length = growth.depth.min((growth.nodes / 2).max(1));
        let verify = self.asked.verify;
        let rows = |tree: &DraftTree, node: usize| self.row(&[ahead, &tree.path(node)].concat());
        let (tree, values) = match verify {
            Verify::Match => likeliest_tree(&growth, rows)?,
            Verify::Rejection => draft_dynamic(&growth, rows, source)?,
            Verify::KSeq => (draft_paths(growth.nodes.min(2), length, rows, source)?, Vec::new()),
            Verify::Greedy => {
                let branching: Vec<usize> =
                    (0..length).map(|depth| if depth == 0 { growth.nodes.min(2) } else { 1 }).collect();
                (draft_greedy(&branching, rows, source)?, Vec::new())
            }
        };
        Ok(Draft { tree, values })
    }

    fn push(&mut self, token: u32) {
        self.text.push(token);
    }
}
