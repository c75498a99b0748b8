//! Memory that several threads write, each its own parts.

/// A slice that several threads write, each its own parts.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T, usize);

// SAFETY: this is only a pointer; the methods that access the memory have conditions of their own.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: likewise.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// Pointer to the beginning of a part, for writing it.
    pub(crate) fn at(&self, start: usize, len: usize) -> *mut T {
        assert!(start <= self.1 && len <= self.1 - start);
        self.0.wrapping_add(start)
    }

    /// A part, for reading and writing.
    ///
    /// # Safety
    /// The slice must be alive, and no other reference to an overlapping part may exist.
    #[allow(clippy::mut_from_ref, reason = "that is what it is for; see the conditions")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.1 && len <= self.1 - start);
        // SAFETY: the part is inside the slice; the caller ensures the rest.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// The memory of a vector that several threads initialize, each its own parts. Filling it with zeros first would be a
/// pass of a single thread, over memory that the system may have to map first.
#[derive(Clone, Copy)]
pub(crate) struct Unwritten<T>(Shared<T>);

impl<T: Copy + Default> Unwritten<T> {
    /// Reserves room for `len` values in `vector`, which stays empty until [`Self::written`].
    pub(crate) fn new(vector: &mut Vec<T>, len: usize) -> Self {
        vector.clear();
        vector.reserve_exact(len);
        Self(Shared(vector.as_mut_ptr(), len))
    }

    /// A part, filled with zeros.
    ///
    /// # Safety
    /// As for [`Shared::slice`]; the vector must be alive and unchanged.
    #[allow(clippy::mut_from_ref, reason = "as Shared::slice")]
    pub(crate) unsafe fn zeroed(&self, start: usize, len: usize) -> &mut [T] {
        let at = self.at(start, len);
        // SAFETY: the part is inside the vector's memory, and all of it is written before there is a reference to it.
        unsafe {
            for index in 0..len {
                at.add(index).write(T::default());
            }
            std::slice::from_raw_parts_mut(at, len)
        }
    }

    /// Pointer to the beginning of a part, for writing it.
    pub(crate) fn at(&self, start: usize, len: usize) -> *mut T {
        self.0.at(start, len)
    }

    /// Sets the vector's length, so that it has the written values.
    ///
    /// # Safety
    /// `vector` must be the one passed to [`Self::new`], and all its parts must have been written.
    pub(crate) unsafe fn written(self, vector: &mut Vec<T>) {
        assert!(vector.capacity() >= self.0.1 && vector.as_ptr() == self.0.0.cast_const());
        // SAFETY: the caller upholds this function's contract.
        unsafe { vector.set_len(self.0.1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool;

    #[test]
    fn parts_are_zeros_until_they_are_written() {
        let mut vector = vec![7.0f32; 100];
        let memory = Unwritten::new(&mut vector, 100);
        assert!(vector.is_empty());
        pool::run_ranges(10, 1, |start, end| {
            for part in start..end {
                // SAFETY: the parts are disjoint, and the vector is alive.
                let values = unsafe { memory.zeroed(10 * part, 10) };
                assert!(values.iter().all(|&value| value == 0.0));
                values[part] = 1.0;
            }
        });
        // SAFETY: all ten parts of this vector were written.
        unsafe { memory.written(&mut vector) };
        assert_eq!((vector.len(), vector.iter().sum::<f32>()), (100, 10.0));
        assert!((0..10).all(|part| vector[11 * part] == 1.0));
    }

    #[test]
    #[should_panic(expected = "start <= self.1")]
    fn parts_outside_are_refused() {
        Unwritten::<f32>::new(&mut Vec::new(), 8).at(4, 5);
    }
}
