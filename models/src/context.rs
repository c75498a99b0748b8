//! What all layers of a forward pass share: where its positions lie, how heads are rotated and what a query sees.

#[cfg(feature = "gpu")]
use std::cell::RefCell;
use std::{cell::OnceCell, sync::Arc};

#[cfg(feature = "gpu")]
use burn::tensor::Int;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use moi_kernels::{AttentionSpan, Visible};

use crate::{Kernels, KvPool, QueryScale, RopeConfig, Span, cache::KindTables};

/// Finite, and representable in float16: a row that sees nothing must not become NaN.
const HIDDEN: f32 = -6e4;

/// One forward pass.
#[derive(Debug)]
pub(crate) struct ForwardContext<B: Backend> {
    /// How all is computed.
    pub(crate) kernels: Arc<dyn Kernels<B>>,
    /// New positions of all sequences.
    pub(crate) tokens: usize,
    pub(crate) spans: Vec<SpanContext>,
    /// The slots of the spans' states, where layers have any.
    pub(crate) slots: Vec<usize>,
    /// Of each new position in its sequence.
    pub(crate) positions: Vec<usize>,
    /// One for each kind of rotary positions in the model.
    pub(crate) angles: Vec<Angles<B>>,
    /// Factors on the queries of each position `[tokens, 1]`, where one of them is not 1.
    pub(crate) query_factors: Option<Tensor<B, 2>>,
    /// One for each kind of layer in the pool.
    pub(crate) tables: Vec<KindTables>,
    /// What kernels of GPUs are told of each kind of layer, made when it is first asked for: of the kind, and of how many
    /// queries are computed at once.
    #[cfg(feature = "gpu")]
    plans: RefCell<Vec<(usize, usize, Plan<B>)>>,
    /// For each kind of layer and each span, made when it is first asked for: kernels need none.
    masks: Vec<Vec<Mask<B>>>,
    device: B::Device,
}

/// Where positions lie and what they see, on a GPU: see [`moi_gpu::AttentionPlan`].
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
    /// Positions before them.
    pub(crate) past: usize,
    pub(crate) visible: Visible,
}

/// Added to scores, `[queries, positions]`, the positions those of a span's blocks: 0 where one is seen, very negative
/// where not; none where all are seen.
type Mask<B> = OnceCell<Option<Tensor<B, 2>>>;

impl<B: Backend> ForwardContext<B> {
    /// Of spans whose tables have room for them.
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

    /// With queries that grow with their positions, if they do.
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

    /// The spans as attention takes them, in layers of a kind.
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

    /// The plan of a kind of layer for so many queries at once, made where it is not there yet.
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

    /// What the queries of a span see of the positions of its blocks up to the last new one.
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

/// cos and sin of the positions of a forward pass, each `[tokens, dims]` in float32.
#[derive(Clone, Debug)]
pub(crate) struct Angles<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

impl<B: Backend> Angles<B> {
    /// `positions` of each sequence, and `lengths`, how many positions each has at least.
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
        // By way of one dimension: a device may put gaps between the rows of a tensor that comes in several.
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

    /// Rotates the first `dims` values of heads `[tokens, heads, head_dim]`; in float32.
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

    /// How many values of a head are rotated.
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
