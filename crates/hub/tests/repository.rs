//! Tests downloads of repositories that are not in the catalogue.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod hub;

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use hub::{COMMIT, File, Manners, content, fetcher, mirror, nobody, repository, serve, sha256};
use moi_hub::FetchError;

const INDEX: &[u8] =
    br#"{"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors", "c": "s1.safetensors"}}"#;

#[test]
fn a_repository_is_fetched_whole_and_found_again_without_a_hub() {
    let (directory, large) = (tempfile::tempdir().unwrap(), content(100_000));
    let files = repository(&[
        ("config.json", b"{}"),
        ("README.md", b"never asked for"),
        ("tokenizer.json", b"t"),
        ("model.safetensors.index.json", INDEX),
        ("s1.safetensors", &large),
        ("s2.safetensors", b"x"),
        ("other.gguf", b"never asked for"),
    ]);
    for manners in [Manners::default(), Manners { redirects: true, breaks: 1, ..Manners::default() }] {
        let server = serve(files.clone(), manners);
        let directory = tempfile::tempdir_in(directory.path()).unwrap();
        let fetcher = fetcher(directory.path(), &server.endpoint);
        let path = fetcher.fetch_repository("owner/tiny", None, |_| {}).unwrap();
        let mut names: Vec<String> =
            fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let expected = [
            "config.json",
            "model.safetensors.index.json",
            "s1.safetensors",
            "s2.safetensors",
            "tokenizer.json",
        ];
        assert_eq!(names, expected);
        assert_eq!(fs::read(path.join("s1.safetensors")).unwrap(), large);
        // The files have the layout of the hub's own tools.
        let root = directory.path().join("hub/models--owner--tiny");
        assert_eq!(path, root.join("snapshots").join(COMMIT));
        assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
        assert_eq!(fs::read(root.join("blobs").join(sha256(&large))).unwrap(), large);
        #[cfg(unix)]
        assert!(fs::symlink_metadata(path.join("config.json")).unwrap().is_symlink());
        // A second call only requests the current commit of the revision.
        let before = server.asked.lock().unwrap().len();
        assert_eq!(fetcher.fetch_repository("owner/tiny", None, |_| {}).unwrap(), path);
        // The two requests check that the hub answers, and what the revision is.
        assert_eq!(server.asked.lock().unwrap().len(), before + 2);
        let offline = fetcher.with_endpoint(&nobody());
        assert_eq!(offline.fetch_repository("owner/tiny", None, |_| {}).unwrap(), path);
        assert_eq!(offline.fetch_repository("owner/tiny", Some(COMMIT), |_| {}).unwrap(), path);
    }
}

#[test]
fn a_repository_needs_a_hub() {
    let directory = tempfile::tempdir().unwrap();
    let error =
        fetcher(directory.path(), &nobody()).fetch_repository("owner/none", None, |_| {}).unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
}

/// A mirror may be a directory of files that were written with an editor.
#[test]
fn a_listing_may_begin_with_a_byte_order_mark() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = repository(&[("a.gguf", b"a")]);
    files[0].content.splice(..0, *b"\xef\xbb\xbf");
    let server = serve(files, Manners::default());
    let path =
        fetcher(directory.path(), &server.endpoint).fetch_repository("owner/tiny", None, |_| {}).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"a");
}

/// A token that cannot be sent is not retried, because another attempt would not help.
#[test]
fn a_token_that_cannot_be_sent_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(repository(&[("a.gguf", b"a")]), Manners::default());
    let fetcher = fetcher(directory.path(), &server.endpoint).with_token("hf_first\nhf_second");
    let error =
        fetcher.fetch_repository("owner/tiny", None, |line| panic!("{line}")).unwrap_err().to_string();
    assert!(error.contains("the token has a character") && error.contains("HF_TOKEN"), "{error}");
    assert!(!error.contains("hf_first"), "{error}");
    // The request that checks whether the hub answers has no token.
    assert_eq!(server.asked.lock().unwrap().len(), 1);
}

/// A server that answers a TLS handshake with plain text, and the number of its connections.
fn no_tls() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let connections = count.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            connections.fetch_add(1, Ordering::SeqCst);
            if stream.read(&mut [0; 1 << 14]).is_err() {
                continue;
            }
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = stream.shutdown(Shutdown::Write);
            // Closing a connection with unread bytes would reset it and lose the answer.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    (format!("https://{address}"), count)
}

