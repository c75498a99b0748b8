//! Access control: API keys, or, without keys, the host names and origins from which the server may be used.

use std::{fmt, net::IpAddr};

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::{error::ApiError, quota::Quota};

/// Keys of clients, each with a name for logs and optionally a quota.
#[derive(Clone, Default)]
pub struct Keys {
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    name: String,
    digest: [u8; 32],
    quota: Option<Quota>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.name)).finish()
    }
}

impl Keys {
    /// Adds a key.
    pub fn add(&mut self, name: &str, key: &str, quota: Option<Quota>) {
        self.keys.push(Key { name: name.to_owned(), digest: digest(key), quota });
    }

    /// Reads a file of keys, one per line. A name may stand before the key, and then a quota behind it: `NAME KEY
    /// 100000/day`. A line that begins with `#` is a comment.
    ///
    /// # Errors
    /// A message with the number of a line that is invalid.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Self::default();
        for (at, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                [key] => keys.add(&format!("key {}", keys.keys.len() + 1), key, None),
                [_, quota] if quota.parse::<Quota>().is_ok() => {
                    return Err(format!("line {} has a quota and no name, expected NAME KEY QUOTA", at + 1));
                }
                [name, key] => keys.add(name, key, None),
                // The message does not quote the line, because it may contain a key.
                [name, key, quota] => match quota.parse() {
                    Ok(quota) => keys.add(name, key, Some(quota)),
                    Err(_) => {
                        let what = "no quota, expected TOKENS/minute, TOKENS/hour or TOKENS/day";
                        return Err(format!("line {}: its third word is {what}", at + 1));
                    }
                },
                _ => {
                    let (line, words) = (at + 1, words.len());
                    return Err(format!(
                        "line {line} has {words} words, expected KEY, NAME KEY or NAME KEY QUOTA"
                    ));
                }
            }
        }
        Ok(keys)
    }

    /// Whether there are no keys, so that requests need none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The name and the quota of the key that a request has.
    ///
    /// # Errors
    /// If the request has no key, or a wrong one.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(&str, Option<Quota>), ApiError> {
        let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
        let bearer = text(header::AUTHORIZATION.as_str()).and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        // Anthropic's clients have a header of their own.
        let given = bearer.or_else(|| text("x-api-key")).ok_or_else(ApiError::unauthorized)?;
        let given = digest(given);
        // All digests are compared, so that the time that this takes reveals nothing about the keys.
        let mut found = u32::MAX;
        for (at, key) in (0u32..).zip(&self.keys) {
            let is_equal: Choice = key.digest.as_slice().ct_eq(given.as_slice());
            found.conditional_assign(&at, is_equal);
        }
        let found = self.keys.get(found as usize).ok_or_else(ApiError::unauthorized)?;
        Ok((&found.name, found.quota))
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Refuses a host name that a page of another site may have bound to the server's address (DNS rebinding).
///
/// # Errors
/// If the request's `Host` is neither `localhost`, nor an address, nor one of those that are allowed.
pub(crate) fn check_host(headers: &HeaderMap, allowed: &[String]) -> Result<(), ApiError> {
    // Browsers always send a `Host` header.
    let Some(host) = headers.get(header::HOST) else { return Ok(()) };
    let host = host.to_str().unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let is_address = name.parse::<IpAddr>().is_ok();
    let is_allowed =
        |allowed: &String| allowed.eq_ignore_ascii_case(name) || allowed.eq_ignore_ascii_case(host);
    match is_address || name.eq_ignore_ascii_case("localhost") || allowed.iter().any(is_allowed) {
        true => Ok(()),
        false => Err(ApiError::forbidden(format!(
            "the host `{host}` is not allowed; --allowed-host {name} allows it, and so does a key"
        ))),
    }
}

/// Refuses requests of pages of other sites: without keys, such a page could use the server of whoever looks at it.
/// Requests of programs have no `Origin`.
///
/// # Errors
/// If the request's `Origin` is neither the server's own nor one of those that are allowed.
pub(crate) fn check_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_own = origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host);
    match is_own || allowed.iter().any(|allowed| allowed == "*" || allowed == origin) {
        true => Ok(()),
        false => Err(ApiError::forbidden(format!(
            "pages of `{origin}` may not use this server; --cors-origin {origin} allows it"
        ))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn keys_are_found_by_either_header() {
        let keys = Keys::parse("# ours\n\nann k1\n k2 \nbob k3 500/day").unwrap();
        assert_eq!(keys.check(&headers("authorization", "Bearer k1")).unwrap(), ("ann", None));
        assert_eq!(keys.check(&headers("authorization", "bearer  k2")).unwrap(), ("key 2", None));
        assert_eq!(keys.check(&headers("x-api-key", "k2")).unwrap(), ("key 2", None));
        assert_eq!(
            keys.check(&headers("x-api-key", "k3")).unwrap(),
            ("bob", Some("500/day".parse().unwrap()))
        );
        for wrong in [
            headers("authorization", "Bearer k"),
            headers("authorization", "k1"),
            headers("authorization", "Bearer "),
            headers("x-api-key", "K1"),
            HeaderMap::new(),
        ] {
            assert_eq!(keys.check(&wrong).unwrap_err().status.as_u16(), 401);
        }
        assert!(Keys::parse("a b c").unwrap_err().contains("line 1"));
        assert!(Keys::parse("\na b 5/day d").unwrap_err().contains("line 2"));
        // The message quotes no part of a line, which may be a key.
        for wrong in ["secret 100/day", "ann 100/day secret"] {
            let said = Keys::parse(wrong).unwrap_err();
            assert!(said.contains("line 1") && !said.contains("secret"), "{said}");
        }
        assert!(!format!("{keys:?}").contains("k1"));
    }

    #[test]
    fn other_hosts_are_refused() {
        let allowed = ["box.example".to_owned()];
        for host in ["localhost:8080", "127.0.0.1", "[::1]:8080", "192.168.0.7:80", "BOX.example:8080"] {
            check_host(&headers("host", host), &allowed).unwrap();
        }
        for host in ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example", ""] {
            assert_eq!(
                check_host(&headers("host", host), &allowed).unwrap_err().status.as_u16(),
                403,
                "{host}"
            );
        }
    }
}
