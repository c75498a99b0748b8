//! Which kernels a GPU is given, counted: the number of launches is what decoding costs beside the bytes it reads.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread::sleep,
    time::Duration,
};

use cubecl::config::{CubeClRuntimeConfig, profiling::ProfilingLogLevel};

/// Where launches are written down.
static COUNTED: OnceLock<PathBuf> = OnceLock::new();

/// Has every launch of this process written to a file. To be called before the first GPU is started; it costs some
/// speed. False where launches are counted in another file already.
pub fn count_launches(file: PathBuf) -> bool {
    COUNTED.get_or_init(|| file.clone()) == &file
}

pub(crate) fn configure(config: &mut CubeClRuntimeConfig) {
    if let Some(file) = COUNTED.get() {
        config.profiling.logger.level = ProfilingLogLevel::Minimal;
        config.profiling.logger.file = Some(file.clone());
    }
}

/// The launches until now by the names of kernels, once no more come in; nothing where they are not counted.
///
/// # Errors
/// If the file cannot be read.
pub fn launches() -> io::Result<BTreeMap<String, usize>> {
    // A thread of its own writes them down, soon.
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

/// The kernel's own name: without its path, its types and the runtime.
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
