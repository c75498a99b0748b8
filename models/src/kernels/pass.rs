//! Attention of one layer in a forward pass: its options for kernels, and its computation by tensor operations.

use burn::tensor::{DType, Tensor, activation::softmax, backend::Backend};
use moi_kernels::AttentionSpan;

use crate::{
    BLOCK_POSITIONS, BlockRun, Kernels, LayerBlocks, Norm, QkSpan,
    context::{Angles, ForwardContext},
};

/// Attention of one layer in a forward pass.
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Architecture, AttentionPass, CausalLm, Kernels, LayerBlocks};
///
/// /// Looks at what is to be computed.
/// #[derive(Debug)]
/// struct Looking;
///
/// impl Kernels<Flex> for Looking {
///     fn attention(
///         &self,
///         q: Tensor<Flex, 2>,
///         kv: Option<[Tensor<Flex, 2>; 2]>,
///         pass: &AttentionPass<'_, Flex>,
///         blocks: &mut LayerBlocks<Flex>,
///     ) -> Tensor<Flex, 2> {
///         assert_eq!((pass.tokens(), pass.heads, pass.head_dim), (3, 4, 4));
///         pass.by_tensor_operations(q, kv, blocks)
///     }
/// }
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let model = model.with_kernels(Arc::new(Looking));
/// model.forward_whole(Tensor::zeros([3, 16], &device))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct AttentionPass<'a, B: Backend> {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of [`Self::heads`].
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// A factor on queries, after norm and rotation.
    pub scale: f64,
    /// Soft cap: scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// Sliding window: the number of positions that a position sees, including itself; all if `None`.
    pub window: Option<usize>,
    /// The norm of queries, before they are rotated.
    pub q_norm: Option<&'a Norm<B>>,
    /// The norm of keys, before they are rotated.
    pub k_norm: Option<&'a Norm<B>>,
    /// What these norms span.
    pub norm_span: QkSpan,
    /// Attention sinks, a logit per head `[heads]` that adds to the softmax denominator but has no value.
    pub sinks: Option<Tensor<B, 1>>,
    pub(crate) angles: Option<&'a Angles<B>>,
    pub(crate) context: &'a ForwardContext<B>,
    /// Index of the layer's kind in the pool.
    pub(crate) kind: usize,
}

