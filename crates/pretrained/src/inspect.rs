//! Describes a model and the memory it needs, without reading its weights.

use std::{collections::BTreeMap, fmt, path::Path};

use moi_checkpoint::shown;
use moi_models::{Architecture, AttentionKind, DecoderConfig, FeedForwardKind, LayerConfig};
use serde::Serialize;
use serde_json::Value;

use crate::{Pretrained, PretrainedError};

/// The facts about a model. They serialise to JSON and print as a table.
///
/// # Examples
/// ```
/// use moi_pretrained::Inspection;
///
/// # let path = std::env::temp_dir().join(format!("moi-inspection-{}.json", std::process::id()));
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
/// # });
/// # std::fs::write(&path, config.to_string())?;
/// // The path of a config.json, here of a small Llama; or of a whole model.
/// let inspection = Inspection::of(&path)?;
/// assert_eq!((inspection.model_type, inspection.layers.count), ("llama", 2));
/// assert!(inspection.files.is_none());
/// println!("{inspection}");
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The path of the model.
    pub path: String,
    /// `model_type` as `config.json` spells it.
    pub model_type: &'static str,
    /// The number of parameters; tied ones count once.
    pub parameters: usize,
    /// The number of weights that decoding one token reads. It is smaller than `parameters` if the embedding is not
    /// tied to the head, and of experts only the selected ones count.
    pub parameters_per_token: usize,
    /// The number of layers, and their kinds.
    pub layers: Layers,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The number of tokens in the vocabulary, which is the number of rows of the embedding.
    pub vocab_size: usize,
    /// Longest context, in tokens.
    pub context_length: usize,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// The contents of the files; absent if only a config was inspected.
    pub files: Option<Files>,
    /// Bytes of weights and cache for some context lengths.
    pub memory: Vec<Memory>,
    /// Name and shape of every tensor.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tensors: BTreeMap<String, Tensor>,
}

/// The numbers of layers of each kind.
///
/// # Examples
/// ```
/// use moi_pretrained::Layers;
///
/// let layers = Layers {
///     count: 4, attention: 4, latent: 0, states: 0, sliding: 3, experts: 0,
///     heads: 8, kv_heads: 2, head_dim: 64,
/// };
/// let shown = "4, 3 with a sliding window; 8 heads of 64, 2 for keys and values";
/// assert_eq!(layers.to_string(), shown);
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Layers {
    /// All layers.
    pub count: usize,
    /// Layers with attention.
    pub attention: usize,
    /// Layers with attention whose keys and values are computed from latent vectors.
    pub latent: usize,
    /// Layers with a recurrent state of fixed size instead of attention.
    pub states: usize,
    /// Layers with a sliding window.
    pub sliding: usize,
    /// Layers with a mixture of experts.
    pub experts: usize,
    /// Query heads of the attention layer that has most.
    pub heads: usize,
    /// Key and value heads of the attention layer that has most.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// The contents of the files.
///
/// # Examples
/// ```no_run
/// use moi_pretrained::{Files, Inspection};
///
/// let inspection = Inspection::of("./Llama-3.2-1B-Instruct".as_ref())?;
/// if let Some(Files { bytes, tokenizer, chat_template, .. }) = &inspection.files {
///     println!("{bytes} bytes; tokenizer: {tokenizer}; chat template: {chat_template}");
/// }
/// # Ok::<(), moi_pretrained::PretrainedError>(())
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Files {
    /// Bytes of all tensors.
    pub bytes: usize,
    /// Totals by storage type.
    pub types: BTreeMap<&'static str, TypeTotal>,
    /// The kind and size of the tokenizer, or why there is none.
    pub tokenizer: String,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// Tokens that end a generation.
    pub eos: Vec<u32>,
    /// Their texts, if the tokenizer has them.
    pub eos_texts: Vec<Option<String>>,
    /// Messages about the files for the user.
    pub notes: Vec<String>,
}

/// The total of the tensors of one storage type.
///
/// # Examples
/// ```no_run
/// use moi_pretrained::{Inspection, TypeTotal};
///
/// let inspection = Inspection::of("./Llama-3.2-1B-Instruct".as_ref())?;
/// let types = inspection.files.map(|files| files.types).unwrap_or_default();
/// for (name, TypeTotal { tensors, values, bytes }) in types {
///     println!("{name}: {tensors} tensors, {:.1} bits per value", 8.0 * bytes as f64 / values as f64);
/// }
/// # Ok::<(), moi_pretrained::PretrainedError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TypeTotal {
    /// The number of tensors.
    pub tensors: usize,
    /// The number of values.
    pub values: usize,
    /// Bytes of the values.
    pub bytes: usize,
}

