//! The kernels of a decoder.

use std::{any::Any, fmt, sync::Arc};

use burn::tensor::backend::Backend;

use super::{Kernels, default_kernels};

/// Kernels for some backend. A decoder that burn converts to another backend, as `valid` does, gets the default
/// kernels of that backend.
#[derive(Clone)]
pub(crate) struct KernelsOf(Arc<dyn Any + Send + Sync>);

impl KernelsOf {
    pub(crate) fn new<B: Backend>(kernels: Arc<dyn Kernels<B>>) -> Self {
        Self(Arc::new(kernels))
    }

    pub(crate) fn get<B: Backend>(&self) -> Arc<dyn Kernels<B>> {
        match self.0.downcast_ref::<Arc<dyn Kernels<B>>>() {
            Some(kernels) => Arc::clone(kernels),
            None => default_kernels::<B>(),
        }
    }
}

impl fmt::Debug for KernelsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kernels")
    }
}
