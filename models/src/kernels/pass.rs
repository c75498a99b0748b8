//! Attention of one layer in a forward pass: what kernels are told, and the same by tensor operations.

use burn::tensor::{DType, Tensor, activation::softmax, backend::Backend};
use moi_kernels::AttentionSpan;

use crate::{
    BLOCK_POSITIONS, BlockRun, Kernels, LayerBlocks, Norm, QkSpan,
    context::{Angles, ForwardContext},
};

/// Attention of one layer in a forward pass.
#[derive(Clone, Debug)]
pub struct AttentionPass<'a, B: Backend> {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; a divisor of [`Self::heads`].
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// A factor on queries, behind norm and rotation.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// How many positions a position sees, itself among them; all where `None`.
    pub window: Option<usize>,
    /// The norm of queries, before they are rotated.
    pub q_norm: Option<&'a Norm<B>>,
    /// The norm of keys, before they are rotated.
    pub k_norm: Option<&'a Norm<B>>,
    /// What these norms go over.
    pub norm_span: QkSpan,
    /// A logit of each head `[heads]` that takes a share of the softmax and gives nothing.
    pub sinks: Option<Tensor<B, 1>>,
    pub(crate) angles: Option<&'a Angles<B>>,
    pub(crate) context: &'a ForwardContext<B>,
    /// Which kind of layer it is in the pool.
    pub(crate) kind: usize,
}

impl<B: Backend> AttentionPass<'_, B> {
    /// New positions of all sequences.
    pub fn tokens(&self) -> usize {
        self.context.tokens
    }

    /// Of each sequence, how many new positions there are, what came before, what each sees and where it lies.
    pub fn spans(&self) -> Vec<AttentionSpan<'_>> {
        self.context.attention_spans(self.kind)
    }

    /// Where keys and values of new positions are to be written.
    pub fn runs(&self) -> &[BlockRun] {
        &self.context.tables[self.kind].runs
    }

    /// cos and sin of the angles by which the first values of each head are rotated `[tokens, dims]`, if they are.
    pub fn angles(&self) -> Option<[&Tensor<B, 2>; 2]> {
        self.angles.map(|angles| [angles.cos(), angles.sin()])
    }

    /// See [`crate::Kernels::attention`].
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

    /// Queries as scores are computed with `[tokens, heads, head_dim]`, by tensor operations.
    pub(crate) fn queries(&self, q: Tensor<B, 2>) -> Tensor<B, 3> {
        self.rotated(q, self.q_norm, self.heads).mul_scalar(self.scale)
    }

    /// Heads behind norm and rotation.
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

    /// The same in the other order: rotated, then behind the norm.
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

    /// softmax(q k^T + bias) v of queries that are scaled already `[tokens, heads, head_dim]`, the scores capped where the
    /// model does: `[tokens, heads * head_dim]`. One sequence after the other.
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
    /// The query heads of a group are folded into the sequence, so keys and values are never repeated.
    fn attend_to(
        &self,
        q: Tensor<B, 3>,
        k: Tensor<B, 3>,
        v: Tensor<B, 3>,
        mask: Option<&Tensor<B, 2>>,
    ) -> Tensor<B, 2> {
        let &Self { heads, kv_heads: kv, head_dim, softcap, .. } = self;
        let (seq, group, columns) = (q.dims()[0], heads / kv, k.dims()[1]);
        // A product has the type of its factors, and bfloat16's eight bits are too few for the exponents of a softmax.
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
