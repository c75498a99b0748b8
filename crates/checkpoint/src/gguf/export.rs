//! Writes the decoder's parameters as tensors of newer architectures: the inverse of reading them in
//! [`super::parameters`].

use moi_formats::RowBlocks;

use super::{
    Metadata,
    layout::{Layout, Mixer, NetHeads},
    names::Exported,
    parameters::{EXPERTS, GLOBALS, NUMBERS, PARTS, form, is_around, own_name},
};
use crate::{Checkpoint, LazyTensor};

/// Whether files of an architecture are written from the decoder's parameters, by [`export_parameters`].
///
/// # Examples
/// ```
/// use moi_checkpoint::gguf::is_by_parameter;
///
/// assert!(is_by_parameter("gpt-oss"));
/// assert!(!is_by_parameter("llama"));
/// ```
pub fn is_by_parameter(architecture: &str) -> bool {
    super::parameters::ARCHITECTURES.contains(&architecture)
}

/// The tensors that llama.cpp's converter makes of a model with these parameters, in a file with this metadata.
///
/// # Errors
/// The name of a parameter for which the architecture has no tensor.
///
/// # Examples
/// ```
/// use moi_checkpoint::gguf::{Metadata, export_parameters};
/// use moi_checkpoint::open_safetensors;
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// let parameters = open_safetensors(&path)?.renamed(|_| "lm_head.weight".to_owned())?;
/// let exported = export_parameters("seed_oss", &Metadata::default(), &parameters)?;
/// assert_eq!(exported[0].name, "output.weight");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn export_parameters(
    architecture: &str,
    metadata: &Metadata,
    parameters: &Checkpoint,
) -> Result<Vec<Exported>, String> {
    let layout = Layout::new(architecture, metadata);
    let export = Export { layout, form: form(architecture, &layout), parameters };
    let mut all = Vec::new();
    for name in parameters.tensors().keys() {
        all.extend(export.one(name).ok_or_else(|| name.clone())?);
    }
    all.extend(export.added());
    Ok(all)
}

struct Export<'a> {
    layout: Layout<'a>,
    form: &'a str,
    parameters: &'a Checkpoint,
}

/// Tensors with their names in a layer, and whether they stay floats in a quantised file.
type SpecialTensors = (Vec<(String, LazyTensor)>, bool);

