//! The input of a forward pass: new positions of any number of sequences.

use burn::tensor::{Tensor, backend::Backend};
pub use moi_kernels::Visible;

use crate::BlockTable;

/// New positions of any number of sequences, one span after another.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Architecture, CausalLm, ForwardBatch};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let mut pool = model.new_pool(&device);
/// let (mut first, mut second) = (pool.table(), pool.table());
/// // The next position of each of two sequences.
/// let inputs = Tensor::<Flex, 2>::zeros([2, 16], &device);
/// let batch = ForwardBatch::step(inputs, [&mut first, &mut second].into_iter());
/// assert_eq!(model.forward(batch, &mut pool)?.dims(), [2, 16]);
/// assert_eq!((first.len(), second.len()), (1, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ForwardBatch<'a, B: Backend> {
    /// Inputs of all spans, `[tokens, d]`.
    pub inputs: Tensor<B, 2>,
    /// The spans, in the order of the inputs.
    pub spans: Vec<Span<'a>>,
}

/// New positions of one sequence.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Architecture, CausalLm, ForwardBatch, Span, Visible};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let mut pool = model.new_pool(&device);
/// let mut table = pool.table();
/// // Two alternatives for the first position, of which the second one is kept.
/// let inputs = Tensor::<Flex, 2>::zeros([2, 16], &device);
/// let span = Span { table: &mut table, len: 2, visible: Visible::Tree(vec![None, None]) };
/// model.forward(ForwardBatch { inputs, spans: vec![span] }, &mut pool)?;
/// pool.keep_path(&mut table, 0, &[1])?;
/// assert_eq!(table.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Span<'a> {
    /// The block table of the sequence's cache, to which the new positions are added.
    pub table: &'a mut BlockTable,
    /// Number of new positions, 1 or more.
    pub len: usize,
    /// The attention mask among the new positions. In a tree, the position of a node is given by the length of its
    /// path.
    pub visible: Visible,
}

impl<'a, B: Backend> ForwardBatch<'a, B> {
    /// The next positions `[positions, d]` of one sequence.
    pub fn one(inputs: Tensor<B, 2>, table: &'a mut BlockTable) -> Self {
        let len = inputs.dims()[0];
        Self { inputs, spans: vec![Span { table, len, visible: Visible::Causal }] }
    }

    /// The next position of each of several sequences, `[sequences, d]`.
    pub fn step(inputs: Tensor<B, 2>, tables: impl Iterator<Item = &'a mut BlockTable>) -> Self {
        let spans = tables.map(|table| Span { table, len: 1, visible: Visible::Causal });
        Self { inputs, spans: spans.collect() }
    }
}
