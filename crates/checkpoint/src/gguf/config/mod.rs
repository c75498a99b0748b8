//! Converts a GGUF file's metadata to the fields of a Hugging Face `config.json`.
//!
//! A value that llama.cpp's converter leaves out is hard-coded in llama.cpp's runtime, or the runtime does not
//! support it; these fields describe what that runtime computes.

mod relatives;
mod states;

use serde_json::{Map, Value, json};

use super::{Gguf, layout::Layout, metadata, parameters};
use crate::CheckpointError;

/// The number of layers of Gemma-3-27B and Gemma-2-27B, the only size of each family with another scale of attention
/// scores.
const GEMMA3_27B_LAYERS: usize = 62;
const GEMMA2_27B_LAYERS: usize = 46;

/// The fields, by architecture. An architecture that is not known here gets only `model_type`.
pub(super) fn config(file: &Gguf) -> Result<Value, CheckpointError> {
    let meta = Meta { file, prefix: file.architecture()? };
    for (key, value) in file.metadata.iter() {
        // JSON has no NaN or infinity: the value would count as absent and get its default.
        if let metadata::Value::Float(value) = value
            && !value.is_finite()
        {
            return Err(
                file.wrong("metadata".into(), format!("`{key}` is {value}, expected a finite number"))
            );
        }
    }
    if meta.layers() > MAX_LAYERS {
        let key = meta.key("block_count");
        let what = format!("{key} is {}, expected {MAX_LAYERS} at most", meta.layers());
        return Err(file.wrong("metadata".into(), what));
    }
    if parameters::ARCHITECTURES.contains(&meta.prefix) {
        return Ok(Value::Object(meta.newer()?));
    }
    let mut fields = match meta.prefix {
        "llama" => meta.llama()?,
        "qwen2" => meta.family("qwen2")?,
        "qwen3" => meta.family("qwen3")?,
        "qwen3moe" => meta.qwen3_moe()?,
        "gemma" => meta.gemma("gemma")?,
        "gemma2" => meta.gemma2()?,
        "gemma3" => meta.gemma3()?,
        "phi3" => meta.phi3()?,
        "olmo2" => match meta.usize("attention.sliding_window").filter(|&window| window > 0) {
            Some(window) => meta.olmo3(window)?,
            None => meta.family("olmo2")?,
        },
        "granite" => meta.granite()?,
        "gpt2" => meta.gpt2()?,
        "gptneox" => meta.gpt_neox()?,
        "deci" => meta.deci()?,
        other => return Ok(json!({ "model_type": other })),
    };
    fields.retain(|_, value| !value.is_null());
    Ok(Value::Object(fields))
}

/// Most layers, which is more than any model has.
const MAX_LAYERS: usize = 1 << 12;

pub(super) type Fields = Map<String, Value>;

/// The metadata of one architecture, whose keys begin with the architecture's name.
#[derive(Clone, Copy)]
pub(super) struct Meta<'a> {
    pub(super) file: &'a Gguf,
    pub(super) prefix: &'a str,
}

