//! Finds and opens the model of `--model`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::backend::Backend;
use moi_backends::Found;
use moi_engine::Engine;
use moi_hub::{CATALOGUE, Cache, Entry, FetchError, Fetcher};
use moi_models::{Decoder, PackedForm, is_gpu};
use moi_pretrained::{AdvisedSampling, Footprint, Pretrained, WeightForm};

use crate::{
    args::{AskedActivations, ModelArgs, value_name},
    backend::Device,
    config::nearest,
    ui,
};

/// Finds the requested model, downloads it if necessary, and opens it.
pub(crate) fn open(args: &ModelArgs) -> Result<Pretrained> {
    open_at(args, &find(&args.model, args.revision.as_deref())?)
}

/// Opens the model at the path that [`find`] returned.
pub(crate) fn open_at(args: &ModelArgs, path: &Path) -> Result<Pretrained> {
    ui::detail(&format!("the model is {}", path.display()));
    let mut pretrained =
        Pretrained::open(path).with_context(|| format!("cannot use the model `{}`", args.model))?;
    if ui::is_verbose() {
        ui::detail(&format!("its end tokens are {}", pretrained.listed_ends()));
    }
    for note in &pretrained.notes {
        ui::note(&format!("{}: {note}", pretrained.path.display()));
    }
    if let Some(entry) = moi_hub::find(&args.model) {
        pretrained.sampling = Ok(advised(entry));
    }
    Ok(pretrained)
}

/// The sampling that the makers of a catalogue model advise.
pub(crate) fn advised(entry: &Entry) -> AdvisedSampling {
    let advised = entry.sampling;
    let (temperature, top_k, top_p) = (advised.temperature, advised.top_k, advised.top_p);
    AdvisedSampling { temperature, top_k, top_p, ..AdvisedSampling::default() }
}

/// The file or directory of the requested model, downloaded if necessary.
pub(crate) fn find(model: &str, revision: Option<&str>) -> Result<PathBuf> {
    find_with(model, revision, |fetcher| fetcher)
}

/// As [`find`], for a conversion, which also reads weights that cannot run directly.
pub(crate) fn find_source(model: &str, revision: Option<&str>) -> Result<PathBuf> {
    find_with(model, revision, Fetcher::for_conversion)
}

fn find_with(
    model: &str,
    revision: Option<&str>,
    configure: impl FnOnce(Fetcher) -> Fetcher,
) -> Result<PathBuf> {
    let say = ui::note;
    let path = Path::new(model);
    let is_local = moi_hub::find(model).is_some() || path.exists();
    if let (true, Some(revision)) = (is_local, revision) {
        bail!(
            "--revision works only with hub repositories, and `{model}` is not one; remove --revision {revision}"
        );
    }
    if let Some(entry) = moi_hub::find(model) {
        return Ok(Fetcher::new(Cache::from_env()?).fetch(entry, say)?);
    }
    if path.exists() {
        return Ok(path.to_owned());
    }
    let fetcher = configure(Fetcher::new(Cache::from_env()?));
    if fetcher.reference(model)?.is_some() {
        return fetcher.fetch_repository(model, revision, say).map_err(|error| {
            let help = match error {
                FetchError::Unreachable { .. } => {
                    "; give the path of a model that is here, or set HF_ENDPOINT to a mirror of the hub"
                }
                _ => "",
            };
            anyhow!("there is no file or directory `{model}`, so moi searched the hub: {error}{help}")
        });
    }
    let names: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
    bail!(
        "there is no model `{model}`: neither a file or directory, nor in the catalogue ({}), nor a hub \
         repository OWNER/NAME{}",
        names.join(", "),
        nearest(model, names.iter().copied())
    )
}

/// Loads the weights, with a progress bar on a terminal.
pub(crate) fn load<B: Backend>(
    pretrained: &Pretrained,
    form: WeightForm,
    device: &B::Device,
) -> Result<Decoder<B>> {
    let bar = ui::progress(Some(0), "loading [{bar:30}] {bytes}/{total_bytes}, {eta} left")?;
    /// Largest number of tensors that a warning names; a broken file can have hundreds.
    const NAMED: usize = 5;
    let mut broken = 0;
    let decoder = pretrained.load::<B>(device, form, |progress| {
        if let Some(not_finite) = progress.not_finite {
            broken += 1;
            if broken <= NAMED {
                bar.suspend(|| ui::note(&format!("warning: {not_finite}")));
            }
        }
        if !ui::ends() {
            bar.set_length(progress.total_bytes as u64);
            bar.set_position(progress.bytes as u64);
        }
    });
    bar.finish_and_clear();
    if broken > NAMED {
        ui::note(&format!("warning: {} more tensors have values that are not finite", broken - NAMED));
    }
    Ok(decoder?)
}

/// An engine for the model with its tokenizer and end tokens, for this number of positions. It fails before loading
/// if the device is known to have too little memory.
pub(crate) fn engine<B: Backend>(
    pretrained: Pretrained,
    args: &ModelArgs,
    device: (Device, &B::Device),
    positions: usize,
) -> Result<(Engine<B, Decoder<B>>, WeightForm)> {
    Loading::begin(pretrained, args, device, positions)?.finish(positions)
}

