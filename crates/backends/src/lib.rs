//! The one place that names concrete backends: a device's name becomes a type.
//!
//! Everything else is generic over burn's `Backend`. An app with a backend of its own needs none of this: it calls
//! models and engine with its type. To give the binary another device: a [`Kind`] with its name and feature, an arm
//! in [`run`], and a list of what the machine has of it in [`found`].

#[cfg(not(any(feature = "flex", feature = "ndarray")))]
compile_error!("moi needs a CPU backend: enable `flex` or `ndarray`");

mod name;
#[cfg(feature = "vulkan")]
mod vulkan;

use burn::tensor::backend::Backend;
pub use name::{DeviceName, Kind, NameError, Request};

/// Work that is generic over the backend.
pub trait Job {
    /// What comes of it.
    type Output;

    /// Does it on a device.
    fn run<B: Backend>(self, device: &B::Device) -> Self::Output;
}

/// A device that this machine has and this build can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// By which it is asked for.
    pub name: DeviceName,
    /// What it is called by its driver.
    pub description: String,
    /// Its driver and the driver's version, where it has one.
    pub driver: Option<String>,
    /// Bytes of its own memory, where it says.
    pub memory: Option<u64>,
    /// Whether it is a processor that imitates a GPU: right, but slower than `cpu`.
    pub software: bool,
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A feature of the build is missing.
    #[error("this build cannot compute on `{name}`; build it with `--features {feature}`")]
    NotCompiled {
        /// The device.
        name: DeviceName,
        /// The feature that brings it.
        feature: &'static str,
    },
    /// The machine does not have it.
    #[error("there is no device `{name}` here: {what}")]
    Absent {
        /// The device.
        name: DeviceName,
        /// What was found, and what is needed.
        what: String,
    },
    /// It is there and does not work.
    #[error("the device `{name}` does not start: {what}; its driver may need an update")]
    Broken {
        /// The device.
        name: DeviceName,
        /// What happened.
        what: String,
    },
}

/// The device to use, and why it is this one.
///
/// `auto` takes the first GPU that is no imitation, else the fastest CPU backend.
pub fn choose(request: Request) -> (DeviceName, Option<String>) {
    let name = match request {
        Request::Named(name) => return (name, None),
        Request::Auto => found(Kind::Vulkan).into_iter().find(|found| !found.software),
    };
    match name {
        Some(gpu) => (gpu.name, Some(format!("{}, the first GPU", gpu.description))),
        None if Kind::Vulkan.is_compiled() => {
            (cpu(), Some("no GPU with a Vulkan driver was found".to_owned()))
        }
        // A build for the CPU alone has no choice to tell of.
        None => (cpu(), None),
    }
}

/// The CPU, by the fastest backend that this build has for it.
pub fn cpu() -> DeviceName {
    DeviceName::from(if Kind::Cpu.is_compiled() { Kind::Cpu } else { Kind::Ndarray })
}

/// What this machine has of a kind; nothing where this build cannot use it.
pub fn found(kind: Kind) -> Vec<Found> {
    let processor = |description: &str| Found {
        name: kind.into(),
        description: description.to_owned(),
        driver: None,
        memory: None,
        software: false,
    };
    match kind {
        _ if !kind.is_compiled() => Vec::new(),
        Kind::Cpu => vec![processor("burn's Flex, on all cores")],
        Kind::Ndarray => vec![processor("burn's NdArray, the portable reference")],
        #[cfg(feature = "vulkan")]
        Kind::Vulkan => vulkan::found(),
        #[cfg(not(feature = "vulkan"))]
        Kind::Vulkan => Vec::new(),
    }
}

/// Does the work on a device.
///
/// # Errors
/// If the device is not compiled in, not there, or fails its first small computation.
pub fn run<J: Job>(name: DeviceName, job: J) -> Result<J::Output, DeviceError> {
    match name.kind() {
        #[cfg(feature = "flex")]
        Kind::Cpu => Ok(job.run::<burn_flex::Flex>(&Default::default())),
        #[cfg(feature = "ndarray")]
        Kind::Ndarray => Ok(job.run::<burn_ndarray::NdArray>(&Default::default())),
        #[cfg(feature = "vulkan")]
        Kind::Vulkan => Ok(job.run::<vulkan::Vulkan>(&vulkan::open(name)?)),
        #[cfg(not(all(feature = "flex", feature = "ndarray", feature = "vulkan")))]
        kind => {
            drop(job);
            Err(DeviceError::NotCompiled { name, feature: kind.feature() })
        }
    }
}
