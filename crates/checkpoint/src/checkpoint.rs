//! The named tensors of one model.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use moi_formats::ExpertStacks;

use crate::{CheckpointError, LazyTensor};

/// The named tensors of one model.
///
/// # Examples
/// ```
/// use moi_checkpoint::open_safetensors;
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("weight", view)], None)?)?;
/// let checkpoint = open_safetensors(&path)?; // one tensor, `weight`, of 2 x 2 values in float32
/// assert_eq!(checkpoint.num_bytes(), 16);
/// let renamed = checkpoint.renamed(|name| format!("lm_head.{name}"))?;
/// assert!(renamed.tensors().contains_key("lm_head.weight"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub(crate) path: PathBuf,
    pub(crate) tensors: BTreeMap<String, LazyTensor>,
    /// Messages about the files for the user.
    pub(crate) notes: Vec<String>,
    /// Whether tensors have the names of the decoder's parameters instead of the architecture's published names.
    pub(crate) is_by_parameter: bool,
}

impl Checkpoint {
    /// The file that the checkpoint was read from, or the index of several files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Messages about the files for the user: not errors, but results may differ from what is expected.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, LazyTensor> {
        &self.tensors
    }

    /// Whether tensors have the names and layout of the decoder's parameters, instead of those of the architecture's
    /// published files.
    pub fn is_by_parameter(&self) -> bool {
        self.is_by_parameter
    }

    /// Bytes that all tensors take in their files.
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

    /// Splits stacked experts of a mixture-of-experts model into single experts: `X.experts.gate_up_proj` `[n, 2
    /// inner, d]` and `X.experts.down_proj` `[n, d, inner]` become `X.experts.E.gate_proj.weight` and so on.
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

/// Most experts of a layer, which is more than any model has.
pub(crate) const MAX_EXPERTS: usize = 1 << 12;

/// The module, the linear layer and the kind of values (weight or bias) of a stack with this name, if it is a stack.
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
    if !is_stack || count > MAX_EXPERTS || tensor.shape().contains(&0) {
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
        // This is a single linear layer, not a fused pair of gate and up.
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
