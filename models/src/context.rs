//! The context that all layers of a forward pass share: cache places, rotary angles, and attention masks.

#[cfg(feature = "gpu")]
use std::cell::RefCell;
use std::{cell::OnceCell, sync::Arc};

#[cfg(feature = "gpu")]
use burn::tensor::Int;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use moi_kernels::{AttentionSpan, Visible};

use crate::{Kernels, KvPool, QueryScale, RopeConfig, Span, cache::KindTables};

/// The mask value of hidden positions: finite, and representable in float16, because a row that sees nothing must not
/// become NaN.
const HIDDEN: f32 = -6e4;

/// The context of one forward pass.
#[derive(Debug)]
pub(crate) struct ForwardContext<B: Backend> {
    /// The kernels that compute everything.
    pub(crate) kernels: Arc<dyn Kernels<B>>,
    /// Number of new positions of all sequences.
    pub(crate) tokens: usize,
    pub(crate) spans: Vec<SpanContext>,
    /// The slots of the spans' states, if layers have states.
    pub(crate) slots: Vec<usize>,
    /// The position of each new position in its sequence.
    pub(crate) positions: Vec<usize>,
    /// The angles of each rotary embedding of the model.
    pub(crate) angles: Vec<Angles<B>>,
    /// Factors on the queries of each position, `[tokens, 1]`, unless all are 1.
    pub(crate) query_factors: Option<Tensor<B, 2>>,
    /// The cache places for each kind of layer of the pool.
    pub(crate) tables: Vec<KindTables>,
    /// Attention plans for GPU kernels, by kind of layer and by number of queries per cube. They are made when they
    /// are first needed.
    #[cfg(feature = "gpu")]
    plans: RefCell<Vec<(usize, usize, Plan<B>)>>,
    /// Masks for each kind of layer and each span. They are made when they are first needed, because kernels need
    /// none.
    masks: Vec<Vec<Mask<B>>>,
    device: B::Device,
}

/// The attention plan on a GPU: see [`moi_gpu::AttentionPlan`].
#[cfg(feature = "gpu")]
#[derive(Clone, Debug)]
pub(crate) struct Plan<B: Backend> {
    pub(crate) words: Tensor<B, 1, Int>,
    pub(crate) tiles: usize,
    pub(crate) longest: usize,
}

/// The new positions of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct SpanContext {
    pub(crate) len: usize,
    /// Number of positions before them.
    pub(crate) past: usize,
    pub(crate) visible: Visible,
}

/// An attention mask that is added to scores, `[queries, positions of the span's blocks]`: 0 where a position is
/// seen, very negative where it is hidden; `None` if all are seen.
type Mask<B> = OnceCell<Option<Tensor<B, 2>>>;

impl<B: Backend> ForwardContext<B> {
    /// The context of spans whose tables have reserved room for their new positions.
    pub(crate) fn new(
        spans: &[Span<'_>],
        pool: &KvPool<B>,
        ropes: &[RopeConfig],
        kernels: Arc<dyn Kernels<B>>,
        device: &B::Device,
    ) -> Self {
        let tables = pool.places(spans.iter().map(|span| (&*span.table, span.len)));
        let of_span = |span: &Span<'_>| {
            let depth = |query| span.table.len() + span.visible.depth(query);
            (0..span.len).map(depth).collect::<Vec<usize>>()
        };
        let positions: Vec<Vec<usize>> = spans.iter().map(of_span).collect();
        let lengths: Vec<usize> = spans
            .iter()
            .zip(&positions)
            .map(|(span, positions)| {
                let end = positions.iter().max().map_or(0, |last| last + 1);
                span.table.sequence_length().max(end)
            })
            .collect();
        let angles = ropes.iter().map(|rope| Angles::new(rope, &positions, &lengths, device)).collect();
        let slots = spans.iter().filter_map(|span| span.table.state_slot()).collect();
        let masks = tables.iter().map(|_| spans.iter().map(|_| OnceCell::new()).collect()).collect();
        let positions = positions.concat();
        let spans = spans.iter().map(|span| SpanContext {
            len: span.len,
            past: span.table.len(),
            visible: span.visible.clone(),
        });
        Self {
            kernels,
            tokens: positions.len(),
            spans: spans.collect(),
            slots,
            positions,
            angles,
            query_factors: None,
            tables,
            #[cfg(feature = "gpu")]
            plans: RefCell::default(),
            masks,
            device: device.clone(),
        }
    }

    /// Adds factors on the queries, if they grow with their positions.
    pub(crate) fn with_query_scale(self, scale: Option<QueryScale>) -> Self {
        let Some(scale) = scale else { return self };
        let factors: Vec<f32> = self.positions.iter().map(|&position| scale.at(position) as f32).collect();
        if factors.iter().all(|&factor| factor == 1.0) {
            return self;
        }
        let data = TensorData::new(factors, [self.tokens, 1]);
        let query_factors = Some(Tensor::from_data(data, (&self.device, DType::F32)));
        Self { query_factors, ..self }
    }

