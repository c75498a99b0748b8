//! The one place that names concrete backends: a device name becomes a type.
//!
//! Everything else is generic over burn's `Backend`. An app with a backend of its own needs none of this: it
//! calls the engine with its type.

#[cfg(not(any(feature = "flex", feature = "ndarray")))]
compile_error!("moi needs a backend to compute with: enable `flex` or `ndarray`");

use anyhow::Result;
use burn::tensor::backend::Backend;
use clap::ValueEnum;

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// burn's Flex backend: fast, on all cores
    Cpu,
    /// burn's NdArray backend: the portable reference, much slower
    Ndarray,
}

impl Default for Device {
    /// The CPU, with what this build has for it.
    fn default() -> Self {
        if cfg!(feature = "flex") { Self::Cpu } else { Self::Ndarray }
    }
}

/// Work that is generic over the backend.
pub(crate) trait Job {
    type Output;

    fn run<B: Backend>(self, device: &B::Device) -> Result<Self::Output>;
}

impl Device {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Ndarray => "ndarray",
        }
    }

    /// Does the work on this device.
    pub(crate) fn run<J: Job>(self, job: J) -> Result<J::Output> {
        match self {
            #[cfg(feature = "flex")]
            Self::Cpu => job.run::<burn_flex::Flex>(&Default::default()),
            #[cfg(feature = "ndarray")]
            Self::Ndarray => job.run::<burn_ndarray::NdArray>(&Default::default()),
            #[cfg(not(all(feature = "flex", feature = "ndarray")))]
            missing => {
                drop(job);
                let feature = match missing {
                    Self::Cpu => "flex",
                    Self::Ndarray => "ndarray",
                };
                anyhow::bail!(
                    "this build cannot compute on `{}`; build it with `--features {feature}`",
                    missing.name()
                )
            }
        }
    }
}
