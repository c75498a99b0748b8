//! The tokens and next inputs of a step: decided on the device and read later, or decided on the host.

use std::sync::{Mutex, PoisonError};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend, try_read_sync};
use moi::RowMix;
use moi_models::{CausalLm, with_values};
use moi_sampling::{Decision, Reading, RowSpec};

use crate::{
    DeviceSampler, Engine, EngineError, Sampled,
    rows::{Rows, ids_tensor},
    sampler::raw_logprob,
    token_chooser::TokenChooser,
};

/// What was sampled for a row and mixed into its next input.
pub(crate) type SampledMix = (Sampled, RowMix);

/// A sampled token and its mixture, or why this row alone could not be sampled.
pub(crate) type Outcome = Result<SampledMix, EngineError>;

/// The next inputs of some rows, and their tokens, which are known or still on the device.
#[derive(Debug)]
pub(crate) struct PendingStep<B: Backend> {
    /// The next inputs `[rows, d]`.
    pub(crate) inputs: Tensor<B, 2>,
    results: Vec<RowResults>,
}

#[derive(Debug)]
enum RowResults {
    Ready(Vec<Outcome>),
    InFlight { reading: InFlightRead, rows: Vec<usize> },
}

/// A read from the device that is in flight. It is waited for even if it is dropped, because burn's Wgpu backend
/// frees the memory of an abandoned read while the driver still writes to it.
struct InFlightRead(Option<Reading>);

impl InFlightRead {
    fn wait(mut self) -> Result<Vec<Decision>, String> {
        let reading = self.0.take().ok_or_else(|| SHORT.to_owned())?;
        try_read_sync(reading).unwrap_or_else(|| Err("it cannot be waited for".to_owned()))
    }
}

impl Drop for InFlightRead {
    fn drop(&mut self) {
        if let Some(reading) = self.0.take() {
            // The result is not needed any more, even if it is an error.
            let _ = try_read_sync(reading);
        }
    }
}

impl std::fmt::Debug for InFlightRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InFlightRead")
    }
}

impl<B: Backend> PendingStep<B> {
    /// Samples from logits `[rows, vocab]` and mixes, without waiting for the device if the device can do both.
    pub(crate) fn new<M: CausalLm<B>>(
        engine: &Engine<B, M>,
        logits: Tensor<B, 2>,
        rows: &mut [&mut TokenChooser],
    ) -> Result<Self, EngineError> {
        let uniforms: Vec<f64> = rows.iter_mut().map(|row| row.sampler.draw()).collect();
        let table = engine.rows();
        if let Some(launched) = Self::on_device(engine.device_sampler(), &table, &logits, rows, &uniforms) {
            return Ok(launched);
        }
        let (outcomes, inputs) = on_host(&table, logits, rows, &uniforms)?;
        Ok(Self { inputs, results: vec![RowResults::Ready(outcomes)] })
    }

    /// Samples and mixes on the device with uniform numbers that were drawn before; `None` if the device has no
    /// kernels for it, or none for such rows.
    pub(crate) fn on_device(
        sampler: &dyn DeviceSampler<B>,
        table: &Rows<'_, B>,
        logits: &Tensor<B, 2>,
        rows: &mut [&mut TokenChooser],
        uniforms: &[f64],
    ) -> Option<Self> {
        let vocab = logits.dims()[1];
        let tolerance = table.mixing.tolerance();
        let specs = rows.iter().zip(uniforms).map(|(row, &uniform)| row.spec(uniform, vocab, tolerance));
        let specs = specs.collect::<Option<Vec<RowSpec>>>()?;
        let (inputs, reading) = sampler.sample_and_mix(logits, table.embedding, table.mixing, &specs)?;
        rows.iter_mut().for_each(|row| row.row.pass());
        let rows = (0..rows.len()).collect();
        Some(Self {
            inputs,
            results: vec![RowResults::InFlight { reading: InFlightRead(Some(reading)), rows }],
        })
    }

    /// Appends the steps of other rows.
    pub(crate) fn and(mut self, others: Option<Self>) -> Self {
        if let Some(others) = others {
            // Mixtures of a device are in float32, those of the host in the embedding's type.
            let (dtype, more) = (self.inputs.dtype(), others.inputs);
            self.inputs = Tensor::cat(vec![self.inputs, more.cast(dtype)], 0);
            self.results.extend(others.results);
        }
        self
    }

    /// Whether the device decides all rows by itself, so that the next step can be launched before the tokens are
    /// known.
    pub(crate) fn is_in_flight(&self) -> bool {
        self.results.iter().all(|results| matches!(results, RowResults::InFlight { .. }))
    }

