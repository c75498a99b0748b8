//! Why a device cannot be used.

use crate::{DeviceName, FloatType};

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A feature of the build is missing.
    #[error("this build cannot compute on `{name}`; build it with `--features {feature}`{note}", note = if *feature == "metal" { " on a Mac" } else { "" })]
    NotCompiled {
        /// The device.
        name: DeviceName,
        /// The feature that brings it.
        feature: &'static str,
    },
    /// The machine does not have it.
    #[error("there is no device `{name}` here: {what}")]
    Absent {
        /// The device.
        name: DeviceName,
        /// What was found, and what is needed.
        what: String,
    },
    /// It is there, and something that it needs is not.
    #[error("the device `{name}` cannot be used: {what}")]
    Incomplete {
        /// The device.
        name: DeviceName,
        /// What is missing, and what to do.
        what: String,
    },
    /// It is there and does not work.
    #[error("the device `{name}` does not start: {what}; its driver may need an update")]
    Broken {
        /// The device.
        name: DeviceName,
        /// What happened.
        what: String,
    },
    /// It gave up in the middle of a computation.
    #[error(
        "the device `{name}` failed while it was computing: {what}; `moi doctor --device {name}` checks it"
    )]
    Failed {
        /// The device.
        name: DeviceName,
        /// What happened.
        what: String,
    },
    /// It has no arithmetic for a type.
    #[error("the device `{name}` cannot compute in {asked}; it can in {}", list(.supported))]
    FloatType {
        /// The device.
        name: DeviceName,
        /// What was asked for.
        asked: FloatType,
        /// What can be.
        supported: Vec<FloatType>,
    },
}

fn list(types: &[FloatType]) -> String {
    types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
