//! Any other repository of the hub.

use std::path::{Path, PathBuf};

use hf_hub::{
    Repo, RepoType,
    api::sync::{Api, ApiRepo},
};

use crate::{FetchError, Fetcher, hash};

const CONFIG: &str = "config.json";
/// Beside config and weights; a repository has some of them.
const SMALL_FILES: &[&str] =
    &["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

impl Fetcher {
    /// The files of a model in a hub repository, `owner/name`, in the hub's own cache: a directory in
    /// Hugging Face layout, or a GGUF file. `owner/name/FILE.gguf` names one of several GGUF files.
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
        let revision = revision.unwrap_or("main").to_owned();
        let repo = Repo::with_revision(id.clone(), RepoType::Model, revision);
        if let Err(unreachable) = self.check_reachable() {
            // What another run, or another tool, has fetched is still good.
            let cached = hf_hub::Cache::from_env().repo(repo).get(wanted.unwrap_or(CONFIG));
            let cached = cached.ok_or(unreachable)?;
            say(&format!("the hub cannot be reached; using the cached files of {id}"));
            return Ok(place(cached, wanted));
        }
        let api = self.api(None)?;
        let handle = api.repo(repo);
        let what = || id.clone();
        let info =
            handle.info().map_err(|error| FetchError::Hub { what: what(), reason: error.to_string() })?;
        let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let chosen =
            choose(&files, wanted).map_err(|what| FetchError::NoModel { repository: id.clone(), what })?;
        say(&format!("fetching {id} from the hub: {}", chosen.join(", ")));
        let mut first = None;
        for file in &chosen {
            let path = get(&api, &handle, &id, file)?;
            if file == INDEX {
                for shard in shards(&path, &id)? {
                    get(&api, &handle, &id, &shard)?;
                }
            }
            first.get_or_insert(path);
        }
        let first = first.ok_or_else(|| FetchError::NoModel { repository: id, what: "no files".into() })?;
        Ok(place(first, wanted.or(chosen[0].ends_with(".gguf").then_some(""))))
    }
}

/// A GGUF file itself, or the directory of a config.
fn place(path: PathBuf, gguf: Option<&str>) -> PathBuf {
    match (gguf, path.parent()) {
        (None, Some(directory)) => directory.to_owned(),
        _ => path,
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
    let weights = [SINGLE, INDEX].into_iter().find(|name| has(name));
    if let (true, Some(weights)) = (has(CONFIG), weights) {
        let small = SMALL_FILES.iter().copied().filter(|name| has(name));
        return Ok([CONFIG].into_iter().chain(small).chain([weights]).map(str::to_owned).collect());
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

/// Fetches one file and checks its hash where the hub tells it.
fn get(api: &Api, handle: &ApiRepo, id: &str, file: &str) -> Result<PathBuf, FetchError> {
    let what = || format!("{file} of {id}");
    let refused = |reason: String| FetchError::Hub { what: what(), reason };
    let path = handle.get(file).map_err(|error| refused(error.to_string()))?;
    let blob = path.canonicalize().map_err(|error| FetchError::Io { path: path.clone(), error })?;
    // Large files are stored under their sha256, small ones under a git hash of 40 digits.
    let etag = api.metadata(&handle.url(file)).map_err(|error| refused(error.to_string()))?.etag().to_owned();
    if etag.len() == 64 {
        let found = hash::of_file(&blob).map_err(|error| FetchError::Io { path: blob.clone(), error })?;
        if found != etag {
            for broken in [&path, &blob] {
                std::fs::remove_file(broken)
                    .map_err(|error| FetchError::Io { path: broken.clone(), error })?;
            }
            return Err(FetchError::Hash { what: what(), expected: etag, found });
        }
    }
    Ok(path)
}

fn shards(index: &Path, id: &str) -> Result<Vec<String>, FetchError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let wrong =
        |what: String| FetchError::NoModel { repository: id.to_owned(), what: format!("{INDEX}: {what}") };
    let bytes = std::fs::read(index).map_err(|error| wrong(error.to_string()))?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort();
    shards.dedup();
    Ok(shards)
}
