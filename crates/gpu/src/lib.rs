//! GPU kernels for decoding, in [CubeCL](cubecl): one source for CUDA, SPIR-V, WGSL and MSL.
//!
//! A decoding step reads every weight once; beside those bytes, its main cost is the number of kernel launches.
//! Therefore each kernel here does everything between two reads of weights: [`add_norm`] the residual addition and
//! the norms around it, [`products`] all linear layers of one input, [`rotate`] head norms, rotary embedding and
//! cache writes, [`attend`] attention over a cache whose positions are split between cubes, [`step`] all of sampling
//! and mixing.
//!
//! Tests on real devices are in the parity suite, `tests/src/suite/kernels`.
//!
//! This crate does not depend on tensors or models: buffers are handles to device memory with the lengths that the
//! arguments say. The crate `moi-models` calls it for backends on CubeCL.

#![allow(
    clippy::collapsible_if,
    clippy::duplicate_underscore_argument,
    reason = "what is known when a kernel is compiled stands in an `if` of its own, and types that are known when it is \
              launched become arguments of launches"
)]

mod add_norm;
mod attention;
mod buffer;
mod dense;
mod experts;
mod norm;
mod outcome;
mod packed;
mod plan;
mod products;
mod reduce;
mod rotate;
mod router;
mod step;

pub use add_norm::{AddNorm, AddNormOutput, add_norm};
pub use attention::{Attend, attend, queries_at_once};
pub use buffer::{Buffer, Device};
pub use experts::{Stack, experts};
pub use norm::{NormSpec, NormWeights};
pub use outcome::{Activation, MAX_ROWS, Outcome, Product};
pub use packed::{PackedBuffer, Picked, unpack};
pub use plan::{AttentionPlan, PlanWords, plan_words};
pub use products::{Weights, products};
pub use router::{Choice, Groups, Router, route};

pub use rotate::{Rotate, rotate};
pub use step::{Decided, EmbeddingTable, MAX_LISTED, can_step, step};
