//! GPUs through wgpu: by their Vulkan drivers, by Metal, or by whatever the platform offers.
//!
//! Drivers are loaded at run time. This module chooses and starts the adapter and hands it to burn, because burn's
//! own start panics where there is no adapter. One backend type serves all adapters, because the language of the
//! kernels follows from the adapter: SPIR-V on Vulkan and MSL on Metal, where the build has them, else WGSL.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use burn_wgpu::{RuntimeOptions, WgpuDevice, WgpuSetup, init_device};
use cubecl::future::block_on;
use wgpu::{Adapter, Backends, Device, DeviceType, Instance, InstanceDescriptor, Queue};

use crate::{
    Class, DeviceError, DeviceName, Found, Kind, kernel_cache,
    probe::{first_product, quietly},
};

/// The backend type for all adapters. Booleans are 32 bits wide, as WGSL shaders have them.
pub type Wgpu = burn_wgpu::Wgpu<f32, i32, u32>;

/// All adapters of a kind, in the driver loader's order. The list is empty where there is no loader.
fn adapters(kind: Kind) -> (Instance, Vec<Adapter>) {
    let backends = match kind {
        Kind::Vulkan => Backends::VULKAN,
        Kind::Metal => Backends::METAL,
        // OpenGL is left out because it lacks what the kernels need.
        _ => Backends::PRIMARY,
    };
    let instance =
        Instance::new(InstanceDescriptor { backends, ..InstanceDescriptor::new_without_display_handle() });
    let adapters = block_on(instance.enumerate_adapters(backends));
    (instance, adapters)
}

/// The adapters of this kind on this machine.
pub(crate) fn found(kind: Kind) -> Vec<Found> {
    let Ok((_instance, adapters)) = quietly(|| adapters(kind)) else { return Vec::new() };
    adapters.iter().enumerate().map(|(index, adapter)| described(kind, index, adapter)).collect()
}

fn described(kind: Kind, index: usize, adapter: &Adapter) -> Found {
    let info = adapter.get_info();
    let driver = format!("{} {}", info.driver, info.driver_info);
    let api = if kind == Kind::Wgpu { format!(", by {:?}", info.backend) } else { String::new() };
    Found {
        name: DeviceName::new(kind, index),
        description: info.name + &api,
        driver: Some(driver.trim().to_owned()).filter(|driver| !driver.is_empty()),
        memory: memory(adapter),
        class: match info.device_type {
            DeviceType::Cpu => Class::Software,
            DeviceType::DiscreteGpu => Class::Discrete,
            DeviceType::IntegratedGpu | DeviceType::VirtualGpu | DeviceType::Other => Class::Integrated,
        },
    }
}

/// Bytes of the device's largest local memory heap.
#[cfg(all(
    any(feature = "vulkan", feature = "wgpu"),
    any(target_os = "linux", target_os = "windows", target_os = "android")
))]
fn memory(adapter: &Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the handles belong to the adapter and live as long as it; querying properties changes nothing.
    let properties = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

#[cfg(not(all(
    any(feature = "vulkan", feature = "wgpu"),
    any(target_os = "linux", target_os = "windows", target_os = "android")
)))]
fn memory(_adapter: &Adapter) -> Option<u64> {
    None
}

/// Starts a device and runs a small computation on it; returns the same device if it was started before.
pub(crate) fn open(name: DeviceName) -> Result<WgpuDevice, DeviceError> {
    static OPEN: Mutex<Option<HashMap<DeviceName, WgpuDevice>>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    if let Some(device) = open.get(&name) {
        return Ok(device.clone());
    }
    let device = start(name)?;
    open.insert(name, device.clone());
    Ok(device)
}

fn start(name: DeviceName) -> Result<WgpuDevice, DeviceError> {
    let absent = |what| DeviceError::Absent { name, what };
    let broken = |what| DeviceError::Broken { name, what };
    let (instance, adapters) = quietly(|| adapters(name.kind())).map_err(broken)?;
    let count = adapters.len();
    let adapter = adapters.into_iter().nth(name.index()).ok_or_else(|| match count {
        0 => absent(needed(name.kind()).to_owned()),
        _ => absent(format!("there are {count}, counted from 0; `moi devices` lists them")),
    })?;
    let described = described(name.kind(), name.index(), &adapter);
    // The result is not needed: cache keys of SPIR-V kernels include the GPU's capabilities, so GPUs can share a
    // directory.
    kernel_cache::settle(&described);
    let start = || block_on(started(instance, adapter));
    let device = quietly(start).and_then(|started| started).map_err(broken)?;
    quietly(|| first_product::<Wgpu>(&device)).and_then(|right| right).map_err(broken)?;
    Ok(device)
}

fn needed(kind: Kind) -> &'static str {
    match kind {
        Kind::Vulkan => "no Vulkan driver was found; install the GPU maker's, or Mesa's",
        Kind::Metal => "Metal names no GPU",
        _ => "no driver for Vulkan, Metal or DX12 was found; install the GPU maker's",
    }
}

/// Starts a device on an adapter and hands it to burn.
async fn started(instance: Instance, adapter: Adapter) -> Result<WgpuDevice, String> {
    let (device, queue) = request(&adapter).await?;
    let backend = adapter.get_info().backend;
    Ok(init_device(WgpuSetup { instance, adapter, device, queue, backend }, RuntimeOptions::default()))
}

/// Starts a device through WebGPU, or whatever else the platform prefers, for apps in which nothing may block, as in
/// a browser. It runs no test computation.
///
/// # Errors
/// If there is no GPU, or it does not start.
#[cfg(feature = "wgpu")]
pub async fn open_without_blocking() -> Result<WgpuDevice, DeviceError> {
    let name = DeviceName::from(Kind::Wgpu);
    let instance = Instance::new(InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&wgpu::RequestAdapterOptions::default()).await;
    let adapter = adapter.map_err(|error| DeviceError::Absent { name, what: error.to_string() })?;
    started(instance, adapter).await.map_err(|what| DeviceError::Broken { name, what })
}

/// Requests the device as burn's own start does, with what the kernels need, but returns an error where burn panics.
async fn request(adapter: &Adapter) -> Result<(Device, Queue), String> {
    match adapter.get_info().backend {
        #[cfg(feature = "vulkan")]
        wgpu::Backend::Vulkan => cubecl::wgpu::vulkan::request_vulkan_device(adapter)
            .await
            .ok_or_else(|| "the driver lacks the Vulkan memory model that kernels need".to_owned()),
        #[cfg(all(feature = "metal", target_os = "macos"))]
        wgpu::Backend::Metal => Ok(cubecl::wgpu::metal::request_metal_device(adapter).await),
        _ => adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: None,
                required_features: adapter.features().difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
                required_limits: adapter.limits(),
                // cubecl pools memory itself.
                memory_hints: wgpu::MemoryHints::MemoryUsage,
                trace: wgpu::Trace::Off,
                // SAFETY: no experimental feature is used beyond those that burn's own start would use.
                experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            })
            .await
            .map_err(|error| error.to_string()),
    }
}
