//! `moi score`: the probability of a text under a model.

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use moi_engine::Scored;
use moi_pretrained::Pretrained;
use serde::Serialize;

use crate::{
    args::{Format, ScoreArgs},
    backend::{Device, Job},
    file,
    likely::{Likely, decoded, likely},
    model,
    output::{self, dtype_name},
    prompt, ui,
};

/// Positions of a window, unless the model has fewer or --window is given.
const WINDOW: usize = 2048;

/// Scores a text and prints the result.
pub(crate) fn run(args: &ScoreArgs) -> Result<()> {
    let pretrained = model::open(&args.model)?;
    let text = read(&args.file)?;
    let ids = match prompt::usable(&pretrained.tokenizer)? {
        Some(tokenizer) => tokenizer.encode(&text, true)?,
        None => bail!("the model `{}` has no tokenizer, so it cannot read a text", args.model.model),
    };
    if ids.len() < 2 {
        let named = if args.file == "-" { "the text on stdin" } else { &args.file };
        bail!("{named} is too short: a score needs at least two tokens");
    }
    let window = args.window.unwrap_or(WINDOW).min(pretrained.architecture.config.context_length);
    let overlap = args.overlap.unwrap_or(window / 2);
    if overlap == 0 || overlap >= window {
        bail!("the overlap must be 1 or more and less than the window, which is {window}; got {overlap}");
    }
    let device = Device::chosen(args.model.device);
    device.run(Score { args, device, pretrained, bytes: text.len(), ids, window, overlap })
}

fn read(path: &str) -> Result<String> {
    if path == "-" {
        return file::stdin_text().context("the text on stdin cannot be read");
    }
    file::read_text(Path::new(path)).with_context(|| format!("the text {path} cannot be read"))
}

struct Score<'a> {
    args: &'a ScoreArgs,
    device: Device,
    pretrained: Pretrained,
    bytes: usize,
    ids: Vec<u32>,
    window: usize,
    overlap: usize,
}

/// The JSON object of `--format json`.
#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    device: String,
    dtype: &'static str,
    window: usize,
    overlap: usize,
    /// Number of tokens with a log-probability: all but the first.
    tokens: usize,
    /// The mean over the tokens, in nats.
    negative_log_likelihood: f64,
    perplexity: f64,
    bits_per_byte: f64,
    /// The mean over the tokens, in nats.
    entropy: f64,
    steps: Vec<TokenScore>,
}

#[derive(Serialize)]
struct TokenScore {
    token: u32,
    text: String,
    /// The log-probability; `None` for the first token.
    logprob: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entropy: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Likely>,
}

/// The windows of a text, and for each the number of its tokens that are already scored.
fn windows(len: usize, window: usize, overlap: usize) -> Vec<(std::ops::Range<usize>, usize)> {
    let mut windows = Vec::new();
    let (mut start, mut scored) = (0, 0);
    loop {
        let end = (start + window).min(len);
        windows.push((start..end, scored - start));
        if end == len {
            return windows;
        }
        scored = end;
        start = end - overlap;
    }
}

impl Job for Score<'_> {
    type Output = ();

    fn run<B: Backend>(self, device: &B::Device) -> Result<()> {
        let Self { args, device: name, pretrained, bytes, ids, window, overlap } = self;
        let (engine, form) =
            model::engine::<B>(pretrained, &args.model, (name, device), window.min(ids.len()))?;
        let begun = Instant::now();
        let bar = ui::progress(Some(ids.len() as u64), "scoring [{bar:30}] {pos}/{len} tokens, {eta} left")?;
        let mut scored: Vec<Scored> = Vec::with_capacity(ids.len());
        for (range, known) in windows(ids.len(), window, overlap) {
            let part = engine.score(&ids[range.clone()], args.logprobs)?;
            // The first token of the text has no score; that of a later window already has one.
            scored.extend(part.into_iter().skip(known.saturating_sub(1)));
            bar.set_position(range.end as u64);
        }
        bar.finish_and_clear();
        let text = |token: u32| decoded(engine.tokenizer(), token);
        let mean = |of: fn(&Scored) -> f64| scored.iter().map(of).sum::<f64>() / scored.len() as f64;
        let nll = mean(|scored| -scored.logprob);
        let first = TokenScore {
            token: ids[0],
            text: text(ids[0]),
            logprob: None,
            entropy: None,
            logprobs: Vec::new(),
        };
        let step = |scored: &Scored| TokenScore {
            token: scored.token,
            text: text(scored.token),
            logprob: Some(scored.logprob),
            entropy: Some(scored.entropy),
            logprobs: likely(&scored.likeliest, text),
        };
        let report = Report {
            model: &args.model.model,
            device: name.to_string(),
            dtype: dtype_name(form),
            window,
            overlap,
            tokens: scored.len(),
            negative_log_likelihood: nll,
            perplexity: nll.exp(),
            bits_per_byte: nll * scored.len() as f64 / bytes as f64 / std::f64::consts::LN_2,
            entropy: mean(|scored| scored.entropy),
            steps: [first].into_iter().chain(scored.iter().map(step)).collect(),
        };
        ui::detail(&format!("scored {} tokens in {:.2} s", scored.len(), begun.elapsed().as_secs_f64()));
        match args.format {
            Format::Json => output::print_json(&report),
            Format::Text => {
                let Report { tokens, perplexity, bits_per_byte, entropy, .. } = report;
                let windows = match tokens < window {
                    true => String::new(),
                    false => format!("; windows of {window} that overlap by {overlap}"),
                };
                let line = format!(
                    "perplexity {perplexity:.4} over {tokens} tokens ({nll:.4} nats per token, {bits_per_byte:.4} bits \
                     per byte; mean entropy {entropy:.4} nats{windows})\n"
                );
                output::print_bytes(line.as_bytes())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_score_every_token_once() {
        assert_eq!(windows(5, 8, 4), [(0..5, 0)]);
        assert_eq!(windows(8, 8, 4), [(0..8, 0)]);
        assert_eq!(windows(10, 4, 2), [(0..4, 0), (2..6, 2), (4..8, 2), (6..10, 2)]);
        for (len, window, overlap) in [(100, 7, 3), (9, 2, 1), (50, 10, 1), (11, 10, 9)] {
            let mut seen = vec![0; len];
            for (range, known) in windows(len, window, overlap) {
                assert!(range.len() <= window);
                // As in `run`, a window scores its tokens from the second on.
                for at in range.clone().skip(1).skip(known.saturating_sub(1)) {
                    seen[at] += 1;
                }
            }
            assert!(seen[1..].iter().all(|&count| count == 1), "{len} {window} {overlap} {seen:?}");
        }
    }
}
