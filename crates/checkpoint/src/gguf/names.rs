//! Tensors of a GGUF file under their Hugging Face names and in their layout: what llama.cpp's converter does
//! to a checkpoint, undone.

use serde_json::Value;

use super::{
    Gguf,
    config::{LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS},
};
use crate::{CheckpointError, LazyTensor};

/// What must be undone to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undo {
    /// Nothing.
    Nothing,
    /// Rows of rotary heads stand as pairs (0, h/2, 1, h/2 + 1, ...): queries.
    QueryPairs,
    /// The same: keys.
    KeyPairs,
    /// 1 was added.
    PlusOne,
    /// `[out, in]` where the checkpoint has `[in, out]`.
    Transposed,
    /// All queries, all keys, all values where the checkpoint has them head by head.
    SplitHeads,
}

/// GGUF's name of a layer's part, the checkpoint's, and what must be undone.
type Part = (&'static str, &'static str, Undo);

/// How the tensors of an architecture are named.
#[derive(Clone, Copy)]
struct Table {
    /// `token_embd`, `position_embd`, `output_norm` and `output` of the checkpoint.
    globals: [&'static str; 4],
    /// Before a layer's number.
    layers: &'static str,
    norms: Undo,
    parts: &'static [Part],
}

use Undo::{KeyPairs, Nothing, PlusOne, QueryPairs, SplitHeads, Transposed};

const LLAMA_GLOBALS: [&str; 4] = ["model.embed_tokens", "", "model.norm", "lm_head"];
/// Of llama.cpp's own rotary kernel for Llama.
const PAIRED: &[Part] =
    &[("attn_q", "self_attn.q_proj", QueryPairs), ("attn_k", "self_attn.k_proj", KeyPairs)];
const COMMON: &[Part] = &[
    ("attn_q", "self_attn.q_proj", Nothing),
    ("attn_k", "self_attn.k_proj", Nothing),
    ("attn_v", "self_attn.v_proj", Nothing),
    ("attn_output", "self_attn.o_proj", Nothing),
    ("attn_qkv", "self_attn.qkv_proj", Nothing),
    ("ffn_gate", "mlp.gate_proj", Nothing),
    ("ffn_up", "mlp.up_proj", Nothing),
    ("ffn_down", "mlp.down_proj", Nothing),
    ("ffn_gate_inp", "mlp.gate", Nothing),
    ("attn_norm", "input_layernorm", Nothing),
    ("attn_q_norm", "self_attn.q_norm", Nothing),
    ("attn_k_norm", "self_attn.k_norm", Nothing),
    ("ffn_norm", "post_attention_layernorm", Nothing),
];
/// Where norms stand behind the blocks, or on both sides.
const AROUND: &[Part] = &[
    ("post_attention_norm", "post_attention_layernorm", Nothing),
    ("ffn_norm", "pre_feedforward_layernorm", Nothing),
    ("post_ffw_norm", "post_feedforward_layernorm", Nothing),
];
const PHI3: &[Part] = &[("ffn_up", "mlp.gate_up_proj", Nothing)];
const GPT2: &[Part] = &[
    ("attn_norm", "ln_1", Nothing),
    ("ffn_norm", "ln_2", Nothing),
    ("attn_qkv", "attn.c_attn", Transposed),
    ("attn_output", "attn.c_proj", Transposed),
    ("ffn_up", "mlp.c_fc", Transposed),
    ("ffn_down", "mlp.c_proj", Transposed),
];
const NEOX: &[Part] = &[
    ("attn_norm", "input_layernorm", Nothing),
    ("ffn_norm", "post_attention_layernorm", Nothing),
    ("attn_qkv", "attention.query_key_value", SplitHeads),
    ("attn_output", "attention.dense", Nothing),
    ("ffn_up", "mlp.dense_h_to_4h", Nothing),
    ("ffn_down", "mlp.dense_4h_to_h", Nothing),
];
/// A stack of experts' maps, and what each is called.
const EXPERTS: &[(&str, &str)] = &[("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")];

/// The table of an architecture, and the parts in which it departs from it.
fn table(architecture: &str) -> Option<(Table, &'static [Part])> {
    let llama = Table { globals: LLAMA_GLOBALS, layers: "model.layers.", norms: Nothing, parts: COMMON };
    let gemma = Table { norms: PlusOne, ..llama };
    Some(match architecture {
        "llama" | "granite" | "deci" => (llama, PAIRED),
        "qwen2" | "qwen3" | "qwen3moe" => (llama, &[]),
        "olmo2" => (llama, AROUND),
        "phi3" => (llama, PHI3),
        "gemma" => (gemma, &[]),
        "gemma2" | "gemma3" => (gemma, AROUND),
        "gpt2" => {
            let globals = ["transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"];
            (Table { globals, layers: "transformer.h.", norms: Nothing, parts: GPT2 }, &[])
        }
        "gptneox" => {
            let globals = ["gpt_neox.embed_in", "", "gpt_neox.final_layer_norm", "embed_out"];
            (Table { globals, layers: "gpt_neox.layers.", norms: Nothing, parts: NEOX }, &[])
        }
        _ => return None,
    })
}

/// The Hugging Face names and tensors of one of the file's; none if it was read as part of the config. A name
/// that is not known stays as it is, to be refused with the other tensors that do not fit.
pub(super) fn tensors(
    file: &Gguf,
    config: &Value,
    name: &str,
) -> Result<Vec<(String, LazyTensor)>, CheckpointError> {
    if [ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS].contains(&name) {
        return Ok(Vec::new());
    }
    let tensor = file.tensor(name)?;
    let Some((table, own)) = file.architecture().ok().and_then(table) else {
        return Ok(vec![(name.to_owned(), tensor)]);
    };
    let Some((stem, kind)) = name.rsplit_once('.') else {
        return Ok(vec![(name.to_owned(), tensor)]);
    };
    let globals = ["token_embd", "position_embd", "output_norm", "output"];
    if let Some(at) = globals.iter().position(|&global| global == stem) {
        let undo = if stem == "output_norm" { table.norms } else { Nothing };
        let new = format!("{}.{kind}", table.globals[at]);
        return Ok(vec![(new, undone(file, config, name, tensor, undo)?)]);
    }
    let layer = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = layer else { return Ok(vec![(name.to_owned(), tensor)]) };
    let prefix = format!("{}{layer}.", table.layers);
    if let Some(experts) = experts(config, &prefix, part, &tensor) {
        return Ok(experts);
    }
    let found = own.iter().chain(table.parts).find(|(gguf, ..)| *gguf == part);
    let Some(&(_, module, undo)) = found else { return Ok(vec![(name.to_owned(), tensor)]) };
    let module = respelled(config, layer, module);
    let undo = if part.ends_with("norm") { table.norms } else { undo };
    Ok(vec![(format!("{prefix}{module}.{kind}"), undone(file, config, name, tensor, undo)?)])
}

/// What depends on more than the architecture.
fn respelled(config: &Value, layer: &str, module: &'static str) -> &'static str {
    let is_linear = || {
        let block = config.get("block_configs")?.get(layer.parse::<usize>().ok()?)?;
        block.get("attention")?.get("replace_with_linear")?.as_bool()
    };
    match module {
        "mlp.gate" if is_mixtral(config) => "block_sparse_moe.gate",
        "self_attn.o_proj" if is_linear() == Some(true) => "self_attn.linear_attn",
        other => other,
    }
}

fn is_mixtral(config: &Value) -> bool {
    config.get("model_type").and_then(Value::as_str) == Some("mixtral")
}

/// The experts of a stack `ffn_gate_exps` `[n, out, in]`, or the one of an old file's `ffn_gate.3`.
fn experts(
    config: &Value,
    prefix: &str,
    part: &str,
    tensor: &LazyTensor,
) -> Option<Vec<(String, LazyTensor)>> {
    let name = |own: &str, index: usize| match (is_mixtral(config), own) {
        (false, own) => format!("{prefix}mlp.experts.{index}.{own}.weight"),
        (true, "gate_proj") => format!("{prefix}block_sparse_moe.experts.{index}.w1.weight"),
        (true, "down_proj") => format!("{prefix}block_sparse_moe.experts.{index}.w2.weight"),
        (true, _) => format!("{prefix}block_sparse_moe.experts.{index}.w3.weight"),
    };
    let part = part.strip_prefix("ffn_")?;
    EXPERTS.iter().find_map(|&(gguf, own)| {
        let rest = part.strip_prefix(gguf)?;
        if rest == "_exps" {
            let &[count, ..] = tensor.shape() else { return None };
            return (0..count).map(|index| Some((name(own, index), tensor.matrix(index)?))).collect();
        }
        let index = rest.strip_prefix('.')?.parse().ok()?;
        Some(vec![(name(own, index), tensor.clone())])
    })
}

fn undone(
    file: &Gguf,
    config: &Value,
    name: &str,
    tensor: LazyTensor,
    undo: Undo,
) -> Result<LazyTensor, CheckpointError> {
    let rows = tensor.shape().first().copied().unwrap_or(0);
    let number = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let head_dim = match undo {
        Nothing => return Ok(tensor),
        PlusOne => return Ok(tensor.plus(-1.0)),
        // Only maps were transposed, not their biases.
        Transposed => return Ok(tensor.transpose().unwrap_or(tensor)),
        QueryPairs | KeyPairs => number("head_dim").unwrap_or(0),
        SplitHeads => {
            let heads = number("num_attention_heads").unwrap_or(0);
            rows.checked_div(3 * heads).unwrap_or(0)
        }
    };
    let unit = if undo == SplitHeads { 3 * head_dim } else { head_dim };
    let wrong = || {
        let what = format!("{rows} rows of {:?} cannot be heads of {head_dim}", tensor.storage());
        file.wrong(format!("tensor `{name}`"), what)
    };
    if head_dim == 0 || !head_dim.is_multiple_of(2) && undo != SplitHeads || !rows.is_multiple_of(unit) {
        return Err(wrong());
    }
    let order = |row: usize| match undo {
        SplitHeads => {
            let (head, part, within) = (row / (3 * head_dim), row / head_dim % 3, row % head_dim);
            part * (rows / 3) + head * head_dim + within
        }
        _ => {
            let (head, within) = (row / head_dim, row % head_dim);
            let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
            head * head_dim + 2 * pair + half
        }
    };
    tensor.reorder_rows(order).ok_or_else(wrong)
}
