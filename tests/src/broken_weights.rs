//! Checkpoints with weights that are NaN or infinite, and the errors that a generation with them must report.

use std::{fs, path::Path};

use burn::tensor::backend::Backend;
use moi_engine::{Engine, EngineError, InputRule, Origin, Prompt, Request};
use moi_pretrained::{Pretrained, WeightForm};
use safetensors::SafeTensors;

use crate::golden::Golden;

/// A copy of a golden checkpoint in one file, with other values in some places of a tensor.
pub fn with_values(golden: &Golden, tensor: &str, at: impl Fn(usize) -> Option<f32>) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(golden.path.join("config.json"), directory.path().join("config.json")).unwrap();
    let path = directory.path().join("model.safetensors");
    let mut bytes = fs::read(golden.path.join("model.safetensors")).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let info = metadata.info(tensor).unwrap();
    let (from, to) = info.data_offsets;
    let size = (to - from) / info.shape.iter().product::<usize>();
    let data = &mut bytes[8 + header + from..8 + header + to];
    for (index, place) in data.chunks_exact_mut(size).enumerate() {
        match (at(index), size) {
            (Some(value), 4) => place.copy_from_slice(&value.to_le_bytes()),
            // The upper two bytes of a float32 are the bfloat16.
            (Some(value), 2) => place.copy_from_slice(&value.to_le_bytes()[2..]),
            (None, _) => {}
            (Some(_), size) => panic!("values of {size} bytes"),
        }
    }
    fs::write(path, bytes).unwrap();
    directory
}

fn engine<B: Backend>(
    path: &Path,
    form: WeightForm,
    device: &B::Device,
) -> Engine<B, moi_models::Decoder<B>> {
    let model = Pretrained::open(path).unwrap().load::<B>(device, form, |_| {}).unwrap();
    Engine::new(model, device.clone())
}

/// The prompt of the greedy run without mixing.
pub fn prompt(golden: &Golden) -> Vec<u32> {
    golden.cases.runs.iter().find(|run| run.rule() == InputRule::TOKEN).unwrap().prompt.clone()
}

/// Runs a generation that must fail, and returns the tokens until the error, and the error.
fn failed<B: Backend>(
    engine: &Engine<B, moi_models::Decoder<B>>,
    golden: &Golden,
) -> (Vec<u32>, Origin, String) {
    let mut request = Request::new(Prompt::Ids(prompt(golden)));
    request.rule = InputRule::TOKEN;
    request.stop.max_tokens = Some(12);
    let mut tokens = Vec::new();
    for step in engine.generate(request).unwrap() {
        match step {
            Ok(step) => tokens.push(step.token),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with(&format!("the logits of step {} hold NaN", tokens.len())), "{text}");
                let EngineError::BadLogits { origin: Some(origin), .. } = error else { panic!("{error}") };
                return (tokens, *origin, text);
            }
        }
    }
    panic!("it did not fail: {tokens:?}")
}

/// Checks on a device that errors report where numbers become NaN or infinite.
pub fn check<B: Backend>(device: &B::Device) {
    let llama = Golden::read("llama");
    let nan = |index| (index == 3).then_some(f32::NAN);
    let weight = "model.layers.1.mlp.down_proj.weight";
    let broken = with_values(&llama, weight, nan);
    let (tokens, origin, text) = failed(&engine::<B>(broken.path(), WeightForm::F32, device), &llama);
    assert_eq!(
        (tokens.len(), origin.whole, origin.broken, origin.layers),
        (0, Some(1), Some(2), 3),
        "{text}"
    );
    assert_eq!(origin.weight.as_deref(), Some(weight));
    assert!(
        text.contains("between the keys of layer 1 and those of layer 2 of 3") && text.contains(weight),
        "{text}"
    );

    let broken = with_values(&llama, "model.layers.2.mlp.down_proj.weight", nan);
    let (_, origin, text) = failed(&engine::<B>(broken.path(), WeightForm::F32, device), &llama);
    assert_eq!((origin.whole, origin.broken), (Some(2), None), "{text}");

    // Finite weights with infinite products.
    let huge = with_values(&llama, "model.layers.0.mlp.down_proj.weight", |_| Some(3e38));
    let (_, origin, text) = failed(&engine::<B>(huge.path(), WeightForm::F32, device), &llama);
    assert_eq!((origin.whole, origin.broken, &origin.weight), (Some(0), Some(1), &None), "{text}");
    assert!(text.contains("overflow"), "{text}");

    let golden = Golden::read("nemotron-nas");
    let (broken, generated) = late(&golden);
    let (tokens, origin, text) = failed(&engine::<B>(broken.path(), WeightForm::F32, device), &golden);
    assert_eq!(tokens, generated, "{text}");
    assert_eq!((origin.whole, origin.broken), (None, Some(0)), "{text}");
    assert_eq!(origin.weight.as_deref(), Some("model.embed_tokens.weight"));
}

/// A copy of a checkpoint with a separate output head, in which one row of the embedding is NaN. Greedy generation
/// first uses this row as an input after it has generated that token. Returns the tokens up to that one as well.
pub fn late(golden: &Golden) -> (tempfile::TempDir, Vec<u32>) {
    let run = golden.cases.runs.iter().find(|run| run.rule() == InputRule::TOKEN).unwrap();
    let generated: Vec<u32> = run.steps.iter().map(|step| step.token).collect();
    let at = (2..6).find(|&at| !generated[..at].contains(&generated[at])).unwrap();
    let width = Pretrained::open(&golden.path).unwrap().architecture.config.hidden_size;
    let row = generated[at] as usize * width;
    let broken = with_values(golden, "model.embed_tokens.weight", |index| {
        (row..row + width).contains(&index).then_some(f32::NAN)
    });
    (broken, generated[..=at].to_vec())
}
