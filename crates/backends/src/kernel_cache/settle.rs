//! Configures cubecl's kernel cache. cubecl's own defaults suit its developers: it reads a `cubecl.toml` or
//! `burn.toml` from some directory above the current one and writes results to the nearest `target`. This module sets
//! everything explicitly instead. cubecl's cache keys name neither the GPU nor its driver nor the contents of a
//! kernel, so each combination of these has a directory of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use burn_std::config::BurnConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, autotune::AutotuneLogLevel, cache::CacheConfig};

use super::{KernelCache, ROOT, SETTLED};
use crate::Found;

/// Sets the kernel cache directory of this process when its first GPU is started. Returns whether the kernels of
/// `gpu` can be kept there too.
pub(crate) fn settle(gpu: &Found) -> bool {
    let directory = ROOT.get().map(|root| root.join(directory_name(gpu)));
    let settled = SETTLED.get_or_init(|| {
        let cache = match &directory {
            Some(directory) => prepare(directory.clone()),
            None => KernelCache::Nowhere { why: "no directory was named for them".to_owned() },
        };
        configure(&cache)
    });
    match settled {
        KernelCache::At(path) => Some(path) == directory.as_ref(),
        KernelCache::Nowhere { .. } => true,
    }
}

/// Version of our own kernels, to be raised with every change of `crates/gpu`: cache keys contain the names and types
/// of kernels but not their contents.
const KERNELS: usize = 1;

/// A directory name made of the GPU, its driver, and the versions of moi, burn and cubecl.
fn directory_name(gpu: &Found) -> String {
    let kernels = concat!("moi-", env!("CARGO_PKG_VERSION"), "-burn-0.21.0-cubecl-0.10.0");
    let kernels = format!("{kernels}-{KERNELS}");
    let driver = gpu.driver.as_deref().unwrap_or_default();
    let name = format!("{kernels}-{}-{}-{driver}", gpu.name.kind(), gpu.description);
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' }).collect()
}

/// Creates the directory and checks that it is writable, because cubecl panics, or waits long, where it is not.
fn prepare(path: PathBuf) -> KernelCache {
    let writable = || -> io::Result<()> {
        fs::create_dir_all(&path)?;
        drop_stale_locks(&path)?;
        let probe = path.join(format!(".probe-{}", std::process::id()));
        fs::write(&probe, [0; 4096])?;
        fs::remove_file(&probe)
    };
    match writable() {
        Ok(()) => KernelCache::At(path),
        Err(error) => KernelCache::Nowhere { why: format!("{}: {error}", path.display()) },
    }
}

/// Removes stale lock files: a process that is killed leaves its locks, and others would wait half a minute for them
/// at every start.
fn drop_stale_locks(directory: &Path) -> io::Result<()> {
    const STALE: Duration = Duration::from_secs(60);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            drop_stale_locks(&entry.path())?;
        } else if entry.path().extension().is_some_and(|extension| extension == "lock") {
            // A lock file that vanishes meanwhile belongs to a running process.
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|time| time.elapsed().unwrap_or_default() > STALE) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    Ok(())
}

/// Configures cubecl and burn, unless the embedding app has done so already.
fn configure(cache: &KernelCache) -> KernelCache {
    if CubeClRuntimeConfig::storage().lock().is_some() {
        return KernelCache::Nowhere { why: "cubecl is configured by the app".to_owned() };
    }
    let mut config = CubeClRuntimeConfig::default();
    config.autotune.logger.level = AutotuneLogLevel::Disabled;
    crate::launches::configure(&mut config);
    match cache {
        KernelCache::At(path) => {
            config.compilation.cache = Some(CacheConfig::File(path.clone()));
            config.autotune.cache = CacheConfig::File(path.clone());
        }
        // cubecl cannot disable its autotune cache, so its results go to a temporary directory.
        KernelCache::Nowhere { .. } => {
            let path = std::env::temp_dir().join(format!("moi-kernels-{}", std::process::id()));
            config.autotune.cache = CacheConfig::File(path);
        }
    }
    CubeClRuntimeConfig::set(config);
    if BurnConfig::storage().lock().is_none() {
        BurnConfig::set(BurnConfig::default());
    }
    cache.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, Kind};

    #[test]
    fn a_gpu_has_a_directory_of_its_own() {
        let gpu = |driver: &str| Found {
            name: Kind::Vulkan.into(),
            description: "GPU/../x".to_owned(),
            driver: Some(driver.to_owned()),
            memory: None,
            class: Class::Discrete,
        };
        let name = directory_name(&gpu("1.2"));
        assert!(name.ends_with("-vulkan-GPU_.._x-1.2") && !name.contains('/'), "{name}");
        assert_ne!(name, directory_name(&gpu("1.3")));
    }

    #[test]
    fn what_cannot_be_written_keeps_nothing() {
        let file = std::env::temp_dir().join(format!("moi-not-a-directory-{}", std::process::id()));
        fs::write(&file, "").unwrap();
        let cache = prepare(file.join("kernels"));
        fs::remove_file(&file).unwrap();
        assert!(matches!(cache, KernelCache::Nowhere { why } if why.contains("moi-not-a-directory")));
    }
}
