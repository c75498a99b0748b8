//! Opens sharded safetensors and merges the shards as transformers does: every tensor of every shard that the index
//! names counts, even if the index does not list it, and if two shards have a tensor of the same name, the later
//! shard's counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;

use crate::{
    CheckpointError, LazyTensor, PartName,
    file::{INDEX_BYTES, is_there, parse_json, read_file, shown},
    safetensors::open_file,
    unique::Unique,
};

/// The tensors of all shards, and messages about them for the user.
pub(crate) struct Merged {
    pub(crate) tensors: BTreeMap<String, LazyTensor>,
    pub(crate) notes: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

/// Opens the shards that an index names. A tensor that the index lists but no shard holds is only an error if the
/// model needs it.
pub(crate) fn open_indexed(directory: &Path, index: &Path) -> Result<Merged, CheckpointError> {
    let wrong = |place: String, what: String| CheckpointError::Format { path: index.to_owned(), place, what };
    let text = read_file(index, INDEX_BYTES)?;
    let Index { weight_map: Unique(weight_map) } =
        parse_json(&text).map_err(|what| wrong("index".into(), what))?;
    let mut shards: BTreeSet<String> = BTreeSet::new();
    for shard in weight_map.values() {
        let Some(plain) = plain(shard) else {
            let what = "a shard must be a file of the same directory or below it".to_owned();
            return Err(wrong(format!("shard `{shard}`"), what));
        };
        shards.insert(plain);
    }
    merge(directory, shards.iter().map(String::as_str), |shard, error| {
        let what = format!("it cannot be opened: {error}; fetch the model again");
        wrong(format!("shard `{shard}`"), what)
    })
}

/// The path of a shard without `./`, so that each file has one name; `None` if the path leads out of the directory.
fn plain(shard: &str) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for component in Path::new(shard).components() {
        match component {
            Component::Normal(name) => names.push(name.to_str()?),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::ParentDir => return None,
        }
    }
    (!names.is_empty()).then(|| names.join("/"))
}

/// Opens shards without an index, `model-00001-of-00002.safetensors` and so on, if all shards of one model are there.
/// `None` if there are no shards.
pub(crate) fn open_unindexed(directory: &Path) -> Result<Option<Merged>, CheckpointError> {
    let Some(found) = unindexed(directory)? else { return Ok(None) };
    let names: Vec<String> = found.parts().collect();
    let missing: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !is_there(&directory.join(name))).collect();
    if !missing.is_empty() {
        let what = format!(
            "of {} shards these are missing: {}; fetch them, and model.safetensors.index.json",
            found.count,
            shown(&missing.join(", "))
        );
        return Err(CheckpointError::Format { path: directory.to_owned(), place: "shards".into(), what });
    }
    let merged = merge(directory, names.iter().map(String::as_str), |shard, error| CheckpointError::Io {
        path: directory.join(shard),
        error,
    })?;
    Ok(Some(merged))
}

/// A shard of the only sharded model in the directory; if there are several, of the one with transformers' usual file
/// name.
fn unindexed(directory: &Path) -> Result<Option<PartName>, CheckpointError> {
    let io = |error| CheckpointError::Io { path: directory.to_owned(), error };
    let mut found: Vec<PartName> = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path: PathBuf = entry.map_err(io)?.path();
        if let Some(part) = PartName::of(&path, "safetensors")
            && !found.iter().any(|known| known.is_beside(&part))
        {
            found.push(part);
        }
    }
    found.sort();
    if found.len() > 1 && found.iter().filter(|part| part.prefix == "model").count() == 1 {
        found.retain(|part| part.prefix == "model");
    }
    match &found[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        several => {
            let names: Vec<String> = several.iter().map(|part| part.part(1)).collect();
            let what = format!(
                "it holds shards of several models ({}), and no model.safetensors.index.json that says which count",
                shown(&names.join(", "))
            );
            Err(CheckpointError::Format { path: directory.to_owned(), place: "shards".into(), what })
        }
    }
}

/// Merges shards, which are given in order.
fn merge<'a>(
    directory: &Path,
    shards: impl Iterator<Item = &'a str>,
    unopened: impl Fn(&str, std::io::Error) -> CheckpointError,
) -> Result<Merged, CheckpointError> {
    let mut tensors: BTreeMap<String, LazyTensor> = BTreeMap::new();
    let mut differing: Vec<String> = Vec::new();
    for shard in shards {
        let opened = open_file(&directory.join(shard)).map_err(|error| match error {
            CheckpointError::Io { error, .. } => unopened(shard, error),
            other => other,
        })?;
        for (name, tensor) in opened {
            if tensors.get(&name).is_some_and(|before| !before.same_bytes(&tensor)) {
                differing.push(name.clone());
            }
            tensors.insert(name, tensor);
        }
    }
    let note = differing.first().map(|name| {
        let others = differing.len() - 1;
        let more = if others > 0 { format!(" and {others} more") } else { String::new() };
        format!(
            "tensor `{}`{more} stands in several shards with other values; the last shard's count, as in transformers",
            shown(name)
        )
    });
    Ok(Merged { tensors, notes: note.into_iter().collect() })
}
