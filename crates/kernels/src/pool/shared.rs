//! Memory that several threads write, each its own parts.

/// A slice whose parts several threads write, none of them the same.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T, usize);

// SAFETY: it is only a place; its methods have the conditions.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: likewise.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr(), slice.len())
    }

    /// Where a part begins, to write it.
    pub(crate) fn at(&self, start: usize, len: usize) -> *mut T {
        assert!(start <= self.1 && len <= self.1 - start);
        self.0.wrapping_add(start)
    }

    /// A part, to read and write.
    ///
    /// # Safety
    /// The slice must live, and nobody else may have a part of it that overlaps.
    #[allow(clippy::mut_from_ref, reason = "that is what it is for; see the conditions")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.1 && len <= self.1 - start);
        // SAFETY: inside the slice; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// The memory of a vector whose values several threads write for the first time, each its own parts. Filling it with
/// zeros before would be a pass of one thread over memory that the system may have to provide first.
#[derive(Clone, Copy)]
pub(crate) struct Unwritten<T>(Shared<T>);

impl<T: Copy + Default> Unwritten<T> {
    /// Room for `len` values in `vector`, which is empty until [`Self::written`].
    pub(crate) fn new(vector: &mut Vec<T>, len: usize) -> Self {
        vector.clear();
        vector.reserve_exact(len);
        Self(Shared(vector.as_mut_ptr(), len))
    }

    /// A part, filled with zeros.
    ///
    /// # Safety
    /// As of [`Shared::slice`]: the vector must live and stay as it is.
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

    /// Where a part begins, to write it.
    pub(crate) fn at(&self, start: usize, len: usize) -> *mut T {
        self.0.at(start, len)
    }

    /// Gives the vector its values.
    ///
    /// # Safety
    /// It must be the vector that this is the memory of, and all parts must have been written.
    pub(crate) unsafe fn written(self, vector: &mut Vec<T>) {
        assert!(vector.capacity() >= self.0.1 && vector.as_ptr() == self.0.0.cast_const());
        // SAFETY: the caller's promise.
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
                // SAFETY: each part is another one of the living vector.
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
