//! A step's tokens and next inputs: decided on the device, and told later, or on the host.

use burn::tensor::{Tensor, backend::Backend, try_read_sync};
use moi::{InputRule, RowMix, Support, next_inputs};
use moi_models::{CausalLm, Decision, Embedding, Reading, RowSpec, with_values};

use crate::{
    Engine, EngineError, Sampled, Sampler, Sampling,
    engine::{Rows, ids_tensor},
};

/// What decides a row's token and next input.
pub(crate) trait Decides {
    fn rule(&self) -> InputRule;
    /// Largest mixture weights to report.
    fn top(&self) -> usize;
    fn sampler(&mut self) -> &mut Sampler;
}

impl<R: Decides> Decides for &mut R {
    fn rule(&self) -> InputRule {
        (**self).rule()
    }

    fn top(&self) -> usize {
        (**self).top()
    }

    fn sampler(&mut self) -> &mut Sampler {
        (**self).sampler()
    }
}

/// What was sampled for a row and mixed into its next input.
pub(crate) type Outcome = (Sampled, RowMix);

/// The tokens of some rows, known or under way, and the next inputs of these rows.
#[derive(Debug)]
pub(crate) struct Launched<B: Backend> {
    /// `[rows, d]`.
    pub(crate) inputs: Tensor<B, 2>,
    told: Vec<Told>,
}

#[derive(Debug)]
enum Told {
    Known(Vec<Outcome>),
    Coming { reading: Coming, rows: Vec<usize> },
}

/// On its way from the device. Waited for in the end even if nobody asks: burn's Wgpu backend takes the memory of a read
/// that is given up for free while the driver still writes to it.
struct Coming(Option<Reading>);

impl Coming {
    fn wait(mut self) -> Result<Vec<Decision>, String> {
        let reading = self.0.take().ok_or_else(|| SHORT.to_owned())?;
        try_read_sync(reading).unwrap_or_else(|| Err("it cannot be waited for".to_owned()))
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if let Some(reading) = self.0.take() {
            // What it says, and whether that is an error, is of no use any more.
            let _ = try_read_sync(reading);
        }
    }
}

impl std::fmt::Debug for Coming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Coming")
    }
}

impl<B: Backend> Launched<B> {
    /// Samples from logits `[rows, vocab]` and mixes: without waiting for the device, if it can do that by itself.
    pub(crate) fn new<M: CausalLm<B>, R: Decides>(
        engine: &Engine<B, M>,
        logits: Tensor<B, 2>,
        rows: &mut [R],
    ) -> Result<Self, EngineError> {
        let vocab = logits.dims()[1];
        let uniforms: Vec<f64> = rows.iter_mut().map(|row| row.sampler().draw()).collect();
        let embedding = engine.model().embedding();
        if let Some(launched) = Self::on_device(embedding, &logits, rows, &uniforms) {
            return Ok(launched);
        }
        let sampled: Vec<Sampled> = with_values(&logits, |host| {
            let rows = rows.iter_mut().zip(&uniforms).zip(host.chunks(vocab));
            rows.map(|((row, &uniform), logits)| row.sampler().choose(logits, uniform))
                .collect::<Result<_, _>>()
        })?;
        let tokens: Vec<u32> = sampled.iter().map(|sampled| sampled.token).collect();
        let tokens = ids_tensor::<B>(&tokens, &engine.device);
        let rules: Vec<InputRule> = rows.iter().map(Decides::rule).collect();
        let top = rows.iter().map(Decides::top).max().unwrap_or(0);
        let mixed = next_inputs(logits, tokens, &Rows(embedding), &rules, top)?;
        let inputs = mixed.inputs.clone();
        let known = sampled.into_iter().zip(mixed.into_rows()).collect();
        Ok(Self { inputs, told: vec![Told::Known(known)] })
    }

    /// The same, decided by the device with numbers that were drawn; `None` where it has no kernels for it, or none for
    /// such rows.
    pub(crate) fn on_device<R: Decides>(
        embedding: &Embedding<B>,
        logits: &Tensor<B, 2>,
        rows: &mut [R],
        uniforms: &[f64],
    ) -> Option<Self> {
        let vocab = logits.dims()[1];
        let specs: Vec<RowSpec> = (rows.iter_mut().zip(uniforms))
            .map(|(row, &uniform)| spec(row.rule(), row.top(), row.sampler().sampling(), uniform, vocab))
            .collect();
        let (inputs, reading) = moi_models::step(logits, embedding, &specs)?;
        let rows = (0..rows.len()).collect();
        Some(Self { inputs, told: vec![Told::Coming { reading: Coming(Some(reading)), rows }] })
    }

