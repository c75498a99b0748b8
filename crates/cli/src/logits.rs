//! `moi logits`.

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use moi_pretrained::Pretrained;
use safetensors::{Dtype, tensor::TensorView};

use crate::{
    args::LogitsArgs,
    backend::{Device, Job},
    file, model, ui,
};

/// Computes the logits of a prompt and writes them.
///
/// Logits that are NaN or infinite are written too, because they help to find the fault.
pub(crate) fn run(args: &LogitsArgs) -> Result<()> {
    file::check(&args.output)?;
    let pretrained = model::open(&args.model)?;
    let device = Device::chosen(args.model.device);
    let (values, shape) = device.run(Logits { args, device, pretrained })?;
    file::write_whole(&args.output, &encoded(&values, shape)?)?;
    ui::say!("moi: wrote logits {shape:?} to {}", args.output.display());
    match values.iter().filter(|logit| !logit.is_finite()).count() {
        0 => Ok(()),
        broken => bail!("{broken} of the {} logits are not finite", values.len()),
    }
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

fn encoded(values: &[f32], shape: [usize; 2]) -> Result<Vec<u8>> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes)?;
    Ok(safetensors::serialize([("logits", view)], None)?)
}
