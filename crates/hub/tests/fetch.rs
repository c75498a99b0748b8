//! Tests downloads of a catalogue file from well-behaved and faulty hubs, and without a hub.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod hub;

use std::{fs, time::Duration};

use hub::{Manners, content, entry, fetcher, hub, nobody, sha256};
use moi_hub::{Entry, FetchError, Fetcher};

/// Checks that no file has the name of a complete one.
fn nothing_looks_whole(fetcher: &Fetcher, entry: &Entry) {
    assert!(!fetcher.cache().path(entry).exists(), "a file that looks whole was left");
}

#[test]
fn a_file_is_fetched_once_verified_and_kept() {
    let (directory, body) = (tempfile::tempdir().unwrap(), content(200_000));
    let (server, entry) = (hub(&body, Manners::default()), entry(&body, &[]));
    let fetcher = fetcher(directory.path(), &server.endpoint);
    assert!(!fetcher.cache().has(entry));
    let mut said = Vec::new();
    let path = fetcher.fetch(entry, |line| said.push(line.to_owned())).unwrap();
    assert_eq!(fs::read(&path).unwrap(), body);
    assert_eq!(path, directory.path().join("cache/models/tiny/tiny.gguf"));
    assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
    assert_eq!(said[0], "Terms apply");
    assert!(said[1].contains("tiny") && said[1].contains("hub"), "{said:?}");
    let asked = server.asked.lock().unwrap().len();
    assert_eq!(fetcher.fetch(entry, |_| unreachable!("it is there")).unwrap(), path);
    assert_eq!(server.asked.lock().unwrap().len(), asked);
    // A removed file is downloaded again.
    assert!(fetcher.cache().remove(entry).unwrap());
    assert!(!path.exists() && !fetcher.cache().remove(entry).unwrap());
    fetcher.fetch(entry, |_| {}).unwrap();
    assert_eq!(fs::read(&path).unwrap(), body);
}

/// For each faulty hub, the first bytes of the ranges that were requested.
#[test]
fn hubs_with_bad_manners() {
    let body = content(300_000);
    let half = 150_000.to_string();
    for (manners, asked) in [
        (Manners { breaks: 1, ..Manners::default() }, vec!["", &half]),
        (Manners { busy: 2, ..Manners::default() }, vec!["", "", ""]),
        // The download starts again after half of the file was received.
        (Manners { breaks: 1, ignores_ranges: true, ..Manners::default() }, vec!["", &half]),
        (Manners { says_no_length: true, ..Manners::default() }, vec![""]),
        (Manners { says_no_length: true, breaks: 1, ..Manners::default() }, vec!["", &half]),
        (Manners { redirects: true, ..Manners::default() }, vec!["", ""]),
        (Manners { sends_more: true, ..Manners::default() }, vec![""]),
    ] {
        let (directory, server, entry) =
            (tempfile::tempdir().unwrap(), hub(&body, manners), entry(&body, &[]));
        let path = fetcher(directory.path(), &server.endpoint).fetch(entry, |_| {}).unwrap();
        assert_eq!(fs::read(path).unwrap(), body);
        assert_eq!(server.ranges(), asked);
    }
}

/// For a server that cannot resume, the timeout doubles each time, and getting only as far as before is no progress.
#[test]
fn a_hub_that_begins_anew() {
    let body = content(300_000);
    let slow = Manners { ignores_ranges: true, slow: Some(Duration::from_millis(60)), ..Manners::default() };
    let (directory, server, entry) = (tempfile::tempdir().unwrap(), hub(&body, slow), entry(&body, &[]));
    let fetcher = |server: &hub::Server| fetcher(directory.path(), &server.endpoint);
    let patient = fetcher(&server).with_patience(Duration::from_millis(100));
    assert_eq!(fs::read(patient.fetch(entry, |_| {}).unwrap()).unwrap(), body);
    assert!(server.ranges().len() > 2, "{:?}", server.ranges());
    assert!(patient.cache().remove(entry).unwrap());
    let flaky = Manners { ignores_ranges: true, breaks: usize::MAX, uneven: true, ..Manners::default() };
    let server = hub(&body, flaky);
    let error = fetcher(&server).fetch(entry, |_| {}).unwrap_err().to_string();
    assert!(error.contains("broke off") && error.contains("6 times in a row"), "{error}");
    assert_eq!(server.ranges().len(), 7);
}

