//! One step of the input layer: takes logits and sampled tokens, returns the next inputs.

use std::{borrow::BorrowMut, fmt};

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use crate::{
    gated::mix_gated,
    planned::{mix_plans, width},
    rows::EmbeddingRows,
    rule::{Gated, InputRule, Plan, RuleError},
    rule_state::{MixDecision, RuleState},
};

/// The next inputs of a batch and what was mixed into them.
///
/// # Examples
/// ```
/// use burn::tensor::{Int, Tensor};
/// use moi::{InputRule, Support, burn, next_inputs};
///
/// type B = burn_flex::Flex;
/// # let device = Default::default();
/// # let table = Tensor::<B, 2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &device);
/// let logits = Tensor::<B, 2>::from_floats([[0.0, 0.0]], &device);
/// let sampled = Tensor::<B, 1, Int>::from_ints([0], &device);
/// let mixed = next_inputs(logits, sampled, &table, &[InputRule::gate(0.5, Support::Full)?], 0)?;
/// // All of it is still on the device: the inputs can be fed before anything is read.
/// assert_eq!((mixed.inputs.dims(), mixed.gate.dims()), ([1, 2], [1]));
/// assert_eq!(mixed.into_rows()[0].gate, 0.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Mixed<B: Backend> {
    /// The next inputs `[batch, d]`, in the embedding's dtype.
    pub inputs: Tensor<B, 2>,
    /// Entropy of each row's distribution on its rule's support, divided by ln of the support's size
    /// `[batch]`.
    pub entropy: Tensor<B, 1>,
    /// How far each row moved towards the mean embedding `[batch]`.
    pub gate: Tensor<B, 1>,
    /// Per row, the token that the rule records instead of the sampled one, and whether the reply ends.
    pub(crate) recorded: Vec<Recorded>,
    /// Candidates for the largest weights `[batch, <= top + 1]`, in no particular order; `None` if `top` is 0.
    pub(crate) candidates: Option<TopWeights<B>>,
    pub(crate) top: usize,
}

/// The token that a rule records as generated, if it decides on one, and whether the reply ends with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) token: Option<u32>,
    pub(crate) ends: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct TopWeights<B: Backend> {
    pub(crate) tokens: Tensor<B, 2, Int>,
    pub(crate) weights: Tensor<B, 2>,
}

/// What was mixed into one row, on the host.
///
/// # Examples
/// ```
/// use burn::tensor::{Int, Tensor};
/// use moi::{InputRule, Support, burn, next_inputs};
///
/// # type B = burn_flex::Flex;
/// # let device = Default::default();
/// # let table = Tensor::<B, 2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &device);
/// let logits = Tensor::<B, 2>::from_floats([[0.0, 0.0]], &device);
/// let sampled = Tensor::<B, 1, Int>::from_ints([0], &device);
/// let mixed = next_inputs(logits, sampled, &table, &[InputRule::gate(0.5, Support::Full)?], 2)?;
/// let row = mixed.into_rows().remove(0);
/// // Both tokens are equally likely; the input is half way from the sampled one to their mean.
/// assert!(row.entropy > 0.99 && row.gate == 0.5);
/// assert_eq!(row.top, [(0, 0.75), (1, 0.25)]);
/// assert!(row.token.is_none() && !row.ends);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RowMix {
    /// Normalised entropy, 0 to 1.
    pub entropy: f32,
    /// The gate, 0 to 1.
    pub gate: f32,
    /// The largest weights of the mixture, largest first: (token, weight).
    pub top: Vec<(u32, f32)>,
    /// The token that the rule records as generated; `None` means the sampled token.
    pub token: Option<u32>,
    /// Whether the rule ends the reply with this token.
    pub ends: bool,
}

impl<B: Backend> Mixed<B> {
    /// Reads what was mixed back to the host, one entry per row.
    pub fn into_rows(self) -> Vec<RowMix> {
        let [batch] = self.entropy.dims();
        let entropy = self.entropy.into_data();
        let gate = self.gate.into_data();
        let mut rows: Vec<RowMix> = (entropy.iter::<f32>().zip(gate.iter::<f32>()).zip(self.recorded))
            .map(|((entropy, gate), Recorded { token, ends })| RowMix {
                entropy,
                gate,
                top: Vec::new(),
                token,
                ends,
            })
            .collect();
        if let Some(TopWeights { tokens, weights }) = self.candidates {
            let per_row = tokens.dims()[1];
            let (tokens, weights) = (tokens.into_data(), weights.into_data());
            let all: Vec<(u32, f32)> = tokens.iter::<u32>().zip(weights.iter::<f32>()).collect();
            debug_assert_eq!(all.len(), batch * per_row);
            for (row, candidates) in rows.iter_mut().zip(all.chunks(per_row)) {
                row.top = candidates.iter().copied().filter(|&(_, weight)| weight != 0.0).collect();
                row.top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                row.top.truncate(self.top);
            }
        }
        rows
    }
}

