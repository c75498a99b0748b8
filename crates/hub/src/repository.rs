//! Any other repository of the hub.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    FetchError, Fetcher,
    fetch::{escaped, file_url, keep, remove},
    hash,
    lock::Lock,
    snapshot::{Snapshots, is_plain},
};

const CONFIG: &str = "config.json";
/// Beside config and weights; a repository has some of them.
const SMALL_FILES: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// How the names of licence files begin.
const LICENCES: &[&str] = &["LICEN", "NOTICE", "USE_POLICY", "COPYING"];
/// In the order in which they are looked for: PyTorch's have to be converted before they run.
const WEIGHTS: &[&str] = &["model.safetensors", INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json"];
const INDEX: &str = "model.safetensors.index.json";

impl Fetcher {
    /// The files of a model in a hub repository, `owner/name`, in the hub's own cache: a directory in
    /// Hugging Face layout, or a GGUF file. `owner/name/FILE.gguf` names one of several GGUF files.
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
        let mut parts = name.splitn(3, '/');
        let (owner, repository) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let wanted = parts.next();
        let id = format!("{owner}/{repository}");
        let revision = revision.unwrap_or("main");
        if let Some(odd) = [name, revision].into_iter().find(|part| !is_plain(part)) {
            let what = format!("`{odd}` is no name or revision of a repository");
            return Err(FetchError::NoModel { repository: id, what });
        }
        let snapshots = self.snapshots(&id)?;
        if let Err(unreachable) = self.client.check_reachable() {
            // What another run, or another tool, has fetched is still good.
            let directory = snapshots.cached(revision).ok_or(unreachable)?;
            say(&format!("the hub cannot be reached; using the cached files of {id}"));
            return Ok(wanted.map_or(directory.clone(), |file| directory.join(file)));
        }
        let info = self.info(&id, revision)?;
        let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let no_model = |what| FetchError::NoModel { repository: id.clone(), what };
        let mut chosen = choose(&files, wanted).map_err(no_model)?;
        say(&format!("fetching {id} from the hub: {}", chosen.join(", ")));
        let directory = snapshots.directory(&info.sha);
        let mut next = 0;
        while let Some(file) = chosen.get(next).cloned() {
            if !directory.join(&file).exists() {
                self.fetch_file(&snapshots, &id, &info.sha, &file, &mut say)?;
            }
            if file.ends_with(".index.json") {
                // A name that the repository does not list is never asked for.
                let shards = shards(&directory.join(&file)).map_err(no_model)?;
                if let Some(unknown) = shards.iter().find(|shard| !files.contains(shard)) {
                    return Err(no_model(format!("{file} names `{unknown}`, which is not there")));
                }
                chosen.extend(shards);
            }
            next += 1;
        }
        // For later runs without a hub.
        snapshots.name(revision, &info.sha)?;
        Ok(match chosen.as_slice() {
            [gguf] if gguf.ends_with(".gguf") => directory.join(gguf),
            _ => directory,
        })
    }

    /// What a revision is now.
    fn info(&self, id: &str, revision: &str) -> Result<Info, FetchError> {
        let endpoint = &self.client.endpoint;
        let url = format!("{endpoint}/api/models/{id}/revision/{}", escaped(revision, true));
        let info: Info = self.client.json(&url, id)?;
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
        commit: &str,
        file: &str,
        say: &mut impl FnMut(&str),
    ) -> Result<(), FetchError> {
        let what = format!("{file} of {id}");
        let url = file_url(&self.client.endpoint, id, commit, file);
        let meta = self.client.meta(&url, &what)?;
        let blob = snapshots.blob(&meta.etag);
        let _lock = Lock::take(&snapshots.lock(&meta.etag), say)?;
        if !blob.exists() {
            let part = snapshots.part(&meta.etag);
            self.client.fetch(&url, meta.size, &part, &what)?;
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

/// What to fetch, the model's own file or its config first; safetensors before GGUF.
fn choose(files: &[String], wanted: Option<&str>) -> Result<Vec<String>, String> {
    let has = |name: &str| files.iter().any(|file| file == name);
    if let Some(file) = wanted {
        return match has(file) {
            true => Ok(vec![file.to_owned()]),
            false => Err(format!("it has no file {file}")),
        };
    }
    let weights = WEIGHTS.iter().position(|name| has(name));
    // A GGUF file runs as it is, PyTorch's weights do not.
    let runs = weights.is_some_and(|at| at < 2) || !files.iter().any(|file| file.ends_with(".gguf"));
    if let (true, Some(at), true) = (has(CONFIG), weights, runs) {
        let is_licence = |file: &&String| {
            let name = file.to_uppercase();
            !file.contains('/') && LICENCES.iter().any(|start| name.starts_with(start))
        };
        let small = SMALL_FILES.iter().copied().filter(|name| has(name)).map(str::to_owned);
        let licences = files.iter().filter(is_licence).cloned();
        let chosen = [CONFIG.to_owned()].into_iter().chain(small).chain(licences);
        return Ok(chosen.chain([WEIGHTS[at].to_owned()]).collect());
    }
    let gguf: Vec<&String> = files.iter().filter(|file| file.ends_with(".gguf")).collect();
    match gguf[..] {
        [file] => Ok(vec![file.clone()]),
        [] => Err("neither config.json with model.safetensors nor a .gguf file".into()),
        _ => {
            let names: Vec<&str> = gguf.iter().map(|file| file.as_str()).collect();
            Err(format!("it has several .gguf files, name one as owner/name/FILE: {}", names.join(", ")))
        }
    }
}

/// Large files have their sha256 for an etag, small ones the sha1 that git gives them; others are not known.
fn verify(path: &Path, etag: &str, what: &str) -> Result<(), FetchError> {
    let found = match etag.len() {
        64 => hash::of_file(path),
        40 => hash::git_blob(path),
        _ => return Ok(()),
    };
    let found = found.map_err(|error| FetchError::Io { path: path.to_owned(), error })?;
    match found == etag {
        true => Ok(()),
        false => Err(FetchError::Hash { what: what.to_owned(), expected: etag.to_owned(), found }),
    }
}

/// No index of shards is longer.
const INDEX_BYTES: u64 = 64 << 20;

fn shards(index: &Path) -> Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let name = index.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let wrong = |what: String| format!("{name}: {what}");
    let length = fs::metadata(index).map_err(|error| wrong(error.to_string()))?.len();
    if length > INDEX_BYTES {
        return Err(wrong(format!("it has {length} bytes, expected {INDEX_BYTES} at most")));
    }
    let bytes = fs::read(index).map_err(|error| wrong(error.to_string()))?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort();
    shards.dedup();
    Ok(shards)
}
