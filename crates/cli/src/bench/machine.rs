//! The machine, and what this process took of it.

use std::{fs, thread};

use sysinfo::{CpuRefreshKind, System};

/// Threads that run side by side.
pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// What the processor is called.
pub(super) fn processor() -> Option<String> {
    let mut system = System::new();
    system.refresh_cpu_list(CpuRefreshKind::nothing());
    let name = system.cpus().first()?.brand().trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// The most bytes of memory that this process has had so far, where the system says.
pub(super) fn peak_memory() -> Option<u64> {
    // Elsewhere there is no such file.
    peak_of(&fs::read_to_string("/proc/self/status").ok()?)
}

/// `VmHWM:     1234 kB`
fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read() {
        assert_eq!(peak_of("VmPeak:\t  100 kB\nVmHWM:\t   2048 kB\nVmRSS:\t 1 kB\n"), Some(2048 * 1024));
        assert_eq!(peak_of("Name: moi\n"), None);
        assert_eq!(peak_of("VmHWM: much\n"), None);
    }
}
