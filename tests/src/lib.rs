//! Shared code of the end-to-end tests: golden data and comparisons. Only tests use this crate.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken fixture or a difference must end the test")]

pub mod allocations;
pub mod batch;
pub mod broken_weights;
pub mod bytes;
pub mod drafts;
pub mod golden;
pub mod hostile;
pub mod process;
pub mod real;
pub mod server;
pub mod suite;

use std::path::PathBuf;

use burn::tensor::{Tensor, backend::Backend};
use moi_engine::{Engine, EngineError, Request, TokenEvent};
use moi_models::CausalLm;

/// Runs generic tests on every CPU backend.
#[macro_export]
macro_rules! on_cpu_backends {
    ($($name:ident),+ $(,)?) => {
        mod flex {
            $(#[test] fn $name() { super::$name::<burn_flex::Flex>(); })+
        }
        mod ndarray {
            $(#[test] fn $name() { super::$name::<burn_ndarray::NdArray>(); })+
        }
    };
}

/// The directory of the golden data: that of this crate, or `MOI_GOLDEN` if a test runs on another machine.
pub fn golden_directory() -> PathBuf {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    std::env::var_os("MOI_GOLDEN").map_or_else(here, PathBuf::from)
}

/// The values of a tensor, flattened.
pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().iter::<f32>().collect()
}

/// Largest difference relative to the largest expected value.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|x| x.is_finite()), "not all values are finite");
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let difference = found.iter().zip(expected).fold(0.0f32, |max, (f, e)| max.max((f - e).abs()));
    difference / largest
}

/// All steps of one request.
pub fn steps<B: Backend, M: CausalLm<B>>(engine: &Engine<B, M>, request: Request<B>) -> Vec<TokenEvent> {
    let steps: Result<Vec<TokenEvent>, EngineError> = engine.generate(request).unwrap().collect();
    steps.unwrap()
}