/// Why a batch cannot be mixed.
///
/// # Examples
/// ```
/// use burn::tensor::{Int, Tensor};
/// use moi::{MixError, burn, next_inputs};
///
/// # type B = burn_flex::Flex;
/// # let device = Default::default();
/// # let table = Tensor::<B, 2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &device);
/// let logits = Tensor::<B, 2>::from_floats([[0.0, 0.0]], &device);
/// let sampled = Tensor::<B, 1, Int>::from_ints([0], &device);
/// let error = next_inputs(logits, sampled, &table, &[], 0).unwrap_err();
/// assert_eq!(error, MixError::Shape { what: "rules", expected: 1, found: 0 });
/// assert_eq!(error.to_string(), "rules: expected 1 as in the logits, found 0");
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum MixError {
    /// A rule has a value it does not allow.
    Rule {
        /// The row of the batch.
        row: usize,
        /// What is wrong with its rule.
        error: RuleError,
    },
    /// The logits have no rows or no columns.
    Empty {
        /// The empty dimension, in words.
        what: &'static str,
    },
    /// Logits, tokens, rules and embedding do not fit together.
    Shape {
        /// Which of them has the wrong size.
        what: &'static str,
        /// The size that it should have, according to the logits.
        expected: usize,
        /// The size it has.
        found: usize,
    },
}

impl fmt::Display for MixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { row, error } => write!(f, "rule of row {row}: {error}"),
            Self::Empty { what } => write!(f, "the logits hold no {what}"),
            Self::Shape { what, expected, found } => {
                write!(f, "{what}: expected {expected} as in the logits, found {found}")
            }
        }
    }
}

impl std::error::Error for MixError {}

/// The inputs of the next step: `h = E[y] + g (sum_i q_i E[i] - E[y])`, computed in float32 and cast once.
///
/// - `logits` `[batch, vocab]`: raw, at temperature 1, before penalties and filters
/// - `tokens` `[batch]`: what was sampled, by any scheme
/// - `embedding`: the rows to mix, a tensor `[vocab, d]` or anything that implements [`EmbeddingRows`]
/// - `rules`: one per row; rows do not influence each other. Rules that depend on more than one step need [`mix`]
/// - `top`: how many of the largest weights to report per row; 0 saves reading the distribution back
///
/// # Errors
/// If a rule has a value it does not allow, or sizes do not fit together.
///
/// # Panics
/// As the backend's `select` does, if a token is outside the vocabulary.
///
/// # Examples
/// ```
/// use burn::tensor::{Int, Tensor};
/// use moi::{InputRule, Support, burn, next_inputs};
///
/// type B = burn_flex::Flex;
/// let device = Default::default();
/// // Three tokens, embedded in two dimensions.
/// let table = Tensor::<B, 2>::from_floats([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], &device);
/// // Two rows with the same logits: tokens 0 and 1 are equally likely, 2 is impossible.
/// let logits = Tensor::<B, 2>::from_floats([[0.0, 0.0, -1e9], [0.0, 0.0, -1e9]], &device);
/// let sampled = Tensor::<B, 1, Int>::from_ints([0, 0], &device);
/// let rules = [InputRule::TOKEN, InputRule::gate(0.5, Support::Full)?];
///
/// let mixed = next_inputs(logits, sampled, &table, &rules, 2)?;
/// let inputs: Vec<f32> = mixed.inputs.to_data().iter::<f32>().collect();
/// // The token's own embedding; half way from it to the mean of both.
/// assert_eq!(inputs, [1.0, 0.0, 0.75, 0.25]);
/// assert_eq!(mixed.into_rows()[1].top, [(0, 0.75), (1, 0.25)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn next_inputs<B: Backend>(
    logits: Tensor<B, 2>,
    tokens: Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    rules: &[InputRule],
    top: usize,
) -> Result<Mixed<B>, MixError> {
    check(&logits, &tokens, embedding, rules.len())?;
    let decision = |(row, rule): (usize, &InputRule)| {
        let gated = rule.validated().and_then(|rule| rule.gated().ok_or(RuleError::NeedsRow(rule.name())));
        gated.map(MixDecision::Gated).map_err(|error| MixError::Rule { row, error })
    };
    let decisions = rules.iter().enumerate().map(decision).collect::<Result<Vec<_>, _>>()?;
    Ok(mixed(logits.cast(DType::F32), tokens, embedding, &decisions, top))
}

