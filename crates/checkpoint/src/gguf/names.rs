//! Converts tensors of a GGUF file to their Hugging Face names and layout, which undoes llama.cpp's converter, and
//! back, for writing such files.

use serde_json::Value;

use super::Gguf;
use crate::{CheckpointError, LazyTensor, checkpoint::MAX_EXPERTS};

/// The tensor of the rotary frequencies' divisors, which is llama.cpp's form of the llama3 rope scaling.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The tensor of the divisors within the original context, which is llama.cpp's form of LongRoPE.
pub const SHORT_FACTORS: &str = "rope_factors_short.weight";
/// The tensor of the divisors beyond the original context.
pub const LONG_FACTORS: &str = "rope_factors_long.weight";

/// The converter's change of a tensor that must be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undo {
    /// The tensor is unchanged.
    Nothing,
    /// Rows of query heads are stored as adjacent rotary pairs (0, h/2, 1, h/2 + 1, ...).
    QueryPairs,
    /// The same for rows of key heads.
    KeyPairs,
    /// 1 was added to the values.
    PlusOne,
    /// The tensor is `[out, in]` where the checkpoint has `[in, out]`.
    Transposed,
    /// All queries, all keys, then all values, where the checkpoint has them head by head.
    SplitHeads,
}

/// GGUF's name of a module of a layer, the checkpoint's name, and the change that must be undone.
type Part = (&'static str, &'static str, Undo);

/// The tensor names of an architecture.
#[derive(Clone, Copy)]
struct Table {
    /// The checkpoint's names for `token_embd`, `position_embd`, `output_norm` and `output`.
    globals: [&'static str; 4],
    /// The checkpoint's prefix before a layer's number.
    layers: &'static str,
    norms: Undo,
    parts: &'static [Part],
}

use Undo::{KeyPairs, Nothing, PlusOne, QueryPairs, SplitHeads, Transposed};

const GLOBALS: [&str; 4] = ["token_embd", "position_embd", "output_norm", "output"];
const LLAMA_GLOBALS: [&str; 4] = ["model.embed_tokens", "", "model.norm", "lm_head"];
/// The linear layers whose rows llama.cpp reorders for its rotary kernel for Llama.
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
/// Norms behind the blocks, or on both sides of them.
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
/// The linear layers of a stack of experts: GGUF's name and the checkpoint's.
const EXPERTS: &[(&str, &str)] = &[("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")];

/// The names of an architecture, and the modules that it names otherwise than its table.
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

/// The Hugging Face names and tensors of one of the file's tensors; empty if the tensor was read as part of the
/// config. A tensor with an unknown name keeps it, so that it is refused with the other tensors that do not fit.
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
    if let Some(at) = GLOBALS.iter().position(|&global| global == stem) {
        let undo = if stem == "output_norm" { table.norms } else { Nothing };
        let new = format!("{}.{kind}", table.globals[at]);
        return Ok(vec![(new, undone(file, config, name, tensor, undo)?)]);
    }
    let layer = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = layer else { return Ok(vec![(name.to_owned(), tensor)]) };
    let prefix = format!("{}{layer}.", table.layers);
    if let Some(experts) = experts(config, &prefix, part, kind, &tensor) {
        return Ok(experts);
    }
    let found = own.iter().chain(table.parts).find(|(gguf, ..)| *gguf == part);
    let Some(&(_, module, undo)) = found else { return Ok(vec![(name.to_owned(), tensor)]) };
    let module = respelled(config, layer, module);
    let undo = if part.ends_with("norm") { table.norms } else { undo };
    Ok(vec![(format!("{prefix}{module}.{kind}"), undone(file, config, name, tensor, undo)?)])
}

/// Names that depend on more than the architecture.
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

