//! The directory in which compiled kernels and autotune results are kept from one run to the next.

#[cfg(feature = "kernels")]
mod settle;

use std::{path::PathBuf, sync::OnceLock};

#[cfg(feature = "kernels")]
pub(crate) use settle::settle;

/// Where kernels are kept.
///
/// # Examples
/// ```
/// use moi_backends::{KernelCache, kernel_cache};
///
/// match kernel_cache() {
///     Some(KernelCache::At(directory)) => println!("kernels are kept in {}", directory.display()),
///     Some(KernelCache::Nowhere { why }) => println!("kernels are compiled in every run: {why}"),
///     None => println!("no GPU was started"),
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelCache {
    /// In this directory.
    At(PathBuf),
    /// Kernels are not kept: every run compiles them again.
    Nowhere {
        /// The reason.
        why: String,
    },
}

static ROOT: OnceLock<PathBuf> = OnceLock::new();
static SETTLED: OnceLock<KernelCache> = OnceLock::new();

/// Sets the directory in which kernels are kept; it need not exist yet. Call this before the first GPU is started;
/// later calls have no effect.
///
/// # Examples
/// ```
/// use moi_backends::{keep_kernels_in, kernel_cache};
///
/// keep_kernels_in(std::env::temp_dir().join("moi-kernels"));
/// assert!(kernel_cache().is_none()); // No GPU was started yet.
/// ```
pub fn keep_kernels_in(root: PathBuf) {
    // A second call is no error: the first one has set the directory.
    let _ = ROOT.set(root);
}

/// Where kernels are kept; `None` until a GPU was started.
///
/// # Examples
/// ```
/// use moi_backends::kernel_cache;
///
/// assert!(kernel_cache().is_none()); // No GPU was started yet.
/// ```
pub fn kernel_cache() -> Option<&'static KernelCache> {
    SETTLED.get()
}
