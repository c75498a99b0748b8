//! Converts tensors of newer architectures to parameters of the decoder, which undoes llama.cpp's converter. GGUF's
//! names are nearly the same for all of these architectures; [`super::names`] converts the older architectures to
//! Hugging Face names.

use super::{
    Gguf,
    layout::{Layout, Mixer, NetHeads},
    names::{LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS},
};
use crate::{CheckpointError, LazyTensor, checkpoint::MAX_EXPERTS};

/// The architectures that are read and written here.
pub(super) const ARCHITECTURES: &[&str] = &[
    "qwen35",
    "qwen35moe",
    "qwen3next",
    "gemma4",
    "qwen3vl",
    "qwen3vlmoe",
    "qwen2vl",
    "gpt-oss",
    "nemotron_h",
    "nemotron_h_moe",
    "deepseek2",
    "mistral4",
    "deepseek32",
    "glm-dsa",
    "lfm2",
    "lfm2moe",
    "mistral3",
    "exaone",
    "exaone4",
    "apertus",
    "laguna",
    "glm4moe",
    "granitemoe",
    "granitehybrid",
    "phi2",
    "muse-glimmer",
    "seed_oss",
    "ernie4_5",
    "ernie4_5-moe",
    "hunyuan-dense",
    "minimax-m2",
];

/// GGUF's names of tensors outside the layers, and the decoder's names.
pub(super) const GLOBALS: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("per_layer_token_embd", "model.embed_tokens.per_layer"),
    ("per_layer_model_proj", "model.per_layer_model_projection"),
    ("per_layer_proj_norm", "model.per_layer_projection_norm"),
];

/// GGUF's names of a layer's modules, and the decoder's names. If several GGUF names stand for one module, the first
/// is written.
pub(super) const PARTS: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_gate", "self_attn.gate_proj"),
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_norm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj"),
    ("attn_kv_a_norm", "self_attn.kv_a_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ("ffn_latent_down", "mlp.latent_in"),
    ("ffn_latent_up", "mlp.latent_out"),
    ("inp_gate", "per_layer_input_gate"),
    ("proj", "per_layer_projection"),
    ("post_norm", "post_per_layer_input_norm"),
    ("post_ffw_norm_1", "mlp.mlp_post_norm"),
    ("pre_ffw_norm_2", "mlp.experts_norm"),
    ("post_ffw_norm_2", "mlp.experts_post_norm"),
    ("ssm_in", "self_attn.in_proj"),
    ("ssm_out", "self_attn.out_proj"),
    ("ssm_conv1d", "self_attn.conv"),
    ("ssm_norm", "self_attn.norm"),
    ("ssm_alpha", "self_attn.in_proj_a"),
    ("ssm_beta", "self_attn.in_proj_b"),
    ("shortconv.conv", "self_attn.conv"),
    ("shortconv.in_proj", "self_attn.in_proj"),
    ("shortconv.out_proj", "self_attn.out_proj"),
];

/// GGUF's complete names of tensors in a layer, including the part behind the last dot, and the decoder's names.
pub(super) const NUMBERS: &[(&str, &str)] = &[
    ("attn_sinks.weight", "self_attn.sinks"),
    ("exp_probs_b.bias", "mlp.correction"),
    ("ssm_a", "self_attn.a_log"),
    ("ssm_d", "self_attn.d"),
    ("ssm_dt.bias", "self_attn.dt_bias"),
    ("layer_output_scale.weight", "layer_scalar"),
    ("ffn_gate_inp.scale", "mlp.experts.input_norm.weight"),
    ("ffn_down_exps.scale", "mlp.experts.expert_scales"),
];

/// GGUF's names of stacks of experts' linear layers, and the decoder's names.
pub(super) const EXPERTS: &[(&str, &str)] =
    &[("ffn_gate_exps", "gate_proj"), ("ffn_up_exps", "up_proj"), ("ffn_down_exps", "down_proj")];

