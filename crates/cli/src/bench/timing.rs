//! Seconds that a row takes, once.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use moi_engine::{Batch, DEFAULT_PREFILL_CHUNK, Engine, InputRule, Prompt, Request};
use moi_models::{BlockTable, CausalLm, Decoder, ForwardBatch, KvPool, Span, Visible};

use super::{bandwidth::wait, plan::Test};

/// The prompt whose first token is timed, as `moi warmup` does.
const FIRST: usize = 20;

/// Until the first token of a short prompt.
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

/// What counts of a row: neither the positions before it nor, of a generation, the first token.
///
/// # Errors
/// If the device fails, or the model gives logits that nothing can be sampled from.
pub(super) fn run<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    device: &B::Device,
    test: &Test,
) -> Result<f64> {
    let time = match (test.rule, test.depth) {
        (None, _) => prompt(engine.model(), device, test)?,
        (Some(rule), _) if test.prompt == 0 => generation(engine, test, test.depth, rule)?,
        (Some(rule), 0) => both(engine, test, rule)?,
        // A batch cannot go on behind positions that do not count: the parts are measured.
        (Some(rule), depth) => {
            prompt(engine.model(), device, test)? + generation(engine, test, depth + test.prompt, rule)?
        }
    };
    Ok(time.as_secs_f64())
}

/// The prompt of all sequences at once, and the logits behind it.
fn prompt<B: Backend>(model: &Decoder<B>, device: &B::Device, test: &Test) -> Result<Duration> {
    let mut pool = model.new_pool(device);
    let mut tables: Vec<BlockTable> = (0..test.batch).map(|_| pool.table()).collect();
    if test.depth > 0 {
        forward(model, device, &mut pool, &mut tables, test.depth)?;
        wait::<B>(device)?;
    }
    let begun = Instant::now();
    let hidden = forward(model, device, &mut pool, &mut tables, test.prompt)?;
    // Read back: the host waits for them.
    std::hint::black_box(model.logits(hidden).into_data());
    Ok(begun.elapsed())
}

/// The next positions of all sequences, in pieces as the engine takes them; the last hidden states `[batch, d]`.
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

/// A token for every sequence, so many times, behind so many positions. The first token comes from the prompt.
fn generation<B: Backend>(
    engine: &Engine<B, Decoder<B>>,
    test: &Test,
    depth: usize,
    rule: InputRule,
) -> Result<Duration> {
    let mut batch = engine.batch();
    add(engine, &mut batch, test, depth, rule)?;
    steps(&mut batch, test, 1)?;
    let begun = Instant::now();
    steps(&mut batch, test, test.decode)?;
    Ok(begun.elapsed())
}

/// Prompts and the tokens behind them.
fn both<B: Backend>(engine: &Engine<B, Decoder<B>>, test: &Test, rule: InputRule) -> Result<Duration> {
    let mut batch = engine.batch();
    let begun = Instant::now();
    add(engine, &mut batch, test, test.prompt, rule)?;
    steps(&mut batch, test, 1 + test.decode)?;
    Ok(begun.elapsed())
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
    // So that all give their first tokens together.
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

/// Goes on until it is dropped; which tokens come does not matter.
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

/// Another token at every place, the same in every run.
fn id(row: usize, position: usize, vocab: usize) -> u32 {
    ((row * 131 + position + 1) * 7919 % vocab) as u32
}
