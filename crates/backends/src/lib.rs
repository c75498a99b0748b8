//! The one place that names concrete backends: a device's name becomes a type.
//!
//! Everything else is generic over burn's `Backend`. An app with a backend of its own needs none of this: it calls
//! models and engine with its type. To give the binary another device:
//!
//! 1. a [`Kind`] with its name and feature, and an optional dependency behind that feature;
//! 2. a module with two functions, `found` (what the machine has of it, without starting anything) and `open` (a
//!    device that has computed something small, or why there is none), like `adapters` or `cuda`;
//! 3. an arm for it in [`found`] and one in [`run`], which names its type.

#[cfg(not(any(feature = "flex", feature = "ndarray")))]
compile_error!("moi needs a CPU backend: enable `flex` or `ndarray`");

#[cfg(feature = "adapters")]
mod adapters;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod float_type;
mod kernel_cache;
#[cfg(feature = "kernels")]
mod launches;
mod name;
#[cfg(feature = "kernels")]
mod probe;

#[cfg(feature = "adapters")]
pub use adapters::Wgpu;
#[cfg(feature = "wgpu")]
pub use adapters::open_without_blocking;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use burn::tensor::backend::Backend;
pub use error::DeviceError;
pub use float_type::{float_type, float_types};
pub use kernel_cache::{KernelCache, keep_kernels_in, kernel_cache};
#[cfg(feature = "kernels")]
pub use launches::{count_launches, launches};
pub use moi_formats::FloatType;
pub use name::{DeviceName, Kind, NameError, Request};
#[cfg(feature = "kernels")]
pub use probe::records_panic;

/// Keeps the words of a panic that becomes a [`DeviceError`], for a process's panic hook: whether this one does, and need
/// not be reported. In this build, without GPUs, none does.
#[cfg(not(feature = "kernels"))]
pub fn records_panic(_panic: &std::panic::PanicHookInfo<'_>) -> bool {
    false
}

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
    /// Bytes of its own memory, where it says; of the system's for the CPU.
    pub memory: Option<u64>,
    /// What sort of device it is.
    pub class: Class,
}

/// Sorts of devices, the slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A processor that imitates a GPU: right, but slower than `cpu`.
    Software,
    /// The processor.
    Processor,
    /// A GPU that shares the processor's memory, or that is not known to have its own.
    Integrated,
    /// A GPU with memory of its own.
    Discrete,
}

/// The device to use, and why it is this one where that was left open.
///
/// `auto` takes the best GPU that passes a small test, kinds in the order of [`Kind::ALL`], else the fastest CPU
/// backend.
pub fn choose(request: Request) -> (DeviceName, Option<String>) {
    if let Request::Named(name) = request {
        return (name, None);
    }
    let mut gpus: Vec<Found> = Kind::ALL.into_iter().filter(|kind| kind.is_gpu()).flat_map(found).collect();
    gpus.retain(|gpu| gpu.class > Class::Processor);
    // Of equals the first: the sort is stable.
    gpus.sort_by_key(|gpu| std::cmp::Reverse(gpu.class));
    let mut failures = Vec::new();
    for gpu in gpus {
        match start(gpu.name) {
            Ok(()) if failures.is_empty() => {
                return (gpu.name, Some(format!("{}, the best GPU found", gpu.description)));
            }
            Ok(()) => return (gpu.name, Some(format!("{}, as {}", gpu.description, failures.join("; ")))),
            Err(error) => failures.push(error.to_string()),
        }
    }
    let why = match failures.is_empty() {
        // A build for the CPU alone has no choice to tell of.
        true if !Kind::ALL.into_iter().any(|kind| kind.is_gpu() && kind.is_compiled()) => None,
        true => Some("no GPU was found that this build can use".to_owned()),
        false => Some(failures.join("; ")),
    };
    (cpu(), why)
}

/// The CPU, by the fastest backend that this build has for it.
pub fn cpu() -> DeviceName {
    DeviceName::from(if Kind::Cpu.is_compiled() { Kind::Cpu } else { Kind::Ndarray })
}