/// The decoder's name of a layer's module in this architecture; [`PARTS`] has the usual one.
pub(super) fn own_name(architecture: &str, mixer: Mixer, usual: &str) -> String {
    let is_gemma_moe = architecture == "gemma4-moe";
    match (architecture, usual) {
        ("nemotron_h" | "nemotron_h_moe", "input_layernorm") if mixer == Mixer::None => {
            "post_attention_layernorm".to_owned()
        }
        ("qwen35" | "qwen35moe" | "qwen3next", "self_attn.gate_proj") if mixer == Mixer::State => {
            "self_attn.in_proj_z".to_owned()
        }
        _ if is_gemma_moe && usual == "mlp.gate" => "mlp.experts.gate".to_owned(),
        _ if is_gemma_moe => match usual.strip_prefix("mlp.") {
            Some(map @ ("gate_proj" | "up_proj" | "down_proj")) => format!("mlp.mlp.{map}"),
            _ => usual.to_owned(),
        },
        _ => usual.to_owned(),
    }
}

/// Whether blocks have norms on both sides.
pub(super) fn is_around(architecture: &str) -> bool {
    ["gemma4", "gemma4-moe", "muse-glimmer"].contains(&architecture)
}

/// The architecture, where Gemma 4 with experts beside its MLP has a name of its own.
pub(super) fn form<'a>(architecture: &'a str, layout: &Layout<'_>) -> &'a str {
    match architecture == "gemma4" && layout.usize("expert_count").unwrap_or(0) > 0 {
        true => "gemma4-moe",
        false => architecture,
    }
}

type Named = Vec<(String, LazyTensor)>;

/// The parameters in one of the file's tensors; empty if the tensor was read as part of the config, or belongs to
/// multi-token prediction or to the indexer of sparse attention. A tensor with an unknown name keeps it, so that it
/// is refused with the other tensors that do not fit.
pub(super) fn tensors(file: &Gguf, architecture: &str, name: &str) -> Result<Named, CheckpointError> {
    if [ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS].contains(&name) {
        return Ok(Vec::new());
    }
    let (layout, tensor) = (Layout::new(architecture, &file.metadata), file.tensor(name)?);
    let of_layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let layer = of_layer.and_then(|(layer, part)| Some((layer.parse::<usize>().ok()?, part)));
    let Some((layer, part)) = layer else {
        let own = global(architecture, name);
        let tensor = if layout.is_plus_one(&own) { tensor.plus(-1.0) } else { tensor };
        return Ok(vec![(own, tensor)]);
    };
    let predicts = layer >= layout.layers() && Some(layer) < layout.usize("block_count");
    let indexes = ["deepseek32", "glm-dsa"].contains(&architecture) && part.starts_with("indexer.");
    if predicts || indexes {
        return Ok(Vec::new());
    }
    if layer >= layout.layers() {
        let what = format!("the metadata says that there are {} layers", layout.layers());
        return Err(file.wrong_tensor(name, what));
    }
    let found = Part { layout, form: form(architecture, &layout), layer, name: part, tensor };
    let found = found.parameters();
    let wrong = || file.wrong_tensor(name, "its shape does not fit the sizes in the metadata".to_owned());
    let named = found.ok_or_else(wrong)?;
    Ok(named.into_iter().map(|(own, tensor)| (format!("model.layers.{layer}.{own}"), tensor)).collect())
}

fn global(architecture: &str, name: &str) -> String {
    let Some((stem, kind)) = name.rsplit_once('.') else { return name.to_owned() };
    let stem = match (architecture, stem) {
        ("lfm2" | "lfm2moe", "token_embd_norm") => "output_norm",
        (_, stem) => stem,
    };
    match GLOBALS.iter().find(|(own, _)| *own == stem) {
        Some((_, parameter)) => format!("{parameter}.{kind}"),
        None => name.to_owned(),
    }
}

/// A tensor of a layer.
struct Part<'a> {
    layout: Layout<'a>,
    form: &'a str,
    layer: usize,
    name: &'a str,
    tensor: LazyTensor,
}

