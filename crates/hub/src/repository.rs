//! Downloads repositories of the hub that are not in the catalogue.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use hf_hub::api::RepoInfo;

use crate::{
    FetchError, Fetcher, ModelReference,
    fetch::{keep, remove},
    hash,
    lock::Lock,
    refusal::{self, ADAPTER_CONFIG},
    select::{CONFIG, choose},
    snapshot::{Snapshots, is_plain},
};

impl Fetcher {
    /// Parses a name or an address of this hub; `None` if it can only be a local path or a catalogue name.
    ///
    /// # Errors
    /// If it is an address, but of no model on this hub; the error says what to write instead.
    pub fn reference(&self, name: &str) -> Result<Option<ModelReference>, FetchError> {
        ModelReference::parse(name, &self.client.endpoint).map_err(FetchError::NoReference)
    }

    /// Downloads the files of a model in a hub repository, `owner/name`, into the hub's own cache. Returns a
    /// directory in Hugging Face layout, or a GGUF file (the first part of a split one). `owner/name/FILE.gguf` and
    /// `owner/name:QUANT` select one of several GGUF files; the address of a page of the hub is also accepted.
    ///
    /// All files belong to one commit: the one to which `revision` (a branch, tag or commit; by default `main`)
    /// refers now.
    ///
    /// # Errors
    /// If the hub cannot be reached and the files are not cached, or there is no model in the repository.
    pub fn fetch_repository(
        &self,
        name: &str,
        revision: Option<&str>,
        mut say: impl FnMut(&str),
    ) -> Result<PathBuf, FetchError> {
        let no_name = |odd: &str| FetchError::NoModel {
            repository: name.to_owned(),
            what: format!("`{odd}` is no name or revision of a repository"),
        };
        let reference = self.reference(name)?.ok_or_else(|| no_name(name))?;
        let revision = match (revision, reference.revision.as_deref()) {
            (Some(asked), Some(named)) if asked != named => {
                let what = format!(
                    "`{name}` names the revision {named}, --revision names {asked}; give one of them"
                );
                return Err(FetchError::NoReference(what));
            }
            (asked, named) => asked.or(named).unwrap_or("main"),
        };
        if !is_plain(revision) {
            return Err(no_name(revision));
        }
        let snapshots = self.snapshots(&reference.repository)?;
        let reached =
            self.client.check_reachable().and_then(|()| self.info(&reference.repository, revision, &mut say));
        match reached {
            Ok(info) => self.fetch_files(&snapshots, &reference, (revision, info), &mut say),
            Err(unreachable @ FetchError::Unreachable { .. }) => {
                // Files that an earlier run or another tool has downloaded are still usable.
                let cached =
                    snapshots.cached(revision).and_then(|directory| self.cached(&reference, directory));
                let path = cached.ok_or(unreachable)?;
                let id = &reference.repository;
                say(&format!("the hub cannot be reached; using the cached files of {id}"));
                Ok(path)
            }
            Err(error) => Err(error),
        }
    }

    /// The model in a directory of the hub's cache.
    fn cached(&self, reference: &ModelReference, directory: PathBuf) -> Option<PathBuf> {
        let mut files = Vec::new();
        list(&directory, "", &mut files);
        match choose(&files, reference, true) {
            Ok(chosen) => Some(model_path(&directory, &chosen)),
            // The code that opens the directory reports what it lacks.
            Err(_) if reference.file.is_none() && reference.quant.is_none() => Some(directory),
            Err(_) => None,
        }
    }

    /// Downloads the missing files of a model in a repository.
    fn fetch_files(
        &self,
        snapshots: &Snapshots,
        reference: &ModelReference,
        (revision, info): (&str, RepoInfo),
        say: &mut impl FnMut(&str),
    ) -> Result<PathBuf, FetchError> {
        let id = &reference.repository;
        let no_model = |what: String| FetchError::NoModel { repository: id.clone(), what };
        let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let directory = snapshots.directory(&info.sha);
        let get = |file: &str, say: &mut dyn FnMut(&str)| -> Result<PathBuf, FetchError> {
            let path = directory.join(file);
            if !path.exists() {
                self.fetch_file(snapshots, id, (info.sha.as_str(), file), say)?;
            }
            Ok(path)
        };
        let is_whole = reference.file.is_none() && reference.quant.is_none();
        if is_whole && refusal::is_adapter(&files) {
            let config = small(&get(ADAPTER_CONFIG, say)?).map_err(no_model)?;
            return Err(no_model(refusal::adapter(id, &config)));
        }
        let mut chosen = choose(&files, reference, self.for_conversion).map_err(no_model)?;
        say(&format!("fetching {id} from the hub: {}", refusal::first_names(chosen.iter().cloned())));
        let before_shards = chosen.len();
        let mut next = 0;
        while let Some(file) = chosen.get(next).cloned() {
            let path = get(&file, say)?;
            if file == CONFIG && is_whole {
                let config = small(&path).map_err(no_model)?;
                if let Some(why) = refusal::quantised(&config) {
                    return Err(no_model(why));
                }
            }
            // An index is not read as a shard, because an index that names itself would never end.
            if next < before_shards && file.ends_with(".index.json") {
                // A file that the repository does not list is never requested.
                let shards = shards(&path).map_err(no_model)?;
                let listed: HashSet<&str> = files.iter().map(String::as_str).collect();
                if let Some(unknown) = shards.iter().find(|shard| !listed.contains(shard.as_str())) {
                    return Err(no_model(format!("{file} names `{unknown}`, which is not there")));
                }
                chosen.extend(shards);
            }
            next += 1;
        }
        // The revision is recorded for later runs without a hub.
        snapshots.name(revision, &info.sha)?;
        Ok(model_path(&directory, &chosen))
    }

