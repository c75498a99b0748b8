//! The one decoder. Reads top-down: decoder, stack, layer.

use burn::{
    module::Module,
    tensor::{DType, Int, Tensor, backend::Backend},
};

use crate::{
    Attention, CausalLm, DecoderConfig, Embedding, KvCache, Linear, Mlp, ModelError, RmsNorm, attention::Step,
};

/// A decoder-only transformer with a language model head. Field names follow the checkpoints'.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// Embedding, layers and final norm.
    pub model: Stack<B>,
    /// `[vocab, d]`; absent where the embedding table is the head.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    config: DecoderConfig,
    #[module(skip)]
    frequencies: Vec<f64>,
}

/// Everything but the head.
#[derive(Module, Debug)]
pub struct Stack<B: Backend> {
    /// `[vocab, d]`.
    pub embed_tokens: Embedding<B>,
    /// First to last.
    pub layers: Vec<DecoderLayer<B>>,
    /// After the last layer.
    pub norm: RmsNorm<B>,
}

/// Attention and feed-forward, each with its norm before and the residual around.
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    /// Attention.
    pub self_attn: Attention<B>,
    /// Feed-forward.
    pub mlp: Mlp<B>,
    /// Before the attention.
    pub input_layernorm: RmsNorm<B>,
    /// Before the feed-forward.
    pub post_attention_layernorm: RmsNorm<B>,
}

impl DecoderConfig {
    /// The model, its weights not yet allocated: load them over, or use it with zeros.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Decoder<B> {
        let norm = || RmsNorm::new(self.hidden_size, self.norm_eps, device);
        let layer = |_| DecoderLayer {
            self_attn: Attention::new(self.hidden_size, &self.attention, device),
            mlp: Mlp::new(self.hidden_size, &self.mlp, device),
            input_layernorm: norm(),
            post_attention_layernorm: norm(),
        };
        Decoder {
            model: Stack {
                embed_tokens: Embedding::new(self.vocab_size, self.hidden_size, device),
                layers: (0..self.num_layers).map(layer).collect(),
                norm: norm(),
            },
            lm_head: (!self.tie_word_embeddings)
                .then(|| Linear::new(self.hidden_size, self.vocab_size, false, device)),
            frequencies: self.attention.rope.frequencies(self.attention.head_dim),
            config: self.clone(),
        }
    }
}

impl<B: Backend> Decoder<B> {
    /// What the model was built from.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    fn check(&self, found: [usize; 3], cache: &KvCache<B>) -> Result<(), ModelError> {
        let (batch, hidden_size) = (cache.batch(), self.config.hidden_size);
        if found[0] != batch || batch == 0 || found[1] == 0 || found[2] != hidden_size {
            return Err(ModelError::InputShape { batch, hidden_size, found });
        }
        let (needed, context_length) = (cache.len() + found[1], self.config.context_length);
        if needed > context_length {
            return Err(ModelError::ContextFull { needed, context_length });
        }
        Ok(())
    }
}

impl<B: Backend> CausalLm<B> for Decoder<B> {
    fn embed(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let [batch, seq] = ids.dims();
        let rows = self.model.embed_tokens.rows(ids.reshape([batch * seq]));
        rows.reshape([batch, seq, self.config.hidden_size])
    }

    fn forward(&self, inputs: Tensor<B, 3>, cache: &mut KvCache<B>) -> Result<Tensor<B, 3>, ModelError> {
        let dims = inputs.dims();
        self.check(dims, cache)?;
        let [batch, seq, hidden_size] = dims;
        let limit = self.config.context_length;
        let step = Step::new(seq, limit, cache, &self.frequencies, &inputs.device());
        // Two dimensions from here on: on some backends a product of three takes a slower path.
        let mut x = inputs.reshape([batch * seq, hidden_size]);
        for (index, layer) in self.model.layers.iter().enumerate() {
            x = layer.forward(x, index, &step, cache);
        }
        cache.advance(seq);
        Ok(self.model.norm.forward(x).reshape([batch, seq, hidden_size]))
    }

    fn logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, hidden_size] = hidden.dims();
        let x = hidden.reshape([batch * seq, hidden_size]);
        let logits = match &self.lm_head {
            Some(head) => head.forward(x),
            None => self.model.embed_tokens.products(x),
        };
        logits.cast(DType::F32).reshape([batch, seq, self.config.vocab_size])
    }

    fn embedding(&self) -> &Embedding<B> {
        &self.model.embed_tokens
    }

    fn new_cache(&self, batch: usize) -> KvCache<B> {
        KvCache::new(&self.config, batch)
    }

    fn context_length(&self) -> usize {
        self.config.context_length
    }
}

impl<B: Backend> DecoderLayer<B> {
    fn forward(&self, x: Tensor<B, 2>, index: usize, step: &Step<B>, cache: &mut KvCache<B>) -> Tensor<B, 2> {
        let attended = self.self_attn.forward(self.input_layernorm.forward(x.clone()), index, step, cache);
        let x = x + attended;
        let fed = self.mlp.forward(self.post_attention_layernorm.forward(x.clone()));
        x + fed
    }
}
