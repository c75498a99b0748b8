//! Numbers that go wrong: checkpoints with a weight that is not finite, and what a generation says of it.

use std::{fs, path::Path};

use burn::tensor::backend::Backend;
use moi_engine::{Engine, EngineError, InputRule, Origin, Prompt, Request};
use moi_pretrained::{Pretrained, WeightForm};
use safetensors::SafeTensors;

use crate::golden::Golden;

/// A copy of a golden checkpoint in one file, with other values in some of a tensor's places.
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
            // Of bfloat16.
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

/// Of the greedy run without mixing.
pub fn prompt(golden: &Golden) -> Vec<u32> {
    golden.cases.runs.iter().find(|run| run.rule() == InputRule::TOKEN).unwrap().prompt.clone()
}

/// What came until the error, and the error.
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

/// Checks where numbers are said to break, on a device.
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

    // Finite weights whose products are not.
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

/// A copy of a checkpoint whose head is a matrix of its own, with a row of the embedding broken that is first used when
/// its token was generated greedily; and the tokens up to there.
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
