//! An app with its own burn model and training loop. It trains a character model on a text for a minute, then generates
//! with Mixture of Inputs: the model is fed a blend of embeddings where it is in doubt, by `moi::next_inputs`, which asks
//! nothing of the model but logits and its embedding table.
//!
//! ```text
//! cargo run --release --bin own-model -- [SECONDS] [TEXT]
//! ```

mod model;

use std::{
    error::Error,
    time::{Duration, Instant},
};

use burn::{
    module::AutodiffModule,
    nn::loss::CrossEntropyLossConfig,
    optim::{AdamConfig, GradientsParams, Optimizer},
    tensor::{Int, Tensor, TensorData, activation::softmax, backend::Backend},
};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use model::{CONTEXT, CharModel};
use moi::{InputRule, RowMix, Support, next_inputs};
use rand::{Rng, SeedableRng, distr::Distribution, distr::weighted::WeightedIndex, rngs::StdRng};

/// Windows of text in a step of training.
const BATCH: usize = 8;
const LEARNING_RATE: f64 = 3e-3;
/// Characters that are generated.
const GENERATED: usize = 200;
const TEMPERATURE: f32 = 0.8;

/// A text as numbers.
struct Corpus {
    characters: Vec<char>,
    ids: Vec<u32>,
}

impl Corpus {
    fn new(text: &str) -> Self {
        let mut characters: Vec<char> = text.chars().collect();
        characters.sort_unstable();
        characters.dedup();
        let ids =
            text.chars().filter_map(|c| characters.binary_search(&c).ok()).map(|id| id as u32).collect();
        Self { characters, ids }
    }

    /// Random windows, and for each character the one that follows, both `[BATCH, CONTEXT]`.
    fn windows<B: Backend>(&self, rng: &mut StdRng, device: &B::Device) -> [Tensor<B, 2, Int>; 2] {
        let starts: Vec<usize> = (0..BATCH).map(|_| rng.random_range(0..self.ids.len() - CONTEXT)).collect();
        [0, 1].map(|shift| {
            let ids: Vec<u32> = starts
                .iter()
                .flat_map(|start| &self.ids[start + shift..start + shift + CONTEXT])
                .copied()
                .collect();
            Tensor::from_data(TensorData::new(ids, [BATCH, CONTEXT]), device)
        })
    }
}

