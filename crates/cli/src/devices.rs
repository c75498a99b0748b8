//! `moi devices`.

use anyhow::Result;
use burn::tensor::backend::Backend;
use moi_backends::{Class, DeviceName, FloatType, Found, Job, Kind, float_types, found};
use serde::Serialize;

use crate::{
    args::{DevicesArgs, Format},
    output,
};

/// A kind of device, and the devices of that kind on this machine.
#[derive(Serialize)]
struct DeviceRow {
    kind: &'static str,
    feature: &'static str,
    compiled: bool,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    name: String,
    description: String,
    driver: Option<String>,
    memory_bytes: Option<u64>,
    software: bool,
    /// The number types that the device supports.
    dtypes: Vec<&'static str>,
    /// Why the device cannot be used, if it cannot.
    error: Option<String>,
}

impl From<Found> for Device {
    fn from(Found { name, description, driver, memory, class }: Found) -> Self {
        let (dtypes, error) = match dtypes(name) {
            Ok(dtypes) => (dtypes.into_iter().map(FloatType::name).collect(), None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let software = class == Class::Software;
        Self { name: name.to_string(), description, driver, memory_bytes: memory, software, dtypes, error }
    }
}

/// Starts the device and returns the number types that it supports.
fn dtypes(name: DeviceName) -> Result<Vec<FloatType>, String> {
    struct Types;
    impl Job for Types {
        type Output = Vec<FloatType>;
        fn run<B: Backend>(self, device: &B::Device) -> Vec<FloatType> {
            float_types::<B>(device)
        }
    }
    moi_backends::run(name, Types).map_err(|error| error.to_string())
}

/// Prints the devices that this build supports and that this machine has.
pub(crate) fn run(args: &DevicesArgs) -> Result<()> {
    let row = |kind: Kind| DeviceRow {
        kind: kind.name(),
        feature: kind.feature(),
        compiled: kind.is_compiled(),
        devices: found(kind).into_iter().map(Device::from).collect(),
    };
    let rows: Vec<DeviceRow> = Kind::ALL.into_iter().map(row).collect();
    if args.format == Format::Json {
        return output::print_json(&rows);
    }
    let mut text = format!("{:10}  {:>9}  {:13}  {}\n", "NAME", "MEMORY", "COMPUTES IN", "DEVICE");
    for row in rows {
        let mut line = |name: &str, memory: &str, dtypes: &str, what: &str| {
            text += &format!("{name:10}  {memory:>9}  {dtypes:13}  {what}\n");
        };
        if !row.compiled {
            let on = if row.kind == "metal" { ", on a Mac" } else { "" };
            line(row.kind, "", "", &format!("not in this build; `--features {}` brings it{on}", row.feature));
        } else if row.devices.is_empty() {
            line(
                row.kind,
                "",
                "",
                &format!("none found; `moi doctor --device {}` says what is missing", row.kind),
            );
        }
        for device in row.devices {
            let memory =
                device.memory_bytes.map_or(String::new(), |bytes| format!("{} MB", bytes / 1_000_000));
            let driver = device.driver.map_or(String::new(), |driver| format!("; driver {driver}"));
            let software =
                if device.software { "; a processor in place of a GPU, slower than `cpu`" } else { "" };
            let error = device.error.map_or(String::new(), |error| format!("; CANNOT BE USED: {error}"));
            let what = format!("{}{driver}{software}{error}", device.description);
            line(&device.name, &memory, &device.dtypes.join(" "), &what);
        }
    }
    output::print_bytes(text.as_bytes())
}
