//! Opens a model on disk as a whole: weights, tokenizer, chat template and settings.
//!
//! [`Pretrained::open`] takes a GGUF file or a directory in Hugging Face layout and reads everything except the
//! weights; [`Pretrained::load`] loads the weights onto a device.
//!
//! ```no_run
//! use burn::tensor::backend::Backend;
//! use moi_models::Decoder;
//! use moi_pretrained::{Pretrained, PretrainedError, WeightForm};
//!
//! fn load<B: Backend>(path: &str, device: &B::Device) -> Result<Decoder<B>, PretrainedError> {
//!     let pretrained = Pretrained::open(path.as_ref())?;
//!     println!("end tokens {:?}", pretrained.eos);
//!     let form = WeightForm::F32;
//!     pretrained.load(device, form, |progress| eprintln!("{} bytes", progress.bytes))
//! }
//! ```

mod contents;
mod directory;
mod end_tokens;
mod extra_heads;
mod gguf;
mod inspect;
mod lazy_tokenizer;
mod quantised;
mod sampling;
mod special_tokens;
mod tokenizer_files;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::{DType, FloatDType, backend::Backend};
use contents::Contents;
use extra_heads::is_extra_head;
pub use inspect::{Files, Inspection, Layers, Memory, Tensor, TypeTotal};
pub use lazy_tokenizer::{LazyTokenizer, TokenizerResult};
use moi_checkpoint::{
    BURNPACK_FILE, Checkpoint, CheckpointError, INDEX_FILE, LazyTensor, LoadProgress, PairedRows, Parameter,
    SINGLE_FILE, Storage, Upload, is_there, shown,
};
use moi_models::{
    Activations, Architecture, Decoder, ModelError, PackedForm, TensorSource, default_kernels, is_gpu,
    is_held_in_float32, scales_dtype,
};
use moi_text::{ChatTemplate, TextError};
pub use quantised::{is_quantisation_file, without_quantisation};
pub use sampling::AdvisedSampling;
pub use tokenizer_files::read_tokenizer;

/// A model on disk whose weights have not been read yet.
///
/// # Examples
/// ```no_run
/// use burn::tensor::backend::Backend;
/// use moi_models::Decoder;
/// use moi_pretrained::{Pretrained, PretrainedError, WeightForm};
///
/// fn load<B: Backend>(device: &B::Device) -> Result<Decoder<B>, PretrainedError> {
///     // A directory in Hugging Face layout, or a .gguf file.
///     let model = Pretrained::open("./Llama-3.2-1B-Instruct".as_ref())?;
///     let needed = model.footprint::<B>(device, WeightForm::F32, 4096)?;
///     println!("{} bytes with a cache of {} positions", needed.total(), needed.positions);
///     for note in &model.notes {
///         eprintln!("{note}");
///     }
///     // The tokenizer is built on first use.
///     if let Ok(Some(tokenizer)) = &*model.tokenizer {
///         println!("{} tokens", tokenizer.vocab_size());
///     }
///     model.load::<B>(device, WeightForm::F32, |_| {})
/// }
/// ```
#[derive(Debug)]
pub struct Pretrained {
    /// The path of the model.
    pub path: PathBuf,
    /// The architecture to build.
    pub architecture: Architecture,
    /// The model's tensors.
    pub checkpoint: Checkpoint,
    /// The tokenizer, if the model has one. If it cannot be used, the error only matters to callers that need it.
    pub tokenizer: LazyTokenizer,
    /// The chat template, if the model has one; its error also only matters to callers that need it.
    pub chat_template: Result<Option<ChatTemplate>, TextError>,
    /// The tokens that end a generation.
    pub eos: Vec<u32>,
    /// The sampling settings that the model's makers recommend. An error in them only matters to callers that sample.
    pub sampling: Result<AdvisedSampling, PretrainedError>,
    /// Messages about the files for the user: not errors, but results may differ from what is expected.
    pub notes: Vec<String>,
}

