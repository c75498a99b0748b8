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
const COMMIT: &str = "0123456789012345678901234567890123456789";
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

/// A hub that serves one catalogue file; remembers the ranges it was asked for.
fn hub() -> (String, Arc<Mutex<Vec<String>>>) {
    hub_of(vec![("/owner/tiny/resolve/main/tiny.gguf", BODY.to_vec(), SHA256.to_owned())])
}

/// A hub that serves files: path, content, etag.
fn hub_of(files: Vec<(&'static str, Vec<u8>, String)>) -> (String, Arc<Mutex<Vec<String>>>) {
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
            let path = request.split(' ').nth(1).unwrap_or_default();
            let found = files.iter().find(|(known, ..)| *known == path);
            let (head, body) = match found {
                Some((_, content, etag)) => {
                    let start: usize = range.split('-').next().unwrap().parse().unwrap_or(0);
                    let end = range.split('-').nth(1).and_then(|end| end.parse::<usize>().ok());
                    let end = end.map_or(content.len(), |end| end + 1);
                    seen.lock().unwrap().push(range);
                    let head = format!(
                        "206 Partial Content\r\ncontent-range: bytes {start}-{}/{}\r\nx-repo-commit: {COMMIT}\r\n\
                         etag: \"{etag}\"",
                        end - 1,
                        content.len()
                    );
                    (head, &content[start..end])
                }
                None => ("404 Not Found".to_owned(), &b""[..]),
            };
            let head =
                format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    (address, ranges)
}

fn fetcher(directory: &tempfile::TempDir, endpoint: &str) -> Fetcher {
    Fetcher::new(Cache::new(directory.path().join("cache")))
        .with_hub_cache(directory.path().join("hub"))
        .with_endpoint(endpoint)
        .quiet()
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

fn files_of(names: &[(&'static str, &'static str, &str)]) -> Vec<(&'static str, Vec<u8>, String)> {
    let siblings: Vec<String> = names
        .iter()
        .map(|(path, ..)| format!(r#"{{"rfilename": "{}"}}"#, path.rsplit('/').next().unwrap()))
        .collect();
    let info = format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, siblings.join(","));
    let mut files = vec![("/api/models/owner/tiny/revision/main", info.into_bytes(), String::new())];
    files.extend(
        names.iter().map(|&(path, content, etag)| (path, content.as_bytes().to_vec(), etag.to_owned())),
    );
    files
}

/// `/owner/tiny/resolve/COMMIT/`
macro_rules! file {
    ($name:literal) => {
        concat!("/owner/tiny/resolve/0123456789012345678901234567890123456789/", $name)
    };
}

#[test]
fn a_repository_is_fetched_whole_and_found_again_without_a_hub() {
    let directory = tempfile::tempdir().unwrap();
    let index = r#"{"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors", "c": "s1.safetensors"}}"#;
    let (endpoint, asked) = hub_of(files_of(&[
        (file!("config.json"), "{}", "c0"),
        (file!("README.md"), "never asked for", "c1"),
        (file!("tokenizer.json"), "t", "c2"),
        (file!("model.safetensors.index.json"), index, "c3"),
        (file!("s1.safetensors"), "0123456789", SHA256),
        (file!("s2.safetensors"), "x", "c4"),
        (file!("other.gguf"), "never asked for", "c5"),
    ]));
    let fetcher = fetcher(&directory, &endpoint);
    let path = fetcher.fetch_repository("owner/tiny", None, |_| {}).unwrap();
    let mut names: Vec<String> =
        fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected =
        ["config.json", "model.safetensors.index.json", "s1.safetensors", "s2.safetensors", "tokenizer.json"];
    assert_eq!(names, expected);
    assert_eq!(fs::read(path.join("s1.safetensors")).unwrap(), BODY);
    // Again: only what the revision names now is asked.
    let before = asked.lock().unwrap().len();
    assert_eq!(fetcher.fetch_repository("owner/tiny", None, |_| {}).unwrap(), path);
    assert_eq!(asked.lock().unwrap().len(), before + 1);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let offline = fetcher.with_endpoint(&format!("http://{closed}"));
    assert_eq!(offline.fetch_repository("owner/tiny", None, |_| {}).unwrap(), path);
}

#[test]
fn a_repository_that_is_not_what_it_should_be_is_refused() {
    let refused = |files: &[(&'static str, &'static str, &str)], name: &str| {
        let directory = tempfile::tempdir().unwrap();
        let (endpoint, _) = hub_of(files_of(files));
        let error = fetcher(&directory, &endpoint).fetch_repository(name, None, |_| {}).unwrap_err();
        error.to_string()
    };
    let config = (file!("config.json"), "{}", "c0");
    assert!(
        refused(&[config], "owner/tiny").contains("neither config.json with model.safetensors nor a .gguf")
    );
    let two = [(file!("a.gguf"), "a", "c1"), (file!("b.gguf"), "b", "c2")];
    assert!(refused(&two, "owner/tiny").contains("a.gguf, b.gguf"));
    assert!(refused(&two, "owner/tiny/c.gguf").contains("no file c.gguf"));
    assert!(refused(&two, "owner/none").contains("owner/none"));
    let outside = (file!("model.safetensors.index.json"), r#"{"weight_map": {"a": "../../x"}}"#, "c1");
    assert!(refused(&[config, outside], "owner/tiny").contains("names `../../x`"));
    // Other bytes than the etag says.
    let wrong = (file!("model.safetensors"), "other", SHA256);
    assert!(refused(&[config, wrong], "owner/tiny").contains("has sha256"));
}