/// The experts of a stack `ffn_gate_exps` `[n, out, in]`, or the one expert of an old file's `ffn_gate.3`.
fn experts(
    config: &Value,
    prefix: &str,
    part: &str,
    kind: &str,
    tensor: &LazyTensor,
) -> Option<Vec<(String, LazyTensor)>> {
    let name = |own: &str, index: usize| match (is_mixtral(config), own) {
        (false, own) => format!("{prefix}mlp.experts.{index}.{own}.{kind}"),
        (true, "gate_proj") => format!("{prefix}block_sparse_moe.experts.{index}.w1.{kind}"),
        (true, "down_proj") => format!("{prefix}block_sparse_moe.experts.{index}.w2.{kind}"),
        (true, _) => format!("{prefix}block_sparse_moe.experts.{index}.w3.{kind}"),
    };
    let part = part.strip_prefix("ffn_")?;
    EXPERTS.iter().find_map(|&(gguf, own)| {
        let rest = part.strip_prefix(gguf)?;
        if rest == "_exps" {
            let &[count, ..] = tensor.shape() else { return None };
            if count > MAX_EXPERTS || tensor.shape().contains(&0) {
                return None;
            }
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
    match undo {
        Nothing => return Ok(tensor),
        PlusOne => return Ok(tensor.plus(-1.0)),
        // Only weights of linear layers were transposed, not their biases.
        Transposed => return Ok(tensor.transpose().unwrap_or(tensor)),
        QueryPairs | KeyPairs | SplitHeads => {}
    }
    reordered(config, &tensor, undo, false).ok_or_else(|| {
        let what = format!("{} rows cannot be the heads that the metadata announces", rows(&tensor));
        file.wrong_tensor(name, what)
    })
}

fn rows(tensor: &LazyTensor) -> usize {
    tensor.shape().first().copied().unwrap_or(0)
}

/// Reorders rows from the file's order to the checkpoint's, or the other way if `back`; `None` if the rows are no
/// whole heads.
fn reordered(config: &Value, tensor: &LazyTensor, undo: Undo, back: bool) -> Option<LazyTensor> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let rows = rows(tensor);
    let (head_dim, unit) = match undo {
        SplitHeads => {
            let head_dim = rows.checked_div(3 * number("num_attention_heads")?)?;
            (head_dim, 3 * head_dim)
        }
        _ => number("head_dim").map(|head_dim| (head_dim, head_dim))?,
    };
    let paired = undo != SplitHeads;
    if head_dim == 0 || !rows.is_multiple_of(unit) || (paired && !head_dim.is_multiple_of(2)) {
        return None;
    }
    let half = head_dim / 2;
    tensor.reorder_rows(|row| match (paired, back) {
        // (half, pair) to or from 2 pair + half.
        (true, false) => row / head_dim * head_dim + 2 * (row % head_dim % half) + row % head_dim / half,
        (true, true) => row / head_dim * head_dim + row % 2 * half + row % head_dim / 2,
        // (head, part, within) to or from (part, head, within).
        (false, false) => row / head_dim % 3 * (rows / 3) + row / unit * head_dim + row % head_dim,
        (false, true) => {
            let (part, head) = (row / (rows / 3), row % (rows / 3) / head_dim);
            head * unit + part * head_dim + row % head_dim
        }
    })
}

/// A tensor in the form in which a GGUF file stores it.
///
/// # Examples
/// ```
/// use moi_checkpoint::{gguf::export, open_safetensors};
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// let checkpoint = open_safetensors(&path)?;
/// let tensor = &checkpoint.tensors()["weight"];
/// let config = serde_json::json!({});
/// let name = "model.layers.0.mlp.experts.3.up_proj.weight";
/// let exported = export("qwen3moe", &config, name, tensor).ok_or("no such tensor")?;
/// assert_eq!((exported.name.as_str(), exported.expert), ("blk.0.ffn_up_exps.weight", Some(3)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Exported {
    /// The tensor's name in the file.
    pub name: String,
    /// The tensor's values in the file's layout.
    pub tensor: LazyTensor,
    /// The index of the expert, in a mixture of experts, whose experts of a layer are stored as one stack.
    pub expert: Option<usize>,
    /// Whether the tensor must be stored as floats, because quantised blocks of it could not be read back.
    pub is_float: bool,
}

/// The tensor that llama.cpp's converter makes of a checkpoint's tensor: the inverse of reading it. `config` must
/// hold `model_type`, `num_attention_heads` and `head_dim`. `None` for a tensor that the architecture does not have.
///
/// # Examples
/// ```
/// use moi_checkpoint::{gguf::export, open_safetensors};
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// let checkpoint = open_safetensors(&path)?;
/// let tensor = &checkpoint.tensors()["weight"];
/// let config = serde_json::json!({"model_type": "llama", "num_attention_heads": 1, "head_dim": 2});
/// let exported = export("llama", &config, "model.embed_tokens.weight", tensor);
/// assert_eq!(exported.map(|exported| exported.name), Some("token_embd.weight".to_owned()));
/// assert!(export("llama", &config, "visual.weight", tensor).is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn export(architecture: &str, config: &Value, name: &str, tensor: &LazyTensor) -> Option<Exported> {
    let (table, own) = table(architecture)?;
    let (stem, kind) = name.rsplit_once('.')?;
    let named = |name: String, undo: Undo| {
        let tensor = match undo {
            Nothing => tensor.clone(),
            PlusOne => tensor.clone().plus(1.0),
            Transposed => tensor.transpose().unwrap_or_else(|| tensor.clone()),
            QueryPairs | KeyPairs | SplitHeads => reordered(config, tensor, undo, true)?,
        };
        Some(Exported { name: format!("{name}.{kind}"), tensor, expert: None, is_float: false })
    };
    if let Some(at) = table.globals.iter().position(|&global| global == stem && !global.is_empty()) {
        let undo = if at == 2 { table.norms } else { Nothing };
        return named(GLOBALS[at].to_owned(), undo);
    }
    let (layer, module) = stem.strip_prefix(table.layers)?.split_once('.')?;
    if let Some((_, expert)) = module.split_once(".experts.") {
        let (index, map) = expert.split_once('.')?;
        let map = match map {
            "w1" => "gate_proj",
            "w2" => "down_proj",
            "w3" => "up_proj",
            other => other,
        };
        let (gguf, _) = EXPERTS.iter().find(|(_, own)| *own == map)?;
        let expert = Some(index.parse().ok()?);
        let name = format!("blk.{layer}.ffn_{gguf}_exps.{kind}");
        return Some(Exported { name, tensor: tensor.clone(), expert, is_float: false });
    }
    let module = match module {
        "block_sparse_moe.gate" => "mlp.gate",
        "self_attn.linear_attn" => "self_attn.o_proj",
        other => other,
    };
    // An architecture's own name of a module replaces the common one.
    let common = table.parts.iter().filter(|(part, ..)| !own.iter().any(|(hidden, ..)| hidden == part));
    let &(part, _, undo) = own.iter().chain(common).find(|(_, hf, _)| *hf == module)?;
    let undo = if part.ends_with("norm") { table.norms } else { undo };
    named(format!("blk.{layer}.{part}"), undo)
}
