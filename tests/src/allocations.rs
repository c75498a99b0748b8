//! Measures the memory that a piece of code allocates on its own thread, and the memory that all threads hold.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicIsize, Ordering},
};

/// A counting wrapper of the system's allocator. A test binary installs it with `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting;

/// The memory that a piece of code allocated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// The peak of bytes held at once, beyond those held before.
    pub peak: usize,
    /// Bytes of the largest single request.
    pub largest: usize,
}

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// Bytes held by all threads.
static IN_ALL: AtomicIsize = AtomicIsize::new(0);

fn changed(by: isize, asked: usize) {
    IN_ALL.fetch_add(by, Ordering::Relaxed);
    HELD.set(HELD.get() + by);
    PEAK.set(PEAK.get().max(HELD.get()));
    LARGEST.set(LARGEST.get().max(asked));
}

// SAFETY: every call goes to the system's allocator; counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        changed(layout.size().cast_signed(), layout.size());
        // SAFETY: the caller's promise is the allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        changed(layout.size().cast_signed(), layout.size());
        // SAFETY: the caller's promise is the allocator's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        changed(-layout.size().cast_signed(), 0);
        // SAFETY: the caller's promise is the allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        changed(size.cast_signed() - layout.size().cast_signed(), size);
        // SAFETY: the caller's promise is the allocator's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs `work` and returns what it allocated on this thread.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, Usage) {
    let before = HELD.get();
    PEAK.set(before);
    LARGEST.set(0);
    let result = work();
    let peak = usize::try_from(PEAK.get() - before).unwrap_or(0);
    (result, Usage { peak, largest: LARGEST.get() })
}

/// Bytes that all threads hold now.
pub fn held() -> usize {
    usize::try_from(IN_ALL.load(Ordering::Relaxed)).unwrap_or(0)
}
