//! Heads other than the language model's head. They do not take part in generating text, and transformers leaves them
//! out of a causal language model.

use moi_checkpoint::Checkpoint;

use crate::contents;

/// Whether a tensor belongs to a head that classifies or scores texts, or that predicts several tokens at once.
pub(crate) fn is_extra_head(name: &str) -> bool {
    let starts = ["v_head.", "classifier.", "mtp.", "model.mtp."];
    name == "score.weight" || starts.iter().any(|start| name.starts_with(start))
}

/// A note on the tensors of such heads that are left out.
pub(crate) fn left_out(checkpoint: &Checkpoint) -> Option<String> {
    let names: Vec<&str> =
        checkpoint.tensors().keys().map(String::as_str).filter(|name| is_extra_head(name)).collect();
    (!names.is_empty())
        .then(|| format!("tensors of heads that generate no text are left out: {}", contents::list(&names)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_told_by_their_names() {
        for name in
            ["score.weight", "v_head.summary.bias", "classifier.weight", "mtp.fc.weight", "model.mtp.0.norm"]
        {
            assert!(is_extra_head(name), "{name}");
        }
        for name in ["lm_head.weight", "model.layers.0.mlp.score.weight", "score", "model.norm.weight", "mtp"]
        {
            assert!(!is_extra_head(name), "{name}");
        }
    }
}