/// Bytes of weights and cache if all values have the same type.
///
/// # Examples
/// ```
/// use moi_pretrained::Inspection;
///
/// # let path = std::env::temp_dir().join(format!("moi-memory-{}.json", std::process::id()));
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
/// # });
/// # std::fs::write(&path, config.to_string())?;
/// let inspection = Inspection::of(&path)?; // of the config.json of a small Llama
/// // The last entry is for the longest context.
/// let memory = inspection.memory.last().ok_or("no context")?;
/// assert_eq!(memory.context, inspection.context_length);
/// assert!(memory.f32 == 2 * memory.f16 && memory.f32 > 4 * inspection.parameters);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    /// Positions in the cache, for one sequence.
    pub context: usize,
    /// Bytes in float32.
    pub f32: usize,
    /// Bytes in float16 or bfloat16.
    pub f16: usize,
}

/// A tensor of the checkpoint.
///
/// # Examples
/// ```
/// use moi_pretrained::{Inspection, Tensor};
///
/// # let path = std::env::temp_dir().join(format!("moi-tensor-{}.json", std::process::id()));
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
/// # });
/// # std::fs::write(&path, config.to_string())?;
/// let inspection = Inspection::of(&path)?; // of the config.json of a small Llama
/// let Tensor { shape, storage } = &inspection.tensors["model.embed_tokens.weight"];
/// assert_eq!(*shape, [32, 16]);
/// assert!(storage.is_none()); // a config does not say how the weights are stored
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The storage type; absent if only a config was inspected.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub storage: Option<&'static str>,
}

impl Inspection {
    /// Inspects a GGUF file, a directory in Hugging Face layout, or a single `config.json`. For a config, the tensors
    /// are those that a checkpoint of the config must have.
    ///
    /// # Errors
    /// If the model cannot be opened, or its tensors do not fit its config.
    pub fn of(path: &Path) -> Result<Self, PretrainedError> {
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        if is_json && path.is_file() {
            return Self::of_config(path);
        }
        let pretrained = Pretrained::open(path)?;
        // Names and shapes must fit as for loading.
        pretrained.parameters()?;
        let mut inspection = Self::of_architecture(path, &pretrained.architecture);
        let mut types = BTreeMap::<&str, TypeTotal>::new();
        for (name, tensor) in pretrained.checkpoint.tensors() {
            let (storage, shape) = (tensor.storage().name(), tensor.shape().to_vec());
            let total = types.entry(storage).or_default();
            total.tensors += 1;
            total.values += shape.iter().product::<usize>();
            total.bytes += tensor.num_bytes();
            inspection.tensors.insert(name.clone(), Tensor { shape, storage: Some(storage) });
        }
        let tokenizer = match &*pretrained.tokenizer {
            Ok(Some(tokenizer)) => format!("{}, {} tokens", tokenizer.kind(), tokenizer.vocab_size()),
            Ok(None) => "none".to_owned(),
            Err(error) => format!("cannot be used: {error}"),
        };
        inspection.files = Some(Files {
            bytes: pretrained.checkpoint.num_bytes(),
            types,
            tokenizer,
            chat_template: matches!(pretrained.chat_template, Ok(Some(_))),
            eos: pretrained.eos.clone(),
            eos_texts: pretrained.end_texts(),
            notes: pretrained.notes.clone(),
        });
        Ok(inspection)
    }

    fn of_config(path: &Path) -> Result<Self, PretrainedError> {
        let wrong = |what: String| PretrainedError::File { path: path.to_owned(), what };
        let config: Value = crate::directory::read(path).map_err(wrong)?;
        crate::quantised::by_config(&config).map_err(wrong)?;
        let architecture = Architecture::from_config(&crate::quantised::without_quantisation(&config))
            .map_err(|error| PretrainedError::Model { path: path.to_owned(), error })?;
        let mut inspection = Self::of_architecture(path, &architecture);
        let tensors = architecture.checkpoint_tensors().into_iter();
        inspection.tensors = tensors.map(|(name, shape)| (name, Tensor { shape, storage: None })).collect();
        Ok(inspection)
    }

    fn of_architecture(path: &Path, architecture: &Architecture) -> Self {
        let config = &architecture.config;
        let parameters = config.num_params();
        let memory = |context: usize| {
            let values = parameters + config.cached_values(context);
            Memory { context, f32: 4 * values, f16: 2 * values }
        };
        let mut contexts = vec![2048, 8192, 32_768, 131_072];
        contexts.retain(|&context| context < config.context_length);
        contexts.push(config.context_length);
        Self {
            path: path.display().to_string(),
            model_type: config.model_type,
            parameters,
            parameters_per_token: config.weights_per_token(),
            layers: layers(config),
            hidden_size: config.hidden_size,
            vocab_size: config.vocab_size,
            context_length: config.context_length,
            tied: config.tie_word_embeddings,
            files: None,
            memory: contexts.into_iter().map(memory).collect(),
            tensors: BTreeMap::new(),
        }
    }
}