impl Part<'_> {
    /// The tensor's parameters with their names in the layer; `None` if its shape does not fit.
    fn parameters(self) -> Option<Named> {
        if let Some(experts) = self.experts() {
            return Some(experts);
        }
        if let Some(named) = self.special() {
            return named;
        }
        if let Some((_, parameter)) = NUMBERS.iter().find(|(own, _)| *own == self.name) {
            return Some(vec![((*parameter).to_owned(), self.number(parameter)?)]);
        }
        let Some((stem, kind)) = self.name.rsplit_once('.') else {
            return Some(vec![(self.name.to_owned(), self.tensor)]);
        };
        let usual = match stem {
            "ffn_norm" if is_around(self.form) => "pre_feedforward_layernorm",
            stem => match PARTS.iter().find(|(own, _)| *own == stem) {
                Some((_, parameter)) => parameter,
                None => return Some(vec![(self.name.to_owned(), self.tensor)]),
            },
        };
        let own = own_name(self.form, self.layout.mixer(self.layer), usual);
        let parameter = format!("{own}.{kind}");
        Some(vec![(parameter.clone(), self.undone(&own, &parameter)?)])
    }

    /// Converts the tensor's values to the decoder's layout.
    fn undone(&self, own: &str, parameter: &str) -> Option<LazyTensor> {
        let tensor = match own {
            "self_attn.norm" => self.tensor.flattened()?,
            "mlp.shared_expert_gate" if self.tensor.shape().len() == 1 => self.tensor.as_row(),
            _ => self.tensor.clone(),
        };
        if self.layout.is_plus_one(parameter) {
            return Some(tensor.plus(-1.0));
        }
        if let Some((head, kept)) = self.layout.pairs(own, self.layer) {
            return tensor.pairs_as_halves(head, kept);
        }
        match own {
            "self_attn.in_proj_z" => self.by_key_heads(&tensor, |net| net.value_dim),
            "self_attn.in_proj_a" | "self_attn.in_proj_b" => self.by_key_heads(&tensor, |_| 1),
            "self_attn.out_proj" => self.columns_by_key_heads(&tensor),
            "self_attn.conv" => self.conv_by_key_heads(&tensor),
            _ => Some(tensor),
        }
    }

    /// Converts a vector that is listed in [`NUMBERS`].
    fn number(&self, parameter: &str) -> Option<LazyTensor> {
        let vector = self.tensor.flattened()?;
        match parameter {
            "self_attn.a_log" => self.by_key_heads(&vector.mapped(|value| (-value).ln()), |_| 1),
            "self_attn.dt_bias" => self.by_key_heads(&vector, |_| 1),
            _ => Some(vector),
        }
    }

    /// Reorders rows of value heads so that those of one key head are adjacent.
    fn by_key_heads(&self, tensor: &LazyTensor, unit: impl Fn(&NetHeads) -> usize) -> Option<LazyTensor> {
        match self.layout.reordered_net() {
            Some(net) => {
                let unit = unit(&net);
                let fits = tensor.num_rows() == net.value_heads * unit;
                fits.then(|| tensor.reorder_rows(|row| net.file_row(row, unit)))?
            }
            None => Some(tensor.clone()),
        }
    }

    fn columns_by_key_heads(&self, tensor: &LazyTensor) -> Option<LazyTensor> {
        match self.layout.reordered_net() {
            Some(net) => tensor.reorder_columns(|column| net.file_row(column, net.value_dim)),
            None => Some(tensor.clone()),
        }
    }

    fn conv_by_key_heads(&self, tensor: &LazyTensor) -> Option<LazyTensor> {
        match self.layout.reordered_net() {
            Some(net) => {
                tensor.reorder_rows(|row| net.behind_keys(row, |row| net.file_row(row, net.value_dim)))
            }
            None => Some(tensor.clone()),
        }
    }

    /// Tensors that hold several parameters, or must be converted as a whole.
    fn special(&self) -> Option<Option<Named>> {
        let is_next = self.layout.has_delta_nets();
        let is_state = self.layout.mixer(self.layer) == Mixer::State;
        let (stem, kind) = self.name.rsplit_once('.')?;
        Some(match stem {
            "attn_qkv" if is_next && is_state => self.net_maps(),
            "ssm_ba" => self.net_numbers(),
            "ssm_in" if is_next => self.grouped_net_maps(),
            "attn_q" if is_next => self.gated_queries(),
            "attn_qkv" => self.fused(kind),
            "attn_k_b" => self.latent_keys(),
            "attn_v_b" => {
                self.tensor.matrices_below_each_other().map(|all| vec![("self_attn.v_b".into(), all)])
            }
            "attn_kv_b" => self.latent_maps(),
            // These weights are ones, and the query factor that the config has: they are no parameters.
            "attn_q_norm" | "attn_k_norm" if self.form == "muse-glimmer" => Some(Vec::new()),
            _ => return None,
        })
    }

    /// Splits a delta net's fused tensor into queries, keys and values.
    fn net_maps(&self) -> Option<Named> {
        let net = self.layout.net()?;
        let keys = net.key_heads.checked_mul(net.key_dim)?;
        let rows = |start, len| self.tensor.select_rows(1, self.tensor.num_rows(), start, len);
        let values = net.value_heads.checked_mul(net.value_dim)?;
        let v = self.by_key_heads(&rows(2 * keys, values)?, |net| net.value_dim)?;
        let parts = [("q", rows(0, keys)?), ("k", rows(keys, keys)?), ("v", v)];
        let fits = self.tensor.num_rows() == 2 * keys + values;
        fits.then(|| parts.map(|(part, map)| (format!("self_attn.in_proj_{part}.weight"), map)).into())
    }

    /// Splits a tensor that holds, for each key head, two numbers of its value heads: `b`, how strongly the state is
    /// corrected, and `a`, how fast it forgets.
    fn net_numbers(&self) -> Option<Named> {
        let net = self.layout.net()?;
        let each = net.value_heads / net.key_heads;
        let part = |start| self.tensor.select_rows(net.key_heads, 2 * each, start, each);
        Some(vec![
            ("self_attn.in_proj_b.weight".into(), part(0)?),
            ("self_attn.in_proj_a.weight".into(), part(each)?),
        ])
    }

    /// Splits a tensor of older files that holds, for each key head, a query, a key, its values and gates.
    fn grouped_net_maps(&self) -> Option<Named> {
        let net = self.layout.net()?;
        let (keys, values) = (net.key_dim, net.value_heads / net.key_heads * net.value_dim);
        let part = |name: &str, start, len| {
            let rows = self.tensor.select_rows(net.key_heads, 2 * (keys + values), start, len)?;
            Some((format!("self_attn.in_proj_{name}.weight"), rows))
        };
        Some(vec![
            part("q", 0, keys)?,
            part("k", keys, keys)?,
            part("v", 2 * keys, values)?,
            part("z", 2 * keys + values, values)?,
        ])
    }

    /// Splits a tensor that holds the query and the gate of each head.
    fn gated_queries(&self) -> Option<Named> {
        let (heads, dim) = (self.layout.heads(self.layer), self.layout.head_dim(self.layer));
        let part = |start| self.tensor.select_rows(heads, 2 * dim, start, dim);
        Some(vec![
            ("self_attn.q_proj.weight".into(), part(0)?),
            ("self_attn.gate_proj.weight".into(), part(dim)?),
        ])
    }

    /// Splits a tensor that holds all queries, keys and values.
    fn fused(&self, kind: &str) -> Option<Named> {
        let dim = self.layout.head_dim(self.layer);
        let q = self.layout.heads(self.layer).checked_mul(dim)?;
        let kv = self.layout.kv_heads(self.layer).checked_mul(dim)?;
        let all = self.tensor.num_rows();
        let part = |name: &str, start, len| {
            let own = format!("self_attn.{name}_proj");
            let rows = self.tensor.select_rows(1, all, start, len)?;
            let rows = match self.layout.pairs(&own, self.layer) {
                Some((head, kept)) => rows.pairs_as_halves(head, kept)?,
                None => rows,
            };
            Some((format!("{own}.{kind}"), rows))
        };
        if q.checked_add(kv.checked_mul(2)?)? != all {
            return None;
        }
        Some(vec![part("q", 0, q)?, part("k", q, kv)?, part("v", q + kv, kv)?])
    }

    /// Converts `[heads, kv_rank, nope_dim]`.
    fn latent_keys(&self) -> Option<Named> {
        let heads = self.layout.heads(self.layer);
        let all = self.tensor.matrices_below_each_other()?;
        Some(vec![("self_attn.k_b".into(), all.heads_transposed(heads)?)])
    }

    /// Splits a tensor of older files that holds the keys and values of each head.
    fn latent_maps(&self) -> Option<Named> {
        let (heads, value) = (self.layout.heads(self.layer), self.layout.latent_value_dim()?);
        let nope = self.layout.latent_query_dim()?.checked_sub(self.layout.usize("rope.dimension_count")?)?;
        let part = |start, len| self.tensor.select_rows(heads, nope + value, start, len);
        Some(vec![("self_attn.k_b".into(), part(0, nope)?), ("self_attn.v_b".into(), part(nope, value)?)])
    }

    /// The experts of a stack `[experts, out, in]`, or of biases `[experts, out]`.
    fn experts(&self) -> Option<Named> {
        let (stem, kind) = self.name.rsplit_once('.')?;
        let module = if self.form == "gemma4-moe" { "mlp.experts.experts" } else { "mlp.experts" };
        let &[count, ..] = self.tensor.shape() else { return None };
        let is_stack = self.tensor.shape().len() == if kind == "bias" { 2 } else { 3 };
        if !is_stack || count > MAX_EXPERTS || self.tensor.shape().contains(&0) {
            return None;
        }
        let each = |index: usize| match kind {
            "bias" => Some(self.tensor.slice_rows(index, 1)?.as_vector()),
            "weight" => self.tensor.matrix(index),
            _ => None,
        };
        if stem == "ffn_gate_up_exps" {
            let both = |index: usize| {
                let one = each(index)?;
                let half = one.num_rows() / 2;
                let part = |map: &str, start| {
                    let rows = one.select_rows(1, 2 * half, start, half)?;
                    Some((format!("{module}.{index}.{map}.{kind}"), rows))
                };
                Some([part("gate_proj", 0)?, part("up_proj", half)?])
            };
            let all: Option<Vec<_>> = (0..count).map(both).collect();
            return Some(all?.into_iter().flatten().collect());
        }
        let (_, map) = EXPERTS.iter().find(|(stack, _)| *stack == stem)?;
        (0..count).map(|index| Some((format!("{module}.{index}.{map}.{kind}"), each(index)?))).collect()
    }
}