/// Like [`next_inputs`], but for every kind of rule: each row of the batch has a [`RuleState`], which the caller
/// keeps from the first generated token of the sequence to its last.
///
/// A rule may replace the sampled token or end the reply: see [`RowMix::token`] and [`RowMix::ends`].
///
/// # Errors
/// If sizes do not fit together. The rule states are then unchanged.
///
/// # Panics
/// As the backend's `select` does, if a token is outside the vocabulary.
///
/// # Examples
/// ```
/// use burn::tensor::{Int, Tensor};
/// use moi::{RuleState, Start, burn, mix};
///
/// # type B = burn_flex::Flex;
/// # let device = Default::default();
/// # let table = Tensor::<B, 2>::from_floats([[1.0, 0.0], [0.0, 1.0]], &device);
/// // The rule applies to the first generated token alone.
/// let start = Start { scope: Some("0..1".parse()?), ..Start::default() };
/// let mut rows = [RuleState::new("direct".parse()?, &start)?];
/// let mut inputs = Vec::new();
/// for _ in 0..2 {
///     let logits = Tensor::<B, 2>::from_floats([[0.0, 0.0]], &device); // of the model
///     let sampled = Tensor::<B, 1, Int>::from_ints([0], &device); // by any sampler
///     let mixed = mix(logits, sampled, &table, &mut rows, 0)?;
///     inputs.push(mixed.inputs.to_data().iter::<f32>().collect::<Vec<_>>());
/// }
/// // The mean of both embeddings, then the sampled token's own.
/// assert_eq!(inputs, [[0.5, 0.5], [1.0, 0.0]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn mix<B: Backend>(
    logits: Tensor<B, 2>,
    tokens: Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    rows: &mut [impl BorrowMut<RuleState>],
    top: usize,
) -> Result<Mixed<B>, MixError> {
    check(&logits, &tokens, embedding, rows.len())?;
    let logits = logits.cast(DType::F32);
    let decisions = decide(&logits, &tokens, rows);
    Ok(mixed(logits, tokens, embedding, &decisions, top))
}

/// Decides the step of each row: from the rule alone if that is enough, otherwise on the host from logits and token.
fn decide<B: Backend>(
    logits: &Tensor<B, 2>,
    tokens: &Tensor<B, 1, Int>,
    rows: &mut [impl BorrowMut<RuleState>],
) -> Vec<MixDecision> {
    let ahead = |row: &mut RuleState| {
        let gated = row.gated_ahead();
        row.pass();
        MixDecision::Gated(gated.unwrap_or(Gated::TOKEN))
    };
    let mut rows: Vec<&mut RuleState> = rows.iter_mut().map(BorrowMut::borrow_mut).collect();
    if !rows.iter().any(|row| row.needs_host()) {
        return rows.into_iter().map(ahead).collect();
    }
    let vocab = logits.dims()[1];
    let (logits, tokens) = (logits.to_data(), tokens.to_data());
    let logits = logits.as_slice::<f32>().unwrap_or_default();
    let rows = rows.iter_mut().zip(logits.chunks(vocab)).zip(tokens.iter::<u32>());
    rows.map(|((row, logits), token)| if row.needs_host() { row.decide(logits, token) } else { ahead(row) })
        .collect()
}

fn mixed<B: Backend>(
    logits: Tensor<B, 2>,
    tokens: Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    decisions: &[MixDecision],
    top: usize,
) -> Mixed<B> {
    let groups = groups(decisions);
    if let [_] = groups.as_slice() {
        let all: Vec<&MixDecision> = decisions.iter().collect();
        return mix_group(logits, tokens, embedding, &all, top);
    }
    let device = logits.device();
    let index = |rows: &[usize]| {
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        Tensor::<B, 1, Int>::from_data(TensorData::new(rows.clone(), [rows.len()]), &device)
    };
    let parts = groups.iter().map(|rows| {
        let decisions: Vec<&MixDecision> = rows.iter().map(|&row| &decisions[row]).collect();
        let select = index(rows);
        mix_group(
            logits.clone().select(0, select.clone()),
            tokens.clone().select(0, select),
            embedding,
            &decisions,
            top,
        )
    });
    let parts: Vec<Mixed<B>> = parts.collect();
    let order = groups.concat();
    let mut back = vec![0; order.len()];
    for (position, &row) in order.iter().enumerate() {
        back[row] = position;
    }
    join(parts, &back, index(&back))
}