#[test]
fn what_an_earlier_try_has_left_is_gone_on_with() {
    let (body, left) = (content(300_000), |directory: &std::path::Path, bytes: &[u8]| {
        let partial = directory.join("cache/partial");
        fs::create_dir_all(&partial).unwrap();
        fs::write(partial.join(format!("{}.part", sha256(&content(300_000)))), bytes).unwrap();
    });
    let longer = [&body[..], b"and more"].concat();
    for (bytes, manners, asked) in [
        (&body[..100_000], Manners::default(), vec!["100000"]),
        (&body[..100_000], Manners { ignores_ranges: true, ..Manners::default() }, vec!["100000"]),
        // The partial file is complete, or longer than the file.
        (&body[..], Manners::default(), vec![]),
        (&longer[..], Manners::default(), vec![""]),
    ] {
        let (directory, server, entry) =
            (tempfile::tempdir().unwrap(), hub(&body, manners), entry(&body, &[]));
        left(directory.path(), bytes);
        let path = fetcher(directory.path(), &server.endpoint).fetch(entry, |_| {}).unwrap();
        assert_eq!(fs::read(path).unwrap(), body);
        assert_eq!(server.ranges(), asked);
    }
    // Wrong bytes of the right length are detected, and are discarded before the next attempt.
    let (directory, server, entry) =
        (tempfile::tempdir().unwrap(), hub(&body, Manners::default()), entry(&body, &[]));
    let fetcher = fetcher(directory.path(), &server.endpoint);
    left(directory.path(), &[0; 100_000]);
    let error = fetcher.fetch(entry, |_| {}).unwrap_err();
    assert!(matches!(error, FetchError::Hash { .. }), "{error}");
    nothing_looks_whole(&fetcher, entry);
    assert_eq!(fs::read(fetcher.fetch(entry, |_| {}).unwrap()).unwrap(), body);
}

#[test]
fn what_cannot_be_had_is_a_clear_error() {
    let body = content(200_000);
    let other = entry(&[&body[1..], b"x"].concat(), &[]);
    for (manners, asked_for, parts) in [
        (Manners { html: true, ..Manners::default() }, entry(&body, &[]), &["HTML page", "proxy"][..]),
        (
            Manners { breaks: usize::MAX, busy: 0, ..Manners::default() },
            entry(&body, &[]),
            &["broke off", "are kept"],
        ),
        (Manners { busy: usize::MAX, ..Manners::default() }, entry(&body, &[]), &["503", "6 times in a row"]),
        (Manners::default(), other, &["has the hash", "expected", "it was not kept"]),
        (Manners::default(), entry(&body[1..], &[]), &["it has 200000 bytes to send, expected 199999"]),
        (
            Manners { says_no_length: true, ..Manners::default() },
            entry(&body[1..], &[]),
            &["it sends more than the 199999 bytes"],
        ),
    ] {
        let (directory, server) = (tempfile::tempdir().unwrap(), hub(&body, manners));
        let fetcher = fetcher(directory.path(), &server.endpoint);
        let error = fetcher.fetch(asked_for, |_| {}).unwrap_err().to_string();
        for part in parts.iter().chain(&["tiny.gguf of owner/tiny"]) {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
        nothing_looks_whole(&fetcher, asked_for);
    }
}

/// A file that another tool has downloaded into the hub's own cache is used from there.
#[test]
#[cfg(unix)]
fn the_hubs_own_cache_is_shared() {
    let (directory, body) = (tempfile::tempdir().unwrap(), content(1000));
    let entry = entry(&body, &[]);
    let repository = directory.path().join("hub/models--owner--tiny");
    let snapshot = repository.join("snapshots").join(hub::COMMIT);
    for part in ["blobs", "refs"] {
        fs::create_dir_all(repository.join(part)).unwrap();
    }
    fs::create_dir_all(&snapshot).unwrap();
    let (fetcher, link) = (fetcher(directory.path(), &nobody()), snapshot.join("tiny.gguf"));
    fs::write(repository.join("refs/main"), hub::COMMIT).unwrap();
    fs::write(repository.join("blobs").join(entry.sha256), &body).unwrap();
    std::os::unix::fs::symlink(format!("../../blobs/{}", entry.sha256), &link).unwrap();
    assert_eq!(fetcher.fetch(entry, |_| unreachable!("it is there")).unwrap(), link);
    // A truncated blob is not used.
    fs::write(repository.join("blobs").join(entry.sha256), &body[1..]).unwrap();
    assert!(fetcher.found(entry).is_none());
    assert!(matches!(fetcher.fetch(entry, |_| {}).unwrap_err(), FetchError::Unreachable { .. }));
}