    /// The spans as attention kernels take them, in layers of a kind.
    pub(crate) fn attention_spans(&self, kind: usize) -> Vec<AttentionSpan<'_>> {
        let spans = self.spans.iter().zip(&self.tables[kind].spans);
        spans
            .map(|(span, places)| AttentionSpan {
                len: span.len,
                past: span.past,
                blocks: &places.blocks,
                first_block: places.first,
                visible: &span.visible,
            })
            .collect()
    }

    /// The plan for a kind of layer and `queries` queries per cube, which is made if it does not exist yet.
    #[cfg(feature = "gpu")]
    pub(crate) fn plan(&self, kind: usize, queries: usize, make: impl FnOnce() -> Plan<B>) -> Plan<B> {
        let mut plans = self.plans.borrow_mut();
        if let Some((.., plan)) = plans.iter().find(|plan| (plan.0, plan.1) == (kind, queries)) {
            return plan.clone();
        }
        let plan = make();
        plans.push((kind, queries, plan.clone()));
        plan
    }

    /// The mask of a span: what its queries see of the positions of its blocks, up to the last new one.
    pub(crate) fn mask(&self, kind: usize, span: usize) -> Option<&Tensor<B, 2>> {
        self.masks[kind][span].get_or_init(|| self.make_mask(kind, span)).as_ref()
    }

    fn make_mask(&self, kind: usize, index: usize) -> Option<Tensor<B, 2>> {
        let window = self.tables[kind].window;
        let (span, all) = (&self.attention_spans(kind)[index], &self.spans[index]);
        let first = span.first_block * crate::BLOCK_POSITIONS;
        let columns = first..span.past + span.len;
        let is_seen = |query: usize, column: usize| {
            let seen = span.seen(query, window);
            match (column.checked_sub(span.past), &all.visible) {
                (Some(node), Visible::Tree(_)) => {
                    let path = all.visible.path(query);
                    path.iter()
                        .position(|&other| other == node)
                        .is_some_and(|depth| seen.contains(&(span.past + depth)))
                }
                _ => seen.contains(&column),
            }
        };
        let bias = (0..span.len).flat_map(|query| columns.clone().map(move |column| (query, column)));
        let bias: Vec<f32> =
            bias.map(|(query, column)| if is_seen(query, column) { 0.0 } else { HIDDEN }).collect();
        if bias.iter().all(|&bias| bias == 0.0) {
            return None;
        }
        let data = TensorData::new(bias, [span.len, columns.len()]);
        Some(Tensor::from_data(data, (&self.device, DType::F32)))
    }
}

/// Cosines and sines of the rotary angles of a forward pass's positions, `[tokens, dims]` each in float32.
#[derive(Clone, Debug)]
pub(crate) struct Angles<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

impl<B: Backend> Angles<B> {
    /// The angles for the `positions` of each sequence; `lengths` are lower bounds of the sequences' lengths.
    fn new(rope: &RopeConfig, positions: &[Vec<usize>], lengths: &[usize], device: &B::Device) -> Self {
        let tokens: usize = positions.iter().map(Vec::len).sum();
        let factor = rope.attention_factor();
        let mut cos = Vec::with_capacity(tokens * rope.dims);
        let mut sin = Vec::with_capacity(cos.capacity());
        let mut known: Option<(usize, Vec<f64>)> = None;
        for (positions, &length) in positions.iter().zip(lengths) {
            let frequencies = match &known {
                Some((of, frequencies)) if *of == length || !rope.depends_on_length() => frequencies,
                _ => &known.insert((length, rope.frequencies(length))).1,
            };
            for &position in positions {
                // float64 keeps the angle exact far into a long context.
                let angle = |f: &f64| (position as f64 * f).sin_cos();
                for (s, c) in frequencies.iter().chain(frequencies).map(angle) {
                    cos.push((c * factor) as f32);
                    sin.push((s * factor) as f32);
                }
            }
        }
        // The tensor is made in one dimension, because a device may pad the rows of a tensor made in several.
        let tensor = |values: Vec<f32>| {
            // `reshape` takes a size of 0 for "as it was".
            if rope.dims == 0 {
                return Tensor::empty([tokens, 0], (device, DType::F32));
            }
            let data = TensorData::new(values, [tokens * rope.dims]);
            Tensor::<B, 1>::from_data(data, (device, DType::F32)).reshape([tokens, rope.dims])
        };
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Rotates the first `dims` values of heads `[tokens, heads, head_dim]`, in float32.
    pub(crate) fn rotate(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let (dims, head_dim) = (self.dims(), x.dims()[2]);
        let x = x.cast(DType::F32);
        if dims < head_dim {
            let rest = x.clone().narrow(2, dims, head_dim - dims);
            return match dims {
                0 => rest,
                _ => Tensor::cat(vec![self.rotate(x.narrow(2, 0, dims)), rest], 2),
            };
        }
        let low = x.clone().narrow(2, 0, dims / 2);
        let high = x.clone().narrow(2, dims / 2, dims / 2);
        let rotated = Tensor::cat(vec![high.neg(), low], 2);
        x * self.cos.clone().unsqueeze_dim(1) + rotated * self.sin.clone().unsqueeze_dim(1)
    }

    /// Number of values per head that are rotated.
    pub(crate) fn dims(&self) -> usize {
        self.cos.dims()[1]
    }

    pub(crate) fn cos(&self) -> &Tensor<B, 2> {
        &self.cos
    }

    pub(crate) fn sin(&self) -> &Tensor<B, 2> {
        &self.sin
    }
}