/// Keeps drivers from complaining on stderr of a desktop that is not there: Mesa's layer that sorts GPUs asks for it.
///
/// # Safety
/// No other thread may run yet, as an environment variable is set: to be called first in `main`.
pub unsafe fn quiet_drivers() {
    let is_set = |name| std::env::var_os(name).is_some();
    if cfg!(target_os = "linux") && !is_set("XDG_RUNTIME_DIR") && !is_set("NODEVICE_SELECT") {
        // SAFETY: the caller's promise.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Sets how many threads compute on the CPU, 1 or more; without it `MOI_THREADS` and `RAYON_NUM_THREADS` count, or else
/// the cores. It has an effect only before the first computation.
pub fn set_threads(threads: usize) {
    moi_kernels::pool::set_threads(threads);
    // Flex computes on the global pool of rayon, in what our kernels do not do; the first who asks settles its size.
    #[cfg(feature = "flex")]
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}

/// The instructions that kernels for the CPU use, as `MOI_KERNELS` names them: the widest that the processor has, unless
/// that asks for less.
pub fn instruction_set() -> &'static str {
    moi_kernels::isa().name()
}

/// What this machine has of a kind; nothing where this build cannot use it. Drivers are asked once in a process: that
/// takes a while, and the answer is needed to choose, to estimate and to report.
pub fn found(kind: Kind) -> Vec<Found> {
    static ASKED: Mutex<BTreeMap<Kind, Vec<Found>>> = Mutex::new(BTreeMap::new());
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    asked.entry(kind).or_insert_with(|| look_for(kind)).clone()
}

fn look_for(kind: Kind) -> Vec<Found> {
    match kind {
        _ if !kind.is_compiled() => Vec::new(),
        Kind::Cpu => vec![processor(kind, "burn's Flex, on all cores")],
        Kind::Ndarray => vec![processor(kind, "burn's NdArray, the portable reference")],
        #[cfg(feature = "cuda")]
        Kind::Cuda => cuda::found(),
        #[cfg(feature = "adapters")]
        Kind::Metal | Kind::Vulkan | Kind::Wgpu => adapters::found(kind),
        #[allow(unreachable_patterns, reason = "not with every set of features")]
        _ => Vec::new(),
    }
}

fn processor(kind: Kind, description: &str) -> Found {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // A container's limit counts where there is one.
    let memory = system.cgroup_limits().map_or(0, |limits| limits.total_memory);
    let memory = if memory > 0 { memory } else { system.total_memory() };
    Found {
        name: kind.into(),
        description: description.to_owned(),
        driver: None,
        memory: (memory > 0).then_some(memory),
        class: Class::Processor,
    }
}

/// Starts a device and lets it compute something small.
///
/// # Errors
/// If the device is not compiled in, not there, or fails.
pub fn start(name: DeviceName) -> Result<(), DeviceError> {
    struct Nothing;
    impl Job for Nothing {
        type Output = ();
        fn run<B: Backend>(self, _device: &B::Device) {}
    }
    run(name, Nothing)
}

/// Does the work on a device. A driver that fails in the middle of it ends in an error, not in a panic.
///
/// # Errors
/// If the device is not compiled in, not there, or fails: at its start, at its first small computation, or later.
pub fn run<J: Job>(name: DeviceName, job: J) -> Result<J::Output, DeviceError> {
    match name.kind() {
        #[cfg(feature = "flex")]
        Kind::Cpu => Ok(job.run::<burn_flex::Flex>(&Default::default())),
        #[cfg(feature = "ndarray")]
        Kind::Ndarray => Ok(job.run::<burn_ndarray::NdArray>(&Default::default())),
        #[cfg(feature = "cuda")]
        Kind::Cuda => {
            let device = cuda::open(name)?;
            probe::guarded(name, || job.run::<burn_cuda::Cuda>(&device))
        }
        #[cfg(feature = "adapters")]
        kind @ (Kind::Metal | Kind::Vulkan | Kind::Wgpu) if kind.is_compiled() => {
            let device = adapters::open(name)?;
            probe::guarded(name, || job.run::<adapters::Wgpu>(&device))
        }
        #[allow(unreachable_patterns, reason = "not with every set of features")]
        kind => {
            drop(job);
            Err(DeviceError::NotCompiled { name, feature: kind.feature() })
        }
    }
}
