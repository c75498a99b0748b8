//! Times candle's quantized Llama and Gemma 3 on a GGUF file: `peers-candle MODEL PROMPT GEN THREADS PASSES` prints
//! one line of JSON.
//!
//! For a prompt, candle only computes the logits of the last position, which is what a generator needs.

use std::{fs::File, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{D, Device, Tensor, quantized::gguf_file, utils};
use candle_transformers::models::{quantized_gemma3, quantized_llama};
use serde_json::json;

/// Token ids below this may be special tokens; engines/common.py has the same rule.
const FIRST_PLAIN: usize = 1000;
/// Lengths of the prompt and of the generated tokens in the warm-up pass, which is not timed.
const WARM_UP: (usize, usize) = (16, 4);

enum Model {
    Llama(quantized_llama::ModelWeights),
    Gemma3(quantized_gemma3::ModelWeights),
}

impl Model {
    /// The model in `path` and the size of its vocabulary.
    fn load(path: &str) -> Result<(Self, usize)> {
        let mut file = File::open(path).with_context(|| format!("cannot open {path}"))?;
        let content = gguf_file::Content::read(&mut file)?;
        let architecture = content
            .metadata
            .get("general.architecture")
            .context("no general.architecture")?
            .to_string()?
            .clone();
        let embedding = content.tensor_infos.get("token_embd.weight").context("no token_embd.weight")?;
        let vocabulary = embedding.shape.dims()[0];
        let model = match architecture.as_str() {
            "llama" => {
                Self::Llama(quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)
            }
            "gemma3" => {
                Self::Gemma3(quantized_gemma3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?)
            }
            other => bail!("this program does not load candle's {other}"),
        };
        Ok((model, vocabulary))
    }

    /// The most likely token after `tokens`, which begin at `position`; position 0 begins a new sequence.
    fn next(&mut self, tokens: &[u32], position: usize) -> Result<u32> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = match self {
            Self::Llama(model) => model.forward(&input, position)?,
            Self::Gemma3(model) => model.forward(&input, position)?,
        };
        Ok(logits.squeeze(0)?.argmax(D::Minus1)?.to_scalar()?)
    }

    /// Seconds for the prompt, seconds for the tokens after it, and these tokens.
    fn time(&mut self, prompt: &[u32], generate: usize) -> Result<(f64, f64, Vec<u32>)> {
        let start = Instant::now();
        let mut token = self.next(prompt, 0)?;
        let prefill = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut tokens = Vec::with_capacity(generate);
        for step in 0..generate {
            tokens.push(token);
            token = self.next(&[token], prompt.len() + step)?;
        }
        Ok((prefill, start.elapsed().as_secs_f64(), tokens))
    }
}

fn prompt(length: usize, vocabulary: usize) -> Vec<u32> {
    (0..length).map(|i| (FIRST_PLAIN + i * 7919 % (vocabulary - FIRST_PLAIN)) as u32).collect()
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, numbers @ ..] = arguments.as_slice() else {
        bail!("usage: peers-candle MODEL PROMPT GEN THREADS PASSES")
    };
    let numbers = numbers.iter().map(|n| n.parse()).collect::<Result<Vec<usize>, _>>()?;
    let [length, generate, threads, passes] = numbers[..] else {
        bail!("usage: peers-candle MODEL PROMPT GEN THREADS PASSES")
    };
    ensure!(
        utils::get_num_threads() == threads,
        "set RAYON_NUM_THREADS={threads}: candle takes its threads from there"
    );

    let (mut model, vocabulary) = Model::load(path)?;
    model.time(&prompt(WARM_UP.0, vocabulary), WARM_UP.1)?;
    let (mut prefill, mut decode, mut tokens) = (f64::INFINITY, f64::INFINITY, Vec::new());
    for _ in 0..passes {
        let (a, b, c) = model.time(&prompt(length, vocabulary), generate)?;
        (prefill, decode, tokens) = (prefill.min(a), decode.min(b), c);
    }
    println!(
        "{}",
        json!({
            "engine": "candle",
            "version": "0.11.1", // as in Cargo.toml
            "prefill": length as f64 / prefill,
            "decode": generate as f64 / decode,
            "tokens": &tokens[..tokens.len().min(8)],
        })
    );
    Ok(())
}
