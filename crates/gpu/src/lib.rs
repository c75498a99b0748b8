//! GPU kernels for decoding, in [CubeCL](cubecl): one source for CUDA, SPIR-V, WGSL and MSL.
//!
//! A step of a decoder reads every weight once, so what counts beside those bytes is the number of launches. Each
//! kernel here does what lies between two reads of weights: [`join`] a residual connection and the norms around it,
//! [`products`] the maps of one input, [`turn`] norms, rotary positions and the cache, [`attend`] attention over a
//! cache whose keys are split, [`step`] all of sampling and mixing.
//!
//! Tests on real devices are in the parity suite, `tests/src/suite/kernels`.
//!
//! Nothing here knows tensors or models: buffers are handles on a device with the lengths that the arguments say. The
//! crate `moi-models` calls it for backends on CubeCL.

#![allow(
    clippy::collapsible_if,
    clippy::duplicate_underscore_argument,
    reason = "what is known when a kernel is compiled stands in an `if` of its own, and types that are known when it is \
              launched become arguments of launches"
)]

mod attention;
mod buffer;
mod dense;
mod experts;
mod join;
mod norm;
mod outcome;
mod packed;
mod plan;
mod products;
mod reduce;
mod router;
mod step;
mod turn;

pub use attention::{Attend, attend, queries_at_once};
pub use buffer::{Buffer, Device};
pub use experts::{Stack, experts};
pub use join::{Join, Joined, join};
pub use norm::{NormSpec, NormWeights};
pub use outcome::{Activation, MAX_ROWS, Map, Outcome};
pub use packed::{PackedBuffer, Picked, unpack};
pub use plan::{AttentionPlan, PlanWords, plan_words};
pub use products::{Weights, products};
pub use router::{Choice, Groups, Router, route};

pub use step::{Decided, EmbeddingTable, MAX_LISTED, can_step, step};
pub use turn::{Turn, turn};
