//! Tests of the method: the vectors of its specification, values from another implementation, and invariants on
//! random numbers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod family;
mod properties;
mod reference;
mod vectors;
