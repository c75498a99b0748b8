//! Compares with the crate hf-hub: both share one cache, and hf-hub's own downloads fail with some faulty servers,
//! which is why contents are downloaded by this crate. If a newer hf-hub changes a row, this decision should be
//! reviewed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure must end the test")]

mod hub;

use std::{fs, path::Path};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiRepo},
};
use hub::{COMMIT, File, Manners, content, fetcher, nobody, repository, serve, sha256};

/// The repository accessed with hf-hub.
fn theirs(cache: &Path, endpoint: &str) -> ApiRepo {
    let builder = ApiBuilder::from_cache(Cache::new(cache.to_owned())).with_endpoint(endpoint.to_owned());
    let api = builder.with_token(None).with_progress(false).with_retries(2).build().unwrap();
    api.repo(Repo::new("owner/tiny".to_owned(), RepoType::Model))
}

/// A repository whose files hf-hub can also request from a branch.
fn files(body: &[u8]) -> Vec<File> {
    let mut files = repository(&[("config.json", b"{}"), ("model.safetensors", body)]);
    let of_branch: Vec<File> =
        files.iter().map(|file| File { path: file.path.replace(COMMIT, "main"), ..file.clone() }).collect();
    files.extend(of_branch);
    files
}

#[test]
fn both_find_what_the_other_has_fetched() {
    let body = content(100_000);
    let server = serve(files(&body), Manners::default());
    let names = ["config.json", "model.safetensors"];

    let directory = tempfile::tempdir().unwrap();
    fetcher(directory.path(), &server.endpoint).fetch_repository("owner/tiny", None, |_| {}).unwrap();
    let cache = Cache::new(directory.path().join("hub"));
    for name in names {
        assert!(cache.model("owner/tiny".to_owned()).get(name).is_some(), "hf-hub does not find {name}");
    }

    let directory = tempfile::tempdir().unwrap();
    let repo = theirs(&directory.path().join("hub"), &server.endpoint);
    for name in names {
        repo.download(name).unwrap();
    }
    let offline = fetcher(directory.path(), &nobody());
    let path = offline.fetch_repository("owner/tiny", None, |_| {}).unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), body);
}

/// The outcome of a download.
#[derive(Debug, PartialEq)]
enum Outcome {
    Right,
    /// A wrong file under the name of the requested one.
    Wrong,
    Error,
}

#[test]
fn downloads_where_servers_have_bad_manners() {
    let body = content(300_000);
    let good = Manners::default();
    for (name, manners, hf_hub) in [
        ("none", good, Outcome::Right),
        (
            "all of it again, whatever range is asked for",
            Manners { ignores_ranges: true, breaks: 1, ..good },
            Outcome::Wrong,
        ),
        (
            "no length, and a connection that breaks off",
            Manners { says_no_length: true, breaks: 1, ..good },
            Outcome::Wrong,
        ),
        ("a page in the place of the file", Manners { html: true, ..good }, Outcome::Wrong),
    ] {
        let server = serve(files(&body), manners);
        let outcome = |fetched: Option<Vec<u8>>| match fetched {
            Some(bytes) if bytes == body => Outcome::Right,
            Some(_) => Outcome::Wrong,
            None => Outcome::Error,
        };
        let directory = tempfile::tempdir().unwrap();
        let repo = theirs(directory.path(), &server.endpoint);
        let found = repo.download("model.safetensors").ok().map(|path| fs::read(path).unwrap());
        assert_eq!(outcome(found), hf_hub, "hf-hub: {name}");

        let server = serve(files(&body), manners);
        let directory = tempfile::tempdir().unwrap();
        let fetched =
            fetcher(directory.path(), &server.endpoint).fetch_repository("owner/tiny", None, |_| {});
        let found = fetched.ok().map(|path| fs::read(path.join("model.safetensors")).unwrap());
        let expected = if manners.html { Outcome::Error } else { Outcome::Right };
        assert_eq!(outcome(found), expected, "here: {name}");
    }
}

/// The bytes do not match the hash in the blob's name.
#[test]
fn bytes_that_are_not_those_of_the_hash() {
    let mut files = files(&content(1000));
    for file in files.iter_mut().filter(|file| file.path.ends_with(".safetensors")) {
        file.content[7] ^= 1;
    }
    let server = serve(files, Manners::default());
    let directory = tempfile::tempdir().unwrap();
    let path = theirs(directory.path(), &server.endpoint).download("model.safetensors").unwrap();
    let kept = fs::canonicalize(&path).unwrap();
    assert_ne!(*kept.file_name().unwrap(), *sha256(&fs::read(&path).unwrap()), "hf-hub verifies");
    let directory = tempfile::tempdir().unwrap();
    let error =
        fetcher(directory.path(), &server.endpoint).fetch_repository("owner/tiny", None, |_| {}).unwrap_err();
    assert!(error.to_string().contains("has the hash"), "{error}");
}