impl<B: Backend> AttentionPass<'_, B> {
    /// Number of new positions of all sequences.
    pub fn tokens(&self) -> usize {
        self.context.tokens
    }

    /// For each sequence, the number of new positions and of earlier ones, the attention mask, and the block table.
    pub fn spans(&self) -> Vec<AttentionSpan<'_>> {
        self.context.attention_spans(self.kind)
    }

    /// The places in the cache for the keys and values of new positions.
    pub fn runs(&self) -> &[BlockRun] {
        &self.context.tables[self.kind].runs
    }

    /// Cosines and sines, `[tokens, dims]`, of the angles by which the first values of each head are rotated, if they
    /// are.
    pub fn angles(&self) -> Option<[&Tensor<B, 2>; 2]> {
        self.angles.map(|angles| [angles.cos(), angles.sin()])
    }

    /// Attention by tensor operations: see [`crate::Kernels::attention`].
    pub fn by_tensor_operations(
        &self,
        q: Tensor<B, 2>,
        kv: Option<[Tensor<B, 2>; 2]>,
        blocks: &mut LayerBlocks<B>,
    ) -> Tensor<B, 2> {
        let q = self.queries(q);
        if let Some([k, v]) = kv {
            let k = self.rotated(k, self.k_norm, self.kv_heads).cast(blocks.dtype);
            let v = v.reshape([self.tokens(), self.kv_heads, self.head_dim]).cast(blocks.dtype);
            blocks.write(&k, &v, self.runs());
        }
        self.attend(q, blocks)
    }

    /// The rotated and scaled queries, `[tokens, heads, head_dim]`, by tensor operations.
    pub(crate) fn queries(&self, q: Tensor<B, 2>) -> Tensor<B, 3> {
        self.rotated(q, self.q_norm, self.heads).mul_scalar(self.scale)
    }

    /// Heads after norm and rotation.
    fn rotated(&self, x: Tensor<B, 2>, norm: Option<&Norm<B>>, count: usize) -> Tensor<B, 3> {
        let heads = |x: Tensor<B, 2>| x.reshape([self.tokens(), count, self.head_dim]);
        let x = match (norm, self.norm_span) {
            (Some(norm), QkSpan::Projection) => heads(norm.forward(x)),
            (Some(norm), QkSpan::Head) => norm.forward(heads(x)),
            (None, _) => heads(x),
        };
        match self.angles {
            Some(angles) => angles.rotate(x),
            None => x.cast(DType::F32),
        }
    }

    /// Like [`Self::rotated`], in the other order: rotation, then norm.
    pub(crate) fn rotated_and_normed(
        &self,
        x: Tensor<B, 2>,
        norm: Option<&Norm<B>>,
        count: usize,
        kernels: &dyn Kernels<B>,
    ) -> Tensor<B, 2> {
        let width = count * self.head_dim;
        let x = self.rotated(x, None, count).reshape([self.tokens(), width]);
        let Some(norm) = norm else { return x };
        match self.norm_span {
            QkSpan::Projection => kernels.norm(norm, x),
            QkSpan::Head => {
                let heads = x.reshape([self.tokens() * count, self.head_dim]);
                kernels.norm(norm, heads).reshape([self.tokens(), width])
            }
        }
    }

    /// Computes softmax(q k^T + mask) v for scaled queries `[tokens, heads, head_dim]`, with soft-capped scores where
    /// the model has that: `[tokens, heads * head_dim]`. Sequences are computed one after another.
    pub(crate) fn attend(&self, q: Tensor<B, 3>, blocks: &LayerBlocks<B>) -> Tensor<B, 2> {
        let (context, kind) = (self.context, self.kind);
        let (mut first, mut outs) = (0, Vec::with_capacity(context.spans.len()));
        for (index, span) in context.spans.iter().enumerate() {
            let places = &context.tables[kind].spans[index];
            let [k, v] = blocks.gather(&places.blocks);
            let columns = span.past + span.len - places.first * BLOCK_POSITIONS;
            let (k, v) = (k.narrow(1, 0, columns), v.narrow(1, 0, columns));
            let q = q.clone().narrow(0, first, span.len);
            outs.push(self.attend_to(q, k, v, context.mask(kind, index)));
            first += span.len;
        }
        if outs.len() == 1 { outs.remove(0) } else { Tensor::cat(outs, 0) }
    }

    /// The same for one sequence, with its keys and values `[kv_heads, positions, head_dim]`.
    ///
    /// The query heads of a group are folded into the sequence dimension, so that keys and values are never repeated.
    fn attend_to(
        &self,
        q: Tensor<B, 3>,
        k: Tensor<B, 3>,
        v: Tensor<B, 3>,
        mask: Option<&Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let &Self { heads, kv_heads: kv, head_dim, softcap, .. } = self;
        let (seq, group, columns) = (q.dims()[0], heads / kv, k.dims()[1]);
        // A product has the type of its factors, and the eight bits of bfloat16 are too few for the exponents of a
        // softmax.
        let k = if k.dtype() == DType::BF16 { k.cast(DType::F32) } else { k };
        let q = q.cast(k.dtype()).swap_dims(0, 1).reshape([kv, group * seq, head_dim]);
        let mut scores = q.matmul(k.swap_dims(1, 2)).cast(DType::F32);
        if let Some(cap) = softcap {
            scores = scores.div_scalar(cap).tanh().mul_scalar(cap);
        }
        if let Some(mask) = mask {
            let split = scores.reshape([kv, group, seq, columns]) + mask.clone().unsqueeze();
            scores = split.reshape([kv, group * seq, columns]);
        }
        let v = if v.dtype() == DType::BF16 { v.cast(DType::F32) } else { v };
        let weights = match &self.sinks {
            Some(sinks) => {
                let sinks = sinks.clone().cast(DType::F32).reshape([kv, group, 1]).repeat_dim(2, seq);
                let all = Tensor::cat(vec![scores, sinks.reshape([kv, group * seq, 1])], 2);
                softmax(all, 2).narrow(2, 0, columns)
            }
            None => softmax(scores, 2),
        };
        let out = weights.cast(v.dtype()).matmul(v).reshape([heads, seq, head_dim]);
        out.swap_dims(0, 1).reshape([seq, heads * head_dim])
    }
}
