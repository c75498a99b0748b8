//! The app's own model: a small transformer over characters, of burn's own modules.

use burn::{
    module::Module,
    nn::{
        Embedding, EmbeddingConfig, Linear, LinearConfig,
        attention::generate_autoregressive_mask,
        transformer::{TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput},
    },
    tensor::{Int, Tensor, backend::Backend},
};

/// Characters that the model sees at once.
pub const CONTEXT: usize = 64;
/// The width of an embedding.
const WIDTH: usize = 64;

/// A transformer whose inputs are embeddings, so that a mixture of embeddings can be one.
#[derive(Module, Debug)]
pub struct CharModel<B: Backend> {
    embedding: Embedding<B>,
    positions: Embedding<B>,
    encoder: TransformerEncoder<B>,
    head: Linear<B>,
}

impl<B: Backend> CharModel<B> {
    /// With random weights.
    pub fn new(vocab: usize, device: &B::Device) -> Self {
        let encoder =
            TransformerEncoderConfig::new(WIDTH, 4 * WIDTH, 4, 2).with_dropout(0.0).with_norm_first(true);
        Self {
            embedding: EmbeddingConfig::new(vocab, WIDTH).init(device),
            positions: EmbeddingConfig::new(CONTEXT, WIDTH).init(device),
            encoder: encoder.init(device),
            head: LinearConfig::new(WIDTH, vocab).init(device),
        }
    }

    /// The embedding table `[vocab, width]`.
    pub fn table(&self) -> Tensor<B, 2> {
        self.embedding.weight.val()
    }

    /// Embeddings `[batch, length, width]` of characters `[batch, length]`.
    pub fn embed(&self, characters: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.embedding.forward(characters)
    }

    /// Logits `[batch, length, vocab]` of inputs `[batch, length, width]`, each of which sees those before it.
    pub fn forward(&self, inputs: Tensor<B, 3>) -> Tensor<B, 3> {
        let ([batch, length, _], device) = (inputs.dims(), inputs.device());
        let positions = Tensor::arange(0..length as i64, &device).unsqueeze::<2>();
        let mask = generate_autoregressive_mask(batch, length, &device);
        let input = TransformerEncoderInput::new(inputs + self.positions.forward(positions)).mask_attn(mask);
        self.head.forward(self.encoder.forward(input))
    }
}
