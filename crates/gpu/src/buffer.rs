//! Buffers on a device, and what is known of the device.

use cubecl::{ir::StorageType, prelude::*, server::Handle};

/// Numbers in a device's memory, one behind the other.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Where.
    pub handle: Handle,
    /// How many.
    pub len: usize,
    /// Of which type.
    pub dtype: StorageType,
}

impl Buffer {
    /// As an argument of a kernel that reads it in vectors of `width` numbers.
    pub(crate) fn vectors<R: Runtime>(&self, width: usize) -> ArrayArg<R> {
        // SAFETY: whoever made the buffer says how long it is.
        unsafe { ArrayArg::from_raw_parts(self.handle.clone(), self.len / width) }
    }

    /// As an argument of a kernel that reads one number at a time.
    pub(crate) fn numbers<R: Runtime>(&self) -> ArrayArg<R> {
        self.vectors(1)
    }
}

/// A device, by what kernels need of it.
#[derive(Clone)]
pub struct Device<R: Runtime> {
    /// Where launches go.
    pub client: ComputeClient<R>,
}

impl<R: Runtime> Device<R> {
    /// Memory for `len` numbers, not yet written.
    pub fn empty(&self, len: usize, dtype: StorageType) -> Buffer {
        Buffer { handle: self.client.empty(len * dtype.size()), len, dtype }
    }

    /// Memory for `len` numbers in float32.
    pub(crate) fn floats(&self, len: usize) -> Buffer {
        self.empty(len, f32::as_type_native_unchecked().storage_type())
    }

    /// The widest vector of `dtype` that divides `len` and that the device reads at once.
    pub(crate) fn vector_width(&self, dtype: StorageType, len: usize) -> usize {
        let widths = self.client.io_optimized_vector_sizes(dtype.size());
        widths.filter(|width| len.is_multiple_of(*width)).max().unwrap_or(1)
    }

    /// So many cubes in as many dimensions as it takes.
    pub(crate) fn cubes(&self, count: usize) -> CubeCount {
        const MAX: usize = 1 << 15;
        match count {
            0..=MAX => CubeCount::Static(count as u32, 1, 1),
            _ => CubeCount::Static(MAX as u32, count.div_ceil(MAX) as u32, 1),
        }
    }
}
