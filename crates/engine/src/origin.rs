//! Where values that are not finite come from: the cached keys and values of each layer show how far the model's
//! values were finite.

use std::fmt;

use burn::tensor::{DType, backend::Backend};
use moi_models::{BlockTable, CausalLm, KvPool};

use crate::EngineError;

/// Where in a model values stop being finite, and what is probably the cause.
///
/// # Examples
/// ```
/// use burn::tensor::DType;
/// use moi_engine::Origin;
///
/// let origin = Origin { whole: Some(3), broken: Some(4), layers: 32, weight: None, dtype: DType::F16 };
/// let text = origin.to_string();
/// assert!(text.starts_with("they break between the keys of layer 3 and those of layer 4 of 32"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// The last layer whose keys and values are finite.
    pub whole: Option<usize>,
    /// The first layer after it whose keys and values are not finite.
    pub broken: Option<usize>,
    /// Number of layers of the model.
    pub layers: usize,
    /// A weight in that range that is not finite itself.
    pub weight: Option<String>,
    /// The type of the weights.
    pub dtype: DType,
}

impl Origin {
    /// Searches the first positions of a sequence.
    pub(crate) fn find<B: Backend, M: CausalLm<B>>(
        model: &M,
        pool: &KvPool<B>,
        table: &BlockTable,
        positions: usize,
    ) -> Self {
        let finite = pool.finite_layers(table, positions);
        let layers = finite.len();
        let broken = finite.iter().position(|&finite| finite == Some(false));
        let whole = finite[..broken.unwrap_or(layers)].iter().rposition(|&finite| finite == Some(true));
        let weight = model.broken_weight(whole.unwrap_or(0)..=broken.unwrap_or(layers));
        Self { whole, broken, layers, weight, dtype: model.embedding().weight.dtype() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { whole, broken, layers, weight, dtype } = self;
        match (whole, broken) {
            (Some(whole), Some(broken)) => {
                write!(
                    f,
                    "they break between the keys of layer {whole} and those of layer {broken} of {layers}"
                )?;
            }
            (None, Some(broken)) => write!(f, "they break before the keys of layer {broken} of {layers}")?,
            (whole, None) => {
                let layer = whole.unwrap_or(0);
                write!(
                    f,
                    "they break behind the keys of layer {layer} of {layers}, the last norm and head included"
                )?;
            }
        }
        match weight {
            Some(weight) => {
                write!(f, "; `{weight}` is not finite, so the file is broken, or too large for its type")
            }
            None if *dtype == DType::F16 => f.write_str(
                "; its weights are finite, so numbers overflow f16: --dtype bf16 or f32 has room for them",
            ),
            None => f.write_str(
                "; its weights are finite but overflow: they are broken, or not made for this model",
            ),
        }
    }
}

impl EngineError {
    /// Adds the origin to an error about logits, searched for in the first positions of the sequence. Other errors
    /// are unchanged.
    pub(crate) fn traced<B: Backend, M: CausalLm<B>>(
        self,
        model: &M,
        pool: &KvPool<B>,
        table: &BlockTable,
        positions: usize,
    ) -> Self {
        match self {
            Self::BadLogits { step, what, origin: None } => Self::BadLogits {
                step,
                what,
                origin: Some(Box::new(Origin::find(model, pool, table, positions))),
            },
            other => other,
        }
    }
}