/// Trains for so long. The mean losses of the first and of the last ten steps, in nats a character.
fn train<B: burn::tensor::backend::AutodiffBackend>(
    mut model: CharModel<B>,
    corpus: &Corpus,
    time: Duration,
    device: &B::Device,
) -> (CharModel<B>, [f32; 2]) {
    let (mut rng, begun) = (StdRng::seed_from_u64(1), Instant::now());
    let (mut optimizer, loss) = (AdamConfig::new().init(), CrossEntropyLossConfig::new().init(device));
    let mut losses: Vec<f32> = Vec::new();
    while losses.len() < 20 || begun.elapsed() < time {
        let [inputs, next] = corpus.windows::<B>(&mut rng, device);
        let logits = model.forward(model.embed(inputs)).flatten::<2>(0, 1);
        let loss = loss.forward(logits, next.flatten::<1>(0, 1));
        losses.push(loss.clone().into_scalar_f32());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(LEARNING_RATE, model, gradients);
        if losses.len() % 50 == 0 {
            eprintln!("step {:4}: {:.3} nats a character", losses.len(), mean(&losses[losses.len() - 10..]));
        }
    }
    let ends = [mean(&losses[..10]), mean(&losses[losses.len() - 10..])];
    (model, ends)
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

/// A loss on the host.
trait IntoHost {
    fn into_scalar_f32(self) -> f32;
}

impl<B: Backend> IntoHost for Tensor<B, 1> {
    fn into_scalar_f32(self) -> f32 {
        self.into_data().iter::<f32>().next().unwrap_or(f32::NAN)
    }
}

/// A text for each rule, all in one batch: the characters, and what was mixed behind each.
fn generate<B: Backend>(
    model: &CharModel<B>,
    corpus: &Corpus,
    prompt: &[u32],
    rules: &[InputRule],
    device: &B::Device,
) -> Result<Vec<Vec<(char, RowMix)>>, Box<dyn Error>> {
    let (table, batch) = (model.table(), rules.len());
    let mut texts: Vec<Vec<(char, RowMix)>> = vec![Vec::new(); batch];
    let mut rngs: Vec<StdRng> = (0..batch).map(|_| StdRng::seed_from_u64(2)).collect();
    let prompt = Tensor::<B, 1, Int>::from_data(TensorData::new(prompt.to_vec(), [prompt.len()]), device);
    let mut inputs = model.embed(prompt.unsqueeze::<2>().repeat_dim(0, batch)); // [batch, length, width]
    for _ in 0..GENERATED {
        let [_, length, _] = inputs.dims();
        inputs = inputs.narrow(1, length.saturating_sub(CONTEXT), length.min(CONTEXT));
        let length = length.min(CONTEXT);
        let logits = model.forward(inputs.clone()).narrow(1, length - 1, 1).squeeze_dim::<2>(1); // [batch, vocab]
        let tokens = sample(logits.clone(), &mut rngs)?;
        let sampled = Tensor::<B, 1, Int>::from_data(TensorData::new(tokens.clone(), [batch]), device);
        // The one line that an app adds: instead of the rows of the sampled characters, what the rules make of them.
        let mixed = next_inputs(logits, sampled, &table, rules, 3)?;
        inputs = Tensor::cat(vec![inputs, mixed.inputs.clone().unsqueeze_dim::<3>(1)], 1);
        for ((text, token), row) in texts.iter_mut().zip(tokens).zip(mixed.into_rows()) {
            text.push((corpus.characters[token as usize], row));
        }
    }
    Ok(texts)
}

/// A character for each row, drawn on the host.
fn sample<B: Backend>(logits: Tensor<B, 2>, rngs: &mut [StdRng]) -> Result<Vec<u32>, Box<dyn Error>> {
    let vocab = logits.dims()[1];
    let probabilities: Vec<f32> = softmax(logits / TEMPERATURE, 1).into_data().iter::<f32>().collect();
    let rows = probabilities.chunks(vocab).zip(rngs);
    rows.map(|(row, rng)| Ok(WeightedIndex::new(row)?.sample(rng) as u32)).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(60), |text| text.parse())?;
    let text = match args.next() {
        Some(path) => std::fs::read_to_string(path)?,
        None => include_str!("../../../LICENSE-APACHE").to_owned(),
    };
    let corpus = Corpus::new(&text);
    if corpus.ids.len() <= CONTEXT {
        return Err(
            format!("the text has {} characters, more than {CONTEXT} are needed", corpus.ids.len()).into()
        );
    }
    let device = Default::default();
    let model = CharModel::<Autodiff<Flex>>::new(corpus.characters.len(), &device);
    let (model, [before, after]) = train(model, &corpus, Duration::from_secs(seconds), &device);
    println!("loss {before:.3} -> {after:.3} nats a character");
    if after > 0.8 * before {
        return Err("the model has learnt nothing".into());
    }
    let (rules, prompt) =
        ([InputRule::moi(1.0, Support::Full)?, InputRule::TOKEN], &corpus.ids[..CONTEXT / 2]);
    let texts = generate(&model.valid(), &corpus, prompt, &rules, &device)?;
    println!("\ncharacter  entropy   gate  largest weights of the next input");
    for (character, row) in texts[0].iter().take(40) {
        let weights: Vec<String> = row
            .top
            .iter()
            .map(|(token, weight)| format!("{:?} {weight:.2}", corpus.characters[*token as usize]))
            .collect();
        println!(
            "{:9}  {:7.3}  {:5.3}  {}",
            format!("{character:?}"),
            row.entropy,
            row.gate,
            weights.join(", ")
        );
    }
    for (rule, text) in rules.iter().zip(&texts) {
        println!("\n{rule}: {}", text.iter().map(|(character, _)| character).collect::<String>());
    }
    Ok(())
}
