//! Opens models whose tensors are split over several files, as `llama-gguf-split` writes them: the first part holds
//! the metadata, and each part holds some of the tensors. The checks are those of llama.cpp's loader.

use std::path::{Path, PathBuf};

use super::{Gguf, Part};
use crate::{CheckpointError, PartName, is_there};

/// Opens the file, and all other parts of its model if it is any part of a split one.
pub(super) fn open(path: &Path) -> Result<Gguf, CheckpointError> {
    let named = Part::open(path)?;
    let Some(count) = named.metadata.usize("split.count").filter(|&count| count > 1) else {
        return Ok(Gguf::from(named));
    };
    let name = checked_name(&named, count)?;
    drop(named);
    let paths: Vec<PathBuf> = name.parts().map(|part| path.with_file_name(part)).collect();
    check_presence(&paths)?;
    let first = Part::open(&paths[0])?;
    check_numbers(&first, 0, count)?;
    let expected = first.metadata.usize("split.tensors.count");
    let mut model = Gguf::from(first);
    for (index, path) in paths.iter().enumerate().skip(1) {
        let part = Part::open(path)?;
        check_numbers(&part, index, count)?;
        model.add(part)?;
    }
    match (expected, model.tensors.len()) {
        (Some(expected), found) if expected == found => Ok(model),
        (Some(expected), found) => {
            let what = format!(
                "split.tensors.count is {expected}, but the {count} parts hold {found} tensors: a part is damaged or of \
                 another model; fetch all parts again"
            );
            Err(model.wrong("metadata".into(), what))
        }
        (None, _) => Err(model.lacks("split.tensors.count")),
    }
}

/// The parsed name of a part, which must agree with the part's metadata.
fn checked_name(part: &Part, count: usize) -> Result<PartName, CheckpointError> {
    if count > PartName::MAX_COUNT {
        let what = format!("split.count is {count}, expected {} parts at most", PartName::MAX_COUNT);
        return Err(part.wrong(what));
    }
    let Some(index) = part.metadata.usize("split.no").filter(|&index| index < count) else {
        return Err(part.wrong(format!("split.no is missing or no number below split.count, {count}")));
    };
    let number = index + 1;
    let name = PartName::of(&part.source.path, "gguf");
    name.filter(|name| (name.number, name.count) == (number, count)).ok_or_else(|| {
        part.wrong(format!(
            "it is part {number} of {count} of a split model, whose parts are found by their names; give this file a \
             name that ends in -{number:05}-of-{count:05}.gguf, as the others have, or join the parts \
             (llama-gguf-split --merge)"
        ))
    })
}

/// Refuses a model that lacks parts before any of them is read.
fn check_presence(paths: &[PathBuf]) -> Result<(), CheckpointError> {
    /// At most this many further missing files are named.
    const NAMED: usize = 3;
    let missing: Vec<&PathBuf> = paths.iter().filter(|path| !is_there(path)).collect();
    let Some((first, others)) = missing.split_first() else { return Ok(()) };
    let name = |path: &&PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut names: Vec<String> = others.iter().take(NAMED).map(name).collect();
    if others.len() > NAMED {
        names.push(format!("{} more", others.len() - NAMED));
    }
    let too = if names.is_empty() { String::new() } else { format!(" (and {})", names.join(", ")) };
    let what = format!(
        "this part of the model is missing{too}; all {} parts are needed, in one directory and under their own names",
        paths.len()
    );
    Err(CheckpointError::Format { path: (*first).clone(), place: "split model".into(), what })
}

/// Refuses a part whose metadata states another number, or another count, than its name.
fn check_numbers(part: &Part, index: usize, count: usize) -> Result<(), CheckpointError> {
    match part.metadata.usize("split.no") {
        Some(found) if found == index => {}
        found => {
            let found = found.map_or("missing".to_owned(), |found| found.to_string());
            return Err(part.wrong(format!(
                "split.no is {found}, expected {index}, as this is part {} by its name; fetch it again",
                index + 1
            )));
        }
    }
    match part.metadata.usize("split.count") {
        Some(found) if found != count => Err(part.wrong(format!(
            "split.count is {found}, and {count} in the part that was named: they are of different models"
        ))),
        _ => Ok(()),
    }
}
