//! Where compiled kernels and the choices among them are kept from one run to the next.

#[cfg(feature = "kernels")]
mod settle;

use std::{path::PathBuf, sync::OnceLock};

#[cfg(feature = "kernels")]
pub(crate) use settle::settle;

/// Where kernels are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelCache {
    /// In this directory.
    At(PathBuf),
    /// Nowhere: every run compiles them again.
    Nowhere {
        /// Why.
        why: String,
    },
}

static ROOT: OnceLock<PathBuf> = OnceLock::new();
static SETTLED: OnceLock<KernelCache> = OnceLock::new();

/// Has kernels kept in a directory, which need not exist yet. To be called before the first GPU is started; later
/// calls change nothing.
pub fn keep_kernels_in(root: PathBuf) {
    // A second root is no error: the first has settled it.
    let _ = ROOT.set(root);
}

/// Where kernels are kept, once a GPU was started.
pub fn kernel_cache() -> Option<&'static KernelCache> {
    SETTLED.get()
}
