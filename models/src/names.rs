//! Where a parameter of the decoder stands in a Hugging Face checkpoint.

use moi_formats::{PairedRows, RowBlocks};

/// The part of a checkpoint's tensor that is one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSource {
    /// The tensor's name.
    pub name: String,
    /// The rows that are the parameter; all where none are given.
    pub rows: Option<RowBlocks>,
    /// Heads of rows that are stored as pairs side by side, and are halves in the parameter.
    pub pairs: Option<PairedRows>,
    /// Whether the tensor is stored `[in, out]`. Rows are counted behind the transposition.
    pub transposed: bool,
}

impl TensorSource {
    /// A whole tensor, as it is stored.
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), rows: None, pairs: None, transposed: false }
    }

    /// The shape of the stored tensor, if the parameter has this one.
    pub fn stored_shape(&self, parameter: &[usize]) -> Vec<usize> {
        let mut shape = parameter.to_vec();
        if let (Some(rows), Some(first)) = (self.rows, shape.first_mut()) {
            *first = rows.blocks * rows.block;
        }
        if self.transposed {
            shape.reverse();
        }
        shape
    }
}

/// A parameter's name taken apart: `model.layers.3.self_attn.q_proj.weight` is layer 3, `self_attn.q_proj`,
/// `weight`.
pub(crate) fn of_layer(name: &str) -> Option<(usize, &str, &str)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    Some((layer.parse().ok()?, module, kind))
}

/// A parameter's name with what it begins with in its layer, or, of one that is in no layer, in all, replaced where the table
/// has it.
pub(crate) fn renamed(name: &str, table: &[(&str, &str)]) -> String {
    let of_layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let (prefix, own) = match of_layer {
        Some((layer, own)) => (format!("model.layers.{layer}."), own),
        None => (String::new(), name),
    };
    let found = table.iter().find_map(|(from, to)| Some((own.strip_prefix(from)?, to)));
    match found {
        Some((rest, to)) => format!("{prefix}{to}{rest}"),
        None => name.to_owned(),
    }
}

/// The name of the parameter that a visitor or mapper of a module has come to.
#[derive(Clone, Debug, Default)]
pub struct ParameterPath(Vec<Option<String>>);

impl ParameterPath {
    /// For `enter_module`. The variant of an enum is no part of a parameter's name.
    pub fn enter(&mut self, name: &str, container: &str) {
        self.0.push((!container.starts_with("Enum:")).then(|| name.to_owned()));
    }

    /// For `exit_module`.
    pub fn exit(&mut self) {
        self.0.pop();
    }

    /// The modules, and the parameter last.
    pub fn parts(&self) -> Vec<&str> {
        self.0.iter().flatten().map(String::as_str).collect()
    }

    /// The same in one, as checkpoints spell it.
    pub fn name(&self) -> String {
        self.parts().join(".")
    }
}

/// Whether the parameter of a decoder with this name is held in float32 whatever the type of the weights: norms, biases and
/// all that is no matrix, which are few and compute in it.
pub fn is_held_in_float32(parameter: &str) -> bool {
    let mut parts = parameter.rsplit('.');
    match parts.next() {
        Some("weight") => parts.next().is_some_and(|module| module.ends_with("norm")),
        Some("words" | "scales" | "minima") => false,
        _ => true,
    }
}
