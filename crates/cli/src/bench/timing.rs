//! Measures the time of one row, once.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use anyhow::{Error, Result, anyhow, bail};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi_engine::{
    Batch, DEFAULT_PREFILL_CHUNK, DrafterChoice, Engine, EngineError, InputRule, Prompt, Request,
    Speculation, SpeculationReport, Verify, speculation::RecyclingTable,
};
use moi_models::{BlockTable, CausalLm, Decoder, ForwardBatch, KvPool, Span, Visible};

use super::{
    bandwidth::wait,
    energy::{Meter, Stopwatch, Used},
    plan::Test,
};
use crate::draft_model::Speculate;

/// What generations of a group continue, and how their drafts are verified.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drafts<'a> {
    /// The tokens of a text that all sequences continue; random ones without it.
    pub(super) text: Option<&'a [u32]>,
    pub(super) verify: Verify,
    pub(super) temperature: f64,
}

/// Length of the prompt for the time to the first token, as in `moi warmup`.
const FIRST: usize = 20;

/// The time until the first token of a short prompt.
///
/// # Errors
/// If the device fails.
pub(super) fn first_token<B: Backend>(engine: &Engine<B, Decoder<B>>) -> Result<Duration> {
    let begun = Instant::now();
    let prompt = FIRST.min(engine.model().context_length());
    let mut steps = engine.generate(request(engine, 0, prompt, InputRule::default()))?;
    steps.next().ok_or_else(|| anyhow!("the model gave no token"))??;
    Ok(begun.elapsed())
}

/// Measures a row. The positions in the cache before it are not counted, nor is the first token of a generation.
///
/// # Errors
/// If the device fails, or the model gives logits that nothing can be sampled from.
pub(super) fn run<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    device: &B::Device,
    test: &Test,
    drafts: &Drafts<'_>,
    meter: Option<&Meter>,
) -> Result<Used> {
    if test.speculate.is_some() {
        forget(engine);
    }
    match (test.rule, test.depth) {
        (None, _) => prompt(engine.model(), device, test, meter),
        (Some(rule), _) if test.prompt == 0 => generation(engine, test, (test.depth, rule), drafts, meter),
        (Some(rule), 0) => both(engine, test, rule, drafts, meter),
        // The batch cannot include uncounted positions here, so prompt and generation are measured separately.
        (Some(rule), depth) => Ok(prompt(engine.model(), device, test, meter)?
            + generation(engine, test, (depth + test.prompt, rule), drafts, meter)?),
    }
}

/// Empties the table of successors that recycling has learned, so that no run knows the text of the one before.
fn forget<B: Backend>(engine: &Engine<B, Decoder<B>>) {
    let mut table = engine.recycling_table().lock().unwrap_or_else(PoisonError::into_inner);
    *table = RecyclingTable::new(engine.model().embedding().dims()[0], table.width());
}

/// Why the drafts of a row can gain nothing, if they cannot.
pub(super) fn cannot_draft<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    test: &Test,
    drafts: &Drafts<'_>,
) -> Option<EngineError> {
    let rule = test.rule.filter(|_| test.speculate.is_some())?;
    let request = asked(engine, test, (0, 1, rule), drafts, false).ok()?;
    match engine.prepare(request) {
        Err(error @ EngineError::NoSpeculation(_)) => Some(error),
        _ => None,
    }
}

/// What speculation does in a row that drafts, by a generation of its own, because that takes more time.
///
/// # Errors
/// As [`run`].
pub(super) fn report<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    test: &Test,
    drafts: &Drafts<'_>,
) -> Result<Option<SpeculationReport>> {
    let Some(rule) = test.rule.filter(|_| test.speculate.is_some()) else { return Ok(None) };
    forget(engine);
    let mut batch = engine.batch();
    add(
        engine,
        &mut batch,
        &Test { batch: 1, ..test.clone() },
        (test.depth + test.prompt, rule),
        drafts,
        true,
    )?;
    let mut report = None;
    while !batch.is_empty() {
        for step in batch.step()? {
            report =
                step?.speculated.and_then(|speculated| speculated.report).map(|report| *report).or(report);
        }
    }
    Ok(report)
}

/// Runs the prompts of all sequences at once, and computes the logits after them.
fn prompt<B: Backend>(
    model: &Decoder<B>,
    device: &B::Device,
    test: &Test,
    meter: Option<&Meter>,
) -> Result<Used> {
    let mut pool = model.new_pool(device);
    let mut tables: Vec<BlockTable> = (0..test.batch).map(|_| pool.table()).collect();
    if test.depth > 0 {
        forward(model, device, &mut pool, &mut tables, test.depth)?;
        wait::<B>(device)?;
    }
    let watch = Stopwatch::start(meter);
    let hidden = forward(model, device, &mut pool, &mut tables, test.prompt)?;
    // Reading the logits back waits for the device.
    std::hint::black_box(model.logits(hidden).into_data());
    Ok(watch.stop())
}

