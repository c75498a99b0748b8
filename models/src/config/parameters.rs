//! Names and shapes of a decoder's parameters.

use super::{
    Activation, AttentionConfig, AttentionKind, DecoderConfig, DeltaNetConfig, ExpertsConfig,
    FeedForwardKind, LatentConfig, LayerConfig, Mamba2Config, MlpConfig, NormConfig, NormKind, QkSpan,
};

impl DecoderConfig {
    /// Name and shape of every parameter of [`crate::Decoder`].
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.hidden_size;
        let mut all = Parameters(Vec::new());
        all.weight("model.embed_tokens", &[self.vocab_size, d]);
        if let Some(inputs) = self.per_layer_inputs {
            let width = self.per_layer_width();
            all.weight("model.embed_tokens.per_layer", &[self.vocab_size, width]);
            all.linear("model.per_layer_model_projection", d, width, false);
            all.norm("model.per_layer_projection_norm", inputs.width, self.norm);
        }
        if let Some(first) = self.learned_positions {
            all.weight("model.embed_positions", &[first + self.context_length, d]);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            all.layer(&format!("model.layers.{index}"), self, layer);
        }
        all.norm("model.norm", d, self.final_norm);
        if !self.tie_word_embeddings {
            all.weight("lm_head", &[self.vocab_size, d]);
        }
        if self.head_bias {
            all.vector("lm_head.bias", self.vocab_size);
        }
        all.0
    }

    /// Number of the model's parameters; tied ones are counted once.
    pub fn num_params(&self) -> usize {
        Parameters(self.parameters()).count()
    }

    /// Number of weights that one decoded token reads: all but the rows of an untied embedding and of learned
    /// positions, and the experts that are not picked.
    pub fn weights_per_token(&self) -> usize {
        let looked_up = if self.tie_word_embeddings { 0 } else { self.vocab_size * self.hidden_size };
        let positions =
            self.learned_positions.map_or(0, |first| (first + self.context_length) * self.hidden_size);
        let of_layers = self.vocab_size * self.per_layer_width();
        let unpicked = |layer: &LayerConfig| match &layer.feed_forward {
            Some(FeedForwardKind::Experts(experts) | FeedForwardKind::MlpAndExperts(_, experts)) => {
                let mut one = Parameters(Vec::new());
                one.mlp("", experts.expert_width(self.hidden_size), &experts.expert);
                (experts.num_experts - experts.num_per_token) * one.count()
            }
            _ => 0,
        };
        self.num_params()
            - looked_up
            - positions
            - of_layers
            - self.layers.iter().map(unpicked).sum::<usize>()
    }
}

struct Parameters(Vec<(String, Vec<usize>)>);

