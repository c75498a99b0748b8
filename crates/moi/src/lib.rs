//! Mixture of Inputs (MoI) as one backend-generic input layer for [burn].
//!
//! A language model samples a token, throws its next-token distribution away and feeds back one
//! embedding. MoI feeds back a blend: the sampled token's embedding moved towards the mean embedding of
//! the distribution, by a gate that grows with the entropy. No training; the emitted text is still tokens.
//! Source: Zhuang et al., "Text Generation Beyond Discrete Token Sampling", arXiv 2505.14827.
//!
//! ```text
//! q = the distribution on its support       H = normalised entropy of q, in [0, 1]
//! g = gate(H)                               h = E[y] + g * (sum_i q_i E[i] - E[y])
//! ```
//!
//! The layer asks nothing of the model: it takes the logits of a step, the tokens that were sampled from
//! them, the embedding rows and one [`InputRule`] per row of the batch, and returns the next inputs together with
//! what was mixed. An app uses it with its own model like this:
//!
//! ```
//! use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
//! use burn::tensor::{Int, Tensor, backend::Backend};
//! use moi::{InputRule, Support, burn, next_inputs};
//!
//! // The app's own model: here the smallest one there is, an embedding and a head.
//! struct Bigram<B: Backend> {
//!     embedding: Embedding<B>,
//!     head: Linear<B>,
//! }
//!
//! fn decode<B: Backend>(
//!     model: &Bigram<B>,
//!     device: &B::Device,
//! ) -> Result<Vec<i64>, Box<dyn std::error::Error>> {
//!     let table = model.embedding.weight.val(); // [vocab, d]
//!     // Two sequences in one batch, each with a rule of its own.
//!     let rules = [InputRule::moi(1.0, Support::Full)?, InputRule::TOKEN];
//!     let prompt = Tensor::<B, 1, Int>::from_ints([3, 5], device);
//!     let mut inputs = table.clone().select(0, prompt); // [batch, d]
//!     let mut generated = Vec::new();
//!     for _ in 0..4 {
//!         let logits = model.head.forward(inputs); // [batch, vocab]
//!         let tokens = logits.clone().argmax(1).flatten::<1>(0, 1); // any sampler will do
//!         let mixed = next_inputs(logits, tokens.clone(), &table, &rules, 3)?;
//!         inputs = mixed.inputs.clone(); // instead of table.select(0, tokens)
//!         for row in mixed.into_rows() {
//!             assert!((0.0..=1.0).contains(&row.gate) && row.top.len() <= 3);
//!         }
//!         generated.extend(tokens.into_data().iter::<i64>());
//!     }
//!     Ok(generated)
//! }
//!
//! let device = Default::default();
//! let model = Bigram::<burn_flex::Flex> {
//!     embedding: EmbeddingConfig::new(16, 8).init(&device),
//!     head: LinearConfig::new(8, 16).init(&device),
//! };
//! assert_eq!(decode(&model, &device)?.len(), 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

//! A rule that depends on more than one step needs a [`RuleState`] per sequence, and [`mix`] instead of
//! [`next_inputs`]:
//!
//! ```
//! use burn::tensor::{Int, Tensor};
//! use moi::{Markers, RuleState, Scope, Start, burn, mix};
//!
//! type B = burn_flex::Flex;
//! let device = Default::default();
//! let table = Tensor::<B, 2>::random([16, 8], burn::tensor::Distribution::Default, &device);
//! // Tokens 14 and 15 begin and end thinking, and the prompt ends within thinking.
//! let start = Start { seed: 7, markers: Some(Markers::new(14, 15)), thinking: true, ..Start::default() };
//! let mut rows = [
//!     RuleState::new("soft-thinking:noise=gumbel".parse()?, &start)?,
//!     RuleState::new("moi:beta=0.5".parse()?, &Start { scope: Some(Scope::Thinking), ..start })?,
//! ];
//! for _ in 0..3 {
//!     let logits = Tensor::<B, 2>::random([2, 16], burn::tensor::Distribution::Default, &device);
//!     let sampled = logits.clone().argmax(1).flatten::<1>(0, 1);
//!     let mixed = mix(logits, sampled, &table, &mut rows, 3)?;
//!     let _inputs = mixed.inputs.clone(); // [2, 8], to be fed next
//!     for row in mixed.into_rows() {
//!         // The token that the rule records as generated; `None` means the sampled one.
//!         println!("{:?} entropy {} gate {} {:?}", row.token, row.entropy, row.gate, row.top);
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod gated;
mod mix;
mod noise;
mod planned;
mod rows;
mod rule;
mod rule_state;
mod scope;
mod top_k;

pub use burn;
pub use mix::{MixError, Mixed, RowMix, mix, next_inputs};
pub use rows::EmbeddingRows;
pub use rule::{
    ConstantGate, Direct, Gate, Gated, InputRule, KSample, Knob, Markers, Moi, Noise, RuleError, Selar,
    SoftThinking, Start, Support, Swir, Token,
};
pub use rule_state::RuleState;
pub use scope::Scope;
