//! Any other repository of the hub.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use percent_encoding::utf8_percent_encode;
use serde::Deserialize;

use crate::{
    FetchError, Fetcher, ModelReference,
    fetch::{REVISION, file_url, keep, remove},
    hash,
    lock::Lock,
    refusal::{self, ADAPTER_CONFIG},
    select::{CONFIG, choose},
    snapshot::{Snapshots, is_plain},
};

impl Fetcher {
    /// What a name or an address means on this hub; `None` is what can only be a path of this machine or a name of the
    /// catalogue.
    ///
    /// # Errors
    /// If it is an address, but of no model on this hub; the error says what to write.
    pub fn reference(&self, name: &str) -> Result<Option<ModelReference>, FetchError> {
        ModelReference::parse(name, &self.client.endpoint).map_err(FetchError::NoReference)
    }

    /// The files of a model in a hub repository, `owner/name`, in the hub's own cache: a directory in
    /// Hugging Face layout, or a GGUF file, the first one if it is split. `owner/name/FILE.gguf` and `owner/name:QUANT` name
    /// one of several GGUF files; an address of a page of the hub is read, too.
    ///
    /// All files are of one commit: the one that `revision` (a branch, tag or commit; `main`) names now.
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
                // What another run, or another tool, has fetched is still good.
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
            // Whoever reads the directory says what it lacks.
            Err(_) if reference.file.is_none() && reference.quant.is_none() => Some(directory),
            Err(_) => None,
        }
    }

    /// Fetches what is missing of the model in a repository.
    fn fetch_files(
        &self,
        snapshots: &Snapshots,
        reference: &ModelReference,
        (revision, info): (&str, Info),
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
            // An index is no shard: one that names itself would never end.
            if next < before_shards && file.ends_with(".index.json") {
                // A name that the repository does not list is never asked for.
                let shards = shards(&path).map_err(no_model)?;
                let listed: HashSet<&str> = files.iter().map(String::as_str).collect();
                if let Some(unknown) = shards.iter().find(|shard| !listed.contains(shard.as_str())) {
                    return Err(no_model(format!("{file} names `{unknown}`, which is not there")));
                }
                chosen.extend(shards);
            }
            next += 1;
        }
        // For later runs without a hub.
        snapshots.name(revision, &info.sha)?;
        Ok(model_path(&directory, &chosen))
    }

    /// What a revision is now.
    fn info(&self, id: &str, revision: &str, say: &mut dyn FnMut(&str)) -> Result<Info, FetchError> {
        let endpoint = &self.client.endpoint;
        let url = format!("{endpoint}/api/models/{id}/revision/{}", utf8_percent_encode(revision, REVISION));
        let info: Info = self.client.json(&url, id, say)?;
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

    /// A file of a commit, verified, into the hub's cache.
    fn fetch_file(
        &self,
        snapshots: &Snapshots,
        id: &str,
        (commit, file): (&str, &str),
        say: &mut dyn FnMut(&str),
    ) -> Result<(), FetchError> {
        let what = format!("{file} of {id}");
        let url = file_url(&self.client.endpoint, id, commit, file);
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

/// What the hub says of a revision.
#[derive(Deserialize)]
struct Info {
    /// Its commit.
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// What is opened: a GGUF file, its first part, or the directory.
fn model_path(directory: &Path, chosen: &[String]) -> PathBuf {
    match chosen.first() {
        Some(gguf) if gguf.ends_with(".gguf") => directory.join(gguf),
        _ => directory.to_owned(),
    }
}

/// The files below a directory of the hub's cache, as a repository lists them.
fn list(directory: &Path, prefix: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), format!("{prefix}{}", entry.file_name().to_string_lossy()));
        // A link whose blob was removed is no file.
        match path.metadata() {
            Ok(meta) if meta.is_dir() => list(&path, &format!("{name}/"), files),
            Ok(_) => files.push(name),
            Err(_) => {}
        }
    }
}

/// Large files have their sha256 for an etag, small ones the sha1 that git gives them, or that some mirrors compute;
/// others are not known.
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

/// No config and no index of shards is longer.
const SMALL_BYTES: u64 = 64 << 20;

/// A file that has to be read here.
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
    // A path may begin with `./`; the repository lists it without.
    let plain = |path: String| path.split('/').filter(|part| *part != ".").collect::<Vec<_>>().join("/");
    let mut shards: Vec<String> = index.weight_map.into_values().map(plain).collect();
    shards.sort();
    shards.dedup();
    Ok(shards)
}