/// The form in which weights are held in memory, which also determines the type of activations and cache.
///
/// Norms and biases are always float32, and routers are floats. Packed weights compute in float32, or with rounded
/// activations: see [`Activations`].
///
/// # Examples
/// ```
/// use burn::tensor::FloatDType;
/// use moi_models::PackedForm;
/// use moi_pretrained::WeightForm;
///
/// assert_eq!(WeightForm::Float(FloatDType::F16).dtype(), FloatDType::F16);
/// // What is not packed, such as norms, is float32.
/// assert_eq!(WeightForm::Packed(PackedForm::Q4_0).dtype(), FloatDType::F32);
/// assert_eq!(WeightForm::default(), WeightForm::F32);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// Floats of this type: F32, F16 or BF16, whichever the device can compute with.
    Float(FloatDType),
    /// The file's blocks if they have a [`PackedForm`], else float32.
    Stored,
    /// Packed in this form, from the file's blocks or quantised when loading.
    Packed(PackedForm),
}

impl WeightForm {
    /// Weights in float32.
    pub const F32: Self = Self::Float(FloatDType::F32);

    /// The type of keys and values, unless packed weights compute with float32 activations.
    fn cache_dtype<B: Backend>(self) -> FloatDType {
        match self {
            Self::Float(dtype) => dtype,
            Self::Stored | Self::Packed(_) => Activations::default().cache_dtype(&*default_kernels::<B>()),
        }
    }

    /// The type of weights that are neither packed nor norms.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::Float(dtype) => dtype,
            Self::Stored | Self::Packed(_) => FloatDType::F32,
        }
    }
}

impl Default for WeightForm {
    fn default() -> Self {
        Self::F32
    }
}

/// Bytes that a loaded model takes, without the temporary memory of a step.
///
/// # Examples
/// ```
/// use moi_pretrained::Footprint;
///
/// let footprint = Footprint { weights: 4_000_000, cache: 500_000, positions: 2048 };
/// assert_eq!(footprint.total(), 4_500_000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of all weights.
    pub weights: usize,
    /// Bytes of the keys and values of one sequence.
    pub cache: usize,
    /// The number of positions in the cache.
    pub positions: usize,
}

impl Footprint {
    /// Bytes of weights and cache together.
    pub fn total(&self) -> usize {
        self.weights.saturating_add(self.cache)
    }
}

/// Why a model cannot be opened or loaded.
///
/// # Examples
/// ```
/// use moi_pretrained::{Pretrained, PretrainedError};
///
/// let error = Pretrained::open("no/such/model".as_ref()).unwrap_err();
/// assert!(matches!(error, PretrainedError::NotAModel { .. }));
/// assert_eq!(error.to_string(), "no/such/model is not a model: no such file or directory");
/// ```
#[derive(Debug, thiserror::Error)]
pub enum PretrainedError {
    /// The path holds no model.
    #[error("{path} is not a model: {what}", path = path.display())]
    NotAModel {
        /// The given path.
        path: PathBuf,
        /// What is missing or wrong.
        what: String,
    },
    /// A file cannot be read or is not what its name says.
    #[error("{path}: {what}", path = path.display(), what = shown(what))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The config does not make a model.
    #[error("{path}: {error}", path = path.display(), error = shown(&error.to_string()))]
    Model {
        /// The file that holds the config.
        path: PathBuf,
        /// What is wrong with it.
        error: ModelError,
    },
    /// The files of the weights are not valid.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer or chat template is not valid.
    #[error(transparent)]
    Text(#[from] TextError),
}

impl Pretrained {
    /// The end tokens in words: their ids, and their texts if the tokenizer has them.
    pub fn listed_ends(&self) -> String {
        inspect::listed_ends(&self.eos, &self.end_texts())
    }

    /// The texts of the end tokens, if the tokenizer has them.
    pub(crate) fn end_texts(&self) -> Vec<Option<String>> {
        let tokenizer = self.tokenizer.as_ref().ok().and_then(Option::as_ref);
        self.eos.iter().map(|&id| tokenizer?.token(id)).collect()
    }

    /// Opens a GGUF file or any part of a split one, a directory in Hugging Face layout, or a directory that holds
    /// one model in GGUF.
    ///
    /// # Errors
    /// If there is no model, one of its files is broken, or its architecture is not supported.
    pub fn open(path: &Path) -> Result<Self, PretrainedError> {
        let mut opened = Self::found(path)?;
        let config = &opened.architecture.config;
        let cut = config
            .context_note
            .map(|why| format!("its context is cut to {} positions: {why}", config.context_length));
        opened.notes.extend(cut);
        Ok(opened)
    }

