//! Counts kernel launches on a GPU, because they are the main cost of decoding beside the bytes that it reads.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread::sleep,
    time::Duration,
};

use cubecl::config::{CubeClRuntimeConfig, profiling::ProfilingLogLevel};

/// The file that launches are logged to.
static COUNTED: OnceLock<PathBuf> = OnceLock::new();

/// Logs every launch of this process to a file. Call this before the first GPU is started; it costs some speed.
/// Returns false where launches are already logged to another file.
pub fn count_launches(file: PathBuf) -> bool {
    COUNTED.get_or_init(|| file.clone()) == &file
}

pub(crate) fn configure(config: &mut CubeClRuntimeConfig) {
    if let Some(file) = COUNTED.get() {
        config.profiling.logger.level = ProfilingLogLevel::Minimal;
        config.profiling.logger.file = Some(file.clone());
    }
}

/// The number of launches so far by kernel name, once the log has stopped growing; empty where launches are not
/// counted.
///
/// # Errors
/// If the file cannot be read.
pub fn launches() -> io::Result<BTreeMap<String, usize>> {
    // A separate thread writes the log, with some delay.
    const QUIET: Duration = Duration::from_millis(100);
    let Some(file) = COUNTED.get() else { return Ok(BTreeMap::new()) };
    let mut length = u64::MAX;
    loop {
        let now = file.metadata().map_or(0, |metadata| metadata.len());
        if now == length {
            return read(file);
        }
        length = now;
        sleep(QUIET);
    }
}

fn read(file: &Path) -> io::Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(file)?.lines() {
        if let Some(name) = line.strip_prefix("Executing ") {
            *counts.entry(short(name)).or_default() += 1;
        }
    }
    Ok(counts)
}

/// The kernel's own name, without its path, type parameters and runtime.
fn short(name: &str) -> String {
    let name = name.split(['<', '|']).next().unwrap_or(name).trim();
    name.rsplit("::").next().unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted() {
        let file = std::env::temp_dir().join(format!("moi-launches-{}", std::process::id()));
        fs::write(&file, "Executing a::JoinKernel<f32, f16>\nother\nExecuting JoinKernel | WgpuRuntime\n")
            .unwrap();
        let counts = read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), [("JoinKernel".to_owned(), 2)]);
    }
}