/// Runs the next positions of all sequences, in the same pieces as the engine. Returns the last hidden states
/// `[batch, d]`.
fn forward<B: Backend>(
    model: &Decoder<B>,
    device: &B::Device,
    pool: &mut KvPool<B>,
    tables: &mut [BlockTable],
    positions: usize,
) -> Result<Tensor<B, 2>> {
    let (batch, vocab) = (tables.len(), model.config().vocab_size);
    let (begin, mut done, mut last) = (tables.first().map_or(0, BlockTable::len), 0, None);
    while done < positions {
        let seq = DEFAULT_PREFILL_CHUNK.min(positions - done);
        let start = begin + done;
        let row = |row: usize| (start..start + seq).map(move |position| i64::from(id(row, position, vocab)));
        let ids: Vec<i64> = (0..batch).flat_map(row).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [batch * seq]), device);
        let spans = tables.iter_mut().map(|table| Span { table, len: seq, visible: Visible::Causal });
        let hidden =
            model.forward(ForwardBatch { inputs: model.embed(ids), spans: spans.collect() }, pool)?;
        let width = hidden.dims()[1];
        let ends = hidden.reshape([batch, seq, width]).narrow(1, seq - 1, 1).reshape([batch, width]);
        last = Some(ends);
        done += seq;
    }
    last.ok_or_else(|| anyhow!("a prompt of no tokens"))
}

/// Generates `test.decode` tokens for every sequence, after `depth` positions. The first token comes from the prompt
/// and is not counted.
fn generation<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    test: &Test,
    behind: (usize, InputRule),
    drafts: &Drafts<'_>,
    meter: Option<&Meter>,
) -> Result<Used> {
    let mut batch = engine.batch();
    add(engine, &mut batch, test, behind, drafts, false)?;
    steps(&mut batch, test, 1)?;
    let watch = Stopwatch::start(meter);
    rest(&mut batch, test)?;
    Ok(watch.stop())
}

/// Runs the prompts and generates the tokens after them.
fn both<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    test: &Test,
    rule: InputRule,
    drafts: &Drafts<'_>,
    meter: Option<&Meter>,
) -> Result<Used> {
    let mut batch = engine.batch();
    let watch = Stopwatch::start(meter);
    add(engine, &mut batch, test, (test.prompt, rule), drafts, false)?;
    steps(&mut batch, test, 1)?;
    rest(&mut batch, test)?;
    Ok(watch.stop())
}

/// Generates what is left behind the first tokens. A pass with drafts may give several tokens of a sequence.
fn rest<B: Backend>(batch: &mut Batch<'_, B, Decoder<B>>, test: &Test) -> Result<()> {
    if test.speculate.is_none() {
        return steps(batch, test, test.decode);
    }
    let mut count = 0;
    while !batch.is_empty() {
        count += batch.step()?.into_iter().collect::<Result<Vec<_>, _>>()?.len();
    }
    if count != test.batch * test.decode {
        bail!("{count} tokens came, and {} were asked for", test.batch * test.decode);
    }
    Ok(())
}

fn add<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    batch: &mut Batch<'_, B, Decoder<B>>,
    test: &Test,
    (positions, rule): (usize, InputRule),
    drafts: &Drafts<'_>,
    optimum: bool,
) -> Result<()> {
    for row in 0..test.batch {
        batch.add(asked(engine, test, (row, positions, rule), drafts, optimum)?)?;
    }
    // Run all prompts first, so that all sequences give their first token in the same step.
    Ok(batch.run_prompts()?)
}

/// The request of a row, with its drafter if it has one.
fn asked<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    test: &Test,
    (row, positions, rule): (usize, usize, InputRule),
    drafts: &Drafts<'_>,
    optimum: bool,
) -> Result<Request<B>> {
    let mut request = request(engine, row, positions.max(1), rule);
    request.sampling.temperature = drafts.temperature.into();
    if let Some(text) = drafts.text {
        request.prompt = Prompt::Ids(text.to_vec());
    }
    if let Some(speculate) = &test.speculate {
        let drafter = speculate.parse::<Speculate>().map_err(Error::msg)?.drafter();
        let verify = if drafter == DrafterChoice::Model { drafts.verify } else { Verify::Match };
        request.speculation = Speculation { verify, optimum, ..Speculation::by(drafter) };
        request.stop.max_tokens = Some(1 + test.decode);
    }
    Ok(request)
}

fn steps<B: Backend>(batch: &mut Batch<'_, B, Decoder<B>>, test: &Test, count: usize) -> Result<()> {
    for _ in 0..count {
        let rows = batch.step()?.into_iter().collect::<Result<Vec<_>, _>>()?.len();
        if rows != test.batch {
            bail!("{rows} of {} sequences gave a token", test.batch);
        }
    }
    Ok(())
}

/// A request that continues until it is dropped; its tokens do not matter.
fn request<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    row: usize,
    prompt: usize,
    rule: InputRule,
) -> Request<B> {
    let vocab = engine.model().config().vocab_size;
    let mut request =
        Request::new(Prompt::Ids((0..prompt).map(|position| id(row, position, vocab)).collect()));
    request.rule = rule;
    request.stop.ignore_eos = true;
    request
}

/// A token id that differs from position to position, but is the same in every run.
pub(super) fn id(row: usize, position: usize, vocab: usize) -> u32 {
    ((row * 131 + position + 1) * 7919 % vocab) as u32
}
