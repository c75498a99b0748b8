//! Any other repository of the hub.

use std::{
    fs,
    path::{Path, PathBuf},
};

use hf_hub::{Cache, Repo, RepoType};

use crate::{FetchError, Fetcher, hash};

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
        let snapshot = Snapshot { id: &id, cache: self.hub_cache.clone() };
        if let Err(unreachable) = self.check_reachable() {
            // What another run, or another tool, has fetched is still good.
            let directory = snapshot.cached(revision).ok_or(unreachable)?;
            say(&format!("the hub cannot be reached; using the cached files of {id}"));
            return Ok(wanted.map_or(directory.clone(), |file| directory.join(file)));
        }
        let refused = |error: hf_hub::api::sync::ApiError| FetchError::Hub {
            what: id.clone(),
            reason: error.to_string(),
        };
        let api = self.api(self.hub_cache.path().clone())?;
        let info = api.repo(repo(&id, revision)).info().map_err(refused)?;
        let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let no_model = |what| FetchError::NoModel { repository: id.clone(), what };
        let mut chosen = choose(&files, wanted).map_err(no_model)?;
        say(&format!("fetching {id} from the hub: {}", chosen.join(", ")));
        let handle = api.repo(repo(&id, &info.sha));
        let directory = snapshot.directory(&info.sha);
        let mut next = 0;
        while let Some(file) = chosen.get(next).cloned() {
            if !directory.join(&file).exists() {
                let path = handle.download(&file).map_err(refused)?;
                verify(&path, &format!("{file} of {id}"))?;
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
        let named = snapshot.cache.repo(repo(&id, revision)).create_ref(&info.sha);
        named.map_err(|error| FetchError::Io { path: directory.clone(), error })?;
        Ok(match chosen.as_slice() {
            [gguf] if gguf.ends_with(".gguf") => directory.join(gguf),
            _ => directory,
        })
    }
}

fn repo(id: &str, revision: &str) -> Repo {
    Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned())
}

/// A repository in the hub's cache, whose layout is fixed: `models--owner--name/{blobs,refs,snapshots}`.
struct Snapshot<'a> {
    id: &'a str,
    cache: Cache,
}

impl Snapshot<'_> {
    /// The files of a commit.
    fn directory(&self, commit: &str) -> PathBuf {
        self.cache.repo(repo(self.id, commit)).pointer_path(commit)
    }

    /// The files of the commit that a revision named when it was fetched.
    fn cached(&self, revision: &str) -> Option<PathBuf> {
        let reference =
            self.cache.path().join(repo(self.id, revision).folder_name()).join("refs").join(revision);
        let commit = fs::read_to_string(reference).unwrap_or_else(|_| revision.to_owned());
        Some(self.directory(commit.trim())).filter(|directory| directory.is_dir())
    }
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

/// Large files lie under their sha256, small ones under a git hash of 40 digits: checks the former.
fn verify(path: &Path, what: &str) -> Result<(), FetchError> {
    let io_error = |error| FetchError::Io { path: path.to_owned(), error };
    let blob = path.canonicalize().map_err(io_error)?;
    let expected = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if expected.len() != 64 {
        return Ok(());
    }
    let found = hash::of_file(&blob).map_err(io_error)?;
    if found == expected {
        return Ok(());
    }
    for broken in [path, &blob] {
        fs::remove_file(broken).map_err(io_error)?;
    }
    Err(FetchError::Hash { what: what.to_owned(), expected, found })
}

fn shards(index: &Path) -> Result<Vec<String>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let name = index.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let wrong = |what: String| format!("{name}: {what}");
    let bytes = fs::read(index).map_err(|error| wrong(error.to_string()))?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort();
    shards.dedup();
    Ok(shards)
}
