//! Describes this build and its environment, for bug reports.

use std::{env, ffi::OsString};

use crate::bench::{cores, processor};

/// The commit of this build, if the build sets it; `cargo xtask dist` does.
const COMMIT: Option<&str> = option_env!("MOI_COMMIT");
/// The version of burn that the workspace is pinned to.
const BURN: &str = "0.21.0";

/// Environment variables whose values are printed.
const TOLD: &[&str] = &[
    "MOI_ACTIVATIONS",
    "MOI_DEVICE",
    "MOI_DTYPE",
    "MOI_GPU_KERNELS",
    "MOI_KERNELS",
    "MOI_QUANTIZE",
    "MOI_THREADS",
];

/// The cargo features of this build.
const FEATURES: &[(&str, bool)] = &[
    ("flex", cfg!(feature = "flex")),
    ("ndarray", cfg!(feature = "ndarray")),
    ("cuda", cfg!(feature = "cuda")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("metal", cfg!(feature = "metal")),
    ("wgpu", cfg!(feature = "wgpu")),
    ("serve", cfg!(feature = "serve")),
    ("tls", cfg!(feature = "tls")),
    ("pytorch", cfg!(feature = "pytorch")),
    ("package-fallback", cfg!(feature = "package-fallback")),
    ("plots", cfg!(feature = "plots")),
    ("fusion", cfg!(feature = "fusion")),
    ("autotune", cfg!(feature = "autotune")),
];

/// One line per fact that a bug report needs.
pub(crate) fn about() -> String {
    let features = FEATURES.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name);
    let variables = env::vars_os().filter_map(|(name, value)| {
        let name = name.to_str().filter(|name| name.starts_with("MOI_"))?.to_owned();
        // Other variables are named without their values, because these may contain a prompt, a key or a host name.
        Some(if TOLD.contains(&name.as_str()) { format!("{name}={}", value.display()) } else { name })
    });
    let variables: Vec<String> = variables.collect();
    let lines = [
        ("moi", env!("CARGO_PKG_VERSION").to_owned()),
        ("commit", COMMIT.unwrap_or("not told to the build").to_owned()),
        ("features", features.collect::<Vec<_>>().join(" ")),
        ("burn", BURN.to_owned()),
        ("kernels", moi_backends::instruction_set().to_owned()),
        (
            "processor",
            format!("{}, {} threads", processor().unwrap_or_else(|| "unknown".to_owned()), cores()),
        ),
        ("system", format!("{} {}", env::consts::OS, env::consts::ARCH)),
        (
            "environment",
            if variables.is_empty() { "nothing of moi's".to_owned() } else { variables.join(" ") },
        ),
    ];
    lines.iter().map(|(name, value)| format!("{name:12} {value}\n")).collect()
}

/// Whether the arguments ask for the version with all details, and nothing else.
pub(crate) fn is_asked(args: impl Iterator<Item = OsString>) -> bool {
    let (mut version, mut verbose) = (false, false);
    for arg in args.skip(1) {
        match arg.to_str() {
            Some("--version" | "-V") => version = true,
            Some("--verbose" | "-v") => verbose = true,
            Some("-Vv" | "-vV") => (version, verbose) = (true, true),
            _ => return false,
        }
    }
    version && verbose
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_burn_is_the_one_that_is_locked() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock")).unwrap();
        assert!(lock.contains(&format!("name = \"burn\"\nversion = \"{BURN}\"\n")), "burn is not {BURN}");
    }

    #[test]
    fn all_features_are_told() {
        let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
        let section = manifest.split_once("[features]\n").unwrap().1.split_once("\n[").unwrap().0.to_owned();
        let names =
            section.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
        let mut declared: Vec<&str> = names.map(|(name, _)| name).filter(|name| *name != "default").collect();
        let mut told: Vec<&str> = FEATURES.iter().map(|(name, _)| *name).collect();
        declared.sort_unstable();
        told.sort_unstable();
        assert_eq!(declared, told);
    }

    #[test]
    fn the_version_is_told_at_length_where_that_is_asked_for() {
        let asked = |args: &[&str]| is_asked(["moi"].iter().chain(args).map(OsString::from));
        assert!(asked(&["--version", "--verbose"]) && asked(&["-v", "-V"]) && asked(&["-Vv"]));
        assert!(
            !asked(&["--version"]) && !asked(&["--verbose"]) && !asked(&["devices", "-vV"]) && !asked(&[])
        );
    }
}
