//! Fetching from a hub on this machine, and when there is none.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

use moi_hub::{Advised, Cache, Entry, FetchError, Fetcher, Hub, Licence, Package};

const BODY: &[u8] = b"0123456789";
/// Of `BODY`.
const SHA256: &str = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";

static ENTRY: Entry = entry(SHA256, &[]);
static WRONG_HASH: Entry = entry("00", &[]);
static NO_SUCH_PACKAGE: Entry =
    entry(SHA256, &[Package { name: "moi-no-such-package", version: "0.0.0", member: "x" }]);

const fn entry(sha256: &'static str, packages: &'static [Package]) -> Entry {
    Entry {
        name: "tiny",
        parameters_millions: 0,
        file: "tiny.gguf",
        size: 10,
        sha256,
        licence: Licence { name: "MIT", notice: Some("Terms apply") },
        hub: Hub { repository: "owner/tiny", revision: "main" },
        packages,
        sampling: Advised { temperature: None, top_k: None, top_p: None },
    }
}

/// A hub that serves one file; remembers the ranges it was asked for.
fn hub() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = ranges.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut range = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            for line in lines.take_while(|line| !line.is_empty()) {
                if let Some(value) = line.to_lowercase().strip_prefix("range: bytes=") {
                    range = value.to_owned();
                }
            }
            let found = request.starts_with("GET /owner/tiny/resolve/main/tiny.gguf ");
            let start: usize = range.split('-').next().unwrap().parse().unwrap_or(0);
            let end =
                range.split('-').nth(1).and_then(|end| end.parse::<usize>().ok()).map_or(10, |end| end + 1);
            let head = if found {
                seen.lock().unwrap().push(range);
                format!(
                    "206 Partial Content\r\ncontent-range: bytes {start}-{}/10\r\nx-repo-commit: abc\r\netag: \"{SHA256}\"",
                    end - 1
                )
            } else {
                "404 Not Found".to_owned()
            };
            let body = if found { &BODY[start..end] } else { b"" };
            let head =
                format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    (address, ranges)
}

fn fetcher(directory: &tempfile::TempDir, endpoint: &str) -> Fetcher {
    Fetcher::new(Cache::new(directory.path().join("cache"))).with_endpoint(endpoint).quiet()
}

fn no_leftovers(fetcher: &Fetcher) {
    let models = fetcher.cache().path(&ENTRY);
    assert!(!models.exists(), "a file that looks whole was left");
}

#[test]
fn a_file_is_fetched_once_verified_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (endpoint, ranges) = hub();
    let fetcher = fetcher(&directory, &endpoint);
    assert!(!fetcher.cache().has(&ENTRY));
    let mut said = Vec::new();
    let path = fetcher.fetch(&ENTRY, |line| said.push(line.to_owned())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), BODY);
    assert_eq!(path, directory.path().join("cache/models/tiny/tiny.gguf"));
    assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
    assert_eq!(said[0], "Terms apply");
    assert!(said[1].contains("tiny") && said[1].contains("hub"), "{said:?}");
    let asked = ranges.lock().unwrap().len();
    assert_eq!(fetcher.fetch(&ENTRY, |_| unreachable!("it is there")).unwrap(), path);
    assert_eq!(ranges.lock().unwrap().len(), asked);
}

#[test]
fn a_broken_download_is_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let (endpoint, ranges) = hub();
    let blobs = directory.path().join("cache/partial/hub/models--owner--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{SHA256}.part")), &BODY[..4]).unwrap();
    let path = fetcher(&directory, &endpoint).fetch(&ENTRY, |_| {}).unwrap();
    assert_eq!(fs::read(path).unwrap(), BODY);
    assert_eq!(ranges.lock().unwrap().last().unwrap(), "4-");
}

#[test]
fn a_wrong_hash_is_refused_and_nothing_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let (endpoint, _) = hub();
    let fetcher = fetcher(&directory, &endpoint);
    let error = fetcher.fetch(&WRONG_HASH, |_| {}).unwrap_err();
    assert!(
        matches!(&error, FetchError::AllSources { hub, .. } if matches!(**hub, FetchError::Hash { .. })),
        "{error}"
    );
    assert!(error.to_string().contains(SHA256) && error.to_string().contains("expected 00"), "{error}");
    no_leftovers(&fetcher);
}

#[test]
fn every_source_that_failed_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fetcher = fetcher(&directory, &format!("http://{closed}"));
    let mut said = Vec::new();
    let error = fetcher.fetch(&NO_SUCH_PACKAGE, |line| said.push(line.to_owned())).unwrap_err().to_string();
    assert!(error.contains("cannot be reached") && error.contains("moi-no-such-package 0.0.0"), "{error}");
    assert!(said.last().unwrap().contains("from the Python package moi-no-such-package 0.0.0"), "{said:?}");
    no_leftovers(&fetcher);
}

#[test]
fn a_repository_needs_a_hub() {
    let directory = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fetcher = fetcher(&directory, &format!("http://{closed}"));
    let error = fetcher.fetch_repository("owner/none", None, |_| {}).unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
}