impl NetHeads {
    /// The row in the file of a row of value heads that are ordered by key heads. The file has the first value heads
    /// of all key heads before the second ones.
    pub(super) fn file_row(&self, row: usize, unit: usize) -> usize {
        let each = self.value_heads / self.key_heads;
        let (head, within) = (row / unit, row % unit);
        let (key, number) = (head / each, head % each);
        (number * self.key_heads + key) * unit + within
    }

    /// The inverse of `file_row`.
    pub(super) fn own_row(&self, row: usize, unit: usize) -> usize {
        let each = self.value_heads / self.key_heads;
        let (head, within) = (row / unit, row % unit);
        let (number, key) = (head / self.key_heads, head % self.key_heads);
        (key * each + number) * unit + within
    }

    /// Applies `order` to the values among rows of queries, keys and values.
    pub(super) fn behind_keys(&self, row: usize, order: impl Fn(usize) -> usize) -> usize {
        let keys = 2 * self.key_heads * self.key_dim;
        row.checked_sub(keys).map_or(row, |row| keys + order(row))
    }
}

/// Parameters that a file holds as metadata: those of Apertus' activation.
pub(super) fn from_metadata(file: &Gguf, architecture: &str) -> Result<Named, CheckpointError> {
    if architecture != "apertus" {
        return Ok(Vec::new());
    }
    let layers = Layout::new(architecture, &file.metadata).layers();
    let like = file.tensor("token_embd.weight")?;
    let mut all = Vec::new();
    for number in ["alpha_p", "alpha_n", "beta", "eps"] {
        let key = format!("xielu.{number}");
        let values = file.metadata.list(&key, super::Value::as_f64).ok_or_else(|| file.lacks(&key))?;
        if values.len() != layers {
            return Err(file.wrong(
                "metadata".into(),
                format!("`{key}` lists {} layers, the model has {layers}", values.len()),
            ));
        }
        let named = |(layer, value): (usize, &f64)| {
            let value = LazyTensor::of_numbers(vec![*value as f32], &like);
            (format!("model.layers.{layer}.mlp.act_fn.{number}"), value)
        };
        all.extend(values.iter().enumerate().map(named));
    }
    Ok(all)
}
