//! A model on disk as one thing: what its files say together.
//!
//! [`Pretrained::open`] takes a GGUF file or a directory in Hugging Face layout and reads everything but the
//! weights; [`Pretrained::load`] loads these onto a device.
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

/// A model on disk, its weights not yet read.
#[derive(Debug)]
pub struct Pretrained {
    /// Where it was found.
    pub path: PathBuf,
    /// What to build.
    pub architecture: Architecture,
    /// Its tensors.
    pub checkpoint: Checkpoint,
    /// Text to tokens, if the model brings a tokenizer. One that cannot be used hinders nobody who needs none.
    pub tokenizer: LazyTokenizer,
    /// How it wants a conversation spelled, if it says; likewise.
    pub chat_template: Result<Option<ChatTemplate>, TextError>,
    /// The tokens that end a generation.
    pub eos: Vec<u32>,
    /// How its makers advise to sample. Advice that nothing can be sampled by hinders nobody who does not sample.
    pub sampling: Result<AdvisedSampling, PretrainedError>,
    /// What a user should know of the files: nothing that hinders, but results may not be what is expected.
    pub notes: Vec<String>,
}

/// How weights are held in memory, and with it what activations and cache are computed in.
///
/// Norms and biases are in float32 always, routers are floats; packed weights compute in float32, or with rounded
/// activations: see [`Activations`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightForm {
    /// In this type: F32, F16 or BF16, one that the device has arithmetic for.
    Float(FloatDType),
    /// As the file has them where that is a [`PackedForm`], else in float32.
    Stored,
    /// Quantised, by the file or now.
    Packed(PackedForm),
}

impl WeightForm {
    /// In float32.
    pub const F32: Self = Self::Float(FloatDType::F32);

    /// The type of keys and values, unless packed weights compute with activations in float32.
    fn cache_dtype<B: Backend>(self) -> FloatDType {
        match self {
            Self::Float(dtype) => dtype,
            Self::Stored | Self::Packed(_) => Activations::default().cache_dtype(&*default_kernels::<B>()),
        }
    }

    /// The type of what is no block and no norm.
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

/// Bytes that a loaded model takes, but for what a step needs in passing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// All weights.
    pub weights: usize,
    /// Keys and values of one row.
    pub cache: usize,
    /// The positions that these are for.
    pub positions: usize,
}

impl Footprint {
    /// Both.
    pub fn total(&self) -> usize {
        self.weights.saturating_add(self.cache)
    }
}

/// Why a model cannot be opened or loaded.
#[derive(Debug, thiserror::Error)]
pub enum PretrainedError {
    /// Nothing there that is a model.
    #[error("{path} is not a model: {what}", path = path.display())]
    NotAModel {
        /// What was given.
        path: PathBuf,
        /// What was looked for.
        what: String,
    },
    /// A file that cannot be read or is not what its name says.
    #[error("{path}: {what}", path = path.display(), what = shown(what))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
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
    /// The weights' files.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
}

impl Pretrained {
    /// The end tokens in words: their ids, and their texts where the tokenizer has them.
    pub fn listed_ends(&self) -> String {
        inspect::listed_ends(&self.eos, &self.end_texts())
    }

    /// The texts of the end tokens, where the tokenizer has them.
    pub(crate) fn end_texts(&self) -> Vec<Option<String>> {
        let tokenizer = self.tokenizer.as_ref().ok().and_then(Option::as_ref);
        self.eos.iter().map(|&id| tokenizer?.token(id)).collect()
    }

    /// Opens a GGUF file or any part of a split one, a directory in Hugging Face layout, or a directory that holds one
    /// model in GGUF.
    ///
    /// # Errors
    /// If there is no model, a file of it is broken, or its architecture is not supported.
    pub fn open(path: &Path) -> Result<Self, PretrainedError> {
        let mut opened = Self::found(path)?;
        let config = &opened.architecture.config;
        let cut = config
            .context_note
            .map(|why| format!("its context is cut to {} positions: {why}", config.context_length));
        opened.notes.extend(cut);
        Ok(opened)
    }

    /// What is there.
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
        // Repositories of GGUF files often have the config of what they were made from.
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

    /// What the model takes once it is loaded, with a cache of so many positions for one row.
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

    /// The decoder for these weights, none of them allocated.
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
    /// The checkpoint's tensors as its architecture has them in Hugging Face layout: what stands there under the names of the
    /// decoder's parameters is put together.
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
            // Axes of 1 that published files have.
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

/// Refuses a tokenizer with tokens beyond the embedding's rows.
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

/// One tensor of the parameters that are parts of it.
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

/// Architecture and tensors of one model: the names of either kind of file made one.
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

/// A head that is stored beside the embedding and differs from it counts, whatever the config says; as in
/// transformers.
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
