//! A GPU for kernel tests, with helpers to move numbers to and from it.

use cubecl::prelude::*;
use half::f16;
use moi_gpu::{Buffer, Device};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

/// The device of a test.
pub(super) struct Gpu<R: Runtime>(pub(super) Device<R>);

impl<R: Runtime> Gpu<R> {
    fn buffer<T: CubeElement + CubePrimitive>(&self, values: &[T]) -> Buffer {
        let handle = self.0.client.create_from_slice(T::as_bytes(values));
        Buffer { handle, len: values.len(), dtype: T::as_type_native_unchecked().storage_type() }
    }

    pub(super) fn put(&self, values: &[f32]) -> Buffer {
        self.buffer(values)
    }

    pub(super) fn put_halves(&self, values: &[f16]) -> Buffer {
        self.buffer(values)
    }

    pub(super) fn put_words(&self, words: &[i32]) -> Buffer {
        self.buffer(words)
    }

    /// Uploads the scales of blocks, as float16 if the device supports it.
    pub(super) fn put_scales(&self, values: &[f16]) -> Buffer {
        match self.has_halves() {
            true => self.put_halves(values),
            false => self.put(&values.iter().map(|value| value.to_f32()).collect::<Vec<_>>()),
        }
    }

    /// Whether the device supports float16.
    pub(super) fn has_halves(&self) -> bool {
        self.0.client.properties().supports_type(f16::as_type_native_unchecked().storage_type())
    }

    pub(super) fn get(&self, buffer: &Buffer) -> Vec<f32> {
        let bytes = self.0.client.read_one(buffer.handle.clone()).unwrap();
        f32::from_bytes(&bytes)[..buffer.len].to_vec()
    }
}

/// Random numbers between -1 and 1.
pub(super) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| (rng.next_u32() as f32 / u32::MAX as f32).mul_add(2.0, -1.0)).collect()
}

/// Fails if two lists differ by more than `bound` times the largest number.
pub(super) fn assert_close(found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= bound * largest, "{at}: {found} for {expected}");
    }
}
