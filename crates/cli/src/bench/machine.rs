//! The machine that rows were measured on.

use std::{env, thread};

use moi_backends::{Class, Kind};
use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, System};

use crate::backend::Device;

/// A description of the machine, so that one table can hold rows of several machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Machine {
    pub(super) processor: Option<String>,
    pub(super) cores: usize,
    pub(super) memory_bytes: Option<u64>,
    pub(super) system: String,
    pub(super) gpus: Vec<String>,
}

impl Machine {
    /// Describes this machine. It starts GPU drivers to ask for the GPUs, so call it after all measurements.
    pub(super) fn this() -> Self {
        let names = |kind: Kind| -> Vec<String> {
            let gpus = moi_backends::found(kind).into_iter().filter(|gpu| gpu.class > Class::Processor);
            gpus.map(|gpu| gpu.description.split(", by ").next().unwrap_or_default().to_owned()).collect()
        };
        let gpus = Kind::ALL.into_iter().filter(|kind| kind.is_gpu()).map(names).max_by_key(Vec::len);
        Self {
            processor: processor(),
            cores: cores(),
            memory_bytes: memory_bytes(),
            system: system(),
            gpus: gpus.unwrap_or_default(),
        }
    }
}

/// Operating system and architecture.
pub(super) fn system() -> String {
    format!("{} {}", env::consts::OS, env::consts::ARCH)
}

/// The memory of the whole machine, in bytes.
pub(super) fn memory_bytes() -> Option<u64> {
    Device::cpu().found().and_then(|found| found.memory)
}

/// The number of threads that run at the same time.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The name of the processor.
pub(crate) fn processor() -> Option<String> {
    let mut system = System::new();
    system.refresh_cpu_list(CpuRefreshKind::nothing());
    let name = system.cpus().first()?.brand().trim().to_owned();
    (!name.is_empty()).then_some(name)
}
