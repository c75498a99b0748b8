//! What tests share: a device, and numbers on it.

use std::sync::OnceLock;

use cubecl::{
    prelude::*,
    wgpu::{WgpuDevice, WgpuRuntime},
};
use half::f16;
use rand_chacha::{ChaCha8Rng, rand_core::{RngCore, SeedableRng}};

use crate::{Buffer, Device};

pub(crate) type R = WgpuRuntime;

/// The first adapter, Mesa's software one where there is no GPU.
pub(crate) fn device() -> Device<R> {
    static DEVICE: OnceLock<Device<R>> = OnceLock::new();
    DEVICE.get_or_init(|| Device { client: WgpuRuntime::client(&WgpuDevice::default()) }).clone()
}

pub(crate) fn put(values: &[f32]) -> Buffer {
    let handle = device().client.create_from_slice(f32::as_bytes(values));
    Buffer { handle, len: values.len(), dtype: f32::as_type_native_unchecked().storage_type() }
}

pub(crate) fn put_halves(values: &[f16]) -> Buffer {
    let handle = device().client.create_from_slice(f16::as_bytes(values));
    Buffer { handle, len: values.len(), dtype: f16::as_type_native_unchecked().storage_type() }
}

pub(crate) fn get(buffer: &Buffer) -> Vec<f32> {
    let bytes = device().client.read_one_unchecked(buffer.handle.clone());
    f32::from_bytes(&bytes)[..buffer.len].to_vec()
}

/// Numbers between -1 and 1.
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| (rng.next_u32() as f32 / u32::MAX as f32).mul_add(2.0, -1.0)).collect()
}

/// Fails where two lists differ by more than `bound` of the largest number.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], bound: f32) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= bound * largest, "{at}: {found} for {expected}");
    }
}

pub(crate) fn put_words(words: &[i32]) -> Buffer {
    let handle = device().client.create_from_slice(i32::as_bytes(words));
    Buffer { handle, len: words.len(), dtype: u32::as_type_native_unchecked().storage_type() }
}
