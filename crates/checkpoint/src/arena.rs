//! Allocates memory for weights.
//!
//! A decoding step reads every weight once. With pages of 4 KiB the processor must translate an address for each page
//! (through two levels of page tables in a virtual machine). Where the system has large pages, weights are put into
//! them: many tensors share one mapping, because most tensors are smaller than a large page.

use std::{marker::PhantomData, ptr::NonNull, sync::Arc};

use burn::tensor::{AllocationProperty, Bytes, DType, TensorData};
use bytemuck::{AnyBitPattern, NoUninit};
use memmap2::MmapMut;

/// The large page of x86-64, and of 64-bit ARM with its usual small pages, in bytes.
const LARGE_PAGE: usize = 2 << 20;
/// The alignment of a tensor in bytes: a cache line.
const LINE: usize = 64;

/// Allocates memory for one tensor after another.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Bytes that are mapped at a time; an allocation of more than a quarter of them gets a mapping of its own.
    chunk: usize,
    /// The mapping that still has room, and the first free byte in it.
    open: Option<(Arc<Chunk>, usize)>,
}

impl Arena {
    /// An arena with chunks of this many bytes. With 0 each tensor has a mapping of its own, which is freed with the
    /// tensor.
    pub(crate) fn new(chunk: usize) -> Self {
        Self { chunk, open: None }
    }

    /// Allocates this many values, all zero.
    pub(crate) fn zeroed<T: NoUninit + AnyBitPattern>(&mut self, len: usize) -> Region<T> {
        let bytes = len * size_of::<T>();
        if bytes > self.chunk / 4 {
            return Region { chunk: Arc::new(Chunk::new(bytes)), start: 0, len, values: PhantomData };
        }
        let (chunk, start) = match self.open.take() {
            Some((chunk, start)) if chunk.len - start >= bytes => (chunk, start),
            _ => (Arc::new(Chunk::new(self.chunk)), 0),
        };
        let next = (start + bytes).next_multiple_of(LINE).min(chunk.len);
        self.open = Some((chunk.clone(), next));
        Region { chunk, start, len, values: PhantomData }
    }

    /// Allocates a copy of these values.
    pub(crate) fn copy<T: NoUninit + AnyBitPattern>(&mut self, values: &[T]) -> Region<T> {
        let mut region = self.zeroed(values.len());
        region.slice_mut().copy_from_slice(values);
        region
    }
}

/// Values in an [`Arena`], with exclusive access to their memory.
#[derive(Debug)]
pub(crate) struct Region<T> {
    chunk: Arc<Chunk>,
    /// The offset in bytes from the start of the chunk.
    start: usize,
    /// The number of values.
    len: usize,
    values: PhantomData<T>,
}

impl<T: NoUninit + AnyBitPattern + Send + Sync + 'static> Region<T> {
    /// Turns the region into a tensor's values without copying them.
    pub(crate) fn into_data(self, dtype: DType) -> TensorData {
        let len = self.len;
        let bytes = Bytes::from_shared(bytes::Bytes::from_owner(self), AllocationProperty::Native);
        TensorData::from_bytes(bytes, [len], dtype)
    }
}

impl<T: NoUninit + AnyBitPattern> Region<T> {
    pub(crate) fn slice(&self) -> &[T] {
        // SAFETY: the region lies within the chunk, is aligned to a cache line and initialised (to zeros at first);
        // any bytes are a valid value, and only this region has access to them.
        unsafe { std::slice::from_raw_parts(self.chunk.start.as_ptr().add(self.start).cast(), self.len) }
    }

    pub(crate) fn slice_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `slice`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.start.as_ptr().add(self.start).cast(), self.len) }
    }
}

impl<T: NoUninit + AnyBitPattern> AsRef<[u8]> for Region<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.slice())
    }
}

/// A mapping that holds several tensors.
#[derive(Debug)]
struct Chunk {
    start: NonNull<u8>,
    len: usize,
    /// The owner of the memory, which frees it when dropped.
    _memory: Memory,
}

// SAFETY: the memory is only accessed through regions, which do not overlap.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

#[derive(Debug)]
enum Memory {
    Mapped {
        _map: MmapMut,
    },
    /// The fallback if nothing can be mapped.
    Heap {
        _lines: Vec<Line>,
    },
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line {
    _bytes: [u8; LINE],
}

impl Chunk {
    fn new(len: usize) -> Self {
        let is_large = len >= LARGE_PAGE;
        // A large page must begin at a multiple of its size, so the mapping has room to align to one.
        let mapped = if is_large { len.next_multiple_of(LARGE_PAGE) + LARGE_PAGE } else { len.max(1) };
        let Ok(mut map) = MmapMut::map_anon(mapped) else { return Self::on_heap(len) };
        let skipped = if is_large { map.as_ptr().align_offset(LARGE_PAGE).min(LARGE_PAGE) } else { 0 };
        #[cfg(target_os = "linux")]
        if is_large {
            // A system without large pages refuses this, and the mapping then has small pages.
            let _ = map.advise_range(memmap2::Advice::HugePage, skipped, len);
        }
        // SAFETY: the address lies inside the mapping, which does not begin at 0.
        let start = unsafe { NonNull::new_unchecked(map.as_mut_ptr().add(skipped)) };
        Self { start, len, _memory: Memory::Mapped { _map: map } }
    }

    fn on_heap(len: usize) -> Self {
        let mut lines = vec![Line { _bytes: [0; LINE] }; len.div_ceil(LINE).max(1)];
        // SAFETY: a vector's pointer is never null.
        let start = unsafe { NonNull::new_unchecked(lines.as_mut_ptr().cast()) };
        Self { start, len, _memory: Memory::Heap { _lines: lines } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap_and_outlive_the_arena() {
        let mut arena = Arena::new(1 << 12);
        let mut regions: Vec<Region<u32>> = Vec::new();
        for len in [0, 1, 15, 16, 17, 255, 256, 300, 5000, 1] {
            let mut region = arena.zeroed::<u32>(len);
            assert!(region.slice().iter().all(|&value| value == 0));
            assert_eq!(region.slice().as_ptr().align_offset(LINE), 0);
            region.slice_mut().fill(regions.len() as u32 + 1);
            regions.push(region);
        }
        drop(arena);
        for (index, region) in regions.into_iter().enumerate() {
            let len = region.slice().len();
            let data = region.into_data(DType::U32);
            assert_eq!(data.to_vec::<u32>().unwrap(), vec![index as u32 + 1; len]);
        }
    }

    #[test]
    fn memory_from_the_heap_is_as_good() {
        let chunk = Arc::new(Chunk::on_heap(100));
        let mut region = Region::<u16> { chunk, start: 64, len: 18, values: PhantomData };
        region.slice_mut().copy_from_slice(&[7; 18]);
        assert_eq!(region.into_data(DType::U16).to_vec::<u16>().unwrap(), [7; 18]);
    }

    #[test]
    fn large_tensors_begin_at_a_large_page() {
        let region = Arena::new(0).copy(&vec![3u8; LARGE_PAGE + 1]);
        assert_eq!(region.slice().as_ptr().align_offset(LARGE_PAGE), 0);
        assert!(region.slice().iter().all(|&value| value == 3));
    }
}
