//! Reads the environment variables of the hub's own tools, with the rules of huggingface_hub.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The address of the public hub.
const PUBLIC_HUB: &str = "https://huggingface.co";

/// A variable's value, if it is set and not empty.
fn value(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}

/// Whether huggingface_hub reads a value as true.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].iter().any(|word| word.eq_ignore_ascii_case(value))
}

/// The hub's address without a slash at its end: `HF_ENDPOINT`, or the public hub.
pub(crate) fn endpoint() -> String {
    let endpoint = value("HF_ENDPOINT").unwrap_or_else(|| PUBLIC_HUB.to_owned());
    trimmed(&endpoint).to_owned()
}

/// Removes white space and slashes at the end of an address to which paths are appended.
pub(crate) fn trimmed(endpoint: &str) -> &str {
    endpoint.trim().trim_end_matches('/')
}

/// The name of the variable that forbids requests to the hub, if one does.
pub(crate) fn offline() -> Option<&'static str> {
    offline_by(value)
}

/// The first variable that is set decides, whether its value is true or false.
fn offline_by(value: impl Fn(&str) -> Option<String>) -> Option<&'static str> {
    let variables = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"];
    let (variable, value) = variables.into_iter().find_map(|name| Some((name, value(name)?)))?;
    is_true(&value).then_some(variable)
}

/// The user's token for the hub.
pub(crate) fn token() -> Option<String> {
    if value("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value)) {
        return None;
    }
    let from_file = |path: &Path| fs::read_to_string(path).ok();
    let token = token_by(value).or_else(|| match path_in("HF_TOKEN_PATH") {
        Some(path) => from_file(&path),
        None => from_file(&hub_home()?.join("token")),
    })?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// The token from the environment. `HUGGING_FACE_HUB_TOKEN` is the variable's older name.
fn token_by(value: impl Fn(&str) -> Option<String>) -> Option<String> {
    value("HF_TOKEN").or_else(|| value("HUGGING_FACE_HUB_TOKEN"))
}

/// The timeout for a file's metadata, if the user has set one.
pub(crate) fn etag_timeout() -> Option<Duration> {
    seconds("HF_HUB_ETAG_TIMEOUT")
}

/// The timeout after which a stalled download is retried, if the user has set one.
pub(crate) fn download_timeout() -> Option<Duration> {
    seconds("HF_HUB_DOWNLOAD_TIMEOUT")
}

fn seconds(variable: &str) -> Option<Duration> {
    let seconds: u64 = value(variable)?.trim().parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// A path from the environment; `~` at its beginning is the user's home directory.
fn path_in(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)?;
    match path.strip_prefix("~") {
        Ok(rest) => Some(home()?.join(rest)),
        Err(_) => Some(path),
    }
}

fn home() -> Option<PathBuf> {
    Some(directories::BaseDirs::new()?.home_dir().to_owned())
}

/// The directory of the hub's tools: `HF_HOME`, or `huggingface` in the user's cache directory.
fn hub_home() -> Option<PathBuf> {
    path_in("HF_HOME").or_else(|| {
        let caches = path_in("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")));
        Some(caches?.join("huggingface"))
    })
}

/// The directory of the hub's cache, by the same variables as in the hub's tools.
pub(crate) fn hub_cache() -> Option<PathBuf> {
    path_in("HF_HUB_CACHE")
        .or_else(|| path_in("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(hub_home()?.join("hub")))
}

#[cfg(test)]
mod tests {
    use super::{offline_by, token_by, trimmed};

    /// Looks up `name` in these variables.
    fn lookup<'a>(set: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn values_that_are_true() {
        for value in ["1", "ON", "on", "Yes", "true", "TRUE"] {
            assert_eq!(offline_by(lookup(&[("HF_HUB_OFFLINE", value)])), Some("HF_HUB_OFFLINE"), "{value}");
            let older = [("TRANSFORMERS_OFFLINE", value)];
            assert_eq!(offline_by(lookup(&older)), Some("TRANSFORMERS_OFFLINE"), "{value}");
        }
        for value in ["0", "off", "no", "false", "2", "y", " 1"] {
            assert_eq!(offline_by(lookup(&[("HF_HUB_OFFLINE", value)])), None, "{value}");
        }
        assert_eq!(offline_by(lookup(&[])), None);
        // The newer variable decides, even if its value is false.
        let both = [("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")];
        assert_eq!(offline_by(lookup(&both)), None);
    }

    #[test]
    fn tokens_of_both_names() {
        let (new, old) = (("HF_TOKEN", "new"), ("HUGGING_FACE_HUB_TOKEN", "old"));
        assert_eq!(token_by(lookup(&[new, old])).as_deref(), Some("new"));
        assert_eq!(token_by(lookup(&[old])).as_deref(), Some("old"));
        assert_eq!(token_by(lookup(&[])), None);
    }

    #[test]
    fn endpoints_end_without_a_slash() {
        assert_eq!(trimmed("https://art.example/api/huggingface//"), "https://art.example/api/huggingface");
        assert_eq!(trimmed(" http://127.0.0.1:8080/ "), "http://127.0.0.1:8080");
    }
}