    /// Keeps some of the rows, in order.
    pub(crate) fn keep(mut self, keep: &[usize], device: &B::Device) -> Self {
        self.inputs = kept(self.inputs, keep, device);
        let mut first = 0;
        for results in &mut self.results {
            let count = results.len();
            let own: Vec<usize> =
                keep.iter().filter_map(|&row| row.checked_sub(first)).filter(|&i| i < count).collect();
            match results {
                RowResults::Ready(known) => {
                    let mut index = 0..;
                    known.retain(|_| index.next().is_some_and(|i| own.contains(&i)));
                }
                RowResults::InFlight { rows, .. } => *rows = own.iter().map(|&i| rows[i]).collect(),
            }
            first += count;
        }
        self
    }

    /// Waits for the tokens. Returns what was sampled and mixed for each row, and the next inputs `[rows, d]`, which
    /// are meaningless for a row that failed. `step_of` says how many tokens a row had generated before.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn wait(
        self,
        step_of: impl Fn(usize) -> usize,
    ) -> Result<(Vec<Outcome>, Tensor<B, 2>), EngineError> {
        let mut all = Vec::new();
        for results in self.results {
            match results {
                RowResults::Ready(known) => all.extend(known),
                RowResults::InFlight { reading, rows } => {
                    let decisions = reading.wait().map_err(EngineError::Reading)?;
                    for row in rows {
                        let decision =
                            decisions.get(row).ok_or_else(|| EngineError::Reading(SHORT.to_owned()))?;
                        all.push(outcome(decision, step_of(all.len())));
                    }
                }
            }
        }
        Ok((all, self.inputs))
    }
}

const SHORT: &str = "it returned fewer rows than it was asked for";

impl RowResults {
    fn len(&self) -> usize {
        match self {
            Self::Ready(known) => known.len(),
            Self::InFlight { rows, .. } => rows.len(),
        }
    }
}

/// Selects rows of a tensor, in order. Returns the tensor itself if all are kept.
pub(crate) fn kept<B: Backend>(inputs: Tensor<B, 2>, keep: &[usize], device: &B::Device) -> Tensor<B, 2> {
    if keep.len() == inputs.dims()[0] {
        return inputs;
    }
    let keep: Vec<u32> = keep.iter().map(|&row| row as u32).collect();
    inputs.select(0, ids_tensor::<B>(&keep, device))
}

/// Samples and mixes on the host. Returns the outcome of each row, and the next inputs `[rows, d]`. A row that fails
/// takes no part in the mixture, and its input is meaningless.
///
/// # Errors
/// If the rows cannot be mixed.
pub(crate) fn on_host<B: Backend>(
    table: &Rows<'_, B>,
    logits: Tensor<B, 2>,
    rows: &mut [&mut TokenChooser],
    uniforms: &[f64],
) -> Result<(Vec<Outcome>, Tensor<B, 2>), EngineError> {
    let ([count, vocab], device) = (logits.dims(), logits.device());
    let chosen = with_values(&logits, |host| choose(rows, uniforms, host, vocab));
    if chosen.iter().all(Result::is_ok) {
        let chosen = chosen.into_iter().flatten().collect();
        let (outcomes, inputs) = mixed_on_host(table, logits, rows, chosen)?;
        return Ok((outcomes.into_iter().map(Ok).collect(), inputs));
    }
    let good: Vec<usize> = (0..count).filter(|&row| chosen[row].is_ok()).collect();
    let (chosen, failed): (Vec<_>, Vec<_>) = chosen.into_iter().partition(Result::is_ok);
    let failed = failed.into_iter().filter_map(Result::err).map(Err);
    if good.is_empty() {
        let inputs = Tensor::zeros([count, table.embedding.dims()[1]], (&device, DType::F32));
        return Ok((failed.collect(), inputs));
    }
    let mut good_rows: Vec<&mut TokenChooser> = Vec::with_capacity(good.len());
    for (row, chooser) in rows.iter_mut().enumerate() {
        if good.contains(&row) {
            good_rows.push(chooser);
        }
    }
    let logits = kept(logits, &good, &device);
    let chosen = chosen.into_iter().flatten().collect();
    let (outcomes, inputs) = mixed_on_host(table, logits, &mut good_rows, chosen)?;
    let (mut outcomes, mut failed) = (outcomes.into_iter().map(Ok), failed);
    // A failed row gets the input of another row as a placeholder, so that the rows keep their places.
    let places: Vec<u32> =
        (0..count).map(|row| good.iter().position(|&g| g == row).unwrap_or(0) as u32).collect();
    let inputs = inputs.select(0, ids_tensor::<B>(&places, &device));
    let of_row = |row| if good.contains(&row) { outcomes.next() } else { failed.next() };
    Ok(((0..count).filter_map(of_row).collect(), inputs))
}

/// A sampled token, and the logits for the mixture if limits narrow them.
type Chosen = (Sampled, Option<Vec<f32>>);