fn check<B: Backend>(
    logits: &Tensor<B, 2>,
    tokens: &Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    rules: usize,
) -> Result<(), MixError> {
    let [batch, vocab] = logits.dims();
    let sizes = [
        ("tokens", batch, tokens.dims()[0]),
        ("rules", batch, rules),
        ("rows of the embedding", vocab, embedding.dims()[0]),
    ];
    for (what, size) in [("rows of the batch", batch), ("tokens of the vocabulary", vocab)] {
        if size == 0 {
            return Err(MixError::Empty { what });
        }
    }
    for (what, expected, found) in sizes {
        if expected != found {
            return Err(MixError::Shape { what, expected, found });
        }
    }
    Ok(())
}

/// Groups of rows that are computed together: gated rows with the same support, which either all mix or all feed the
/// token; or planned rows whose lists have the same [`width`], which all include the mean embedding or none. The
/// operations that compute a row therefore depend on that row alone, not on the rest of the batch.
fn groups(decisions: &[MixDecision]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let kind = |row: usize| match &decisions[row] {
        MixDecision::Gated(gated) => (Some(gated.support), gated.mixes(), 0),
        MixDecision::Plan(plan) => (None, plan.mean != 0.0, width(plan)),
    };
    for row in 0..decisions.len() {
        match groups.iter_mut().find(|group| kind(group[0]) == kind(row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// Computes the rows of one of the [`groups`].
fn mix_group<B: Backend>(
    logits: Tensor<B, 2>,
    tokens: Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    decisions: &[&MixDecision],
    top: usize,
) -> Mixed<B> {
    let mut gated = Vec::new();
    let mut plans: Vec<&Plan> = Vec::new();
    for decision in decisions {
        match decision {
            MixDecision::Gated(gate) => gated.push(*gate),
            MixDecision::Plan(plan) => plans.push(plan),
        }
    }
    match plans.is_empty() {
        true => mix_gated(logits, tokens, embedding, &gated, top),
        false => mix_plans(&logits, &tokens, embedding, &plans, top),
    }
}

/// A float32 column `[n, 1]` with one value per row.
pub(crate) fn column<B: Backend>(values: Vec<f32>, device: &B::Device) -> Tensor<B, 2> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n, 1]), (device, DType::F32))
}

/// Puts the rows of several groups back into the order of the batch.
fn join<B: Backend>(parts: Vec<Mixed<B>>, order: &[usize], back: Tensor<B, 1, Int>) -> Mixed<B> {
    let top = parts[0].top;
    let recorded: Vec<Recorded> = parts.iter().flat_map(|part| part.recorded.iter().copied()).collect();
    let recorded = order.iter().map(|&position| recorded[position]).collect();
    let cat = |pick: fn(&Mixed<B>) -> Tensor<B, 1>| {
        Tensor::cat(parts.iter().map(pick).collect(), 0).select(0, back.clone())
    };
    let (entropy, gate) = (cat(|part| part.entropy.clone()), cat(|part| part.gate.clone()));
    let inputs = Tensor::cat(parts.iter().map(|part| part.inputs.clone()).collect(), 0);
    let candidates: Vec<_> = parts.into_iter().filter_map(|part| part.candidates).collect();
    let candidates = (!candidates.is_empty()).then(|| {
        // Supports smaller than `top` have fewer candidates: pad with weight 0.
        let width = candidates.iter().map(|c| c.tokens.dims()[1]).max().unwrap_or(0);
        let (tokens, weights) = candidates.into_iter().map(|c| c.padded(width)).unzip();
        TopWeights {
            tokens: Tensor::cat(tokens, 0).select(0, back.clone()),
            weights: Tensor::cat(weights, 0).select(0, back.clone()),
        }
    });
    Mixed { inputs: inputs.select(0, back), entropy, gate, recorded, candidates, top }
}

impl<B: Backend> TopWeights<B> {
    fn padded(self, width: usize) -> (Tensor<B, 2, Int>, Tensor<B, 2>) {
        let [n, own] = self.tokens.dims();
        if own == width {
            return (self.tokens, self.weights);
        }
        let device = self.tokens.device();
        let padding = [n, width - own];
        (
            Tensor::cat(vec![self.tokens, Tensor::zeros(padding, &device)], 1),
            Tensor::cat(vec![self.weights, Tensor::zeros(padding, (&device, DType::F32))], 1),
        )
    }
}
