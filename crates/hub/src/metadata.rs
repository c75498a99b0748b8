//! Requests a file's metadata before its download.

use ureq::{Body, http::Response};

use crate::{
    FetchError,
    http::{Client, HttpRequest, NoAnswer, PAGE, announced_length, check_status, is_page},
    redirect::text,
    retry::AttemptError,
};

/// The metadata of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) etag: String,
    /// The length in bytes, which not every server states before it sends the content.
    pub(crate) size: Option<u64>,
}

impl Client {
    /// The etag and size of a file, as the hub itself states them; the storage that the hub redirects to is not
    /// asked.
    pub(crate) fn meta(&self, url: &str, what: &str, say: &mut dyn FnMut(&str)) -> Result<Meta, FetchError> {
        let found = self.repeat(what, say, |timeouts| {
            let answer = self.ask(timeouts, HttpRequest::Metadata, url)?;
            meta(&answer).map_err(AttemptError::Refused)
        });
        found.map_err(|none| {
            let (NoAnswer::Unreachable(reason) | NoAnswer::Refused(reason)) = none;
            FetchError::Hub { what: what.to_owned(), reason }
        })
    }
}

/// Reads the headers. The redirect to a file's storage has the file's headers itself.
fn meta(answer: &Response<Body>) -> Result<Meta, String> {
    let redirects = answer.status().is_redirection();
    if !redirects {
        check_status(answer)?;
    }
    let header = |name: &str| text(answer, name).filter(|value| !value.is_empty());
    let commit = header("x-repo-commit").ok_or_else(|| lacks(answer, "x-repo-commit"))?;
    let etag = header("x-linked-etag").or_else(|| header("etag")).ok_or_else(|| lacks(answer, "etag"))?;
    let etag = etag.trim().trim_start_matches("W/").replace('"', "");
    for (name, value) in [("etag", etag.as_str()), ("x-repo-commit", commit)] {
        if !is_file_name(value) {
            return Err(format!("the header {name} is {value:?}, expected letters and digits"));
        }
    }
    let size = match header("x-linked-size") {
        Some(size) => size.parse().ok(),
        // The length of a redirect is not the file's length.
        None if redirects => None,
        // Some servers answer without a body and state its length 0; the content's answer then gives the length.
        None => announced_length(answer).filter(|&length| length > 0),
    };
    Ok(Meta { etag, size })
}

/// The error message for a missing header, with what the user should check.
fn lacks(answer: &Response<Body>, name: &str) -> String {
    if is_page(answer) {
        return PAGE.to_owned();
    }
    let location = text(answer, "location").filter(|_| answer.status().is_redirection());
    let redirect = location.map(|to| format!(" (it redirects to {to})")).unwrap_or_default();
    format!(
        "the answer{redirect} lacks the header {name}, so it is not a hub's; check that HF_ENDPOINT is the address of a \
         hub or its mirror, and what a proxy or firewall on the way may change"
    )
}

/// Whether an etag can be a file name, because etags of other servers may have any characters.
fn is_file_name(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+=~".contains(c);
    (1..=128).contains(&value.len()) && !value.starts_with('.') && value.chars().all(plain)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    const COMMIT: (&str, &str) = ("x-repo-commit", "0123");

    fn answer(status: u16, headers: &[(&str, &str)]) -> Response<Body> {
        let mut builder = Response::builder().status(status);
        for &(name, value) in headers {
            builder = builder.header(name, value);
        }
        builder.body(Body::builder().data("")).unwrap()
    }

    fn found(status: u16, headers: &[(&str, &str)]) -> Option<(String, Option<u64>)> {
        meta(&answer(status, headers)).ok().map(|meta| (meta.etag, meta.size))
    }

    #[test]
    fn etags_and_sizes() {
        let expected = |etag: &str, size: Option<u64>| Some((etag.to_owned(), size));
        for (etag, name) in [
            ("\"ab12\"", "ab12"),
            ("W/\"ab12\"", "ab12"),
            ("ab12", "ab12"),
            ("\"5d41402a-9.gz+x=~\"", "5d41402a-9.gz+x=~"),
        ] {
            assert_eq!(found(200, &[COMMIT, ("etag", etag)]), expected(name, None), "{etag}");
        }
        for etag in ["\"\"", "\"../x\"", "\"a/b\"", "\"..\"", "\"a:b\"", "\"a b\""] {
            assert_eq!(found(200, &[COMMIT, ("etag", etag)]), None, "{etag}");
        }
        let (own, linked) = (("etag", "\"own\""), ("x-linked-etag", "\"linked\""));
        let (length, size) = (("content-length", "7"), ("x-linked-size", "9"));
        for (status, headers, meta) in [
            (200, &[own, length][..], expected("own", Some(7))),
            (200, &[own, ("content-length", "seven")], expected("own", None)),
            (200, &[own, ("content-length", "0")], expected("own", None)),
            (200, &[own, ("x-linked-size", "0")], expected("own", Some(0))),
            (200, &[own, length, ("content-encoding", "br")], expected("own", None)),
            (200, &[own, length, ("content-encoding", "identity")], expected("own", Some(7))),
            (200, &[own, linked, length, size], expected("linked", Some(9))),
            (200, &[own, ("x-linked-etag", ""), length], expected("own", Some(7))),
            (302, &[linked, size, ("content-length", "0")], expected("linked", Some(9))),
            (302, &[own, ("content-length", "0")], expected("own", None)),
            (404, &[own, length], None),
            (405, &[own, length], None),
        ] {
            let headers: Vec<(&str, &str)> = headers.iter().copied().chain([COMMIT]).collect();
            assert_eq!(found(status, &headers), meta, "{status} {headers:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = |status: u16, headers: &[(&str, &str)]| meta(&answer(status, headers)).unwrap_err();
        let etag = ("etag", "\"a\"");
        assert!(missing(200, &[etag]).contains("x-repo-commit"));
        assert!(missing(200, &[etag]).contains("HF_ENDPOINT"));
        assert!(missing(200, &[COMMIT]).contains("header etag"));
        let redirect = missing(301, &[("location", "https://mirror.example/x")]);
        assert!(redirect.contains("redirects to https://mirror.example/x"), "{redirect}");
        assert!(missing(200, &[("content-type", "text/html; charset=utf-8")]).contains("HTML page"));
    }
}
