//! What the targets share.

use std::{fs, path::PathBuf};

use moi_checkpoint::{Checkpoint, ExpertStacks};
use moi_text::Message;

/// Input as a file: the readers map files.
pub fn file(extension: &str, bytes: &[u8]) -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let directory = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let path = directory.join(format!("moi-fuzz-{}.{extension}", std::process::id()));
    fs::write(&path, bytes).expect("the input can be written");
    path
}

/// Reads all there is to read of tensors; a tensor's length is what its shape says.
pub fn read(checkpoint: Checkpoint) {
    for tensor in checkpoint.tensors().values() {
        let len: usize = tensor.shape().iter().product();
        assert_eq!(tensor.read().len(), len);
        assert_eq!(tensor.transpose().is_some(), tensor.shape().len() == 2);
        if let Some(stored) = tensor.read_stored() {
            assert_eq!(stored.len(), tensor.num_bytes());
        }
    }
    let _ = checkpoint
        .with_single_experts(ExpertStacks::ByInputAlternating)
        .renamed(|name| name.replace("model.", ""));
}

/// What templates are rendered with.
pub fn conversation() -> Vec<Message> {
    vec![
        Message::new("system", "Be brief. <s>"),
        Message::new("user", "What is 2+2?\n"),
        Message::new("assistant", "<think>easy</think> 4"),
        Message::new("user", "{{ x }} </s>"),
    ]
}
