//! What the one decoder can be told. An architecture's page fills it in.

use crate::rope::RopeConfig;

/// A decoder-only transformer: the options that [`crate::Decoder`] implements.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The architecture's `model_type`, for messages.
    pub model_type: &'static str,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Positions the model was made for.
    pub context_length: usize,
    /// Every norm of the residual stream.
    pub norm: NormConfig,
    /// Factor on the rows of the embedding as they enter the model (Gemma: sqrt(d)).
    pub embedding_scale: f64,
    /// Whether a table of learned positions, one row per position of the context, is added to the inputs.
    pub learned_positions: bool,
    /// Whether the head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Factor on the logits.
    pub logit_scale: f64,
    /// `cap * tanh(logits / cap)`, after the factor.
    pub logit_softcap: Option<f64>,
    /// The positions up to which a cache serves: with one more, all keys are computed anew, because rotary frequencies of
    /// all positions change there (Phi-3's LongRoPE).
    pub recompute_beyond: Option<usize>,
    /// First to last.
    pub layers: Vec<LayerConfig>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// What mixes positions; a layer can do without, and has then no norm for it either.
    pub attention: Option<AttentionKind>,
    /// What works on each position; likewise.
    pub feed_forward: Option<FeedForwardKind>,
    /// Where the norms stand.
    pub norms: NormPlace,
    /// Whether attention and feed-forward read the same residual stream and are added to it together.
    pub parallel: bool,
    /// Factor on what a block adds to the residual stream.
    pub residual_scale: f64,
}

/// The first block of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum AttentionKind {
    /// Attention over the positions so far.
    Heads(AttentionConfig),
    /// One linear map in its place, `self_attn.linear_attn`.
    Linear,
}

/// Grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub output_bias: bool,
    /// Norms of queries and keys, before they are turned.
    pub qk_norm: Option<QkNorm>,
    /// Rotary positions.
    pub rope: Option<RopeConfig>,
    /// Positions that a query sees, its own included; all where none is given.
    pub window: Option<usize>,
    /// Factor on the scores.
    pub scale: f64,
    /// `cap * tanh(scores / cap)`, after the factor.
    pub softcap: Option<f64>,
    /// A logit of each head that takes a share of the softmax and gives nothing.
    pub sinks: bool,
}

/// What a norm of queries or keys spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself, all with one weight of a head's width.
    Head,
    /// The whole projection.
    Projection,
}

/// The second block of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedForwardKind {
    /// The same for every position.
    Mlp(MlpConfig),
    /// A few of many, picked by a router for each position.
    Experts(ExpertsConfig),
    /// One linear map in its place, `mlp.linear_mlp`.
    Linear,
}

/// `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` where it is not gated.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// Inner width.
    pub intermediate_size: usize,
    /// Whether there is a gate.
    pub gated: bool,
    /// Biases on gate, up and down.
    pub bias: bool,
    /// The non-linearity.
    pub activation: Activation,
}

/// A mixture of experts: softmax over the router's scores, the largest `num_per_token` of them.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// How many there are.
    pub num_experts: usize,
    /// How many of them each position is given to.
    pub num_per_token: usize,
    /// Whether the weights of those sum to 1.
    pub normalized: bool,
    /// Each of them.
    pub expert: MlpConfig,
}

/// A feed-forward non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x), also called swish.
    Silu,
    /// x * Phi(x), with the error function.
    Gelu,
    /// The same with a tanh in its place: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    GeluTanh,
    /// x * sigmoid(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)^2.
    ReluSquared,
}

/// The norms of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormConfig {
    /// What is computed.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f64,
}

/// What a norm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) * w`.
    Rms,
    /// `x / rms(x) * (1 + w)`.
    RmsPlusOne,
    /// `(x - mean(x)) / std(x) * w + b`.
    Layer,
}

/// Where the norms of a layer stand, under the names that checkpoints give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// Before each block: `input_layernorm`, `post_attention_layernorm`.
    Before,
    /// Behind each block, before it is added: `post_attention_layernorm`, `post_feedforward_layernorm`.
    After,
    /// On both sides of each: `input_layernorm`, `post_attention_layernorm`, `pre_feedforward_layernorm`,
    /// `post_feedforward_layernorm`.
    Around,
}

