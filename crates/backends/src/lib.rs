//! The only crate that names concrete backends: it turns a device name into a backend type.
//!
//! Everything else is generic over burn's `Backend`. An app with a backend of its own does not need this crate: it
//! calls the models and the engine with its own type. To add another device to the binary:
//!
//! 1. add a [`Kind`] with its name and cargo feature, and an optional dependency behind that feature;
//! 2. add a module like `adapters` or `cuda` with two functions: `found`, which lists the devices of this machine
//!    without starting any, and `open`, which returns a device that has passed a small computation, or an error;
//! 3. add an arm for it to [`found`] and one to [`run`], which names its type.

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
pub use name::{DeviceName, DeviceRequest, Kind, NameError};
#[cfg(feature = "kernels")]
pub use probe::records_panic;

/// For a process's panic hook: records the message of a panic that becomes a [`DeviceError`], and returns true if
/// this panic does and need not be reported. In this build, without GPUs, no panic does.
///
/// # Examples
/// ```
/// let report = std::panic::take_hook();
/// std::panic::set_hook(Box::new(move |panic| {
///     if !moi_backends::records_panic(panic) {
///         report(panic);
///     }
/// }));
/// ```
#[cfg(not(feature = "kernels"))]
pub fn records_panic(_panic: &std::panic::PanicHookInfo<'_>) -> bool {
    false
}

/// Work that is generic over the backend.
///
/// # Examples
/// ```
/// use burn::tensor::{Tensor, backend::Backend};
/// use moi_backends::{Job, cpu, run};
///
/// /// The sum of some ones.
/// struct Sum(usize);
///
/// impl Job for Sum {
///     type Output = f32;
///
///     fn run<B: Backend>(self, device: &B::Device) -> f32 {
///         Tensor::<B, 1>::ones([self.0], device).to_data().iter::<f32>().sum()
///     }
/// }
/// assert_eq!(run(cpu(), Sum(3))?, 3.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Job {
    /// The result of the work.
    type Output;

    /// Does the work on a device.
    fn run<B: Backend>(self, device: &B::Device) -> Self::Output;
}

/// A device that this machine has and this build can use.
///
/// # Examples
/// ```
/// use moi_backends::{Class, cpu, found};
///
/// let devices = found(cpu().kind());
/// assert_eq!((devices[0].name, devices[0].class), (cpu(), Class::Processor));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name by which a user asks for it.
    pub name: DeviceName,
    /// The device's name according to its driver.
    pub description: String,
    /// The driver's name and version, where there is a driver.
    pub driver: Option<String>,
    /// Bytes of the device's own memory, where known; for the CPU, bytes of system memory.
    pub memory: Option<u64>,
    /// The class of the device.
    pub class: Class,
}

/// Classes of devices, the slowest first.
///
/// # Examples
/// ```
/// use moi_backends::Class;
///
/// assert!(Class::Software < Class::Processor && Class::Integrated < Class::Discrete);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A CPU that emulates a GPU: correct, but slower than `cpu`.
    Software,
    /// The CPU.
    Processor,
    /// A GPU that shares the CPU's memory, or that is not known to have memory of its own.
    Integrated,
    /// A GPU with memory of its own.
    Discrete,
}

/// The device to use, and the reason for the choice if the request was `auto`.
///
/// `auto` takes the best GPU that passes a small test, else the fastest CPU backend. GPUs are ordered by [`Class`],
/// then by kind as in [`Kind::ALL`].
///
/// # Examples
/// ```
/// use moi_backends::{DeviceName, Kind, choose};
///
/// assert_eq!(choose("cpu".parse()?), (DeviceName::from(Kind::Cpu), None));
/// let (best, why) = choose("auto".parse()?);
/// println!("{best}: {}", why.unwrap_or_default());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn choose(request: DeviceRequest) -> (DeviceName, Option<String>) {
    if let DeviceRequest::Named(name) = request {
        return (name, None);
    }
    let mut gpus: Vec<Found> = Kind::ALL.into_iter().filter(|kind| kind.is_gpu()).flat_map(found).collect();
    gpus.retain(|gpu| gpu.class > Class::Processor);
    // The sort is stable: GPUs of the same class stay in the order of `Kind::ALL`.
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
        // A build with CPU backends only had no choice to explain.
        true if !Kind::ALL.into_iter().any(|kind| kind.is_gpu() && kind.is_compiled()) => None,
        true => Some("no GPU was found that this build can use".to_owned()),
        false => Some(failures.join("; ")),
    };
    (cpu(), why)
}

