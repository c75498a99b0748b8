//! The types that weights, activations and the cache can have on a device. Norms, softmax, entropies, mixtures and sampling
//! are in float32 whatever it is.

use burn::tensor::{DType, backend::Backend};
use moi_formats::FloatType;

use crate::{DeviceError, DeviceName, Kind};

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