    /// These rows, and others behind them.
    pub(crate) fn and(mut self, others: Option<Self>) -> Self {
        if let Some(others) = others {
            // A device's own mixtures are in float32, the host's in the embedding's type.
            let (dtype, more) = (self.inputs.dtype(), others.inputs);
            self.inputs = Tensor::cat(vec![self.inputs, more.cast(dtype)], 0);
            self.told.extend(others.told);
        }
        self
    }

    /// Whether the device decides by itself, so that the next step can be launched before the tokens are known.
    pub(crate) fn is_coming(&self) -> bool {
        self.told.iter().all(|told| matches!(told, Told::Coming { .. }))
    }

    /// Some of the rows, in order.
    pub(crate) fn keep(mut self, keep: &[usize], device: &B::Device) -> Self {
        self.inputs = kept(self.inputs, keep, device);
        let mut first = 0;
        for told in &mut self.told {
            let count = told.len();
            let own: Vec<usize> =
                keep.iter().filter_map(|&row| row.checked_sub(first)).filter(|&i| i < count).collect();
            match told {
                Told::Known(known) => *known = own.iter().map(|&i| known[i].clone()).collect(),
                Told::Coming { rows, .. } => *rows = own.iter().map(|&i| rows[i]).collect(),
            }
            first += count;
        }
        self
    }

    /// Waits for the tokens: what was sampled and mixed for each row, and the next inputs.
    ///
    /// # Errors
    /// If a row's logits are broken, or the device fails. `step_of` says how many tokens a row had before.
    pub(crate) fn wait(
        self,
        step_of: impl Fn(usize) -> usize,
    ) -> Result<(Vec<Outcome>, Tensor<B, 2>), EngineError> {
        let mut all = Vec::new();
        for told in self.told {
            match told {
                Told::Known(known) => all.extend(known),
                Told::Coming { reading, rows } => {
                    let decisions = reading.wait().map_err(EngineError::Reading)?;
                    for row in rows {
                        let decision =
                            decisions.get(row).ok_or_else(|| EngineError::Reading(SHORT.to_owned()))?;
                        all.push(outcome(decision, step_of(all.len()))?);
                    }
                }
            }
        }
        Ok((all, self.inputs))
    }
}

const SHORT: &str = "it told less than it was asked";

impl Told {
    fn len(&self) -> usize {
        match self {
            Self::Known(known) => known.len(),
            Self::Coming { rows, .. } => rows.len(),
        }
    }
}

/// Some rows of a tensor, in order; the tensor itself where that is all.
pub(crate) fn kept<B: Backend>(inputs: Tensor<B, 2>, keep: &[usize], device: &B::Device) -> Tensor<B, 2> {
    if keep.len() == inputs.dims()[0] {
        return inputs;
    }
    let keep: Vec<u32> = keep.iter().map(|&row| row as u32).collect();
    inputs.select(0, ids_tensor::<B>(&keep, device))
}

/// What a device is told of a row.
fn spec(rule: InputRule, top: usize, sampling: Sampling, uniform: f64, vocab: usize) -> RowSpec {
    let gate = rule.gate_of_entropy();
    RowSpec {
        temperature: sampling.temperature as f32,
        top_k: sampling.top_k,
        top_p: sampling.top_p as f32,
        min_p: sampling.min_p as f32,
        // Rounding must not make it 1.
        uniform: (uniform as f32).min(1.0 - f32::EPSILON / 2.0),
        slope: gate.slope,
        offset: gate.offset,
        mixes: rule.mixes(),
        support: match rule.support() {
            Support::TopK(k) if k < vocab => Some(k),
            Support::TopK(_) | Support::Full => None,
        },
        top: top.min(vocab),
    }
}

/// A device's decision in the words of a step.
fn outcome(decision: &Decision, step: usize) -> Result<Outcome, EngineError> {
    let &Decision { token, logprob, entropy, gate, largest, broken, token_probability, .. } = decision;
    let what = match largest {
        _ if broken && largest == f32::INFINITY => Some("infinity"),
        _ if broken => Some("NaN"),
        // Lower than any logit of float32: what stands for a row of minus infinity.
        _ if largest < -1e38 => Some("no finite value"),
        _ => None,
    };
    if let Some(what) = what {
        return Err(EngineError::BadLogits { step, what });
    }
    let others = decision.likeliest.iter().filter(|&&(id, _)| id != token).map(|&(id, q)| (id, q * gate));
    let own = (token, token_probability * gate + (1.0 - gate));
    let mut top: Vec<(u32, f32)> = others.chain([own]).filter(|&(_, weight)| weight > 0.0).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    Ok((Sampled { token, logprob: logprob.into() }, RowMix { entropy, gate, top }))
}
