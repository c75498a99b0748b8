//! The step: logits and sampled tokens in, next inputs out.

use std::fmt;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use crate::{
    rows::EmbeddingRows,
    rule::{InputRule, RuleError, Support},
    top_k::top_k,
};

/// The next inputs of a batch and what was mixed into them.
#[derive(Clone, Debug)]
pub struct Mixed<B: Backend> {
    /// The next inputs `[batch, d]`, in the embedding's dtype.
    pub inputs: Tensor<B, 2>,
    /// Entropy of each row's distribution on its rule's support, divided by ln of the support's size
    /// `[batch]`.
    pub entropy: Tensor<B, 1>,
    /// How far each row moved towards the mean embedding `[batch]`.
    pub gate: Tensor<B, 1>,
    /// Candidates for the largest weights, the sampled token among them, unordered `[batch, <= top + 1]`.
    candidates: Option<Candidates<B>>,
    top: usize,
}

#[derive(Clone, Debug)]
struct Candidates<B: Backend> {
    tokens: Tensor<B, 2, Int>,
    weights: Tensor<B, 2>,
}

/// What was mixed into one row, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct RowMix {
    /// Normalised entropy, 0 to 1.
    pub entropy: f32,
    /// The gate, 0 to 1.
    pub gate: f32,
    /// The largest weights of the mixture, largest first: (token, weight).
    pub top: Vec<(u32, f32)>,
}

impl<B: Backend> Mixed<B> {
    /// Reads what was mixed back to the host, one entry per row.
    pub fn into_rows(self) -> Vec<RowMix> {
        let [batch] = self.entropy.dims();
        let entropy = self.entropy.into_data();
        let gate = self.gate.into_data();
        let mut rows: Vec<RowMix> = (entropy.iter::<f32>().zip(gate.iter::<f32>()))
            .map(|(entropy, gate)| RowMix { entropy, gate, top: Vec::new() })
            .collect();
        if let Some(Candidates { tokens, weights }) = self.candidates {
            let per_row = tokens.dims()[1];
            let (tokens, weights) = (tokens.into_data(), weights.into_data());
            let all: Vec<(u32, f32)> = tokens.iter::<u32>().zip(weights.iter::<f32>()).collect();
            debug_assert_eq!(all.len(), batch * per_row);
            for (row, candidates) in rows.iter_mut().zip(all.chunks(per_row)) {
                row.top = candidates.iter().copied().filter(|&(_, weight)| weight > 0.0).collect();
                row.top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                row.top.truncate(self.top);
            }
        }
        rows
    }
}

