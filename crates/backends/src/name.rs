//! Device names.

use std::{fmt, str::FromStr};

/// A kind of device, whether or not this build can use it.
///
/// # Examples
/// ```
/// use moi_backends::Kind;
///
/// assert_eq!((Kind::Cpu.name(), Kind::Cpu.feature()), ("cpu", "flex"));
/// assert!(Kind::Vulkan.is_gpu() && !Kind::Ndarray.is_gpu());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// burn's Flex backend: fast, uses all cores.
    Cpu,
    /// burn's NdArray backend: the portable reference, much slower.
    Ndarray,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// Apple's GPU through Metal.
    Metal,
    /// A GPU, or a software emulation of one, through its Vulkan driver.
    Vulkan,
    /// A GPU through whatever the platform offers: DX12, Metal, Vulkan or WebGPU.
    Wgpu,
}

impl Kind {
    /// All kinds; among those for GPUs, the preferred ones come first.
    pub const ALL: [Self; 6] = [Self::Cpu, Self::Ndarray, Self::Cuda, Self::Metal, Self::Vulkan, Self::Wgpu];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Ndarray => "ndarray",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
        }
    }

    /// The cargo feature that enables this kind.
    pub fn feature(self) -> &'static str {
        match self {
            Self::Cpu => "flex",
            _ => self.name(),
        }
    }

    /// Whether this build can use this kind.
    pub fn is_compiled(self) -> bool {
        match self {
            Self::Cpu => cfg!(feature = "flex"),
            Self::Ndarray => cfg!(feature = "ndarray"),
            Self::Cuda => cfg!(feature = "cuda"),
            // The Metal shader compiler only exists on Apple's systems.
            Self::Metal => cfg!(all(feature = "metal", target_os = "macos")),
            // On Apple's systems Vulkan is a layer over Metal that is rarely installed.
            Self::Vulkan => cfg!(all(feature = "vulkan", not(target_vendor = "apple"))),
            Self::Wgpu => cfg!(feature = "wgpu"),
        }
    }

    /// Whether this kind is for GPUs.
    pub fn is_gpu(self) -> bool {
        !matches!(self, Self::Cpu | Self::Ndarray)
    }

    /// Whether a machine can have several devices of this kind.
    fn is_numbered(self) -> bool {
        self.is_gpu() && self != Self::Metal
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One device: `cpu`, or `vulkan:1` for the second of several.
///
/// # Examples
/// ```
/// use moi_backends::{DeviceName, Kind};
///
/// assert_eq!(DeviceName::new(Kind::Vulkan, 1).to_string(), "vulkan:1");
/// assert_eq!(DeviceName::from(Kind::Cpu).to_string(), "cpu");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceName {
    kind: Kind,
    index: usize,
}

impl DeviceName {
    /// The device of this kind with this number, from 0; the number is ignored for kinds that have only one device.
    pub fn new(kind: Kind, index: usize) -> Self {
        Self { kind, index: if kind.is_numbered() { index } else { 0 } }
    }

    /// The kind of the device.
    pub fn kind(self) -> Kind {
        self.kind
    }

    /// The device's number among those of its kind.
    pub fn index(self) -> usize {
        self.index
    }
}

impl From<Kind> for DeviceName {
    fn from(kind: Kind) -> Self {
        Self::new(kind, 0)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        match self.kind.is_numbered() {
            true => write!(f, ":{}", self.index),
            false => Ok(()),
        }
    }
}

/// A device by name, or the best one available.
///
/// # Examples
/// ```
/// use moi_backends::{DeviceName, DeviceRequest, Kind};
///
/// assert_eq!("auto".parse(), Ok(DeviceRequest::Auto));
/// assert_eq!("cuda:1".parse(), Ok(DeviceRequest::Named(DeviceName::new(Kind::Cuda, 1))));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceRequest {
    /// The best device available.
    #[default]
    Auto,
    /// This device.
    Named(DeviceName),
}

/// The error for a text that names no device.
///
/// # Examples
/// ```
/// use moi_backends::{DeviceRequest, NameError};
///
/// let unknown = "abacus".parse::<DeviceRequest>();
/// assert_eq!(unknown, Err(NameError::Unknown("abacus".to_owned())));
/// assert!(matches!("cpu:1".parse::<DeviceRequest>(), Err(NameError::Index(_))));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The kind is unknown.
    #[error(
        "there is no device `{0}`; known are auto, cpu, ndarray, cuda[:N], metal, vulkan[:N] and wgpu[:N]"
    )]
    Unknown(String),
    /// A device number where none belongs, or an invalid one.
    #[error(
        "`{0}`: behind `cuda:`, `vulkan:` and `wgpu:` stands a number from 0 on; other devices have none"
    )]
    Index(String),
}

impl FromStr for DeviceRequest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let (kind, index) = text.split_once(':').map_or((text, None), |(kind, index)| (kind, Some(index)));
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind);
        let kind = kind.ok_or_else(|| NameError::Unknown(text.to_owned()))?;
        let index = match index {
            None => 0,
            Some(index) if kind.is_numbered() => {
                index.parse().map_err(|_| NameError::Index(text.to_owned()))?
            }
            Some(_) => return Err(NameError::Index(text.to_owned())),
        };
        Ok(Self::Named(DeviceName::new(kind, index)))
    }
}

impl fmt::Display for DeviceRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Named(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        let named = |kind, index| Ok(DeviceRequest::Named(DeviceName::new(kind, index)));
        assert_eq!("auto".parse(), Ok(DeviceRequest::Auto));
        assert_eq!("cpu".parse(), named(Kind::Cpu, 0));
        assert_eq!("vulkan".parse(), named(Kind::Vulkan, 0));
        assert_eq!("vulkan:3".parse(), named(Kind::Vulkan, 3));
        assert_eq!("cuda:1".parse(), named(Kind::Cuda, 1));
        assert_eq!("metal".parse(), named(Kind::Metal, 0));
        for kind in Kind::ALL {
            let name = DeviceName::new(kind, 0);
            assert_eq!(name.to_string().parse(), Ok(DeviceRequest::Named(name)));
        }
        assert_eq!(DeviceName::new(Kind::Vulkan, 3).to_string(), "vulkan:3");
        assert_eq!(DeviceName::new(Kind::Cpu, 3).to_string(), "cpu");
        for unknown in ["", "abacus", "Vulkan", "autos"] {
            assert_eq!(unknown.parse::<DeviceRequest>(), Err(NameError::Unknown(unknown.to_owned())));
        }
        for numbered in ["cpu:0", "vulkan:", "vulkan:-1", "vulkan:0:0", "ndarray:x", "metal:0", "cuda:x"] {
            assert_eq!(numbered.parse::<DeviceRequest>(), Err(NameError::Index(numbered.to_owned())));
        }
    }
}
