//! NVIDIA GPUs through CUDA. The driver and the run-time compiler are loaded at run time.

use std::ffi::c_int;

use burn_cuda::{Cuda, CudaDevice};
use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

use crate::{
    Class, DeviceError, DeviceName, Found, Kind, kernel_cache,
    probe::{first_product, quietly},
};

/// The CUDA devices of this machine; empty without a driver.
pub(crate) fn found() -> Vec<Found> {
    quietly(driver_devices).ok().and_then(Result::ok).unwrap_or_default()
}

fn driver_devices() -> Result<Vec<Found>, DriverError> {
    if !has_driver() {
        return Ok(Vec::new());
    }
    result::init()?;
    let mut version: c_int = 0;
    // SAFETY: the driver is loaded, and it writes one integer to a valid reference.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    let device = |index: c_int| {
        let handle = result::device::get(index)?;
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            CU_DEVICE_ATTRIBUTE_INTEGRATED as INTEGRATED,
        };
        // SAFETY: the handle came from the driver just now.
        let attribute = |attribute| unsafe { result::device::get_attribute(handle, attribute) };
        let capability = format!("sm_{}{}", attribute(MAJOR)?, attribute(MINOR)?);
        Ok(Found {
            name: DeviceName::new(Kind::Cuda, index as usize),
            description: result::device::get_name(handle)?,
            driver: Some(format!("CUDA {}.{}, {capability}", version / 1000, version % 1000 / 10)),
            // SAFETY: as above.
            memory: Some(unsafe { result::device::total_mem(handle) }? as u64),
            class: if attribute(INTEGRATED)? == 1 { Class::Integrated } else { Class::Discrete },
        })
    };
    (0..result::device::get_count()?).map(device).collect()
}

/// Starts a device and runs a small computation on it.
pub(crate) fn open(name: DeviceName) -> Result<CudaDevice, DeviceError> {
    let absent = |what: &str| DeviceError::Absent { name, what: what.to_owned() };
    let broken = |what| DeviceError::Broken { name, what };
    if !has_driver() {
        return Err(absent("no NVIDIA driver (libcuda) was found; install it"));
    }
    let devices = quietly(driver_devices).map_err(broken)?.map_err(|error| broken(described(error)))?;
    let gpu = devices.get(name.index()).ok_or_else(|| match devices.len() {
        0 => absent("the driver names no GPU"),
        count => absent(&format!("there are {count}, counted from 0; `moi devices` lists them")),
    })?;
    if let Some(what) = missing_from_toolkit() {
        return Err(DeviceError::Incomplete { name, what });
    }
    if !kernel_cache::settle(gpu) {
        // Cache keys of CUDA kernels do not name the GPU, so one process can only cache kernels for one GPU.
        let what = "this program keeps another GPU's kernels; name this one when it is started".to_owned();
        return Err(DeviceError::Incomplete { name, what });
    }
    let device = CudaDevice::new(name.index());
    quietly(|| first_product::<Cuda>(&device)).and_then(|right| right).map_err(broken)?;
    Ok(device)
}

fn has_driver() -> bool {
    // SAFETY: this loads a system library, as any use of it would.
    unsafe { sys::is_culib_present() }
}

/// What is missing from the CUDA toolkit, if anything: kernels are compiled on this machine, which needs the run-time
/// compiler and headers.
fn missing_from_toolkit() -> Option<String> {
    // SAFETY: as above.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Some(
            "NVIDIA's run-time compiler (libnvrtc) was not found; install the CUDA toolkit, version 12 or newer"
                .to_owned(),
        );
    }
    let headers = cubecl::cuda::install::cuda_path().map(|path| path.join("include"));
    match headers {
        Some(path) if path.join("cuda_runtime.h").is_file() => None,
        Some(path) => Some(format!(
            "the CUDA toolkit's headers are not in {}; install them, or set CUDA_PATH to where they are",
            path.display()
        )),
        None => Some(
            "the CUDA toolkit's headers were not found; install them, or set CUDA_PATH to where they are"
                .to_owned(),
        ),
    }
}

fn described(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("CUDA error {:?}", error.0),
    }
}
