//! `moi logits`.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result};
use burn::tensor::backend::Backend;
use moi_pretrained::Pretrained;
use safetensors::{Dtype, tensor::TensorView};

use crate::{
    args::LogitsArgs,
    backend::{Device, Job},
    model,
};

/// Computes the logits of a prompt and writes them.
pub(crate) fn run(args: &LogitsArgs) -> Result<()> {
    let pretrained = model::open(&args.model)?;
    let device = Device::chosen(args.model.device);
    let (values, shape) = device.run(Logits { args, device, pretrained })?;
    write(&args.output, &values, shape).with_context(|| format!("cannot write {}", args.output.display()))?;
    eprintln!("moi: wrote logits {shape:?} to {}", args.output.display());
    Ok(())
}

struct Logits<'a> {
    args: &'a LogitsArgs,
    device: Device,
    pretrained: Pretrained,
}

impl Job for Logits<'_> {
    type Output = (Vec<f32>, [usize; 2]);

    fn run<B: Backend>(self, device: &B::Device) -> Result<Self::Output> {
        let LogitsArgs { tokens, model, .. } = self.args;
        let (engine, _) = model::engine::<B>(self.pretrained, model, (self.device, device), tokens.len())?;
        let logits = engine.logits(tokens)?;
        let shape = logits.dims();
        Ok((logits.into_data().convert::<f32>().iter::<f32>().collect(), shape))
    }
}

/// Writes under a temporary name first: no half-written file takes the place of a whole one. What is no
/// regular file, such as a pipe or a device, is written to as it is.
fn write(path: &Path, values: &[f32], shape: [usize; 2]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes)?;
    let content = safetensors::serialize([("logits", view)], None)?;
    if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Ok(fs::write(path, content)?);
    }
    // A link stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = moi_hub::new_file_in(directory)?;
    file.write_all(&content)?;
    file.persist(&path)?;
    Ok(())
}
