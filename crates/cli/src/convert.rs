//! `moi convert`.

use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use indicatif::{ProgressBar, ProgressStyle};
use moi_checkpoint::gguf::BlockKind;
use moi_convert::{Converted, FloatType, Options, Target, convert};

use crate::{
    args::{self, BlockFormat, ConvertArgs},
    backend::{Device, Job},
    model, ui,
};

/// Converts, and says what was made.
pub(crate) fn run(args: &ConvertArgs) -> Result<()> {
    let source = model::find_source(&args.source, args.revision.as_deref())?;
    let options = Options {
        to: match args.to {
            args::Target::Safetensors => Target::Safetensors,
            args::Target::Burnpack => Target::Burnpack,
            args::Target::Gguf => Target::Gguf,
        },
        dtype: args.dtype.map(|dtype| match dtype {
            args::FloatType::F32 => FloatType::F32,
            args::FloatType::F16 => FloatType::F16,
            args::FloatType::Bf16 => FloatType::Bf16,
        }),
        quantize: args.quantize.map(|format| match format {
            BlockFormat::Q8_0 => BlockKind::Q8_0,
            BlockFormat::Q4_0 => BlockKind::Q4_0,
            BlockFormat::Q4_1 => BlockKind::Q4_1,
        }),
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