/// The CPU, with the fastest backend that this build has for it.
///
/// # Examples
/// ```
/// use moi_backends::cpu;
///
/// assert!(!cpu().kind().is_gpu() && cpu().kind().is_compiled());
/// ```
pub fn cpu() -> DeviceName {
    DeviceName::from(if Kind::Cpu.is_compiled() { Kind::Cpu } else { Kind::Ndarray })
}

/// Keeps GPU drivers from complaining on stderr about a missing desktop: Mesa's device-select layer looks for one.
///
/// # Safety
/// No other thread may be running, because this sets an environment variable: call it first in `main`.
///
/// # Examples
/// ```no_run
/// // First in `main`. SAFETY: no other thread runs yet.
/// unsafe { moi_backends::quiet_drivers() };
/// ```
pub unsafe fn quiet_drivers() {
    let is_set = |name| std::env::var_os(name).is_some();
    if cfg!(target_os = "linux") && !is_set("XDG_RUNTIME_DIR") && !is_set("NODEVICE_SELECT") {
        // SAFETY: the caller guarantees that no other thread runs.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Sets the number of threads that compute on the CPU, 1 or more. Without this call, `MOI_THREADS`, then
/// `RAYON_NUM_THREADS`, then the number of cores decide. It has an effect only before the first computation.
///
/// # Examples
/// ```
/// // Before the first computation.
/// moi_backends::set_threads(2);
/// ```
pub fn set_threads(threads: usize) {
    moi_kernels::pool::set_threads(threads);
    // Flex computes what our kernels do not on rayon's global pool, whose size is fixed by its first use.
    #[cfg(feature = "flex")]
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}

/// The number of threads that our kernels compute with on the CPU.
///
/// # Examples
/// ```
/// assert!(moi_backends::threads() > 0);
/// ```
pub fn threads() -> usize {
    moi_kernels::pool::threads()
}

/// The name of the instruction set that the CPU kernels use, as in `MOI_KERNELS`: the widest that the CPU has, unless
/// that variable asks for a narrower one.
///
/// # Examples
/// ```
/// println!("kernels for {}", moi_backends::instruction_set());
/// # assert!(!moi_backends::instruction_set().is_empty());
/// ```
pub fn instruction_set() -> &'static str {
    moi_kernels::isa().name()
}

/// The devices of a kind on this machine; empty where this build cannot use the kind. Drivers are asked once in a
/// process, because that takes a while and the answer is needed to choose, to estimate and to report.
///
/// # Examples
/// ```
/// use moi_backends::{Kind, found};
///
/// for device in Kind::ALL.into_iter().flat_map(found) {
///     println!("{}: {}", device.name, device.description);
/// }
/// ```
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
    // In a container, its memory limit is used.
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

/// Starts a device and runs a small computation on it.
///
/// # Errors
/// If the device is not compiled in, not there, or fails.
///
/// # Examples
/// ```
/// use moi_backends::{cpu, start};
///
/// start(cpu())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn start(name: DeviceName) -> Result<(), DeviceError> {
    struct Nothing;
    impl Job for Nothing {
        type Output = ();
        fn run<B: Backend>(self, _device: &B::Device) {}
    }
    run(name, Nothing)
}

/// Runs the job on a device. A driver that fails in the middle of it causes an error, not a panic.
///
/// # Errors
/// If the device is not compiled in, not there, or fails: at its start, at its first small computation, or later.
///
/// # Examples
/// ```
/// use burn::tensor::backend::Backend;
/// use moi_backends::{Job, cpu, run};
///
/// struct Name;
///
/// impl Job for Name {
///     type Output = String;
///
///     fn run<B: Backend>(self, device: &B::Device) -> String {
///         B::name(device)
///     }
/// }
/// assert!(!run(cpu(), Name)?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
