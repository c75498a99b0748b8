//! From `--device` to the device that computes.

use std::fmt;

use anyhow::Result;
use burn::tensor::backend::Backend;
use moi_backends::{DeviceName, Request, choose};

/// Work that is generic over the backend, and may fail.
pub(crate) trait Job {
    type Output;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Self::Output>;
}

/// A device that was settled on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device(DeviceName);

impl Device {
    /// The device that was asked for. Where the best was, says which that is, and why.
    pub(crate) fn chosen(request: Request) -> Self {
        let (name, why) = choose(request);
        if let Some(why) = why {
            eprintln!("moi: computing on {name}: {why}");
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
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

struct Fallible<J>(J);

impl<J: Job> moi_backends::Job for Fallible<J> {
    type Output = Result<J::Output>;

    fn run<B: Backend>(self, device: &B::Device) -> Self::Output {
        self.0.run::<B>(device)
    }
}
