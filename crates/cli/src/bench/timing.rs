//! Measures the time of one row, once.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi_engine::{Batch, DEFAULT_PREFILL_CHUNK, Engine, InputRule, Prompt, Request};
use moi_models::{BlockTable, CausalLm, Decoder, ForwardBatch, KvPool, Span, Visible};

use super::{
    bandwidth::wait,
    energy::{Meter, Stopwatch, Used},
    plan::Test,
};

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
    meter: Option<&Meter>,
) -> Result<Used> {
    match (test.rule, test.depth) {
        (None, _) => prompt(engine.model(), device, test, meter),
        (Some(rule), _) if test.prompt == 0 => generation(engine, test, test.depth, rule, meter),
        (Some(rule), 0) => both(engine, test, rule, meter),
        // The batch cannot include uncounted positions here, so prompt and generation are measured separately.
        (Some(rule), depth) => Ok(prompt(engine.model(), device, test, meter)?
            + generation(engine, test, depth + test.prompt, rule, meter)?),
    }
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
    depth: usize,
    rule: InputRule,
    meter: Option<&Meter>,
) -> Result<Used> {
    let mut batch = engine.batch();
    add(engine, &mut batch, test, depth, rule)?;
    steps(&mut batch, test, 1)?;
    let watch = Stopwatch::start(meter);
    steps(&mut batch, test, test.decode)?;
    Ok(watch.stop())
}

/// Runs the prompts and generates the tokens after them.
fn both<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    test: &Test,
    rule: InputRule,
    meter: Option<&Meter>,
) -> Result<Used> {
    let mut batch = engine.batch();
    let watch = Stopwatch::start(meter);
    add(engine, &mut batch, test, test.prompt, rule)?;
    steps(&mut batch, test, 1 + test.decode)?;
    Ok(watch.stop())
}

fn add<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    batch: &mut Batch<'_, B, Decoder<B>>,
    test: &Test,
    positions: usize,
    rule: InputRule,
) -> Result<()> {
    for row in 0..test.batch {
        batch.add(request(engine, row, positions.max(1), rule))?;
    }
    // Run all prompts first, so that all sequences give their first token in the same step.
    Ok(batch.run_prompts()?)
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
