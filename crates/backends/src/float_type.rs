//! The float types that weights, activations and the KV cache can have on a device. Norms, softmax, entropies,
//! mixtures and sampling are computed in float32 in every case.

use burn::tensor::{DType, backend::Backend};
use moi_formats::FloatType;

use crate::{DeviceError, DeviceName, Kind};

/// The float types in which a device can compute, not only store.
///
/// # Examples
/// ```
/// use burn::tensor::backend::Backend;
/// use moi_backends::{FloatType, Job, cpu, float_types, run};
///
/// struct Types;
///
/// impl Job for Types {
///     type Output = Vec<FloatType>;
///
///     fn run<B: Backend>(self, device: &B::Device) -> Vec<FloatType> {
///         float_types::<B>(device)
///     }
/// }
/// assert!(run(cpu(), Types)?.contains(&FloatType::F32));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn float_types<B: Backend>(device: &B::Device) -> Vec<FloatType> {
    FloatType::ALL.into_iter().filter(|kind| B::supports_dtype(device, DType::from(kind.dtype()))).collect()
}

/// The float type that was asked for, else the best one for the device: float32 on a CPU, which computes in float32
/// whatever the storage type; bfloat16 with CUDA, because models are trained in it; else float16, where the device
/// has it.
///
/// # Errors
/// If the device cannot compute in the type that was asked for.
///
/// # Examples
/// ```
/// use burn::tensor::backend::Backend;
/// use moi_backends::{DeviceError, FloatType, Job, cpu, float_type, run};
///
/// struct Best;
///
/// impl Job for Best {
///     type Output = Result<FloatType, DeviceError>;
///
///     fn run<B: Backend>(self, device: &B::Device) -> Self::Output {
///         float_type::<B>(cpu(), device, None)
///     }
/// }
/// assert_eq!(run(cpu(), Best)??, FloatType::F32);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
