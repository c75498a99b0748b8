//! Chooses the devices and number types to measure: the requested ones, or all that this build has on this machine.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::args::BenchArgs;
use crate::ui;

/// A device and a number type, as written on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) device: String,
    pub(super) dtype: String,
}

/// The devices and number types to measure.
///
/// # Errors
/// If all devices are requested and `moi devices` fails.
pub(super) fn targets(args: &BenchArgs) -> Result<Vec<Target>> {
    match args.compare_devices {
        true => all(),
        false => Ok(asked(args)),
    }
}

/// Every requested device with every requested number type.
pub(super) fn asked(args: &BenchArgs) -> Vec<Target> {
    let dtypes = args.dtypes();
    let in_types = |device: &moi_backends::DeviceRequest| {
        let device = device.to_string();
        dtypes.iter().map(move |dtype| Target { device: device.clone(), dtype: dtype.clone() })
    };
    args.device.iter().flat_map(in_types).collect()
}

/// Every device of this build on this machine, with every number type that it supports. A child process lists them,
/// because a driver that was started keeps its memory, and a driver that crashes ends its process.
fn all() -> Result<Vec<Target>> {
    let cannot = "`moi devices` cannot list the devices to compare";
    let mut command = Command::new(std::env::current_exe().context(cannot)?);
    command.args(["devices", "--format", "json"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let out = command.output().context(cannot)?;
    if !out.status.success() {
        bail!("{cannot}: {}", out.status);
    }
    let kinds = parse(&String::from_utf8_lossy(&out.stdout)).context(cannot)?;
    for device in kinds.iter().flat_map(|kind| &kind.devices) {
        if let Some(error) = &device.error {
            ui::say!("moi: left out, {}: {error}", device.name);
        }
    }
    Ok(targets_of(kinds))
}

/// The fields of `moi devices --format json` that are needed here.
#[derive(Debug, Deserialize)]
struct Kind {
    devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
struct Device {
    name: String,
    dtypes: Vec<String>,
    error: Option<String>,
}

/// Parses the output of `moi devices`. Drivers may have printed other lines before the list.
fn parse(text: &str) -> Result<Vec<Kind>> {
    let lines: Vec<&str> = text.lines().skip_while(|line| line.trim() != "[").collect();
    Ok(serde_json::from_str(&lines.join("\n"))?)
}

fn targets_of(kinds: Vec<Kind>) -> Vec<Target> {
    let in_types = |Device { name, dtypes, .. }: Device| {
        dtypes.into_iter().map(move |dtype| Target { device: name.clone(), dtype })
    };
    kinds.into_iter().flat_map(|kind| kind.devices).flat_map(in_types).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_every_device_is_a_target() {
        let text = r#"WARNING: lavapipe is not a conformant implementation
[
  {
    "kind": "cpu", "feature": "flex", "compiled": true,
    "devices": [
      {"name": "cpu", "description": "burn's Flex", "driver": null, "dtypes": ["f32", "bf16"], "error": null}
    ]
  },
  {"kind": "metal", "feature": "metal", "compiled": false, "devices": []},
  {
    "kind": "vulkan", "feature": "vulkan", "compiled": true,
    "devices": [
      {"name": "vulkan:0", "dtypes": ["f32"], "error": null},
      {"name": "vulkan:1", "dtypes": [], "error": "it lacks something"}
    ]
  }
]
"#;
        let target = |device: &str, dtype: &str| Target { device: device.into(), dtype: dtype.into() };
        let expected = [target("cpu", "f32"), target("cpu", "bf16"), target("vulkan:0", "f32")];
        assert_eq!(targets_of(parse(text).unwrap()), expected);
        assert!(parse("no list").is_err());
    }
}