impl Meta<'_> {
    pub(super) fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub(super) fn usize(&self, key: &str) -> Option<usize> {
        self.file.metadata.usize(&self.key(key))
    }

    pub(super) fn f64(&self, key: &str) -> Option<f64> {
        self.file.metadata.f64(&self.key(key))
    }

    pub(super) fn str(&self, key: &str) -> Option<&str> {
        self.file.metadata.str(&self.key(key))
    }

    fn need(&self, key: &str) -> Result<usize, CheckpointError> {
        self.usize(key).ok_or_else(|| self.file.lacks(&self.key(key)))
    }

    fn need_f64(&self, key: &str) -> Result<f64, CheckpointError> {
        self.f64(key).ok_or_else(|| self.file.lacks(&self.key(key)))
    }

    pub(super) fn has(&self, tensor: &str) -> bool {
        self.file.has(tensor)
    }

    pub(super) fn layout(&self) -> Layout<'_> {
        Layout::new(self.prefix, &self.file.metadata)
    }

    /// The number of layers without those for multi-token prediction.
    fn layers(&self) -> usize {
        self.layout().layers()
    }

    /// The fields of an architecture whose tensors [`parameters`] reads.
    fn newer(&self) -> Result<Fields, CheckpointError> {
        self.check_gating()?;
        match self.prefix {
            "qwen35" => self.qwen3_next("qwen3_5_text"),
            "qwen35moe" => self.qwen3_next("qwen3_5_moe_text"),
            "qwen3next" => self.qwen3_next("qwen3_next"),
            "gemma4" => self.gemma4(),
            "qwen3vl" => self.base("qwen3_vl_text"),
            "qwen3vlmoe" => self.qwen_vl_moe(),
            "qwen2vl" => self.base("qwen2_5_vl_text"),
            "gpt-oss" => self.gpt_oss(),
            "nemotron_h" | "nemotron_h_moe" => self.nemotron_h(),
            "lfm2" => self.lfm2(),
            "lfm2moe" => self.lfm2_moe(),
            "mistral3" => self.mistral3(),
            "exaone" => self.base("exaone"),
            "exaone4" => self.exaone4(),
            "apertus" => self.base("apertus"),
            "laguna" => self.laguna(),
            "glm4moe" => self.glm4_moe(),
            "granitemoe" => self.granite_moe(),
            "granitehybrid" => self.granite_hybrid(),
            "phi2" => self.phi2(),
            "muse-glimmer" => self.muse_glimmer(),
            "seed_oss" => self.seed_oss(),
            "ernie4_5" => self.ernie("ernie4_5"),
            "ernie4_5-moe" => self.ernie("ernie4_5_moe"),
            "hunyuan-dense" => self.base("hunyuan_v1_dense"),
            "minimax-m2" => self.minimax_m2(),
            _ => self.latent(),
        }
    }

    /// The fields that all of these architectures have.
    fn base(&self, model_type: &str) -> Result<Fields, CheckpointError> {
        let layout = self.layout();
        let layers = self.layers();
        let most = |of_layer: &dyn Fn(usize) -> usize| (0..layers).map(of_layer).max().unwrap_or(0);
        let heads = most(&|layer| layout.heads(layer));
        let d = self.need("embedding_length")?;
        let head_dim = self.usize("attention.key_length").unwrap_or(d / heads.max(1));
        let eps = self.f64("attention.layer_norm_rms_epsilon").or(self.f64("attention.layer_norm_epsilon"));
        let eps = eps.ok_or_else(|| self.file.lacks(&self.key("attention.layer_norm_rms_epsilon")))?;
        let mut rope = self.rope()?;
        if let Some(turned) = self.usize("rope.dimension_count").filter(|&turned| turned != head_dim) {
            rope.insert("partial_rotary_factor".into(), json!(turned as f64 / head_dim.max(1) as f64));
        }
        Ok(object(json!({
            "model_type": model_type,
            "vocab_size": self.vocab_size()?,
            "hidden_size": d,
            "intermediate_size": layout.of_layer("feed_forward_length", 0),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": most(&|layer| layout.kv_heads(layer)),
            "head_dim": head_dim,
            "max_position_embeddings": self.need("context_length")?,
            "rms_norm_eps": eps,
            "tie_word_embeddings": !self.has("output.weight"),
            "rope_parameters": rope,
        })))
    }

    /// The number of rows of the embedding: all tokens of the file, including padding.
    fn vocab_size(&self) -> Result<usize, CheckpointError> {
        Ok(self.file.tensor("token_embd.weight")?.shape().first().copied().unwrap_or(0))
    }

    fn head_dim(&self) -> Result<usize, CheckpointError> {
        let heads = self.need("attention.head_count")?;
        Ok(match self.usize("attention.key_length") {
            Some(head_dim) => head_dim,
            None => self.need("embedding_length")? / heads.max(1),
        })
    }

    /// The fields that all of these architectures except GPT-2 and GPT-NeoX have.
    fn family(&self, model_type: &str) -> Result<Fields, CheckpointError> {
        let head_dim = self.head_dim()?;
        // The key may be absent; Gemma's files leave it out, because all values of a head are rotated.
        if let Some(turned) = self.usize("rope.dimension_count").filter(|&turned| turned != head_dim)
            && model_type != "phi3"
        {
            let key = self.key("rope.dimension_count");
            let what = format!("{key} is {turned}, expected the head's size, {head_dim}");
            return Err(self.file.wrong("metadata".into(), what));
        }
        let heads = self.need("attention.head_count")?;
        Ok(object(json!({
            "model_type": model_type,
            "vocab_size": self.vocab_size()?,
            "hidden_size": self.need("embedding_length")?,
            "intermediate_size": self.need("feed_forward_length")?,
            "num_hidden_layers": self.need("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.usize("attention.head_count_kv").unwrap_or(heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.need("context_length")?,
            "rms_norm_eps": self.need_f64("attention.layer_norm_rms_epsilon")?,
            "tie_word_embeddings": !self.has("output.weight"),
            "attention_bias": self.has("blk.0.attn_output.bias"),
            "rope_parameters": self.rope()?,
        })))
    }

    fn llama(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.family("llama")?;
        set(
            &mut fields,
            json!({
                "attention_bias": self.has("blk.0.attn_q.bias"),
                "mlp_bias": self.has("blk.0.ffn_gate.bias"),
            }),
        );
        if let Some(experts) = self.usize("expert_count").filter(|&experts| experts > 0) {
            set(
                &mut fields,
                json!({
                    "model_type": "mixtral",
                    "num_local_experts": experts,
                    "num_experts_per_tok": self.need("expert_used_count")?,
                }),
            );
        }
        Ok(fields)
    }

    fn qwen3_moe(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.family("qwen3_moe")?;
        let used = self.need("expert_used_count")?;
        let shared = self.need("feed_forward_length")? / used.max(1);
        set(
            &mut fields,
            json!({
                "num_local_experts": self.need("expert_count")?,
                "num_experts_per_tok": used,
                "moe_intermediate_size": self.usize("expert_feed_forward_length").unwrap_or(shared),
                // llama.cpp's runtime always does this.
                "norm_topk_prob": true,
            }),
        );
        Ok(fields)
    }

    fn gemma(&self, model_type: &str) -> Result<Fields, CheckpointError> {
        let mut fields = self.family(model_type)?;
        set(
            &mut fields,
            json!({
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh",
            }),
        );
        Ok(fields)
    }

    /// The `query_pre_attn_scalar`: attention scores are divided by its root. It is the size of a head, except for
    /// one model size.
    fn query_scalar(&self, odd_one: usize) -> Result<usize, CheckpointError> {
        match self.need("block_count")? == odd_one {
            true => Ok(self.need("embedding_length")? / self.need("attention.head_count")?.max(1)),
            false => self.head_dim(),
        }
    }

    fn gemma2(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.gemma("gemma2")?;
        set(
            &mut fields,
            json!({
                "query_pre_attn_scalar": self.query_scalar(GEMMA2_27B_LAYERS)?,
                "sliding_window": self.usize("attention.sliding_window").unwrap_or(4096),
                "attn_logit_softcapping": self.f64("attn_logit_softcapping").unwrap_or(50.0),
                "final_logit_softcapping": self.f64("final_logit_softcapping").unwrap_or(30.0),
            }),
        );
        Ok(fields)
    }

    fn gemma3(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.gemma("gemma3_text")?;
        let mut full = self.rope()?;
        if self.f64("rope.freq_base").is_none() {
            full.insert("rope_theta".into(), json!(1e6));
        }
        let local = self.f64("rope.freq_base_swa").unwrap_or(10_000.0);
        set(
            &mut fields,
            json!({
                "query_pre_attn_scalar": self.query_scalar(GEMMA3_27B_LAYERS)?,
                "sliding_window": self.need("attention.sliding_window")?,
                "sliding_window_pattern": self.usize("attention.sliding_window_pattern").unwrap_or(6),
            "layer_types": self.layer_types(),
                "final_logit_softcapping": self.f64("final_logit_softcapping").filter(|&cap| cap > 0.0),
                "rope_parameters": {
                    "full_attention": full,
                    "sliding_attention": { "rope_type": "default", "rope_theta": local },
                },
            }),
        );
        Ok(fields)
    }

    /// The types of layers from newer files, which list for each layer whether it has a sliding window.
    fn layer_types(&self) -> Option<Vec<&'static str>> {
        let sliding =
            self.file.metadata.list(&self.key("attention.sliding_window_pattern"), |value| match value {
                super::Value::Bool(sliding) => Some(*sliding),
                _ => None,
            })?;
        let kind = |sliding| if sliding { "sliding_attention" } else { "full_attention" };
        Some(sliding.into_iter().map(kind).collect())
    }

    fn phi3(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.family("phi3")?;
        let head_dim = self.head_dim()?;
        let turned = self.usize("rope.dimension_count").unwrap_or(head_dim);
        set(
            &mut fields,
            json!({
                "partial_rotary_factor": turned as f64 / head_dim.max(1) as f64,
                "original_max_position_embeddings": self.usize("rope.scaling.original_context_length"),
                // Files have 0 where the original config has no window.
                "sliding_window": self.usize("attention.sliding_window").filter(|&window| window > 0),
            }),
        );
        Ok(fields)
    }

    fn granite(&self) -> Result<Fields, CheckpointError> {
        let mut fields = self.llama()?;
        set(
            &mut fields,
            json!({
                "model_type": "granite",
                "attention_multiplier": self.need_f64("attention.scale")?,
                "embedding_multiplier": self.need_f64("embedding_scale")?,
                "residual_multiplier": self.need_f64("residual_scale")?,
                "logits_scaling": self.need_f64("logit_scale")?,
            }),
        );
        Ok(fields)
    }

    fn gpt2(&self) -> Result<Fields, CheckpointError> {
        Ok(object(json!({
            "model_type": "gpt2",
            "vocab_size": self.vocab_size()?,
            "n_embd": self.need("embedding_length")?,
            "n_inner": self.need("feed_forward_length")?,
            "n_layer": self.need("block_count")?,
            "n_head": self.need("attention.head_count")?,
            "n_positions": self.need("context_length")?,
            "layer_norm_epsilon": self.need_f64("attention.layer_norm_epsilon")?,
            "tie_word_embeddings": !self.has("output.weight"),
        })))
    }

    fn gpt_neox(&self) -> Result<Fields, CheckpointError> {
        let head_dim = self.need("embedding_length")? / self.need("attention.head_count")?.max(1);
        let turned = self.usize("rope.dimension_count").unwrap_or(head_dim);
        let mut rope = self.rope()?;
        rope.insert("partial_rotary_factor".into(), json!(turned as f64 / head_dim.max(1) as f64));
        let parallel = self.file.metadata.bool(&self.key("use_parallel_residual"));
        Ok(object(json!({
            "model_type": "gpt_neox",
            "vocab_size": self.vocab_size()?,
            "hidden_size": self.need("embedding_length")?,
            "intermediate_size": self.need("feed_forward_length")?,
            "num_hidden_layers": self.need("block_count")?,
            "num_attention_heads": self.need("attention.head_count")?,
            "max_position_embeddings": self.need("context_length")?,
            "layer_norm_eps": self.need_f64("attention.layer_norm_epsilon")?,
            "use_parallel_residual": parallel.unwrap_or(true),
            "attention_bias": self.has("blk.0.attn_qkv.bias"),
            "tie_word_embeddings": !self.has("output.weight"),
            "rope_parameters": rope,
        })))
    }

    /// A list with an entry for each layer; a single number counts for all layers.
    fn per_layer(&self, key: &str, layers: usize) -> Result<Vec<usize>, CheckpointError> {
        if let Some(number) = self.usize(key) {
            return Ok(vec![number; layers]);
        }
        let list = self.file.metadata.list(&self.key(key), super::Value::as_usize);
        list.filter(|list| list.len() == layers).ok_or_else(|| self.file.lacks(&self.key(key)))
    }

    fn deci(&self) -> Result<Fields, CheckpointError> {
        let (layers, d) = (self.need("block_count")?, self.need("embedding_length")?);
        if layers > MAX_LAYERS {
            let what = format!("deci.block_count is {layers}, expected {MAX_LAYERS} at most");
            return Err(self.file.wrong("metadata".into(), what));
        }
        let heads = self.per_layer("attention.head_count", layers)?;
        let kv_heads = self.per_layer("attention.head_count_kv", layers)?;
        let inner = self.per_layer("feed_forward_length", layers)?;
        let most = heads.iter().copied().max().unwrap_or(0);
        let block = |layer: usize| {
            let (heads, kv, inner) = (heads[layer], kv_heads[layer], inner[layer]);
            json!({
                "attention": {
                    "n_heads_in_group": heads.checked_div(kv),
                    "no_op": heads == 0,
                    "replace_with_linear": heads > 0 && kv == 0,
                },
                "ffn": {
                    "ffn_mult": (inner > 0).then(|| 1.5 * inner as f64 / d.max(1) as f64),
                    "no_op": inner == 0,
                    "replace_with_linear": false,
                },
            })
        };
        Ok(object(json!({
            "model_type": "nemotron-nas",
            "vocab_size": self.vocab_size()?,
            "hidden_size": d,
            "num_hidden_layers": layers,
            "num_attention_heads": most,
            "head_dim": self.usize("attention.key_length").unwrap_or(d / most.max(1)),
            "block_configs": (0..layers).map(block).collect::<Vec<_>>(),
            "max_position_embeddings": self.need("context_length")?,
            "rms_norm_eps": self.need_f64("attention.layer_norm_rms_epsilon")?,
            "tie_word_embeddings": !self.has("output.weight"),
            "rope_parameters": self.rope()?,
        })))
    }
}

pub(super) fn object(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Fields::new(),
    }
}

pub(super) fn set(fields: &mut Fields, new: Value) {
    fields.extend(object(new));
}
