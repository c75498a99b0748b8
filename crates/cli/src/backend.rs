//! From `--device` and `--dtype` to what computes.

use std::fmt;

use anyhow::{Result, bail};
use burn::tensor::backend::Backend;
use moi_backends::{DeviceName, FloatType, Found, Request, choose};
use moi_hub::Cache;
use moi_pretrained::WeightForm;

use crate::{
    args::{AskedType, ModelArgs},
    ui,
};

/// Work that is generic over the backend, and may fail.
pub(crate) trait Job {
    type Output;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Self::Output>;
}

/// A device that was settled on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device(pub(crate) DeviceName);

impl Device {
    /// The device that was asked for. Where the best was, says which that is, and why.
    pub(crate) fn chosen(request: Request) -> Self {
        keep_kernels();
        let (name, why) = choose(request);
        if let Some(why) = why {
            ui::note(&format!("computing on {name}: {why}"));
        }
        Self(name)
    }

    /// The CPU, with what this build has for it.
    pub(crate) fn cpu() -> Self {
        Self(moi_backends::cpu())
    }

    /// Does the work on this device.
    pub(crate) fn run<J: Job>(self, job: J) -> Result<J::Output> {
        moi_backends::run(self.0, Fallible(job))?
    }

    /// What is known of it.
    pub(crate) fn found(self) -> Option<Found> {
        moi_backends::found(self.0.kind()).into_iter().find(|found| found.name == self.0)
    }

    /// How a model's weights are to be held on it.
    pub(crate) fn weight_form<B: Backend>(self, args: &ModelArgs, device: &B::Device) -> Result<WeightForm> {
        let AskedType(asked) = args.dtype;
        match (args.quantize, asked) {
            (Some(_), Some(asked)) if asked != FloatType::F32 => {
                bail!("--quantize computes in f32, so --dtype {asked} has no place beside it")
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

/// Has compiled kernels kept beside the models, where there is a place for these.
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
