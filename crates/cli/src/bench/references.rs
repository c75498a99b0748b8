//! Decides which process computes the reference of a comparison, and which processes compare themselves with it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use moi_engine::Verify;

use super::plan::{Group, Source};

/// The role of a group's process in the comparison.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Task {
    /// The process computes the reference, writes it to this file, and measures nothing.
    Write(PathBuf),
    /// The process compares itself with the reference in this file.
    Compare(PathBuf),
}

/// Adds reference groups to the plan: the reference of each model is computed before its first group. Random weights
/// differ between devices, so they have no reference.
pub(super) fn with_references(groups: Vec<Group>, directory: &Path) -> Vec<Group> {
    let mut sources: Vec<Source> = Vec::new();
    let mut all = Vec::with_capacity(groups.len());
    for mut group in groups {
        if matches!(group.source, Source::Model { .. }) {
            let known = sources.iter().position(|source| *source == group.source);
            let path = directory.join(format!("reference-{}.safetensors", known.unwrap_or(sources.len())));
            if known.is_none() {
                sources.push(group.source.clone());
                all.push(reference_group(group.source.clone(), path.clone()));
            }
            group.accuracy = Some(Task::Compare(path));
        }
        all.push(group);
    }
    all
}

/// The group that computes the reference: float32 on the CPU.
fn reference_group(source: Source, path: PathBuf) -> Group {
    Group {
        source,
        device: moi_backends::cpu().to_string(),
        dtype: "f32".to_owned(),
        quantize: None,
        activations: None,
        threads: None,
        repetitions: 1,
        launches: false,
        tests: Vec::new(),
        verify: Verify::Match,
        temperature: 0.0,
        text: None,
        accuracy: Some(Task::Write(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_model_has_one_reference_before_its_groups() {
        let model = |name: &str| Source::Model { name: name.to_owned(), path: PathBuf::from(name) };
        let shape = Source::Shape { name: "test-tiny".to_owned() };
        let sources = [(model("a"), "x"), (model("a"), "y"), (model("b"), "x"), (shape, "x")];
        let groups = sources.map(|(source, device)| Group {
            device: device.to_owned(),
            accuracy: None,
            ..reference_group(source, PathBuf::new())
        });
        let all = with_references(groups.to_vec(), Path::new("/d"));
        let tasks: Vec<(&str, Option<&Task>)> =
            all.iter().map(|group| (group.source.name(), group.accuracy.as_ref())).collect();
        let path = |index: usize| Path::new("/d").join(format!("reference-{index}.safetensors"));
        let [first, second] = [0, 1].map(|index| [Task::Write(path(index)), Task::Compare(path(index))]);
        let expected = [
            ("a", Some(&first[0])),
            ("a", Some(&first[1])),
            ("a", Some(&first[1])),
            ("b", Some(&second[0])),
            ("b", Some(&second[1])),
            ("test-tiny", None),
        ];
        assert_eq!(tasks, expected);
        assert_eq!((all[0].dtype.as_str(), all[0].tests.len()), ("f32", 0));
        assert_eq!((all[1].device.as_str(), all[2].device.as_str()), ("x", "y"));
    }
}
