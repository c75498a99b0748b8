//! The places of the decoder's parameters in a Hugging Face checkpoint.

use moi_formats::{PairedRows, RowBlocks};

/// The part of a checkpoint's tensor that is one parameter.
///
/// # Examples
/// ```
/// use moi_models::{RowBlocks, TensorSource};
///
/// // Keys between 16 rows of queries and 8 rows of values.
/// let rows = Some(RowBlocks::range(16, 8, 32));
/// let keys = TensorSource { rows, ..TensorSource::whole("attn.qkv.weight") };
/// assert_eq!(keys.stored_shape(&[8, 16]), [32, 16]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSource {
    /// The tensor's name.
    pub name: String,
    /// The rows that are the parameter; all if `None`.
    pub rows: Option<RowBlocks>,
    /// If the rows of each head are stored as interleaved rotary pairs, which are halves in the parameter, the heads'
    /// sizes.
    pub pairs: Option<PairedRows>,
    /// Whether the tensor is stored as `[in, out]`. `rows` refers to the transposed tensor.
    pub transposed: bool,
}

impl TensorSource {
    /// A whole tensor, as it is stored.
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), rows: None, pairs: None, transposed: false }
    }

    /// The shape of the stored tensor, if the parameter has the shape `parameter`.
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

/// Splits a parameter's name: `model.layers.3.self_attn.q_proj.weight` is layer 3, `self_attn.q_proj`, `weight`.
pub(crate) fn of_layer(name: &str) -> Option<(usize, &str, &str)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    Some((layer.parse().ok()?, module, kind))
}

/// Replaces the beginning of a parameter's name by the table, if it has it. In a layer's parameter, this is what
/// follows the layer's index.
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

/// The name of the parameter that a visitor or mapper of a module is at.
///
/// # Examples
/// ```
/// use moi_models::ParameterPath;
///
/// let mut path = ParameterPath::default();
/// path.enter("lm_head", "Struct:Decoder");
/// path.enter("weight", "Struct:Linear");
/// path.enter("Dense", "Enum:Matrix");
/// assert_eq!(path.name(), "lm_head.weight");
/// ```
#[derive(Clone, Debug, Default)]
pub struct ParameterPath(Vec<Option<String>>);

impl ParameterPath {
    /// To be called in `enter_module`. The variant of an enum is not part of a parameter's name.
    pub fn enter(&mut self, name: &str, container: &str) {
        self.0.push((!container.starts_with("Enum:")).then(|| name.to_owned()));
    }

    /// To be called in `exit_module`.
    pub fn exit(&mut self) {
        self.0.pop();
    }

    /// The names of the modules, and last that of the parameter.
    pub fn parts(&self) -> Vec<&str> {
        self.0.iter().flatten().map(String::as_str).collect()
    }

    /// These names joined by dots, as in checkpoints.
    pub fn name(&self) -> String {
        self.parts().join(".")
    }
}

/// Whether the decoder parameter with this name is held in float32 whatever the type of the weights. This holds for
/// norms, biases and all that are not matrices, because they are few and are used in float32.
///
/// # Examples
/// ```
/// use moi_models::is_held_in_float32;
///
/// assert!(is_held_in_float32("model.norm.weight"));
/// assert!(is_held_in_float32("model.layers.0.self_attn.q_proj.bias"));
/// assert!(!is_held_in_float32("lm_head.weight"));
/// ```
pub fn is_held_in_float32(parameter: &str) -> bool {
    let mut parts = parameter.rsplit('.');
    match parts.next() {
        Some("weight") => parts.next().is_some_and(|module| module.ends_with("norm")),
        Some("words" | "scales" | "minima") => false,
        _ => true,
    }
}
