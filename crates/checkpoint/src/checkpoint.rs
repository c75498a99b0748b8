//! The tensors of one model, by name.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use moi_formats::ExpertStacks;

use crate::{CheckpointError, LazyTensor};

/// The named tensors of one model.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub(crate) path: PathBuf,
    pub(crate) tensors: BTreeMap<String, LazyTensor>,
    /// What a user should know of the files.
    pub(crate) notes: Vec<String>,
    /// Whether names are those of the decoder's parameters, whatever the architecture's own are.
    pub(crate) is_by_parameter: bool,
}

impl Checkpoint {
    /// The file it was read from, or the index of several.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a user should know of the files: nothing that hinders, but results may not be what is expected.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, LazyTensor> {
        &self.tensors
    }

    /// Whether tensors have the names of the decoder's parameters, and are as these, whatever published files of the
    /// architecture have.
    pub fn is_by_parameter(&self) -> bool {
        self.is_by_parameter
    }

    /// Bytes of all tensors in their files.
    pub fn num_bytes(&self) -> usize {
        self.tensors.values().map(LazyTensor::num_bytes).sum()
    }

    /// The same tensors under other names.
    ///
    /// # Errors
    /// If two of them get the same name.
    pub fn renamed(self, name: impl Fn(&str) -> String) -> Result<Self, CheckpointError> {
        let Self { path, tensors: old, notes, is_by_parameter } = self;
        let mut tensors = BTreeMap::new();
        for (old, tensor) in old {
            let new = name(&old);
            if tensors.insert(new.clone(), tensor).is_some() {
                let what = format!("it stands there a second time under the name `{old}`");
                return Err(CheckpointError::Format { path, place: format!("tensor `{new}`"), what });
            }
        }
        Ok(Self { path, tensors, notes, is_by_parameter })
    }

    /// With the experts of a mixture one by one, where they are stored as stacks: `X.experts.gate_up_proj`
    /// `[n, 2 inner, d]` and `X.experts.down_proj` `[n, d, inner]` become `X.experts.E.gate_proj.weight` ...
    pub fn with_single_experts(mut self, stacks: ExpertStacks) -> Self {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let parts = split_experts(&name, &tensor, stacks);
            match parts.is_empty() {
                true => drop(tensors.insert(name, tensor)),
                false => tensors.extend(parts),
            }
        }
        Self { tensors, ..self }
    }
}

/// More experts than any layer has.
pub(crate) const MOST_EXPERTS: usize = 1 << 12;

/// The module, the map and the kind of values of a stack with this name, if it is one.
fn stack_of(name: &str, stacks: ExpertStacks) -> Option<(&str, &str, &str)> {
    if stacks == ExpertStacks::InputLinear {
        let (rest, kind) = name.rsplit_once('.')?;
        let (prefix, map) = rest.rsplit_once('.')?;
        let map = match map {
            "input_linear" => "gate_up_proj",
            "output_linear" => "down_proj",
            _ => return None,
        };
        return Some((prefix, map, kind));
    }
    let (prefix, part) = name.rsplit_once(".experts.")?;
    let (map, kind) = part.strip_suffix("_bias").map_or((part, "weight"), |map| (map, "bias"));
    ["gate_up_proj", "up_proj", "down_proj"].contains(&map).then_some((prefix, map, kind))
}

fn split_experts(name: &str, tensor: &LazyTensor, stacks: ExpertStacks) -> Vec<(String, LazyTensor)> {
    let Some((prefix, map, kind)) = stack_of(name, stacks) else { return Vec::new() };
    let &[count, ..] = tensor.shape() else { return Vec::new() };
    let is_stack = tensor.shape().len() == if kind == "bias" { 2 } else { 3 };
    if !is_stack || count > MOST_EXPERTS || tensor.shape().contains(&0) {
        return Vec::new();
    }
    let expert = |index: usize| {
        let own = match kind {
            "bias" => tensor.slice_rows(index, 1)?.as_vector(),
            _ => match stacks {
                ExpertStacks::ByOutput | ExpertStacks::InputLinear => tensor.matrix(index)?,
                ExpertStacks::ByInput | ExpertStacks::ByInputAlternating => {
                    tensor.matrix(index)?.transpose()?
                }
            },
        };
        let name = |map: &str| format!("{prefix}.experts.{index}.{map}.{kind}");
        // One map, which has no gate beside it.
        if map != "gate_up_proj" {
            return Some(vec![(name(map), own)]);
        }
        let rows = own.shape()[0];
        if !rows.is_multiple_of(2) {
            return None;
        }
        let part = |number: usize| match stacks {
            ExpertStacks::ByInputAlternating => own.every(2, number),
            _ => own.select_rows(1, rows, number * rows / 2, rows / 2),
        };
        Some(vec![(name("gate_proj"), part(0)?), (name("up_proj"), part(1)?)])
    };
    (0..count).filter_map(expert).flatten().collect()
}
