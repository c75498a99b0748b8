//! The same model and mixtures on a backend that moi has never heard of, here burn's autodiff around Flex: plain tensor
//! operations are enough, and gradients go through a mixture.
//!
//! ```text
//! cargo run --release --bin other-backend
//! ```

use std::error::Error;

use burn::{
    module::{AutodiffModule, Module, ModuleMapper, Param},
    tensor::{Distribution, Int, Tensor, backend::Backend},
};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use moi::{InputRule, Support, next_inputs};
use moi_engine::{Engine, Prompt, Request, TokenEvent};
use moi_models::{Architecture, CausalLm};

/// The backend. Any other that implements burn's `Backend` could stand here.
type Wrapped = Autodiff<Flex>;

/// Gives every parameter random values: a model that is not loaded has zeros.
struct Randomize;

impl<B: Backend> ModuleMapper<B> for Randomize {
    fn map_float<const D: usize>(&mut self, parameter: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        parameter.map(|values| values.random_like(Distribution::Normal(0.0, 0.5)))
    }
}

/// What a model generates under MoI.
fn generate<B: Backend, M: CausalLm<B>>(
    model: M,
    device: B::Device,
) -> Result<Vec<TokenEvent>, Box<dyn Error>> {
    let engine = Engine::new(model, device);
    let mut request = Request::new(Prompt::Ids(vec![1, 2, 3]));
    request.stop.max_tokens = Some(16);
    Ok(engine.generate(request)?.collect::<Result<Vec<TokenEvent>, _>>()?)
}

/// The gradient of the next inputs in the embedding table: of what was mixed, every row has a share.
fn gradient(
    device: &<Wrapped as burn::tensor::backend::BackendTypes>::Device,
) -> Result<usize, Box<dyn Error>> {
    let table = Tensor::<Wrapped, 2>::random([32, 8], Distribution::Default, device).require_grad();
    let logits = Tensor::<Wrapped, 2>::random([1, 32], Distribution::Default, device);
    let sampled = Tensor::<Wrapped, 1, Int>::from_ints([5], device);
    let mixed = next_inputs(logits, sampled, &table, &[InputRule::moi(1.0, Support::Full)?], 0)?;
    let gradients = mixed.inputs.sum().backward();
    let gradient = table.grad(&gradients).ok_or("no gradient reaches the table")?;
    let per_row = gradient.abs().sum_dim(1).into_data();
    Ok(per_row.iter::<f32>().filter(|&sum| sum > 0.0).count())
}

fn main() -> Result<(), Box<dyn Error>> {
    let device = Default::default();
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4,
    });
    Wrapped::seed(&device, 7);
    let model = Architecture::from_config(&config)?.config.init::<Wrapped>(&device).map(&mut Randomize);
    let plain = generate::<Flex, _>(model.valid(), device.clone())?;
    let wrapped = generate::<Wrapped, _>(model, device.clone())?;
    if plain.iter().all(|step| step.token == plain[0].token) {
        return Err("the model gives one token alone, which shows nothing".into());
    }
    for (step, other) in plain.iter().zip(&wrapped) {
        println!(
            "token {:2} and {:2}, entropy {:.6} and {:.6}, gate {:.6} and {:.6}",
            step.token, other.token, step.entropy, other.entropy, step.gate, other.gate
        );
        if step.token != other.token || (step.entropy - other.entropy).abs() > 1e-5 {
            return Err("the two backends differ".into());
        }
    }
    let rows = gradient(&device)?;
    println!("gradients of a mixture reach {rows} of 32 rows of the table");
    if rows != 32 { Err("some rows have no gradient".into()) } else { Ok(()) }
}
