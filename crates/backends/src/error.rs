//! Why a device cannot be used.

use crate::{DeviceName, FloatType};

/// The reason a device cannot be used.
///
/// # Examples
/// ```
/// use moi_backends::{DeviceError, Kind, start};
///
/// if !Kind::Cuda.is_compiled() {
///     let refused = start(Kind::Cuda.into());
///     assert!(matches!(refused, Err(DeviceError::NotCompiled { feature: "cuda", .. })));
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The build lacks the cargo feature for this device.
    #[error("this build cannot compute on `{name}`; build it with `--features {feature}`{note}", note = if *feature == "metal" { " on a Mac" } else { "" })]
    NotCompiled {
        /// The device.
        name: DeviceName,
        /// The cargo feature that enables it.
        feature: &'static str,
    },
    /// The machine does not have this device.
    #[error("there is no device `{name}` here: {what}")]
    Absent {
        /// The device.
        name: DeviceName,
        /// What was found, and what is needed.
        what: String,
    },
    /// The device exists, but something that it needs is missing.
    #[error("the device `{name}` cannot be used: {what}")]
    Incomplete {
        /// The device.
        name: DeviceName,
        /// What is missing, and how to fix it.
        what: String,
    },
    /// The device exists but does not work.
    #[error("the device `{name}` does not start: {what}; its driver may need an update")]
    Broken {
        /// The device.
        name: DeviceName,
        /// What happened, in the driver's words.
        what: String,
    },
    /// The device failed in the middle of a computation.
    #[error(
        "the device `{name}` failed while it was computing: {what}; `moi doctor --device {name}` checks it"
    )]
    Failed {
        /// The device.
        name: DeviceName,
        /// What happened, in the driver's words.
        what: String,
    },
    /// The device has no arithmetic for a float type.
    #[error("the device `{name}` cannot compute in {asked}; it can in {}", list(.supported))]
    FloatType {
        /// The device.
        name: DeviceName,
        /// The float type that was asked for.
        asked: FloatType,
        /// The float types that the device supports.
        supported: Vec<FloatType>,
    },
}

fn list(types: &[FloatType]) -> String {
    types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}