impl DecoderConfig {
    /// Name and shape of every parameter, as [`crate::Decoder`] holds them.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.hidden_size;
        let mut all = Parameters(Vec::new());
        all.weight("model.embed_tokens", &[self.vocab_size, d]);
        if self.learned_positions {
            all.weight("model.embed_positions", &[self.context_length, d]);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            all.layer(&format!("model.layers.{index}"), d, layer, self.norm.kind);
        }
        all.norm("model.norm", d, self.norm.kind);
        if !self.tie_word_embeddings {
            all.weight("lm_head", &[self.vocab_size, d]);
        }
        all.0
    }

    /// Parameters of the model, tied ones counted once.
    pub fn num_params(&self) -> usize {
        self.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Weights that one decoded token reads: all but the rows of an untied embedding, of learned positions,
    /// and of experts that are not picked.
    pub fn weights_per_token(&self) -> usize {
        let looked_up = if self.tie_word_embeddings { 0 } else { self.vocab_size * self.hidden_size };
        let positions = if self.learned_positions { self.context_length * self.hidden_size } else { 0 };
        let unpicked = |layer: &LayerConfig| match &layer.feed_forward {
            Some(FeedForwardKind::Experts(experts)) => {
                let mut one = Parameters(Vec::new());
                one.mlp("", self.hidden_size, &experts.expert);
                let size: usize = one.0.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
                (experts.num_experts - experts.num_per_token) * size
            }
            _ => 0,
        };
        self.num_params() - looked_up - positions - self.layers.iter().map(unpicked).sum::<usize>()
    }

    /// Values that the cache holds for `positions` positions of one row, keys and values of all layers.
    pub fn cached_values(&self, positions: usize) -> usize {
        let of_layer = |layer: &LayerConfig| match &layer.attention {
            Some(AttentionKind::Heads(a)) => {
                2 * a.num_kv_heads * a.head_dim * a.window.map_or(positions, |window| window.min(positions))
            }
            _ => 0,
        };
        self.layers.iter().map(of_layer).sum()
    }
}

struct Parameters(Vec<(String, Vec<usize>)>);

impl Parameters {
    fn weight(&mut self, name: &str, shape: &[usize]) {
        self.0.push((format!("{name}.weight"), shape.to_vec()));
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize, bias: bool) {
        self.weight(name, &[outputs, inputs]);
        if bias {
            self.0.push((format!("{name}.bias"), vec![outputs]));
        }
    }

    fn norm(&mut self, name: &str, width: usize, kind: NormKind) {
        self.weight(name, &[width]);
        if kind == NormKind::Layer {
            self.0.push((format!("{name}.bias"), vec![width]));
        }
    }

    fn layer(&mut self, name: &str, d: usize, layer: &LayerConfig, norm: NormKind) {
        match &layer.attention {
            None => {}
            Some(AttentionKind::Linear) => {
                self.linear(&format!("{name}.self_attn.linear_attn"), d, d, false);
            }
            Some(AttentionKind::Heads(attention)) => {
                self.attention(&format!("{name}.self_attn"), d, attention, norm);
            }
        }
        match &layer.feed_forward {
            None => {}
            Some(FeedForwardKind::Linear) => self.linear(&format!("{name}.mlp.linear_mlp"), d, d, false),
            Some(FeedForwardKind::Mlp(mlp)) => self.mlp(&format!("{name}.mlp."), d, mlp),
            Some(FeedForwardKind::Experts(experts)) => {
                self.linear(&format!("{name}.mlp.gate"), d, experts.num_experts, false);
                for expert in 0..experts.num_experts {
                    self.mlp(&format!("{name}.mlp.experts.{expert}."), d, &experts.expert);
                }
            }
        }
        for place in layer.norm_names() {
            self.norm(&format!("{name}.{place}"), d, norm);
        }
    }

    fn attention(&mut self, name: &str, d: usize, a: &AttentionConfig, norm: NormKind) {
        let (q, kv) = (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim);
        for (part, width) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
            self.linear(&format!("{name}.{part}"), d, width, a.qkv_bias);
        }
        self.linear(&format!("{name}.o_proj"), q, d, a.output_bias);
        if a.sinks {
            self.0.push((format!("{name}.sinks"), vec![a.num_heads]));
        }
        for (part, projection) in [("q_norm", q), ("k_norm", kv)] {
            match a.qk_norm {
                None => {}
                Some(QkNorm::Head) => self.norm(&format!("{name}.{part}"), a.head_dim, norm),
                Some(QkNorm::Projection) => self.norm(&format!("{name}.{part}"), projection, norm),
            }
        }
    }

    fn mlp(&mut self, prefix: &str, d: usize, mlp: &MlpConfig) {
        let inner = mlp.intermediate_size;
        if mlp.gated {
            self.linear(&format!("{prefix}gate_proj"), d, inner, mlp.bias);
        }
        self.linear(&format!("{prefix}up_proj"), d, inner, mlp.bias);
        self.linear(&format!("{prefix}down_proj"), inner, d, mlp.bias);
    }
}

impl LayerConfig {
    /// The norms that this layer has.
    pub(crate) fn norm_names(&self) -> Vec<&'static str> {
        let (attention, feed_forward): (&[&str], &[&str]) = match self.norms {
            NormPlace::Before => (&["input_layernorm"], &["post_attention_layernorm"]),
            NormPlace::After => (&["post_attention_layernorm"], &["post_feedforward_layernorm"]),
            NormPlace::Around => (
                &["input_layernorm", "post_attention_layernorm"],
                &["pre_feedforward_layernorm", "post_feedforward_layernorm"],
            ),
        };
        let present = |there: bool, names: &'static [&'static str]| if there { names } else { &[] };
        [present(self.attention.is_some(), attention), present(self.feed_forward.is_some(), feed_forward)]
            .concat()
    }
}
