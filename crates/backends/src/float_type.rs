//! The types that weights, activations and the cache can have on a device.

use std::{fmt, str::FromStr};

use burn::tensor::{DType, FloatDType, backend::Backend};

use crate::{DeviceError, DeviceName, Kind};

/// A type of weights, activations and cache. Norms, softmax, entropies, mixtures and sampling are in float32
/// whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
}

impl FloatType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// As burn calls it.
    pub fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::F16 => FloatDType::F16,
            Self::BF16 => FloatDType::BF16,
        }
    }
}

impl fmt::Display for FloatType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FloatType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|known| known.name() == text);
        known.ok_or_else(|| format!("`{text}` is none of f32, f16 and bf16"))
    }
}

/// The types in which a device has arithmetic, not storage alone.
pub fn float_types<B: Backend>(device: &B::Device) -> Vec<FloatType> {
    FloatType::ALL.into_iter().filter(|kind| B::supports_dtype(device, DType::from(kind.dtype()))).collect()
}

/// The type that was asked for, else the best for the device: float32 on a CPU, whose arithmetic is in it whatever
/// the storage; bfloat16 by CUDA, as models are trained in it; else float16, where the device has it.
///
/// # Errors
/// If the device has no arithmetic in the type.
pub fn float_type<B: Backend>(
    name: DeviceName,
    device: &B::Device,
    asked: Option<FloatType>,
) -> Result<FloatType, DeviceError> {
    let supported = float_types::<B>(device);
    let wanted = match (asked, name.kind()) {
        (Some(asked), _) if !supported.contains(&asked) => {
            return Err(DeviceError::FloatType { name, asked, supported });
        }
        (Some(asked), _) => asked,
        (None, Kind::Cpu | Kind::Ndarray) => FloatType::F32,
        (None, Kind::Cuda) => FloatType::BF16,
        (None, Kind::Metal | Kind::Vulkan | Kind::Wgpu) => FloatType::F16,
    };
    Ok(if supported.contains(&wanted) { wanted } else { FloatType::F32 })
}