    /// Opens the model that the path holds.
    fn found(path: &Path) -> Result<Self, PretrainedError> {
        let not = |what: &str| PretrainedError::NotAModel { path: path.to_owned(), what: what.to_owned() };
        if !path.exists() {
            return Err(not("no such file or directory"));
        }
        if !path.is_dir() {
            return match path.extension().and_then(|extension| extension.to_str()) {
                Some("safetensors" | "json") => {
                    Err(not("give the directory that holds it, with its config.json"))
                }
                _ => gguf::open(path),
            };
        }
        let has = |file: &str| is_there(&path.join(file));
        if has(directory::CONFIG) && (has(SINGLE_FILE) || has(INDEX_FILE) || has(BURNPACK_FILE)) {
            return directory::open(path);
        }
        let contents = Contents::of(path)?;
        let models = contents.gguf_models();
        // Repositories of GGUF files often include the config of the original model.
        if has(directory::CONFIG) && (contents.has_weights() || models.is_empty()) {
            return directory::open(path);
        }
        match &models[..] {
            [file] => gguf::open(&path.join(file)),
            [] => Err(not(&contents.refusal())),
            several => {
                let names = contents::list(several);
                Err(not(&format!("the directory holds several .gguf files; name one of them ({names})")))
            }
        }
    }

    /// Loads the weights onto a device.
    ///
    /// # Errors
    /// If the tensors do not fit the architecture.
    pub fn load<B: Backend>(
        &self,
        device: &B::Device,
        form: WeightForm,
        progress: impl FnMut(LoadProgress<'_>),
    ) -> Result<Decoder<B>, PretrainedError> {
        let parameters = self.parameters()?;
        let decoder = self.unloaded::<B>(&parameters, form, device);
        let scales = scales_dtype::<B>(device);
        let dtype = |name: &str| match name.rsplit('.').next() {
            Some("scales" | "minima") => scales,
            _ if is_held_in_float32(name) => FloatDType::F32,
            _ => form.dtype(),
        };
        let upload = if is_gpu::<B>() { Upload::InPieces } else { Upload::Whole };
        let decoder = moi_checkpoint::load(decoder, &parameters, |_| false, dtype, upload, progress)?;
        Ok(decoder.with_stacked_experts())
    }

    /// Bytes that the loaded model takes, with a cache of this many positions for one sequence.
    ///
    /// # Errors
    /// If the tensors do not fit the architecture.
    pub fn footprint<B: Backend>(
        &self,
        device: &B::Device,
        form: WeightForm,
        positions: usize,
    ) -> Result<Footprint, PretrainedError> {
        let decoder = self.unloaded::<B>(&self.parameters()?, form, device);
        let cached = self.architecture.config.cached_values(positions);
        Ok(Footprint {
            weights: decoder.planned_bytes(form.dtype()),
            cache: cached * DType::from(form.cache_dtype::<B>()).size(),
            positions,
        })
    }

    /// The decoder for these weights, with no weight allocated.
    fn unloaded<B: Backend>(
        &self,
        parameters: &Checkpoint,
        form: WeightForm,
        device: &B::Device,
    ) -> Decoder<B> {
        let stored = |name: &str| match parameters.tensors().get(name)?.storage() {
            Storage::Block(kind) => PackedForm::ALL.into_iter().find(|form| form.name() == kind.name()),
            _ => None,
        };
        let form_of = |name: &str| match form {
            WeightForm::Float(_) => None,
            WeightForm::Stored => stored(name).filter(|_| parameters.tensors()[name].is_as_stored()),
            WeightForm::Packed(form) => Some(form),
        };
        self.architecture.config.init::<B>(device).packed(form_of, device)
    }
}

impl Pretrained {
    /// The checkpoint's tensors under their published names in Hugging Face layout. Tensors with the names of the
    /// decoder's parameters are joined into the published ones.
    ///
    /// # Errors
    /// If the tensors do not fit the architecture.
    pub fn published_tensors(&self) -> Result<BTreeMap<String, LazyTensor>, PretrainedError> {
        if !self.checkpoint.is_by_parameter() {
            return Ok(self.checkpoint.tensors().clone());
        }
        let mut parts: BTreeMap<String, Vec<(TensorSource, LazyTensor)>> = BTreeMap::new();
        for (name, tensor) in self.parameters()?.tensors() {
            let (source, tensor) = (self.architecture.source(name), tensor.clone());
            // Published files have an axis of size 1 here.
            let tensor = match () {
                () if name.ends_with(".conv.weight") => tensor.with_middle_axis(),
                () if source.name.ends_with(".moe_statics.e_score_correction_bias") => tensor.as_row(),
                () => tensor,
            };
            parts.entry(source.name.clone()).or_default().push((source, tensor));
        }
        let mut all = BTreeMap::new();
        for (name, parts) in parts {
            let whole = put_together(parts);
            let what = || format!("tensor `{name}` cannot be put together from what the file has");
            let lacks = || PretrainedError::File { path: self.path.clone(), what: what() };
            all.insert(name.clone(), whole.ok_or_else(lacks)?);
        }
        Ok(all)
    }