/// Samples the tokens of rows from their logits `[rows, vocab]`. Each row gets its own thread if there are about as
/// many rows as threads, or if a row needs long work that cannot be shared by threads.
fn choose(
    rows: &mut [&mut TokenChooser],
    uniforms: &[f64],
    logits: &[f32],
    vocab: usize,
) -> Vec<Result<Chosen, EngineError>> {
    let chosen =
        |row: &mut TokenChooser, index: usize| row.choose(&logits[index * vocab..][..vocab], uniforms[index]);
    if 2 * rows.len() < moi_kernels::pool::threads() && rows.iter().all(|row| row.is_plain()) {
        return rows.iter_mut().enumerate().map(|(index, row)| chosen(row, index)).collect();
    }
    let places: Vec<_> = rows.iter_mut().map(|row| Mutex::new((row, None))).collect();
    moi_kernels::pool::run_unequal(places.len(), |index| {
        let mut place = places[index].lock().unwrap_or_else(PoisonError::into_inner);
        let (row, found) = &mut *place;
        *found = Some(chosen(row, index));
    });
    let found = |place: Mutex<(_, Option<_>)>| place.into_inner().unwrap_or_else(PoisonError::into_inner).1;
    places.into_iter().filter_map(found).collect()
}

/// Mixes the sampled tokens of the rows. Returns the mixtures and the next inputs `[rows, d]`.
fn mixed_on_host<B: Backend>(
    table: &Rows<'_, B>,
    logits: Tensor<B, 2>,
    rows: &mut [&mut TokenChooser],
    chosen: Vec<Chosen>,
) -> Result<(Vec<SampledMix>, Tensor<B, 2>), EngineError> {
    let (vocab, device) = (logits.dims()[1], logits.device());
    let (mut sampled, narrowed): (Vec<Sampled>, Vec<Option<Vec<f32>>>) = chosen.into_iter().unzip();
    let to_mix = match narrowed.iter().any(Option::is_some) {
        true => with_values(&logits, |host| {
            let rows = narrowed.into_iter().zip(host.chunks(vocab));
            let values: Vec<f32> = rows.flat_map(|(own, raw)| own.unwrap_or_else(|| raw.to_vec())).collect();
            Tensor::from_data(TensorData::new(values, logits.dims()), (&device, DType::F32))
        }),
        false => logits.clone(),
    };
    let tokens: Vec<u32> = sampled.iter().map(|sampled| sampled.token).collect();
    let top = rows.iter().map(|row| row.top).max().unwrap_or(0);
    let mut mixed_rows: Vec<&mut moi::RuleState> = rows.iter_mut().map(|row| &mut row.row).collect();
    let mixed = moi::mix(to_mix, ids_tensor::<B>(&tokens, &device), table, &mut mixed_rows, top)?;
    let inputs = mixed.inputs.clone();
    let mut mixes = mixed.into_rows();
    for (mix, _) in mixes.iter_mut().zip(rows.iter()).filter(|(_, row)| row.is_forced()) {
        mix.token = None;
    }
    // A rule may have replaced the sampled token.
    let other = |(sampled, mix): (&Sampled, &RowMix)| mix.token.is_some_and(|token| token != sampled.token);
    if sampled.iter().zip(&mixes).any(other) {
        with_values(&logits, |host| {
            for ((sampled, mix), logits) in sampled.iter_mut().zip(&mixes).zip(host.chunks(vocab)) {
                if let Some(token) = mix.token {
                    (sampled.token, sampled.logprob) = (token, raw_logprob(logits, token));
                }
            }
        });
    }
    Ok((sampled.into_iter().zip(mixes).collect(), inputs))
}

/// Converts a device's decision to the result that the host gives.
fn outcome(decision: &Decision, step: usize) -> Outcome {
    let &Decision { token, logprob, entropy, gate, largest, broken, token_probability, .. } = decision;
    let what = match largest {
        _ if broken && largest == f32::INFINITY => Some("infinity"),
        _ if broken => Some("NaN"),
        // Lower than any logit of float32: the device gives this for a row of nothing but -infinity.
        _ if largest < -1e38 => Some("no finite value"),
        _ => None,
    };
    if let Some(what) = what {
        return Err(EngineError::BadLogits { step, what, origin: None });
    }
    let others = decision.likeliest.iter().filter(|&&(id, _)| id != token).map(|&(id, q)| (id, q * gate));
    let own = (token, token_probability * gate + (1.0 - gate));
    let mut top: Vec<(u32, f32)> = others.chain([own]).filter(|&(_, weight)| weight > 0.0).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let sampled = Sampled { token, logprob: logprob.into(), likeliest: Vec::new() };
    Ok((sampled, RowMix { entropy, gate, top, token: None, ends: false }))
}
