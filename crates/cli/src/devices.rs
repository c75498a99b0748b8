//! `moi devices`.

use anyhow::Result;
use moi_backends::{Found, Kind, found};
use serde::Serialize;

use crate::{
    args::{DevicesArgs, Format},
    output,
};

/// A kind of device, and what this machine has of it.
#[derive(Serialize)]
struct Row {
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
}

impl From<Found> for Device {
    fn from(Found { name, description, driver, memory, software }: Found) -> Self {
        Self { name: name.to_string(), description, driver, memory_bytes: memory, software }
    }
}

/// Prints what this build supports and what this machine has.
pub(crate) fn run(args: &DevicesArgs) -> Result<()> {
    let row = |kind: Kind| Row {
        kind: kind.name(),
        feature: kind.feature(),
        compiled: kind.is_compiled(),
        devices: found(kind).into_iter().map(Device::from).collect(),
    };
    let rows: Vec<Row> = Kind::ALL.into_iter().map(row).collect();
    if args.format == Format::Json {
        return output::print_json(&rows);
    }
    let mut text = format!("{:10}  {:>9}  {}\n", "NAME", "MEMORY", "DEVICE");
    for row in rows {
        let mut line = |name: &str, memory: &str, what: &str| {
            text += &format!("{name:10}  {memory:>9}  {what}\n");
        };
        if !row.compiled {
            line(row.kind, "", &format!("not in this build; `--features {}` brings it", row.feature));
        } else if row.devices.is_empty() {
            line(row.kind, "", "none found; is its driver installed?");
        }
        for Device { name, description, driver, memory_bytes, software } in row.devices {
            let memory = memory_bytes.map_or(String::new(), |bytes| format!("{} MB", bytes / 1_000_000));
            let driver = driver.map_or(String::new(), |driver| format!("; driver {driver}"));
            let software = if software { "; a processor in place of a GPU, slower than `cpu`" } else { "" };
            line(&name, &memory, &format!("{description}{driver}{software}"));
        }
    }
    output::print_bytes(text.as_bytes())
}
