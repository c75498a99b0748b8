//! `moi convert`.

use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use indicatif::{ProgressBar, ProgressStyle};
use moi_convert::{Converted, Options, Target, convert};

use crate::{
    args::{self, ConvertArgs},
    backend::{Device, Job},
    model, ui,
};

/// Converts the model and prints what was written.
pub(crate) fn run(args: &ConvertArgs) -> Result<()> {
    let source = model::find_source(&args.source, args.revision.as_deref())?;
    let options = Options {
        to: match args.to {
            args::Target::Safetensors => Target::Safetensors,
            args::Target::Burnpack => Target::Burnpack,
            args::Target::Gguf => Target::Gguf,
        },
        dtype: args.dtype.map(|dtype| dtype.0),
        quantize: args.quantize.map(|format| format.0),
        max_shard_bytes: (args.max_shard_size as usize).saturating_mul(1_000_000),
        source_name: args.source.clone(),
    };
    let made = Device::cpu().run(Conversion { source: &source, args, options })?;
    let size = made.bytes as f64 / 1e6;
    ui::say!("moi: wrote {} tensors, {size:.1} MB, to {}", made.tensors, made.path.display());
    for note in &made.notes {
        ui::say!("moi: {note}");
    }
    if let Some(verified) = made.verified {
        let logits = match verified.logit_error {
            Some(error) => format!("logits off by {error:.1e} of the largest"),
            None => "logits cannot be compared, the source's own are not finite".to_owned(),
        };
        ui::say!(
            "moi: verified: {} parameters are the source's ({} of them rounded to their new type); {logits}",
            verified.parameters,
            verified.rounded,
        );
    }
    Ok(())
}

struct Conversion<'a> {
    source: &'a Path,
    args: &'a ConvertArgs,
    options: Options,
}

impl Job for Conversion<'_> {
    type Output = Converted;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Converted> {
        let style = ProgressStyle::with_template("[{bar:30}] {bytes}/{total_bytes} {msg}")?;
        let bar = ProgressBar::new(0).with_style(style);
        let shown = bar.clone();
        let verify = self.args.verify.then_some(device);
        let made = convert::<B>(self.source, &self.args.output, &self.options, verify, move |progress| {
            shown.set_length(progress.total_bytes as u64);
            shown.set_position(progress.bytes as u64);
            shown.set_message(progress.tensor.to_owned());
        });
        bar.finish_and_clear();
        made.with_context(|| format!("cannot convert `{}`", self.args.source))
    }
}
