//! Allocation of cache blocks: a free list, and references that return their block when the last of them is dropped.

use std::sync::{Arc, Mutex, PoisonError};

/// The free list, by the numbers of blocks.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    free: Arc<Mutex<Vec<usize>>>,
    count: usize,
}

/// A block in use. Clones share the block.
#[derive(Clone, Debug)]
pub(crate) struct Block(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    id: usize,
    free: Arc<Mutex<Vec<usize>>>,
}

impl Blocks {
    /// Number of blocks, in use or not.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Number of blocks that are not in use.
    pub(crate) fn free(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Adds blocks.
    pub(crate) fn grow(&mut self, more: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // Blocks with low numbers are taken first.
        free.splice(0..0, (self.count..self.count + more).rev());
        self.count += more;
    }

    /// Removes the last `count` blocks. Returns false, and removes none, if any of them is in use.
    pub(crate) fn shrink(&mut self, count: usize) -> bool {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.count - count;
        if free.iter().filter(|&&id| id >= first).count() < count {
            return false;
        }
        free.retain(|&id| id < first);
        self.count = first;
        true
    }

    /// Takes a block, if one is free.
    pub(crate) fn take(&self) -> Option<Block> {
        let id = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Block(Arc::new(Owned { id, free: self.free.clone() })))
    }
}

impl Block {
    pub(crate) fn id(&self) -> usize {
        self.0.id
    }

    /// Whether there are other references to the block, so that it must not be written.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_when_the_last_reference_goes() {
        let mut blocks = Blocks::default();
        assert!(blocks.take().is_none());
        blocks.grow(2);
        let (first, second) = (blocks.take().unwrap(), blocks.take().unwrap());
        assert_eq!((first.id(), second.id(), blocks.free()), (0, 1, 0));
        let shared = first.clone();
        assert!(shared.is_shared() && !second.is_shared());
        drop(first);
        assert_eq!(blocks.free(), 0);
        assert!(!shared.is_shared());
        drop(shared);
        assert_eq!((blocks.free(), blocks.count()), (1, 2));
        blocks.grow(1);
        assert!(!blocks.shrink(2));
        assert!(blocks.shrink(1));
        assert_eq!(blocks.take().unwrap().id(), 0);
        drop(second);
        assert!(blocks.shrink(2));
        assert_eq!((blocks.free(), blocks.count()), (0, 0));
    }
}