impl Parameters {
    fn count(&self) -> usize {
        self.0.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    fn weight(&mut self, name: &str, shape: &[usize]) {
        self.0.push((format!("{name}.weight"), shape.to_vec()));
    }

    fn vector(&mut self, name: &str, len: usize) {
        self.0.push((name.to_owned(), vec![len]));
    }

    fn linear(&mut self, name: &str, inputs: usize, outputs: usize, bias: bool) {
        self.weight(name, &[outputs, inputs]);
        if bias {
            self.vector(&format!("{name}.bias"), outputs);
        }
    }

    fn norm(&mut self, name: &str, width: usize, norm: NormConfig) {
        if norm.kind != NormKind::RmsAlone {
            self.weight(name, &[width]);
        }
        if norm.kind == NormKind::Layer {
            self.vector(&format!("{name}.bias"), width);
        }
    }

    fn layer(&mut self, name: &str, model: &DecoderConfig, layer: &LayerConfig) {
        let d = model.hidden_size;
        match &layer.attention {
            None => {}
            Some(AttentionKind::Linear) => {
                self.linear(&format!("{name}.self_attn.linear_attn"), d, d, false);
            }
            Some(AttentionKind::Heads(attention)) => {
                self.attention(&format!("{name}.self_attn"), d, attention);
            }
            Some(AttentionKind::DeltaNet(net)) => self.delta_net(&format!("{name}.self_attn"), d, net),
            Some(AttentionKind::Mamba2(mamba)) => self.mamba2(&format!("{name}.self_attn"), d, mamba),
            Some(AttentionKind::Latent(latent)) => self.latent(&format!("{name}.self_attn"), d, latent),
            Some(AttentionKind::ShortConv(conv)) => {
                let name = format!("{name}.self_attn");
                self.linear(&format!("{name}.in_proj"), d, 3 * d, conv.bias);
                self.conv(&name, d, conv.kernel, conv.bias);
                self.linear(&format!("{name}.out_proj"), d, d, conv.bias);
            }
        }
        match &layer.feed_forward {
            None => {}
            Some(FeedForwardKind::Linear) => self.linear(&format!("{name}.mlp.linear_mlp"), d, d, false),
            Some(FeedForwardKind::Mlp(mlp)) => self.mlp(&format!("{name}.mlp."), d, mlp),
            Some(FeedForwardKind::Experts(experts)) => self.experts(&format!("{name}.mlp."), d, experts),
            Some(FeedForwardKind::MlpAndExperts(mlp, experts)) => {
                self.mlp(&format!("{name}.mlp.mlp."), d, mlp);
                self.experts(&format!("{name}.mlp.experts."), d, experts);
                self.norm(&format!("{name}.mlp.mlp_post_norm"), d, model.post_norm);
                self.norm(&format!("{name}.mlp.experts_norm"), d, model.norm);
                self.norm(&format!("{name}.mlp.experts_post_norm"), d, model.post_norm);
            }
        }
        for (names, norm) in layer.norm_names().iter().zip([model.norm, model.post_norm]) {
            for place in names {
                self.norm(&format!("{name}.{place}"), d, norm);
            }
        }
        if let Some(inputs) = model.per_layer_inputs {
            self.linear(&format!("{name}.per_layer_input_gate"), d, inputs.width, false);
            self.linear(&format!("{name}.per_layer_projection"), inputs.width, d, false);
            self.norm(&format!("{name}.post_per_layer_input_norm"), d, model.post_norm);
        }
        if layer.output_scale {
            self.vector(&format!("{name}.layer_scalar"), 1);
        }
    }

    fn attention(&mut self, name: &str, d: usize, a: &AttentionConfig) {
        let (q, kv) = (a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim);
        self.linear(&format!("{name}.q_proj"), d, q, a.qkv_bias);
        if a.shared_cache.is_none() {
            self.linear(&format!("{name}.k_proj"), d, kv, a.qkv_bias);
            if !a.keys_are_values {
                self.linear(&format!("{name}.v_proj"), d, kv, a.qkv_bias);
            }
        }
        if let Some(width) = a.gate_width() {
            self.linear(&format!("{name}.gate_proj"), d, width, false);
        }
        self.linear(&format!("{name}.o_proj"), q, d, a.output_bias);
        if a.sinks {
            self.vector(&format!("{name}.sinks"), a.num_heads);
        }
        let Some(norm) = a.qk_norm else { return };
        let of_keys = a.shared_cache.is_none().then_some(("k_norm", kv));
        for (part, projection) in [("q_norm", q)].into_iter().chain(of_keys) {
            let width = match norm.span {
                QkSpan::Head => a.head_dim,
                QkSpan::Projection => projection,
            };
            self.norm(&format!("{name}.{part}"), width, norm.norm);
        }
    }

    fn conv(&mut self, name: &str, channels: usize, kernel: usize, bias: bool) {
        self.weight(&format!("{name}.conv"), &[channels, kernel]);
        if bias {
            self.vector(&format!("{name}.conv.bias"), channels);
        }
    }

    fn delta_net(&mut self, name: &str, d: usize, net: &DeltaNetConfig) {
        let (keys, values, heads) = (net.key_width(), net.value_width(), net.num_value_heads);
        let maps = [("q", keys), ("k", keys), ("v", values), ("z", values), ("b", heads), ("a", heads)];
        for (part, outputs) in maps {
            self.linear(&format!("{name}.in_proj_{part}"), d, outputs, false);
        }
        self.conv(name, 2 * keys + values, net.conv_kernel, false);
        self.vector(&format!("{name}.dt_bias"), heads);
        self.vector(&format!("{name}.a_log"), heads);
        self.weight(&format!("{name}.norm"), &[net.value_head_dim]);
        self.linear(&format!("{name}.out_proj"), values, d, false);
    }

    fn mamba2(&mut self, name: &str, d: usize, mamba: &Mamba2Config) {
        let (inner, channels, heads) = (mamba.inner_width(), mamba.conv_width(), mamba.num_heads);
        self.linear(&format!("{name}.in_proj"), d, inner + channels + heads, mamba.bias);
        self.conv(name, channels, mamba.conv_kernel, mamba.conv_bias);
        for number in ["dt_bias", "a_log", "d"] {
            self.vector(&format!("{name}.{number}"), heads);
        }
        self.weight(&format!("{name}.norm"), &[inner]);
        self.linear(&format!("{name}.out_proj"), inner, d, mamba.bias);
    }

    fn latent(&mut self, name: &str, d: usize, latent: &LatentConfig) {
        let (heads, rank) = (latent.num_heads, latent.kv_rank);
        let queries = heads * latent.query_dim();
        match latent.query_rank {
            Some(rank) => {
                self.linear(&format!("{name}.q_a_proj"), d, rank, latent.bias);
                self.weight(&format!("{name}.q_a_norm"), &[rank]);
                self.linear(&format!("{name}.q_b_proj"), rank, queries, false);
            }
            None => self.linear(&format!("{name}.q_proj"), d, queries, false),
        }
        self.linear(&format!("{name}.kv_a_proj"), d, latent.cached_dim(), latent.bias);
        self.weight(&format!("{name}.kv_a_norm"), &[rank]);
        self.0.push((format!("{name}.k_b"), vec![heads * latent.nope_dim, rank]));
        self.0.push((format!("{name}.v_b"), vec![heads * latent.value_dim, rank]));
        self.linear(&format!("{name}.o_proj"), heads * latent.value_dim, d, latent.bias);
    }

    fn mlp(&mut self, prefix: &str, d: usize, mlp: &MlpConfig) {
        let inner = mlp.intermediate_size;
        if mlp.gated {
            self.linear(&format!("{prefix}gate_proj"), d, inner, mlp.bias);
        }
        self.linear(&format!("{prefix}up_proj"), d, inner, mlp.bias);
        self.linear(&format!("{prefix}down_proj"), inner, d, mlp.bias);
        if mlp.activation == Activation::Xielu {
            for number in ["alpha_p", "alpha_n", "beta", "eps"] {
                self.vector(&format!("{prefix}act_fn.{number}"), 1);
            }
        }
    }

    fn experts(&mut self, prefix: &str, d: usize, experts: &ExpertsConfig) {
        let count = experts.num_experts;
        self.linear(&format!("{prefix}gate"), d, count, experts.router.bias);
        if experts.router.correction {
            self.vector(&format!("{prefix}correction"), count);
        }
        if experts.router.expert_scales {
            self.vector(&format!("{prefix}expert_scales"), count);
        }
        if experts.router.input_norm.is_some() {
            self.weight(&format!("{prefix}input_norm"), &[d]);
        }
        for expert in 0..count {
            self.mlp(&format!("{prefix}experts.{expert}."), experts.expert_width(d), &experts.expert);
        }
        if let Some(latent) = experts.latent {
            self.linear(&format!("{prefix}latent_in"), d, latent.width, latent.bias);
            self.linear(&format!("{prefix}latent_out"), latent.width, d, latent.bias);
        }
        if let Some(shared) = &experts.shared {
            self.mlp(&format!("{prefix}shared_expert."), d, &shared.mlp);
            if shared.gated {
                self.linear(&format!("{prefix}shared_expert_gate"), d, 1, false);
            }
        }
    }
}