impl Export<'_> {
    /// The tensors that a parameter is written as; empty if it is part of another parameter's tensor, or of the
    /// metadata.
    fn one(&self, name: &str) -> Option<Vec<Exported>> {
        let tensor = self.parameters.tensors().get(name)?;
        let of_layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let layer = of_layer.and_then(|(layer, part)| Some((layer.parse::<usize>().ok()?, part)));
        let Some((layer, part)) = layer else {
            let (stem, kind) = name.rsplit_once('.')?;
            let (own, _) = GLOBALS.iter().find(|(_, parameter)| *parameter == stem)?;
            let own = match (self.form, *own) {
                ("lfm2" | "lfm2moe", "output_norm") => "token_embd_norm",
                (_, own) => own,
            };
            let tensor =
                if self.layout.is_plus_one(name) { tensor.clone().plus(1.0) } else { tensor.clone() };
            return Some(vec![exported(format!("{own}.{kind}"), tensor)]);
        };
        let named = |(own, tensor): (String, LazyTensor)| exported(format!("blk.{layer}.{own}"), tensor);
        if let Some(expert) = self.expert(layer, part, tensor) {
            return Some(vec![expert]);
        }
        if let Some(special) = self.special(layer, part, tensor) {
            let (own, is_float) = special?;
            let exported = own.into_iter().map(named);
            return Some(exported.map(|one| Exported { is_float, ..one }).collect());
        }
        if let Some((own, _)) = NUMBERS.iter().find(|(_, parameter)| *parameter == part) {
            return Some(vec![named(((*own).to_owned(), self.number(part, tensor)?))]);
        }
        let (stem, kind) = part.rsplit_once('.')?;
        let own = self.own(layer, stem)?;
        Some(vec![named((format!("{own}.{kind}"), self.done(layer, stem, part, tensor)?))])
    }

    fn get(&self, layer: usize, part: &str) -> Option<&LazyTensor> {
        self.parameters.tensors().get(&format!("model.layers.{layer}.{part}"))
    }

    /// The file's name of a module of a layer.
    fn own(&self, layer: usize, stem: &str) -> Option<&'static str> {
        const BEHIND: &[&str] = &[
            "qwen35",
            "qwen35moe",
            "qwen3next",
            "gpt-oss",
            "glm4moe",
            "seed_oss",
            "exaone4",
            "gemma4",
            "gemma4-moe",
            "muse-glimmer",
        ];
        let mixer = self.layout.mixer(layer);
        let is_conv = ["lfm2", "lfm2moe"].contains(&self.form);
        match stem {
            "pre_feedforward_layernorm" if is_around(self.form) => return Some("ffn_norm"),
            "post_attention_layernorm" if mixer == Mixer::None => return Some("attn_norm"),
            "post_attention_layernorm" if BEHIND.contains(&self.form) => return Some("post_attention_norm"),
            "self_attn.conv" if is_conv => return Some("shortconv.conv"),
            "self_attn.in_proj" if is_conv => return Some("shortconv.in_proj"),
            "self_attn.out_proj" if is_conv => return Some("shortconv.out_proj"),
            _ => {}
        }
        let found = PARTS.iter().find(|(_, usual)| own_name(self.form, mixer, usual) == stem);
        found.map(|(own, _)| *own)
    }

    /// Converts a parameter's values to the file's layout.
    fn done(&self, layer: usize, stem: &str, part: &str, tensor: &LazyTensor) -> Option<LazyTensor> {
        if self.layout.is_plus_one(part) {
            return Some(tensor.clone().plus(1.0));
        }
        if let Some((head, kept)) = self.layout.pairs(stem, layer) {
            return tensor.halves_as_pairs(head, kept);
        }
        let net = self.layout.reordered_net();
        match (stem, net) {
            ("self_attn.in_proj_z", Some(net)) => by_numbers(tensor, net, net.value_dim),
            ("self_attn.in_proj_a" | "self_attn.in_proj_b", Some(net)) => by_numbers(tensor, net, 1),
            ("self_attn.conv", Some(net)) => {
                tensor.reorder_rows(|row| net.behind_keys(row, |row| net.own_row(row, net.value_dim)))
            }
            ("self_attn.norm", None) if self.is_mamba() => {
                let groups = self.layout.usize("ssm.group_count")?;
                let width = tensor.num_rows().checked_div(groups)?;
                Some(tensor.shaped(vec![groups, width]))
            }
            _ => Some(tensor.clone()),
        }
    }

    fn is_mamba(&self) -> bool {
        ["nemotron_h", "nemotron_h_moe", "granitehybrid"].contains(&self.form)
    }

    /// Converts a vector that is listed in [`NUMBERS`].
    fn number(&self, parameter: &str, tensor: &LazyTensor) -> Option<LazyTensor> {
        let column = |vector: LazyTensor| match self.is_mamba() {
            true => {
                let len = vector.num_rows();
                vector.shaped(vec![len, 1])
            }
            false => vector,
        };
        let in_order = |vector: LazyTensor| match self.layout.reordered_net() {
            Some(net) => by_numbers(&vector, net, 1),
            None => Some(vector),
        };
        match parameter {
            "self_attn.a_log" => in_order(tensor.mapped(|value| -value.exp())).map(column),
            "self_attn.d" => Some(column(tensor.clone())),
            "self_attn.dt_bias" => in_order(tensor.clone()),
            _ => Some(tensor.clone()),
        }
    }

    /// Tensors that are made of several parameters or changed as a whole, and whether they must be stored as floats.
    fn special(&self, layer: usize, part: &str, tensor: &LazyTensor) -> Option<Option<SpecialTensors>> {
        let is_next = self.layout.has_delta_nets();
        let one = |own: &str, tensor: Option<LazyTensor>, is_float: bool| {
            tensor.map(|tensor| (vec![(own.to_owned(), tensor)], is_float))
        };
        Some(match part {
            "self_attn.q_proj.weight" if is_next => one("attn_q.weight", self.gated_queries(layer), false),
            "self_attn.in_proj_q.weight" => one("attn_qkv.weight", self.net_maps(layer), false),
            "self_attn.in_proj_b.weight" if self.form == "qwen3next" => {
                one("ssm_ba.weight", self.net_numbers(layer), false)
            }
            // These parameters are part of the tensors above.
            "self_attn.gate_proj.weight" if is_next => Some((Vec::new(), false)),
            "self_attn.in_proj_k.weight" | "self_attn.in_proj_v.weight" => Some((Vec::new(), false)),
            "self_attn.in_proj_a.weight" if self.form == "qwen3next" => Some((Vec::new(), false)),
            // These parameters are stored in the metadata.
            _ if part.starts_with("mlp.act_fn.") => Some((Vec::new(), false)),
            "self_attn.out_proj.weight" if self.layout.reordered_net().is_some() => {
                let net = self.layout.reordered_net()?;
                let order = |column| net.own_row(column, net.value_dim);
                // The columns of quantised blocks could not be reordered when they are read.
                one("ssm_out.weight", tensor.reorder_columns(order), true)
            }
            "self_attn.k_b" => {
                let heads = self.layout.heads(layer);
                let rank = tensor.shape().last().copied().unwrap_or(0);
                let keys = tensor.heads_transposed(heads);
                let keys = keys.map(|keys| keys.shaped(vec![heads, rank, tensor.num_rows() / heads.max(1)]));
                one("attn_k_b.weight", keys, true)
            }
            "self_attn.v_b" => {
                let heads = self.layout.heads(layer).max(1);
                let rank = tensor.shape().last().copied().unwrap_or(0);
                let values = tensor.shaped(vec![heads, tensor.num_rows() / heads, rank]);
                one("attn_v_b.weight", Some(values), true)
            }
            _ => return None,
        })
    }

    fn gated_queries(&self, layer: usize) -> Option<LazyTensor> {
        let (heads, dim) = (self.layout.heads(layer), self.layout.head_dim(layer));
        let part = |name: &str, start| {
            let rows = RowBlocks { blocks: heads, block: 2 * dim, start, len: dim };
            Some((rows, self.get(layer, &format!("self_attn.{name}.weight"))?.clone()))
        };
        LazyTensor::woven(&[part("q_proj", 0)?, part("gate_proj", dim)?])
    }

    fn net_maps(&self, layer: usize) -> Option<LazyTensor> {
        let map = |part: &str| self.get(layer, &format!("self_attn.in_proj_{part}.weight")).cloned();
        let (q, k, v) = (map("q")?, map("k")?, map("v")?);
        let v = match self.layout.reordered_net() {
            Some(net) => by_numbers(&v, net, net.value_dim)?,
            None => v,
        };
        let (keys, values) = (q.num_rows(), v.num_rows());
        let all = 2 * keys + values;
        LazyTensor::woven(&[
            (RowBlocks::range(0, keys, all), q),
            (RowBlocks::range(keys, keys, all), k),
            (RowBlocks::range(2 * keys, values, all), v),
        ])
    }

    fn net_numbers(&self, layer: usize) -> Option<LazyTensor> {
        let net = self.layout.net()?;
        let each = net.value_heads / net.key_heads;
        let part = |name: &str, start| {
            let rows = RowBlocks { blocks: net.key_heads, block: 2 * each, start, len: each };
            Some((rows, self.get(layer, &format!("self_attn.in_proj_{name}.weight"))?.clone()))
        };
        LazyTensor::woven(&[part("b", 0)?, part("a", each)?])
    }

    /// A linear layer of an expert, which is stored in a stack.
    fn expert(&self, layer: usize, part: &str, tensor: &LazyTensor) -> Option<Exported> {
        let module = if self.form == "gemma4-moe" { "mlp.experts.experts." } else { "mlp.experts." };
        let (index, map) = part.strip_prefix(module)?.split_once('.')?;
        let (map, kind) = map.rsplit_once('.')?;
        let (stack, _) = EXPERTS.iter().find(|(_, own)| *own == map)?;
        let name = format!("blk.{layer}.{stack}.{kind}");
        Some(Exported { expert: Some(index.parse().ok()?), ..exported(name, tensor.clone()) })
    }

    /// Tensors that belong to no parameter: Muse Glimmer's norms of queries and keys, whose weights are its query
    /// factor and 1.
    fn added(&self) -> Vec<Exported> {
        let factor = self.layout.muse_factor().filter(|_| self.form == "muse-glimmer");
        let like = self.parameters.tensors().values().next();
        let (Some(factor), Some(like)) = (factor, like) else { return Vec::new() };
        let norms = |layer: usize| {
            let dim = self.layout.head_dim(layer);
            [("attn_q_norm", factor as f32), ("attn_k_norm", 1.0)].map(|(name, value)| {
                exported(format!("blk.{layer}.{name}.weight"), LazyTensor::of_numbers(vec![value; dim], like))
            })
        };
        (0..self.layout.layers()).flat_map(norms).collect()
    }
}

fn exported(name: String, tensor: LazyTensor) -> Exported {
    Exported { name, tensor, expert: None, is_float: false }
}

/// Reorders rows of value heads as llama.cpp does: first value heads of all key heads, then the second ones, and so
/// on.
fn by_numbers(tensor: &LazyTensor, net: NetHeads, unit: usize) -> Option<LazyTensor> {
    let fits = tensor.num_rows() == net.value_heads * unit;
    fits.then(|| tensor.reorder_rows(|row| net.own_row(row, unit)))?
}
