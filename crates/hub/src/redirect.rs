//! Resolves redirects, and decides which ones stay on the hub and which hosts get the token.

use ureq::{
    Body,
    http::{Response, StatusCode},
};
use url::{Origin, Url};

/// Most redirects in a row, as in huggingface_hub.
pub(crate) const REDIRECTS: usize = 20;
/// Public hubs to which other hubs redirect.
const PUBLIC_HUBS: &[&str] = &["https://huggingface.co", "https://hf.co"];

/// The text of a header.
pub(crate) fn text<'a>(answer: &'a Response<Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// The address that an answer redirects to, if any.
///
/// # Errors
/// If that is no address of a web server.
pub(crate) fn target(from: &Url, answer: &Response<Body>) -> Result<Option<Url>, String> {
    let redirects = matches!(
        answer.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    match answer.headers().get("location").filter(|_| redirects) {
        // Some servers write file names into this header unescaped, in UTF-8.
        Some(location) => resolve(from, &String::from_utf8_lossy(location.as_bytes())).map(Some),
        None => Ok(None),
    }
}

/// Resolves an absolute or relative address by RFC 3986.
fn resolve(from: &Url, location: &str) -> Result<Url, String> {
    let mut url =
        from.join(location).map_err(|error| format!("it redirects to `{location}`, no address: {error}"))?;
    if !is_web(&url) {
        return Err(format!("it redirects to `{location}`, which is not on the web"));
    }
    url.set_fragment(None);
    Ok(url)
}

/// Whether an address is one of a web server.
pub(crate) fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https") && url.host_str().is_some()
}

/// Whether a redirect stays on the hub: the target's scheme, host and port are those of the redirecting address, of
/// the endpoint, or of a public hub.
///
/// Other redirects lead to storage, and the hub's metadata of a file is in the redirect itself.
pub(crate) fn stays_on_hub(endpoint: &Url, from: &Url, target: &Url) -> bool {
    let origin: Origin = target.origin();
    let is_public =
        || PUBLIC_HUBS.iter().filter_map(|hub| Url::parse(hub).ok()).any(|hub| hub.origin() == origin);
    origin == from.origin() || origin == endpoint.origin() || is_public()
}

/// Whether an address may see the token: it must have the endpoint's host, with the same scheme and port or upgraded
/// from http to https.
pub(crate) fn may_see_token(endpoint: &Url, url: &Url) -> bool {
    let default_ports = endpoint.port().is_none() && url.port().is_none();
    let upgraded = endpoint.scheme() == "http" && url.scheme() == "https" && default_ports;
    endpoint.origin() == url.origin() || (upgraded && endpoint.host_str() == url.host_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn references_are_resolved() {
        let from = url("https://art.example:8443/api/huggingface/o/n/resolve/main/a.gguf?x=1");
        for (location, expected) in [
            ("/new/n/resolve/main/a.gguf", "https://art.example:8443/new/n/resolve/main/a.gguf"),
            ("/api/huggingface/o/m", "https://art.example:8443/api/huggingface/o/m"),
            ("https://art.example:8443/x", "https://art.example:8443/x"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("b.gguf", "https://art.example:8443/api/huggingface/o/n/resolve/main/b.gguf"),
            ("../b.gguf", "https://art.example:8443/api/huggingface/o/n/resolve/b.gguf"),
            ("?y=2", "https://art.example:8443/api/huggingface/o/n/resolve/main/a.gguf?y=2"),
            ("/refs%2Fpr%2F1/a%20b#part", "https://art.example:8443/refs%2Fpr%2F1/a%20b"),
        ] {
            assert_eq!(resolve(&from, location).unwrap().as_str(), expected, "{location}");
        }
        for location in ["ftp://art.example/x", "file:///etc/passwd", "data:,x", "https://"] {
            assert!(resolve(&from, location).is_err(), "{location}");
        }
    }

    #[test]
    fn hubs_and_where_contents_lie() {
        let endpoint = url("http://mirror.example/hf");
        for (target, stays, token) in [
            ("http://mirror.example/x", true, true),
            ("http://mirror.example:80/x", true, true),
            ("http://MIRROR.example/x", true, true),
            ("https://mirror.example/x", false, true),
            ("https://mirror.example:444/x", false, false),
            ("http://mirror.example:81/x", false, false),
            ("http://cdn.mirror.example/x", false, false),
            ("https://huggingface.co/x", true, false),
            ("https://hf.co/x", true, false),
            ("http://huggingface.co/x", false, false),
            ("https://cdn-lfs.huggingface.co/x", false, false),
        ] {
            assert_eq!(stays_on_hub(&endpoint, &endpoint, &url(target)), stays, "{target}");
            assert_eq!(may_see_token(&endpoint, &url(target)), token, "{target}");
        }
        // A token that was sent over https must not be sent over http.
        assert!(!may_see_token(&url("https://mirror.example"), &url("http://mirror.example")));
        // A redirect may stay within another host that an earlier redirect led to.
        let other = url("https://hf.co/a");
        assert!(stays_on_hub(&endpoint, &other, &url("https://hf.co/b")));
    }
}
