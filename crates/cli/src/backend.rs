//! Maps `--device` and `--dtype` to a backend, a device and a number type.

use std::fmt;

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use moi_backends::{DeviceName, DeviceRequest, FloatType, Found, choose};
use moi_hub::Cache;
use moi_pretrained::WeightForm;

use crate::{
    args::{AskedType, ModelArgs},
    ui,
};

/// A computation that is generic over the backend, and may fail.
pub(crate) trait Job {
    type Output;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Self::Output>;
}

/// The device that a command runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device(pub(crate) DeviceName);

impl Device {
    /// Chooses the requested device. If the request was `auto`, a note on stderr says which device it is, and why.
    pub(crate) fn chosen(request: DeviceRequest) -> Self {
        keep_kernels();
        let (name, why) = choose(request);
        if let Some(why) = why {
            ui::note(&format!("computing on {name}: {why}"));
        }
        Self(name)
    }

    /// The CPU, with the best CPU backend of this build.
    pub(crate) fn cpu() -> Self {
        Self(moi_backends::cpu())
    }

    /// Runs the job on this device.
    pub(crate) fn run<J: Job>(self, job: J) -> Result<J::Output> {
        moi_backends::run(self.0, Fallible(job))?
    }

    /// What is known about this device: its description and its memory.
    pub(crate) fn found(self) -> Option<Found> {
        moi_backends::found(self.0.kind()).into_iter().find(|found| found.name == self.0)
    }

    /// The form in which the model's weights are kept on this device.
    pub(crate) fn weight_form<B: Backend>(self, args: &ModelArgs, device: &B::Device) -> Result<WeightForm> {
        let AskedType(asked) = args.dtype;
        match (args.quantize, asked) {
            (Some(_), Some(asked)) if asked != FloatType::F32 => {
                bail!(
                    "--dtype {asked} cannot be combined with --quantize, which computes in f32; remove one of them"
                )
            }
            (Some(quantize), _) => Ok(quantize.0),
            (None, _) => {
                let float = moi_backends::float_type::<B>(self.0, device, asked)?;
                Ok(WeightForm::Float(float.dtype()))
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Stores compiled kernels in the cache directory of the models, if there is one.
pub(crate) fn keep_kernels() {
    if let Ok(cache) = Cache::from_env() {
        moi_backends::keep_kernels_in(cache.kernels());
    }
}

struct Fallible<J>(J);

impl<J: Job> moi_backends::Job for Fallible<J> {
    type Output = Result<J::Output>;

    fn run<B: Backend>(self, device: &B::Device) -> Self::Output {
        self.0.run::<B>(device)
    }
}
