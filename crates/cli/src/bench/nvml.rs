//! The energy counters of NVIDIA GPUs, read through nvml, a library of the driver (nvml.h of the CUDA toolkit). The
//! library is loaded at run time, so that machines without such a GPU do not need it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};

use libloading::Library;

#[cfg(windows)]
const LIBRARY: &str = "nvml.dll";
#[cfg(not(windows))]
const LIBRARY: &str = "libnvidia-ml.so.1";

/// `nvmlDevice_t`, an opaque pointer.
type Handle = *mut c_void;
/// `NVML_SUCCESS`.
const SUCCESS: c_int = 0;
/// `NVML_DEVICE_NAME_V2_BUFFER_SIZE`.
const NAME_BYTES: usize = 96;

type Init = unsafe extern "C" fn() -> c_int;
type Count = unsafe extern "C" fn(*mut c_uint) -> c_int;
type ByIndex = unsafe extern "C" fn(c_uint, *mut Handle) -> c_int;
type Name = unsafe extern "C" fn(Handle, *mut c_char, c_uint) -> c_int;
type Energy = unsafe extern "C" fn(Handle, *mut c_ulonglong) -> c_int;

/// A GPU with an energy counter: Volta or later.
#[derive(Debug)]
pub(super) struct Gpu {
    handle: Handle,
    energy: Energy,
    /// The function pointer and the handle are valid only while the library is loaded.
    _library: Library,
}

impl Gpu {
    /// Finds the GPU that a driver describes with this name. Returns `None` if two GPUs have the name, because nvml
    /// may number them differently than CUDA or Vulkan.
    pub(super) fn find(description: &str) -> Option<Self> {
        // SAFETY: this loads the driver's own library, which runs the same initialisers in every program that uses
        // it.
        let library = unsafe { Library::new(LIBRARY) }.ok()?;
        // SAFETY: the types are those that nvml.h declares for these names.
        let (init, count, by_index, name, energy) = unsafe {
            (
                *library.get::<Init>(b"nvmlInit_v2\0").ok()?,
                *library.get::<Count>(b"nvmlDeviceGetCount_v2\0").ok()?,
                *library.get::<ByIndex>(b"nvmlDeviceGetHandleByIndex_v2\0").ok()?,
                *library.get::<Name>(b"nvmlDeviceGetName\0").ok()?,
                *library.get::<Energy>(b"nvmlDeviceGetTotalEnergyConsumption\0").ok()?,
            )
        };
        let mut gpus: c_uint = 0;
        // SAFETY: the library is initialised first, and `count` then writes one number.
        if unsafe { init() != SUCCESS || count(&mut gpus) != SUCCESS } {
            return None;
        }
        let named = |index| {
            let mut handle: Handle = std::ptr::null_mut();
            // SAFETY: the library is initialised, and the call writes one pointer.
            let is_found = unsafe { by_index(index, &mut handle) } == SUCCESS;
            (is_found && is_of(description, &name_of(name, handle)?)).then_some(handle)
        };
        let mut handles = (0..gpus).filter_map(named);
        let (handle, None) = (handles.next()?, handles.next()) else { return None };
        let gpu = Self { handle, energy, _library: library };
        // Older GPUs have no counter.
        gpu.millijoules().map(|_| gpu)
    }

    /// The energy in millijoules since the driver was loaded.
    pub(super) fn millijoules(&self) -> Option<u64> {
        let mut millijoules: c_ulonglong = 0;
        // SAFETY: function and handle come from the library, which is loaded and initialised; the call writes one
        // number.
        let is_told = unsafe { (self.energy)(self.handle, &mut millijoules) } == SUCCESS;
        is_told.then_some(millijoules)
    }
}

fn name_of(name: Name, handle: Handle) -> Option<String> {
    let mut bytes: [c_char; NAME_BYTES] = [0; NAME_BYTES];
    // SAFETY: the handle comes from the library, which writes at most `NAME_BYTES` bytes.
    if unsafe { name(handle, bytes.as_mut_ptr(), NAME_BYTES as c_uint) } != SUCCESS {
        return None;
    }
    let bytes = bytes.map(|byte| byte as u8);
    Some(CStr::from_bytes_until_nul(&bytes).ok()?.to_str().ok()?.to_owned())
}

/// Whether a device description of burn's is the GPU of this name. The description may continue with the driver's
/// name.
fn is_of(description: &str, name: &str) -> bool {
    description.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(", by "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_same_gpu() {
        assert!(is_of("NVIDIA H200", "NVIDIA H200"));
        assert!(is_of("NVIDIA H200, by Vulkan", "NVIDIA H200"));
        assert!(!is_of("NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090"));
        assert!(!is_of("llvmpipe (LLVM 15.0.6, 256 bits)", "NVIDIA H200"));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_not_found() {
        assert!(Gpu::find("no GPU has this name").is_none());
    }
}
