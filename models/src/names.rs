//! Where a parameter of the decoder stands in a Hugging Face checkpoint.

/// The part of a checkpoint's tensor that is one parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSource {
    /// The tensor's name.
    pub name: String,
    /// The rows that are the parameter; all where none are given.
    pub rows: Option<Rows>,
    /// Whether the tensor is stored `[in, out]`. Rows are counted behind the transposition.
    pub transposed: bool,
}

/// Some rows of each of several equal blocks of rows: one of several maps that are stored as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How many blocks there are.
    pub blocks: usize,
    /// Rows of a block.
    pub block: usize,
    /// The first row in a block.
    pub start: usize,
    /// Rows of each block from there.
    pub len: usize,
}

impl Rows {
    /// The rows from `start` on of a tensor of `all` rows.
    pub fn range(start: usize, len: usize, all: usize) -> Self {
        Self { blocks: 1, block: all, start, len }
    }
}

impl TensorSource {
    /// A whole tensor, as it is stored.
    pub fn whole(name: impl Into<String>) -> Self {
        Self { name: name.into(), rows: None, transposed: false }
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

/// Whether the parameter of a decoder with this name is held in float32 whatever the type of the weights: norms and
/// biases, which are few and compute in it.
pub fn is_held_in_float32(parameter: &str) -> bool {
    let mut parts = parameter.rsplit('.');
    parts.next() == Some("bias") || parts.next().is_some_and(|module| module.ends_with("norm"))
}
