//! Errors of configs and of calls.

/// The reason why a model cannot be built or run.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, ModelError};
///
/// let refused = Architecture::from_config(&serde_json::json!({"model_type": "bert"}));
/// assert!(matches!(refused, Err(ModelError::UnsupportedModelType(name)) if name == "bert"));
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` names no architecture.
    #[error("the config has no `model_type`; supported are: {}", supported())]
    NoModelType,
    /// The architecture has no page here.
    #[error("model type `{0}` is not supported; supported are: {supported}", supported = supported())]
    UnsupportedModelType(String),
    /// A field is missing or of the wrong type.
    #[error("the config does not fit model type `{model_type}`: {what}")]
    Config {
        /// The architecture that read it.
        model_type: &'static str,
        /// The field and what is wrong with it.
        what: String,
    },
    /// An option that would change the result and is not implemented.
    #[error(
        "config option `{field}` = {value} is not supported for model type `{model_type}` (supported: {supported})"
    )]
    UnsupportedOption {
        /// The architecture that read it.
        model_type: &'static str,
        /// The field's name in `config.json`.
        field: &'static str,
        /// Its value there.
        value: String,
        /// The supported values.
        supported: &'static str,
    },
    /// Sizes that contradict each other.
    #[error("the config of model type `{model_type}` is inconsistent: {what}")]
    Inconsistent {
        /// The architecture that read it.
        model_type: &'static str,
        /// Which sizes, and how.
        what: String,
    },
    /// There are more positions than the model supports.
    #[error(
        "{needed} positions are needed but the model's context holds {context_length}; shorten the prompt"
    )]
    ContextFull {
        /// Positions in the cache and the inputs together.
        needed: usize,
        /// The model's limit.
        context_length: usize,
    },
    /// The shape of the inputs does not fit the model or the spans.
    #[error(
        "inputs of shape {found:?} given where [{tokens}, {width}] was expected, spans of 1 position or more"
    )]
    InputShape {
        /// Number of positions of all spans.
        tokens: usize,
        /// Width of the model's inputs.
        width: usize,
        /// Shape of the inputs.
        found: [usize; 2],
    },
    /// A tree of positions for a model whose layers keep states: each branch would need a state of its own.
    #[error(
        "the model keeps states, which have no positions to go back to: positions must follow one another, not be a tree"
    )]
    TreeOfStates,
    /// A tree in which a position does not come after its parent.
    #[error(
        "the tree of a span of {len} positions has another number of parents, or a parent that does not come first"
    )]
    Tree {
        /// Number of positions of the span.
        len: usize,
    },
    /// A table that belongs to another pool.
    #[error("a sequence was given to a pool of keys and values that it does not belong to")]
    ForeignTable,
    /// The pool's budget has no room.
    #[error(
        "the cache needs {needed} bytes and may have {budget}: fewer or shorter sequences fit, or a larger cache"
    )]
    PoolFull {
        /// Bytes of all blocks, including the missing ones.
        needed: usize,
        /// The pool's limit.
        budget: usize,
    },
}

fn supported() -> String {
    crate::supported_model_types().collect::<Vec<_>>().join(", ")
}
