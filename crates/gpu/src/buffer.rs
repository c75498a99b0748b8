//! Buffers in device memory, and the device itself as kernels need it.

use cubecl::{ir::StorageType, prelude::*, server::Handle};

/// A contiguous array of numbers in device memory.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// The memory.
    pub handle: Handle,
    /// Number of values.
    pub len: usize,
    /// Type of the values.
    pub dtype: StorageType,
}

impl Buffer {
    /// The argument for a kernel that reads the buffer in vectors of `width` numbers.
    pub(crate) fn vectors<R: Runtime>(&self, width: usize) -> ArrayArg<R> {
        // SAFETY: the buffer's creator has set its length.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len / width) }
    }

    /// The argument for a kernel that reads one number at a time.
    pub(crate) fn numbers<R: Runtime>(&self) -> ArrayArg<R> {
        self.vectors(1)
    }
}

/// A device, as kernels need it.
#[derive(Clone)]
pub struct Device<R: Runtime> {
    /// The client that launches kernels.
    pub client: ComputeClient<R>,
}

impl<R: Runtime> Device<R> {
    /// Allocates uninitialized memory for `len` numbers.
    pub fn empty(&self, len: usize, dtype: StorageType) -> Buffer {
        Buffer { handle: self.client.empty(len * dtype.size()), len, dtype }
    }

    /// Allocates uninitialized memory for `len` numbers in float32.
    pub(crate) fn floats(&self, len: usize) -> Buffer {
        self.empty(len, f32::as_type_native_unchecked().storage_type())
    }

    /// Width of the widest vector of `dtype` that divides `len` and that the device reads in one access.
    pub(crate) fn vector_width(&self, dtype: StorageType, len: usize) -> usize {
        let widths = self.client.io_optimized_vector_sizes(dtype.size());
        widths.filter(|width| len.is_multiple_of(*width)).max().unwrap_or(1)
    }

    /// A cube count of `count`, in two dimensions where one is too small; then it is rounded up.
    pub(crate) fn cubes(&self, count: usize) -> CubeCount {
        const MAX: usize = 1 << 15;
        match count {
            0..=MAX => CubeCount::Static(count as u32, 1, 1),
            _ => CubeCount::Static(MAX as u32, count.div_ceil(MAX) as u32, 1),
        }
    }
}