fn layers(config: &DecoderConfig) -> Layers {
    let heads = || {
        config.layers.iter().filter_map(|layer| match &layer.attention {
            Some(AttentionKind::Heads(attention)) => Some(attention),
            _ => None,
        })
    };
    let latents = || {
        config.layers.iter().filter_map(|layer| match &layer.attention {
            Some(AttentionKind::Latent(latent)) => Some(latent),
            _ => None,
        })
    };
    let has_state = |layer: &&LayerConfig| match &layer.attention {
        Some(AttentionKind::DeltaNet(_) | AttentionKind::ShortConv(_) | AttentionKind::Mamba2(_)) => true,
        Some(AttentionKind::Heads(_) | AttentionKind::Latent(_) | AttentionKind::Linear) | None => false,
    };
    let has_experts = |kind: &FeedForwardKind| {
        matches!(kind, FeedForwardKind::Experts(_) | FeedForwardKind::MlpAndExperts(..))
    };
    let experts = config.layers.iter().filter(|layer| layer.feed_forward.as_ref().is_some_and(has_experts));
    Layers {
        count: config.layers.len(),
        attention: heads().count() + latents().count(),
        latent: latents().count(),
        states: config.layers.iter().filter(has_state).count(),
        sliding: heads().filter(|attention| attention.window.is_some()).count(),
        experts: experts.count(),
        heads: largest(heads().map(|one| one.num_heads).chain(latents().map(|one| one.num_heads))),
        // All heads share one latent vector.
        kv_heads: largest(heads().map(|one| one.num_kv_heads).chain(latents().map(|_| 1))),
        head_dim: largest(
            heads().map(|one| one.head_dim).chain(latents().map(|one| one.nope_dim + one.rope_dim)),
        ),
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "{name:14} {value}");
        row("model", self.path.clone())?;
        row("architecture", self.model_type.to_owned())?;
        let tied = if self.tied { ", the embedding is the head" } else { "" };
        row("parameters", format!("{}{tied}", grouped(self.parameters)))?;
        if self.parameters_per_token != self.parameters {
            row("  per token", grouped(self.parameters_per_token))?;
        }
        row("layers", self.layers.to_string())?;
        row("width", self.hidden_size.to_string())?;
        row("vocabulary", self.vocab_size.to_string())?;
        row("context", self.context_length.to_string())?;
        if let Some(files) = &self.files {
            for (kind, total) in &files.types {
                let values = grouped(total.values);
                row(kind, format!("{} tensors, {values} values, {}", total.tensors, size(total.bytes)))?;
            }
            row("all tensors", size(files.bytes))?;
            row("tokenizer", files.tokenizer.clone())?;
            row("chat template", if files.chat_template { "yes" } else { "no" }.to_owned())?;
            row("end tokens", listed_ends(&files.eos, &files.eos_texts))?;
            for note in &files.notes {
                row("note", note.clone())?;
            }
        }
        for memory in &self.memory {
            let [f32, f16] = [size(memory.f32), size(memory.f16)];
            row("memory", format!("{f32} in float32, {f16} in 16 bits, with {} positions", memory.context))?;
        }
        Ok(())
    }
}

/// End tokens in the form in which tables and messages show them: ids, with texts if they are known.
pub(crate) fn listed_ends(ids: &[u32], texts: &[Option<String>]) -> String {
    let one = |(id, text): (&u32, &Option<String>)| match text {
        Some(text) => format!("{id} {}", shown(text)),
        None => id.to_string(),
    };
    match ids.is_empty() {
        true => "none".to_owned(),
        false => ids.iter().zip(texts).map(one).collect::<Vec<_>>().join(", "),
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.count)?;
        if self.attention < self.count {
            write!(f, ", {} with attention", self.attention)?;
        }
        if self.latent > 0 {
            write!(f, ", {} over latents", self.latent)?;
        }
        if self.states > 0 {
            write!(f, ", {} with a state", self.states)?;
        }
        if self.sliding > 0 {
            write!(f, ", {} with a sliding window", self.sliding)?;
        }
        if self.experts > 0 {
            write!(f, ", {} with experts", self.experts)?;
        }
        write!(f, "; {} heads of {}, {} for keys and values", self.heads, self.head_dim, self.kv_heads)
    }
}

fn largest(sizes: impl Iterator<Item = usize>) -> usize {
    sizes.max().unwrap_or(0)
}

/// A number with digits grouped in threes: 1,234,567.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for (index, group) in digits.as_bytes()[first..].chunks(3).enumerate() {
        if index > 0 || first > 0 {
            text.push(',');
        }
        text.extend(group.iter().map(|&digit| char::from(digit)));
    }
    text
}

/// A number of bytes in decimal units.
fn size(bytes: usize) -> String {
    let bytes = bytes as f64;
    match bytes {
        0.0..1e6 => format!("{:.1} kB", bytes / 1e3),
        0.0..1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.2} GB", bytes / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let all = [0, 12, 999, 1000, 134_515_008].map(grouped);
        assert_eq!(all, ["0", "12", "999", "1,000", "134,515,008"]);
    }
}