/// Weights that are being loaded. On a CPU backend, another thread loads them, so that the caller can tokenize the
/// prompt meanwhile. An error that ends the process does not wait for that thread.
pub(crate) struct Loading<B: Backend> {
    pretrained: Arc<Pretrained>,
    args: ModelArgs,
    device: (Device, B::Device),
    form: WeightForm,
    footprint: Footprint,
    begun: Instant,
    thread: Option<JoinHandle<Result<Decoder<B>>>>,
}

impl<B: Backend> Loading<B> {
    /// Starts to load, unless the device is known to have too little memory for this number of positions.
    pub(crate) fn begin(
        pretrained: Pretrained,
        args: &ModelArgs,
        (name, device): (Device, &B::Device),
        positions: usize,
    ) -> Result<Self> {
        if let Some(threads) = args.threads {
            moi_backends::set_threads(threads.into());
        }
        let form = name.weight_form::<B>(args, device)?;
        let footprint = check_memory::<B>(&pretrained, &args.model, (name, device), form, positions)?;
        let (pretrained, begun) = (Arc::new(pretrained), Instant::now());
        let begin = || {
            let (pretrained, device) = (pretrained.clone(), device.clone());
            thread::spawn(move || load::<B>(&pretrained, form, &device))
        };
        // A GPU backend orders its work per thread, so the thread that uses the weights loads them.
        let thread = (!is_gpu::<B>()).then(begin);
        let (args, device) = (args.clone(), (name, device.clone()));
        Ok(Self { pretrained, args, device, form, footprint, begun, thread })
    }

    /// Bytes of all weights.
    #[cfg(feature = "serve")]
    pub(crate) fn weight_bytes(&self) -> usize {
        self.footprint.weights
    }

    pub(crate) fn pretrained(&self) -> &Pretrained {
        &self.pretrained
    }

    /// Waits for the weights and returns the engine, for this number of positions.
    ///
    /// # Errors
    /// If the weights cannot be loaded, or the device has too little memory for the positions.
    pub(crate) fn finish(self, positions: usize) -> Result<(Engine<B, Decoder<B>>, WeightForm)> {
        let Self { pretrained, args, device: (name, device), form, mut footprint, begun, thread } = self;
        if positions != footprint.positions {
            footprint = check_memory::<B>(&pretrained, &args.model, (name, &device), form, positions)?;
        }
        let mut decoder = match thread {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            None => load::<B>(&pretrained, form, &device)?,
        };
        ui::detail(&format!(
            "`{}` loaded in {:.2} s on {name}: {:.2} GB of weights, room for {:.2} GB of cache at {positions} positions",
            args.model,
            begun.elapsed().as_secs_f64(),
            footprint.weights as f64 / 1e9,
            footprint.cache as f64 / 1e9
        ));
        match (args.activations, decoder.activations()) {
            (Some(asked), Some(_)) => decoder = decoder.with_activations(asked.into()),
            (None | Some(AskedActivations::F32), None) | (None, Some(_)) => {}
            (Some(asked), None) => {
                let name = value_name(&asked);
                bail!("--activations {name} is for quantised weights; add --quantize, for example q8_0")
            }
        }
        let Some(Pretrained { tokenizer, eos, .. }) = Arc::into_inner(pretrained) else {
            bail!("the model is still being loaded")
        };
        let tokenizer = tokenizer.into_inner().unwrap_or_else(|error| {
            ui::note(&format!("{error}; continuing without a tokenizer, so only token ids are printed"));
            None
        });
        Ok((Engine::new(decoder, device).with_tokenizer(tokenizer).with_eos(eos), form))
    }
}

/// The memory that the model needs; an error if the device is known to have less.
fn check_memory<B: Backend>(
    pretrained: &Pretrained,
    model: &str,
    (name, device): (Device, &B::Device),
    form: WeightForm,
    positions: usize,
) -> Result<Footprint> {
    let footprint = pretrained.footprint::<B>(device, form, positions)?;
    if let Some(found) = name.found()
        && let Some(memory) = found.memory
        && footprint.total() as u64 > memory
    {
        bail!(too_large(model, footprint, form, &found, memory));
    }
    Ok(footprint)
}

/// The positions to reserve for a generation: the prompt, and the largest number of tokens (1 if there is no limit).
pub(crate) fn positions(pretrained: &Pretrained, prompt: usize, max_tokens: Option<usize>) -> usize {
    let asked = prompt.saturating_add(max_tokens.unwrap_or(1));
    asked.min(pretrained.architecture.config.context_length)
}

fn too_large(model: &str, footprint: Footprint, form: WeightForm, found: &Found, memory: u64) -> String {
    let Footprint { weights, cache, positions } = footprint;
    let [weights, cache, memory] = [weights as u64, cache as u64, memory].map(|b| b as f64 / 1e9);
    let remedy = match form {
        WeightForm::F32 => "--dtype f16 or bf16 takes half of it, --quantize q4_0 a sixth",
        WeightForm::Float(_) => "--quantize q4_0 takes a third of it",
        WeightForm::Stored | WeightForm::Packed(PackedForm::Q8_0) => "--quantize q4_0 may take less",
        WeightForm::Packed(_) => "a smaller model or another device is needed",
    };
    format!(
        "`{model}` needs {weights:.2} GB for its weights and {cache:.2} GB for a cache of {positions} positions, but \
         `{}` ({}) has {memory:.2} GB; {remedy}",
        found.name, found.description
    )
}
