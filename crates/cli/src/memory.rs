//! What this process took of the machine's memory.

use std::fs;

/// The most bytes of memory that this process has had so far, where the system says.
pub(crate) fn peak_memory() -> Option<u64> {
    // Elsewhere there is no such file.
    peak_of(&fs::read_to_string("/proc/self/status").ok()?)
}

/// Bytes of memory that processes could still have, where the system says.
#[cfg(feature = "serve")]
pub(crate) fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
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