    /// Requests the commit and files of a revision.
    fn info(&self, id: &str, revision: &str, say: &mut dyn FnMut(&str)) -> Result<RepoInfo, FetchError> {
        let url = self.client.info_url(id, revision).map_err(|error| error.refusal(id))?;
        let info: RepoInfo = self.client.json(&url, id, say)?;
        let odd =
            info.siblings.iter().map(|file| &file.rfilename).chain([&info.sha]).find(|name| !is_plain(name));
        match odd {
            Some(odd) => {
                let reason = format!("it lists {odd:?}, which is no file of a repository");
                Err(FetchError::Hub { what: id.to_owned(), reason })
            }
            None => Ok(info),
        }
    }

    /// Downloads a file of a commit into the hub's cache, and verifies it.
    fn fetch_file(
        &self,
        snapshots: &Snapshots,
        id: &str,
        (commit, file): (&str, &str),
        say: &mut dyn FnMut(&str),
    ) -> Result<(), FetchError> {
        let what = format!("{file} of {id}");
        let url = self.client.file_url(id, commit, file).map_err(|error| error.refusal(&what))?;
        let meta = self.client.meta(&url, &what, say)?;
        let blob = snapshots.blob(&meta.etag);
        let _lock = Lock::take(&snapshots.lock(&meta.etag), &mut *say)?;
        if !blob.exists() {
            let part = snapshots.part(&meta.etag);
            self.client.fetch(&url, meta.size, &part, &what, say)?;
            if let Err(error) = verify(&part, &meta.etag, &what) {
                remove(&part)?;
                return Err(error);
            }
            keep(&part, &blob)?;
        }
        snapshots.link(&meta.etag, commit, file).map(drop)
    }
}

/// The path to open: a GGUF file, the first part of a split one, or the directory.
fn model_path(directory: &Path, chosen: &[String]) -> PathBuf {
    match chosen.first() {
        Some(gguf) if gguf.ends_with(".gguf") => directory.join(gguf),
        _ => directory.to_owned(),
    }
}

/// Lists the files below a directory of the hub's cache, with the paths that a repository lists.
fn list(directory: &Path, prefix: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        // A link whose blob was removed is not listed.
        match path.metadata() {
            Ok(meta) if meta.is_dir() => list(&path, &format!("{name}/"), files),
            Ok(_) => files.push(name),
            Err(_) => {}
        }
    }
}

/// Verifies a file by its etag. Large files have their SHA-256 as an etag; small ones have git's SHA-1 of the blob,
/// or, on some mirrors, the SHA-1 of the content. Files with other etags are not verified.
fn verify(path: &Path, etag: &str, what: &str) -> Result<(), FetchError> {
    let io_error = |error| FetchError::Io { path: path.to_owned(), error };
    let is_hash = etag.bytes().all(|digit| digit.is_ascii_hexdigit());
    let found = match etag.len() {
        64 if is_hash => hash::of_file(path).map_err(io_error)?,
        40 if is_hash => hash::git_blob(path).map_err(io_error)?,
        _ => return Ok(()),
    };
    if found.eq_ignore_ascii_case(etag) {
        return Ok(());
    }
    if etag.len() == 40 && hash::sha1(path).map_err(io_error)?.eq_ignore_ascii_case(etag) {
        return Ok(());
    }
    Err(FetchError::Hash { what: what.to_owned(), expected: etag.to_owned(), found })
}

/// Most bytes of a config or an index of shards.
const SMALL_BYTES: u64 = 64 << 20;

/// Reads a small file that is needed here.
fn small(path: &Path) -> Result<Vec<u8>, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let wrong = |what: String| format!("{name}: {what}");
    let length = fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if length > SMALL_BYTES {
        return Err(wrong(format!("it has {length} bytes, expected {SMALL_BYTES} at most")));
    }
    fs::read(path).map_err(|error| wrong(error.to_string()))
}

fn shards(index: &Path) -> Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let name = index.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let index: Index = moi_files::json(&small(index)?).map_err(|error| format!("{name}: {error}"))?;
    // A path in an index may begin with `./`, which the repository's list omits.
    let plain = |path: String| path.split('/').filter(|part| *part != ".").collect::<Vec<_>>().join("/");
    let mut shards: Vec<String> = index.weight_map.into_values().map(plain).collect();
    shards.sort();
    shards.dedup();
    Ok(shards)
}
