//! cubecl's own ways are for those who develop it: a `cubecl.toml` or `burn.toml` in some directory above the current
//! one, and results in the nearest `target`. Here all is set instead. Its keys name neither the GPU nor its driver
//! nor what is in a kernel, so each of these has a directory of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use burn_std::config::BurnConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig, autotune::AutotuneLogLevel, cache::CacheConfig};

use super::{KernelCache, ROOT, SETTLED};
use crate::Found;

/// Settles where the kernels of a process are kept, for the first GPU that it starts; whether this one's can be kept
/// there too.
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

/// Counts the changes of our own kernels, whose keys say their names and types but not what is in them: to be raised
/// with every change of `crates/gpu`.
const KERNELS: usize = 1;

/// A name for the GPU, its driver, and the versions whose kernels these are.
fn directory_name(gpu: &Found) -> String {
    let kernels = concat!("moi-", env!("CARGO_PKG_VERSION"), "-burn-0.21.0-cubecl-0.10.0");
    let kernels = format!("{kernels}-{KERNELS}");
    let driver = gpu.driver.as_deref().unwrap_or_default();
    let name = format!("{kernels}-{}-{}-{driver}", gpu.name.kind(), gpu.description);
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' }).collect()
}

/// A directory that can be written: cubecl panics, or waits long, where it cannot.
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

/// A process that is killed leaves its locks, for which others would wait half a minute at every start.
fn drop_stale_locks(directory: &Path) -> io::Result<()> {
    const STALE: Duration = Duration::from_secs(60);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            drop_stale_locks(&entry.path())?;
        } else if entry.path().extension().is_some_and(|extension| extension == "lock") {
            // One that vanishes meanwhile belongs to a process that is alive.
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|time| time.elapsed().unwrap_or_default() > STALE) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    Ok(())
}

/// Tells cubecl and burn, unless the app that this runs in has done so.
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
        // There is no way to keep choices nowhere.
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