#[test]
fn a_handshake_that_fails_is_not_tried_again() {
    let (endpoint, connections) = no_tls();
    let rule = |at: &str, method: &str| {
        let headers = serde_json::json!({ "location": format!("{endpoint}/x") });
        let rule = serde_json::json!({ "at": at, "method": method, "status": 302, "headers": headers });
        serde_json::json!({ "base": "", "rules": [rule] })
    };
    for (row, expected) in [
        (rule("api", "GET"), "cannot be reached"),
        (rule("file", "GET"), "the hub refused tiny.gguf of owner/tiny"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let fetcher = fetcher(directory.path(), &mirror::serve(&row, &[]));
        let before = connections.load(Ordering::SeqCst);
        let error = fetcher.fetch_repository("owner/tiny", None, |_| {}).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(connections.load(Ordering::SeqCst), before + 1, "{error}");
    }
}

/// A pause and its reason are reported before the pause begins.
#[test]
fn a_busy_hub_is_waited_for_aloud() {
    let directory = tempfile::tempdir().unwrap();
    let manners = Manners { busy: 2, ..Manners::default() };
    let server = serve(repository(&[("a.gguf", b"a")]), manners);
    let mut said: Vec<String> = Vec::new();
    fetcher(directory.path(), &server.endpoint)
        .fetch_repository("owner/tiny", None, |line| said.push(line.to_owned()))
        .unwrap();
    let waits: Vec<&String> = said.iter().filter(|line| line.contains("503")).collect();
    assert_eq!(waits.len(), 2, "{said:?}");
    assert!(waits[0].contains("a.gguf of owner/tiny: it answered 503"), "{said:?}");
    assert!(waits[0].ends_with("attempt 2 of 6 in 5ms"), "{said:?}");
}

fn refused(files: Vec<File>, manners: Manners, name: &str, parts: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let server = serve(files, manners);
    let error = fetcher(directory.path(), &server.endpoint).fetch_repository(name, None, |_| {}).unwrap_err();
    for part in parts {
        assert!(error.to_string().contains(part), "{error} does not say {part:?}");
    }
    let refs = directory.path().join("hub/models--owner--tiny/refs");
    assert!(!refs.exists(), "a revision that is not whole was named");
}

/// An index that names itself as a shard is downloaded once, and is not read as an index again.
#[test]
fn an_index_is_no_shard() {
    let directory = tempfile::tempdir().unwrap();
    let index = br#"{"weight_map": {"a": "model.safetensors.index.json"}}"#;
    let files = repository(&[("config.json", b"{}"), ("model.safetensors.index.json", index)]);
    let server = serve(files, Manners::default());
    fetcher(directory.path(), &server.endpoint).fetch_repository("owner/tiny", None, |_| {}).unwrap();
    assert_eq!(server.ranges().len(), 2, "config.json and the index");
}

#[test]
fn a_repository_that_is_not_what_it_should_be_is_refused() {
    let good = Manners::default();
    let config: (&str, &[u8]) = ("config.json", b"{}");
    let neither = "neither config.json with model.safetensors nor a .gguf";
    refused(repository(&[config]), good, "owner/tiny", &[neither]);
    let two: &[(&str, &[u8])] = &[("a.gguf", b"a"), ("b.gguf", b"b")];
    refused(repository(two), good, "owner/tiny", &["write one of: owner/tiny/a.gguf, owner/tiny/b.gguf"]);
    refused(repository(two), good, "owner/tiny/c.gguf", &["no file c.gguf"]);
    refused(repository(two), good, "owner/none", &["owner/none", "404", "no such"]);
    refused(repository(two), good, "owner/..", &["owner/..", "no name or revision"]);
    let outside = br#"{"weight_map": {"a": "../../x"}}"#;
    let files = repository(&[config, ("model.safetensors.index.json", outside)]);
    refused(files, good, "owner/tiny", &["names `../../x`"]);
    refused(repository(&[config, ("../../x.gguf", b"a")]), good, "owner/tiny", &["../../x.gguf", "no file"]);
    // The bytes do not match the etags of large and small files.
    for (name, content) in [("model.safetensors", &b"other"[..]), ("config.json", b"[]")] {
        let mut files = repository(&[config, ("model.safetensors", b"right")]);
        let file = files.iter_mut().find(|file| file.path.ends_with(name)).unwrap();
        file.content = content.to_vec();
        refused(files, good, "owner/tiny", &[name, "has the hash"]);
    }
    let mut files = repository(two);
    files[1].etag = "../../../x".to_owned();
    refused(files, good, "owner/tiny/a.gguf", &["etag", "expected letters and digits"]);
    let page = Manners { html: true, ..good };
    refused(repository(two), page, "owner/tiny/a.gguf", &["HTML page", "proxy"]);
    let mut files = repository(two);
    files[0].content = b"<html>".to_vec();
    refused(files, good, "owner/tiny", &["owner/tiny", "not what a hub says"]);
}