/// Why a batch cannot be mixed.
#[derive(Clone, Debug, PartialEq)]
pub enum MixError {
    /// A rule has a value it does not allow.
    Rule {
        /// The row of the batch.
        row: usize,
        /// What is wrong with its rule.
        error: RuleError,
    },
    /// Logits of nothing.
    Empty {
        /// What there is none of.
        what: &'static str,
    },
    /// Logits, tokens, rules and embedding do not fit together.
    Shape {
        /// What disagrees.
        what: &'static str,
        /// Its size according to the logits.
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
/// - `rules`: one per row; rows do not influence each other
/// - `top`: how many of the largest weights to report per row; 0 saves reading the distribution back
///
/// # Errors
/// If a rule has a value it does not allow, or sizes do not fit together.
///
/// # Panics
/// As the backend's `select` does, if a token is outside the vocabulary.
pub fn next_inputs<B: Backend>(
    logits: Tensor<B, 2>,
    tokens: Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    rules: &[InputRule],
    top: usize,
) -> Result<Mixed<B>, MixError> {
    check(&logits, &tokens, embedding, rules)?;
    let logits = logits.cast(DType::F32);
    let groups = groups(rules);
    if let [_] = groups.as_slice() {
        return Ok(mix_group(logits, tokens, embedding, rules, top));
    }
    let device = logits.device();
    let index = |rows: &[usize]| {
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        Tensor::<B, 1, Int>::from_data(TensorData::new(rows.clone(), [rows.len()]), &device)
    };
    let parts = groups.iter().map(|rows| {
        let rules: Vec<InputRule> = rows.iter().map(|&row| rules[row]).collect();
        let select = index(rows);
        mix_group(
            logits.clone().select(0, select.clone()),
            tokens.clone().select(0, select),
            embedding,
            &rules,
            top,
        )
    });
    let parts: Vec<Mixed<B>> = parts.collect();
    let order = groups.concat();
    let mut back = vec![0; order.len()];
    for (position, &row) in order.iter().enumerate() {
        back[row] = position;
    }
    Ok(join(parts, index(&back)))
}

fn check<B: Backend>(
    logits: &Tensor<B, 2>,
    tokens: &Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    rules: &[InputRule],
) -> Result<(), MixError> {
    let [batch, vocab] = logits.dims();
    let sizes = [
        ("tokens", batch, tokens.dims()[0]),
        ("rules", batch, rules.len()),
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
    for (row, rule) in rules.iter().enumerate() {
        rule.validated().map_err(|error| MixError::Rule { row, error })?;
    }
    Ok(())
}

/// Rows that are computed together: the same support, and all mixing or none.
fn groups(rules: &[InputRule]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let kind = |row: usize| (rules[row].support(), rules[row].mixes());
    for row in 0..rules.len() {
        match groups.iter_mut().find(|group| kind(group[0]) == kind(row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// A distribution on its support.
struct Distribution<B: Backend> {
    /// Probabilities `[n, support]`, sorted where the support is top-k.
    probability: Tensor<B, 2>,
    /// The tokens they belong to `[n, support]`; the whole vocabulary in order where absent.
    tokens: Option<Tensor<B, 2, Int>>,
    /// Normalised by ln(support) `[n, 1]`.
    entropy: Tensor<B, 2>,
}

impl<B: Backend> Distribution<B> {
    /// Of logits; with its probabilities only where they are asked for.
    fn new(
        logits: Tensor<B, 2>,
        support: Support,
        embedding: &impl EmbeddingRows<B>,
        probabilities: bool,
    ) -> Self {
        let vocab = logits.dims()[1];
        let (logits, tokens, size) = match support {
            Support::TopK(k) if k < vocab => {
                let (values, tokens) = top_k(logits, k);
                (values, Some(tokens), k)
            }
            _ => (logits, None, vocab),
        };
        let known = if tokens.is_none() { embedding.distribution(&logits, probabilities) } else { None };
        let (probability, nats) = known.unwrap_or_else(|| softmax(logits));
        let entropy = match size {
            1 => nats.zeros_like(),
            _ => nats.div_scalar((size as f64).ln()).clamp(0.0, 1.0),
        };
        Self { probability, tokens, entropy }
    }

    /// sum_i q_i E[i] `[n, d]`, float32.
    fn mean(&self, embedding: &impl EmbeddingRows<B>) -> Tensor<B, 2> {
        let q = self.probability.clone();
        match &self.tokens {
            None => embedding.weighted_sum(q).cast(DType::F32),
            Some(tokens) => {
                let [n, k] = tokens.dims();
                let rows = embedding.rows(tokens.clone().reshape([n * k])).cast(DType::F32);
                let d = rows.dims()[1];
                q.reshape([n, 1, k]).matmul(rows.reshape([n, k, d])).reshape([n, d])
            }
        }
    }

    /// The weights g q_i + (1 - g) [i = y] of the `top` most likely tokens and of y itself.
    fn candidates(&self, y: Tensor<B, 1, Int>, gate: Tensor<B, 2>, top: usize) -> Candidates<B> {
        let [n, support] = self.probability.dims();
        let top = top.min(support);
        let (q, tokens) = match &self.tokens {
            None => top_k(self.probability.clone(), top),
            Some(tokens) => {
                (self.probability.clone().slice([0..n, 0..top]), tokens.clone().slice([0..n, 0..top]))
            }
        };
        let y = y.reshape([n, 1]);
        let q_y = match &self.tokens {
            None => self.probability.clone().gather(1, y.clone()),
            Some(all) => {
                (self.probability.clone() * all.clone().equal(y.clone()).float().cast(DType::F32)).sum_dim(1)
            }
        };
        let is_y = tokens.clone().equal(y.clone()).float().cast(DType::F32);
        let sampled = q_y * gate.clone() + gate.clone().neg().add_scalar(1.0);
        // y stands in a column of its own; its weight there is the whole one, in the others nothing.
        let others = q * gate * is_y.neg().add_scalar(1.0);
        Candidates { tokens: Tensor::cat(vec![tokens, y], 1), weights: Tensor::cat(vec![others, sampled], 1) }
    }
}

/// Probabilities, and entropies in nats `[n, 1]`.
fn softmax<B: Backend>(logits: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
    // H = ln S - sum q_i s_i with s_i = logit_i - max and S = sum exp s_i: one exponential per entry.
    // The clamp keeps q_i s_i = 0 where a logit is -infinity (0 ln 0 = 0).
    let shifted = logits.clone() - logits.max_dim(1);
    let shifted = shifted.clamp_min(-1e30);
    let exp = shifted.clone().exp();
    let sum = exp.clone().sum_dim(1);
    let probability = exp / sum.clone();
    let nats = sum.log() - (probability.clone() * shifted).sum_dim(1);
    (probability, nats)
}

fn mix_group<B: Backend>(
    logits: Tensor<B, 2>,
    tokens: Tensor<B, 1, Int>,
    embedding: &impl EmbeddingRows<B>,
    rules: &[InputRule],
    top: usize,
) -> Mixed<B> {
    let n = rules.len();
    let device = logits.device();
    let distribution = Distribution::new(logits, rules[0].support(), embedding, rules[0].mixes() || top > 0);
    let gates: Vec<_> = rules.iter().map(InputRule::gate_of_entropy).collect();
    let column =
        |values: Vec<f32>| Tensor::<B, 2>::from_data(TensorData::new(values, [n, 1]), (&device, DType::F32));
    let slope = column(gates.iter().map(|gate| gate.slope).collect());
    let offset = column(gates.iter().map(|gate| gate.offset).collect());
    let gate = (distribution.entropy.clone() * slope + offset).clamp(0.0, 1.0);

    let token_rows = embedding.rows(tokens.clone());
    let inputs = if rules[0].mixes() {
        let dtype = token_rows.dtype();
        let token_rows = token_rows.cast(DType::F32);
        let mean = distribution.mean(embedding);
        (token_rows.clone() + (mean - token_rows) * gate.clone()).cast(dtype)
    } else {
        token_rows
    };
    let candidates = (top > 0).then(|| distribution.candidates(tokens, gate.clone(), top));
    Mixed { inputs, entropy: distribution.entropy.reshape([n]), gate: gate.reshape([n]), candidates, top }
}

/// Puts the rows of several groups back into the order of the batch.
fn join<B: Backend>(parts: Vec<Mixed<B>>, back: Tensor<B, 1, Int>) -> Mixed<B> {
    let top = parts[0].top;
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
        Candidates {
            tokens: Tensor::cat(tokens, 0).select(0, back.clone()),
            weights: Tensor::cat(weights, 0).select(0, back.clone()),
        }
    });
    Mixed { inputs: inputs.select(0, back), entropy, gate, candidates, top }
}

impl<B: Backend> Candidates<B> {
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
