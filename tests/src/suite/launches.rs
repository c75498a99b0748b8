//! Counts the kernel launches per token on every GPU, and checks an upper bound.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use moi_backends::{Job, count_launches, launches, run};
use moi_engine::{Engine, InputRule, Prompt, Request, Sampling, Support};
use moi_models::{CausalLm, DecoderConfig, use_gpu_kernels};
use moi_pretrained::WeightForm;

use super::{decoded_checkpoints, devices, load, options};

/// Parts of the names of options that tensor operations compute between kernels.
const BETWEEN_KERNELS: &[&str] = &[
    "gate ",
    "value norm",
    "keys as values",
    "another layer's keys",
    "true))",
    "output scale",
    "inputs of each layer",
    "Xielu",
    "normed embedding",
    "other norms behind",
    "queries that grow",
    "delta net",
    "Mamba 2",
    "attention over latents",
    "short convolution",
];

/// Launches by kernel name.
type Counts = BTreeMap<String, usize>;

/// Launches per token in the middle of a generation.
fn of_token<B: Backend, M: CausalLm<B>>(
    engine: &Engine<B, M>,
    rule: InputRule,
    sampling: Sampling,
) -> Counts {
    const TOKENS: usize = 6;
    let counted = |tokens| {
        let mut request = Request::new(Prompt::Ids(vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]));
        (request.rule, request.sampling) = (rule, sampling.clone());
        request.stop.max_tokens = Some(tokens);
        request.stop.ignore_eos = true;
        let before = launches().unwrap();
        assert_eq!(engine.generate(request).unwrap().map(Result::unwrap).count(), tokens);
        let mut counts = launches().unwrap();
        counts.iter_mut().for_each(|(name, count)| *count -= before.get(name).unwrap_or(&0));
        counts
    };
    // The first run may compile kernels, run checks and grow buffers.
    counted(2);
    let (few, many) = (counted(TOKENS), counted(2 * TOKENS));
    many.into_iter()
        .map(|(name, count)| (name.clone(), (count - few.get(&name).unwrap_or(&0)) as f64 / TOKENS as f64))
        .filter(|(_, count)| *count > 0.0)
        .map(|(name, count)| (name, count.round() as usize))
        .collect()
}

struct Count {
    checkpoint: &'static str,
}

impl Job for Count {
    /// The model's configuration, and the launches of each rule.
    type Output = (DecoderConfig, Vec<(&'static str, Counts)>);

    fn run<B: Backend>(self, device: &B::Device) -> Self::Output {
        let (_, decoder) = load::<B>(self.checkpoint, WeightForm::F32, device);
        let config = decoder.config().clone();
        let engine = Engine::new(decoder, device.clone());
        let drawn = Sampling {
            temperature: 0.8.into(),
            top_k: 40.into(),
            top_p: 0.9.into(),
            min_p: 0.01.into(),
            ..Sampling::default()
        };
        let cases = [
            ("token", InputRule::TOKEN, Sampling::default()),
            ("moi", InputRule::default(), Sampling::default()),
            ("moi:support=20", InputRule::moi(1.0, Support::TopK(20)).unwrap(), drawn),
        ];
        let counts = cases.map(|(name, rule, sampling)| (name, of_token(&engine, rule, sampling)));
        use_gpu_kernels(false);
        let without = of_token(&engine, InputRule::default(), Sampling::default());
        use_gpu_kernels(true);
        (config, counts.into_iter().chain([("moi by tensor operations", without)]).collect())
    }
}

/// Fails if a token takes more launches than it should. Run this test in its own process, because the counter covers
/// the whole process.
pub fn few_launches() {
    let file = std::env::temp_dir().join(format!("moi-launches-{}.txt", std::process::id()));
    assert!(count_launches(file.clone()));
    for device in devices().into_iter().filter(|device| device.kind().is_gpu()) {
        for &checkpoint in decoded_checkpoints() {
            let (config, counts) = run(device, Count { checkpoint }).unwrap();
            let (layers, options) = (config.layers.len(), options(&config));
            for (rule, counts) in &counts {
                let all: usize = counts.values().sum();
                println!(
                    "{device}: {checkpoint}: {rule}: {all} launches a token, {layers} layers: {counts:?}"
                );
            }
            let of = |index: usize| -> usize { counts[index].1.values().sum() };
            // Whatever the rule and the sampling, three launches make the next input, if it is a sum of rows of one
            // table.
            if config.per_layer_inputs.is_none() && config.embedding_norm.is_none() {
                assert_eq!((of(0), of(0)), (of(1), of(2)), "{checkpoint}");
                for name in ["SurveyKernel", "DecideKernel", "BlendKernel"] {
                    assert_eq!(counts[1].1.get(name), Some(&1), "{checkpoint}: {name}");
                }
            }
            assert!(of(1) < of(3), "{checkpoint}: {} launches, {} by tensor operations", of(1), of(3));
            // Some options run as tensor operations between kernels. Everything else takes eight launches per layer,
            // ten with experts, plus some outside the layers.
            let is_by_kernels = |option: &String| !BETWEEN_KERNELS.iter().any(|part| option.contains(part));
            if options.iter().all(is_by_kernels) {
                assert!(of(1) <= 10 * layers + 12, "{checkpoint}: {} launches", of(1));
                assert!(
                    of(1) * 2 <= of(3),
                    "{checkpoint}: {} launches, {} by tensor operations",
                    of(1),
                    of(3)
                );
            }
        }
    }
    std::fs::remove_file(file).unwrap();
}
