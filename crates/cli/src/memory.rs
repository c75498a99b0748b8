//! The memory use of this process, and the free memory of the machine.

use std::fs;

/// The peak memory of this process in bytes, if the system says so.
pub(crate) fn peak_memory() -> Option<u64> {
    // Other systems than Linux have no such file.
    peak_of(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Bytes of memory that are still available, if the system says so.
#[cfg(feature = "serve")]
pub(crate) fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Parses a line such as `VmHWM:     1234 kB`.
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