    /// The checkpoint's tensors under the names of the decoder's parameters.
    ///
    /// # Errors
    /// If the tensors do not fit the architecture.
    pub fn parameters(&self) -> Result<Checkpoint, PretrainedError> {
        let Architecture { config, .. } = &self.architecture;
        let parameter = |(name, shape): (String, Vec<usize>)| match self.checkpoint.is_by_parameter() {
            true => Parameter::whole(name, shape),
            false => {
                let TensorSource { name: tensor, rows, pairs, transposed } = self.architecture.source(&name);
                Parameter { name, shape, tensor, rows, pairs, transposed }
            }
        };
        let parameters: Vec<Parameter> = config.parameters().into_iter().map(parameter).collect();
        let ignored = |name: &str| self.architecture.ignores(name) || is_extra_head(name);
        Ok(self.checkpoint.select(&parameters, ignored)?)
    }
}

/// Refuses a tokenizer with tokens for which the embedding has no row.
fn within_rows(tokenizer: TokenizerResult, rows: usize, path: &Path) -> TokenizerResult {
    if let Ok(Some(tokenizer)) = &tokenizer
        && let Some(token) = tokenizer.token_beyond(rows)
    {
        let what = format!(
            "its vocabulary has a token {token}, and the model's embedding only {rows} rows: they are not of one model"
        );
        let file = tokenizer_files::tokenizer_file(path).unwrap_or_else(|| path.to_owned());
        return Err(TextError::Vocabulary(what).in_file(&file));
    }
    tokenizer
}

/// Joins parameters into the one tensor of which they are parts.
fn put_together(parts: Vec<(TensorSource, LazyTensor)>) -> Option<LazyTensor> {
    let part = |(source, tensor): (TensorSource, LazyTensor)| {
        let tensor = match source.pairs {
            Some(PairedRows { head, kept }) => tensor.halves_as_pairs(head, kept)?,
            None => tensor,
        };
        Some((source.rows, source.transposed, tensor))
    };
    let parts: Vec<_> = parts.into_iter().map(part).collect::<Option<_>>()?;
    let transposed = parts.first()?.1;
    let whole = match &parts[..] {
        [(None, _, tensor)] => tensor.clone(),
        _ => {
            let rows = parts.iter().map(|(rows, _, tensor)| Some(((*rows)?, tensor.clone())));
            LazyTensor::woven(&rows.collect::<Option<Vec<_>>>()?)?
        }
    };
    if transposed { whole.transpose() } else { Some(whole) }
}

/// Adapts the architecture and the checkpoint's names to each other.
fn fitted(
    mut architecture: Architecture,
    checkpoint: Checkpoint,
) -> Result<(Architecture, Checkpoint), CheckpointError> {
    if checkpoint.is_by_parameter() {
        return Ok((architecture, checkpoint));
    }
    let checkpoint = checkpoint
        .with_single_experts(architecture.names.stacks)
        .renamed(|name| architecture.respelled(name))?;
    untie(&mut architecture, &checkpoint);
    Ok((architecture, checkpoint))
}

/// Unties the head from the embedding if the checkpoint has a head tensor that differs from the embedding, whatever
/// the config says, as transformers does.
fn untie(architecture: &mut Architecture, checkpoint: &Checkpoint) {
    if !architecture.config.tie_word_embeddings {
        return;
    }
    let mut untied = architecture.clone();
    untied.config.tie_word_embeddings = false;
    let stored = |name: &str| checkpoint.tensors().get(&untied.source(name).name);
    if let (Some(head), Some(table)) = (stored("lm_head.weight"), stored("model.embed_tokens.weight"))
        && !head.same_bytes(table)
    {
        *architecture = untied;
    }
}
