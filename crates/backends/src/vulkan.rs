//! GPUs by their Vulkan drivers, which are loaded at run time.
//!
//! The adapter is chosen and started here and handed to burn: its own start panics where there is none.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_wgpu::{RuntimeOptions, WgpuDevice, WgpuSetup, init_device};
use cubecl::{future::block_on, wgpu::vulkan::request_vulkan_device};
use wgpu::{Adapter, Backend as Api, Backends, DeviceType, Instance, InstanceDescriptor};

use crate::{DeviceError, DeviceName, Found, Kind};

/// The type for all of them. Booleans are as shaders in WGSL have them too.
pub(crate) type Vulkan = burn_wgpu::Wgpu<f32, i32, u32>;

/// All adapters, in the driver loader's order. None where there is no loader.
fn adapters() -> (Instance, Vec<Adapter>) {
    let backends = Backends::VULKAN;
    let instance =
        Instance::new(InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() });
    let adapters = block_on(instance.enumerate_adapters(backends));
    (instance, adapters)
}

/// What this machine has.
pub(crate) fn found() -> Vec<Found> {
    let (_instance, adapters) = adapters();
    let described = |(index, adapter): (usize, &Adapter)| {
        let info = adapter.get_info();
        Found {
            name: DeviceName::new(Kind::Vulkan, index),
            driver: Some(format!("{} {}", info.driver, info.driver_info).trim().to_owned()),
            memory: memory(adapter),
            software: info.device_type == DeviceType::Cpu,
            description: info.name,
        }
    };
    adapters.iter().enumerate().map(described).collect()
}

/// Bytes of the largest heap that is the device's own.
#[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
fn memory(adapter: &Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the handles are the adapter's own and live as long as it; asking for properties changes nothing.
    let properties = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

#[cfg(not(any(target_os = "linux", target_os = "windows", target_os = "android")))]
fn memory(_adapter: &Adapter) -> Option<u64> {
    None
}

/// Starts a device and lets it compute something small.
pub(crate) fn open(name: DeviceName) -> Result<WgpuDevice, DeviceError> {
    let absent = |what| DeviceError::Absent { name, what };
    let broken = |what| DeviceError::Broken { name, what };
    let (instance, adapters) = adapters();
    let count = adapters.len();
    let adapter = adapters.into_iter().nth(name.index()).ok_or_else(|| match count {
        0 => absent("no Vulkan driver was found; install the GPU maker's, or Mesa's".to_owned()),
        _ => absent(format!("there are {count}, counted from 0; `moi devices` lists them")),
    })?;
    let start = || {
        let (device, queue) = block_on(request_vulkan_device(&adapter))?;
        let setup = WgpuSetup { instance, adapter: adapter.clone(), device, queue, backend: Api::Vulkan };
        Some(init_device(setup, RuntimeOptions::default()))
    };
    let device = quietly(start).map_err(broken)?.ok_or_else(|| {
        absent(format!("{} lacks the Vulkan memory model that kernels need", adapter.get_info().name))
    })?;
    quietly(|| first_product(&device)).and_then(|right| right).map_err(broken)?;
    Ok(device)
}

/// A kernel that cannot be compiled or launched leaves its output as it was and says nothing: only the values
/// tell.
fn first_product(device: &WgpuDevice) -> Result<(), String> {
    let values: Vec<f32> = (0..64).map(|value| value as f32).collect();
    let square = TensorData::new(values, [8, 8]);
    let square = Tensor::<Vulkan, 2>::from_data(square, (device, DType::F32));
    let product = square.clone().matmul(square);
    Vulkan::sync(device).map_err(|error| error.to_string())?;
    let product = product.try_into_data().map_err(|error| error.to_string())?;
    let cell = |row: usize, column: usize| (0..8).map(|i| ((8 * row + i) * (8 * i + column)) as f32).sum();
    let expected: Vec<f32> = (0..64).map(|index| cell(index / 8, index % 8)).collect();
    match product.iter::<f32>().eq(expected) {
        true => Ok(()),
        false => Err("a product of two small matrices comes out wrong".to_owned()),
    }
}

/// The driver stack panics where it could say what is missing: its words become an error's.
fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let done = catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    done.map_err(|panic| match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_owned(),
        _ => "it failed without a word".to_owned(),
    })
}
