//! Counts the bytes that are written, for a progress bar.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use crate::Progress;

type Each = dyn FnMut(Progress<'_>);

/// Shared by the tensors of a file, because a library decides when each of them is written.
#[derive(Clone)]
pub(crate) struct Reporter {
    bytes: Rc<Cell<usize>>,
    total_bytes: Rc<Cell<usize>>,
    each: Rc<RefCell<Each>>,
}

impl Reporter {
    pub(crate) fn new(each: impl FnMut(Progress<'_>) + 'static) -> Self {
        Self { bytes: Rc::default(), total_bytes: Rc::default(), each: Rc::new(RefCell::new(each)) }
    }

    pub(crate) fn begin(&self, total_bytes: usize) {
        self.total_bytes.set(total_bytes);
        self.bytes.set(0);
    }

    /// Reports that a tensor of this many bytes is about to be written.
    pub(crate) fn tensor(&self, name: &str, bytes: usize) {
        let (done, total_bytes) = (self.bytes.get(), self.total_bytes.get());
        (self.each.borrow_mut())(Progress { tensor: name, bytes: done, total_bytes });
        self.bytes.set(done + bytes);
    }
}
