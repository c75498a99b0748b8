//! What llama.cpp's converter does to a Llama checkpoint, undone.

use serde_json::{Map, Value, json};

use super::{Gguf, Renamed};
use crate::CheckpointError;

pub(super) const ARCHITECTURE: &str = "llama";

/// Divisors of the rotary frequencies: llama.cpp's form of the llama3 scaling.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The fields of `config.json`, from the metadata and the tensor table.
pub(super) fn config(file: &Gguf) -> Result<Value, CheckpointError> {
    let meta = &file.metadata;
    let need = |key: &str| meta.usize(key).ok_or_else(|| file.lacks(key));
    if meta.usize("llama.expert_count").is_some_and(|experts| experts > 0) {
        return Ok(json!({ "model_type": "mixtral" }));
    }
    let heads = need("llama.attention.head_count")?;
    let hidden_size = need("llama.embedding_length")?;
    let head_dim = match meta.usize("llama.attention.key_length") {
        Some(head_dim) => head_dim,
        None => hidden_size / heads.max(1),
    };
    if let Some(turned) = meta.usize("llama.rope.dimension_count")
        && turned != head_dim
    {
        let what = format!("llama.rope.dimension_count is {turned}, expected the head's size, {head_dim}");
        return Err(file.wrong("metadata".into(), what));
    }
    let norm_eps = "llama.attention.layer_norm_rms_epsilon";
    Ok(json!({
        "model_type": "llama",
        "vocab_size": file.tensor("token_embd.weight")?.shape()[0],
        "hidden_size": hidden_size,
        "intermediate_size": need("llama.feed_forward_length")?,
        "num_hidden_layers": need("llama.block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": meta.usize("llama.attention.head_count_kv").unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": need("llama.context_length")?,
        "rms_norm_eps": meta.f64(norm_eps).ok_or_else(|| file.lacks(norm_eps))?,
        "tie_word_embeddings": !file.has("output.weight"),
        "attention_bias": file.has("blk.0.attn_q.bias"),
        "mlp_bias": file.has("blk.0.ffn_gate.bias"),
        "rope_parameters": rope(file)?,
    }))
}

fn rope(file: &Gguf) -> Result<Value, CheckpointError> {
    let meta = &file.metadata;
    let mut rope = Map::new();
    rope.insert("rope_theta".into(), json!(meta.f64("llama.rope.freq_base").unwrap_or(10_000.0)));
    let kind = meta.str("llama.rope.scaling.type");
    // Files of 2023 have the second key, and not always a type.
    let factor = meta.f64("llama.rope.scaling.factor").or(meta.f64("llama.rope.scale_linear"));
    if file.has(ROPE_FACTORS) {
        if let Some(kind) = kind.filter(|&kind| kind != "none") {
            let what = format!("rope scaling `{kind}` together with {ROPE_FACTORS} is not supported");
            return Err(file.wrong("metadata".into(), what));
        }
        rope.insert("rope_type".into(), json!("factors"));
        rope.insert("factors".into(), json!(file.tensor(ROPE_FACTORS)?.read()));
        return Ok(Value::Object(rope));
    }
    match (kind.or(factor.map(|_| "linear")), factor) {
        (None | Some("none"), _) => {}
        (Some(kind), factor) => {
            rope.insert("rope_type".into(), json!(kind));
            rope.insert("factor".into(), json!(factor));
        }
    }
    Ok(Value::Object(rope))
}

/// The Hugging Face name of a tensor; none if it was read as part of the config. A name that is not known
/// stays as it is, to be refused with the other tensors that do not fit.
pub(super) fn rename(file: &Gguf, name: &str) -> Option<Renamed> {
    if name == ROPE_FACTORS {
        return None;
    }
    let plain = |name: String| Some(Renamed { name, interleaved_heads: None });
    match name {
        "token_embd.weight" => return plain("model.embed_tokens.weight".into()),
        "output_norm.weight" => return plain("model.norm.weight".into()),
        "output.weight" => return plain("lm_head.weight".into()),
        _ => {}
    }
    let parts: Vec<&str> =
        name.strip_prefix("blk.").map(|rest| rest.split('.').collect()).unwrap_or_default();
    let [layer, part, kind] = parts[..] else {
        return plain(name.to_owned());
    };
    // The converter interleaves the rows of Q and K, weight and bias, for its own rotary kernel.
    let heads = |key: &str| file.metadata.usize(key);
    let query_heads = heads("llama.attention.head_count");
    let (module, interleaved_heads) = match part {
        "attn_q" => ("self_attn.q_proj", query_heads),
        "attn_k" => ("self_attn.k_proj", heads("llama.attention.head_count_kv").or(query_heads)),
        "attn_v" => ("self_attn.v_proj", None),
        "attn_output" => ("self_attn.o_proj", None),
        "ffn_gate" => ("mlp.gate_proj", None),
        "ffn_up" => ("mlp.up_proj", None),
        "ffn_down" => ("mlp.down_proj", None),
        "attn_norm" => ("input_layernorm", None),
        "ffn_norm" => ("post_attention_layernorm", None),
        _ => return plain(name.to_owned()),
    };
    Some(Renamed { name: format!("model.layers.{layer}.{module}.{kind}"), interleaved_heads })
}
