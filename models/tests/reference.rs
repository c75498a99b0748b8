//! Compares the decoder with a second implementation in float64, with plain loops over one position after another. It
//! covers what the golden checkpoints of transformers do not have: biases, heads wider than d / heads, linear rope,
//! each with a tied and an untied head.

#![allow(clippy::unwrap_used, reason = "a failure must end the test")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Int, Tensor, TensorData, backend::Backend},
};
use burn_flex::Flex;
use moi_models::{
    Architecture, AttentionKind, AttentionPass, CausalLm, Decoder, DecoderConfig, ForwardBatch, Kernels,
    LayerBlocks, Linear, ModelError, Span, TensorOperations, Visible,
};
use serde_json::{Value, json};

const D: usize = 24;
const INNER: usize = 20;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 10;
const VOCAB: usize = 17;
const LAYERS: usize = 2;
const FACTOR: f64 = 4.0;
const THETA: f64 = 500.0;
const EPS: f64 = 1e-5;

/// Fills a model with random weights and keeps them by name.
struct Fill {
    path: Vec<String>,
    state: u64,
    weights: HashMap<String, Vec<f64>>,
}

impl<B: Backend> ModuleMapper<B> for Fill {
    fn map_float<const N: usize>(&mut self, param: Param<Tensor<B, N>>) -> Param<Tensor<B, N>> {
        let shape = param.lazy_shape();
        let values: Vec<f32> = (0..shape.num_elements())
            .map(|_| {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                (self.state >> 40) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect();
        self.weights.insert(self.path.join("."), values.iter().map(|&x| x.into()).collect());
        let value = Tensor::from_data(TensorData::new(values, shape), &param.lazy_device());
        Param::initialized(param.id, value)
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.path.push(name.to_owned());
        }
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.path.pop();
        }
    }
}

struct Reference(HashMap<String, Vec<f64>>);

impl Reference {
    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = &self.0[&format!("{name}.weight")];
        let rows = weight.chunks(x.len());
        let mut y: Vec<f64> = rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        if let Some(bias) = self.0.get(&format!("{name}.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let weight = &self.0[&format!("{name}.weight")];
        x.iter().zip(weight).map(|(x, w)| x / (mean + EPS).sqrt() * w).collect()
    }

    /// The logits of every position.
    fn logits(&self, ids: &[usize]) -> Vec<f64> {
        let table = &self.0["model.embed_tokens.weight"];
        let mut cache = vec![(Vec::new(), Vec::new()); LAYERS];
        let mut logits = Vec::new();
        for (position, &id) in ids.iter().enumerate() {
            let mut x = table[id * D..][..D].to_vec();
            for (layer, cache) in cache.iter_mut().enumerate() {
                let name = |part: &str| format!("model.layers.{layer}.{part}");
                let attended = self.attention(
                    &name("self_attn"),
                    &self.norm(&name("input_layernorm"), &x),
                    position,
                    cache,
                );
                x.iter_mut().zip(attended).for_each(|(x, a)| *x += a);
                let fed = self.mlp(&name("mlp"), &self.norm(&name("post_attention_layernorm"), &x));
                x.iter_mut().zip(fed).for_each(|(x, f)| *x += f);
            }
            let x = self.norm("model.norm", &x);
            match self.0.contains_key("lm_head.weight") {
                true => logits.extend(self.linear("lm_head", &x)),
                false => logits
                    .extend(table.chunks(D).map(|row| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>())),
            }
        }
        logits
    }

    fn mlp(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let gate = self.linear(&format!("{name}.gate_proj"), x);
        let up = self.linear(&format!("{name}.up_proj"), x);
        let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        self.linear(&format!("{name}.down_proj"), &inner)
    }

    fn attention(
        &self,
        name: &str,
        x: &[f64],
        position: usize,
        cache: &mut (Vec<Vec<f64>>, Vec<Vec<f64>>),
    ) -> Vec<f64> {
        let project = |part: &str| self.linear(&format!("{name}.{part}"), x);
        let (q, k) = (rotate(&project("q_proj"), position), rotate(&project("k_proj"), position));
        cache.0.push(k);
        cache.1.push(project("v_proj"));
        let mut out = Vec::new();
        for (head, q) in q.chunks(HEAD_DIM).enumerate() {
            let of_group = |row: &Vec<f64>| row[head / (HEADS / KV_HEADS) * HEAD_DIM..][..HEAD_DIM].to_vec();
            let score = |k: &Vec<f64>| {
                q.iter().zip(of_group(k)).map(|(q, k)| q * k).sum::<f64>() / (HEAD_DIM as f64).sqrt()
            };
            let weights: Vec<f64> = cache.0.iter().map(|k| score(k).exp()).collect();
            let sink = self.0.get(&format!("{name}.sinks")).map(|sinks| sinks[head].exp());
            let sum: f64 = weights.iter().chain(&sink).sum();
            let values: Vec<Vec<f64>> = cache.1.iter().map(of_group).collect();
            out.extend(
                (0..HEAD_DIM).map(|i| weights.iter().zip(&values).map(|(w, v)| w * v[i]).sum::<f64>() / sum),
            );
        }
        self.linear(&format!("{name}.o_proj"), &out)
    }
}

fn rotate(heads: &[f64], position: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for head in heads.chunks(HEAD_DIM) {
        let half = HEAD_DIM / 2;
        let angle = |i: usize| position as f64 / FACTOR * THETA.powf(-((2 * i) as f64) / HEAD_DIM as f64);
        out.extend((0..half).map(|i| head[i] * angle(i).cos() - head[half + i] * angle(i).sin()));
        out.extend((0..half).map(|i| head[half + i] * angle(i).cos() + head[i] * angle(i).sin()));
    }
    out
}

fn model(changes: Value) -> (Decoder<Flex>, Reference) {
    changed_model(changes, |_| {})
}

fn changed_model(changes: Value, change: impl Fn(&mut DecoderConfig)) -> (Decoder<Flex>, Reference) {
    let mut config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": D, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "rms_norm_eps": EPS, "rope_theta": THETA,
        "rope_scaling": { "type": "linear", "factor": FACTOR },
    });
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let mut config = Architecture::from_config(&config).unwrap().config;
    change(&mut config);
    let mut fill = Fill { path: Vec::new(), state: 7, weights: HashMap::new() };
    let decoder = config.init::<Flex>(&Default::default()).map(&mut fill);
    let mut stored: Vec<(&String, usize)> = fill.weights.iter().map(|(name, w)| (name, w.len())).collect();
    let parameters = config.parameters();
    let mut listed: Vec<(&String, usize)> =
        parameters.iter().map(|(name, shape)| (name, shape.iter().product())).collect();
    stored.sort_unstable();
    listed.sort_unstable();
    assert_eq!(stored, listed, "the parameters are not listed as they are");
    (decoder, Reference(fill.weights))
}

#[test]
fn the_decoder_computes_what_plain_loops_compute() {
    let ids: Vec<usize> = (0..40).map(|i| i * 7 % VOCAB).collect();
    let tensor: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
    let input = Tensor::<Flex, 1, Int>::from_data(TensorData::new(tensor, [ids.len()]), &Default::default());
    for (attention_bias, mlp_bias, tied, sinks) in [
        (true, false, true, false),
        (false, true, false, false),
        (true, true, false, false),
        (false, false, true, true),
    ] {
        let changes = json!({
            "attention_bias": attention_bias, "mlp_bias": mlp_bias, "tie_word_embeddings": tied,
        });
        let (decoder, reference) = changed_model(changes, |config| {
            for layer in &mut config.layers {
                if let Some(AttentionKind::Heads(attention)) = &mut layer.attention {
                    attention.sinks = sinks;
                }
            }
        });
        let expected = reference.logits(&ids);
        let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        // By the build's kernels, and by tensor operations.
        for decoder in [decoder.clone(), decoder.with_kernels(Arc::new(TensorOperations))] {
            let kernels = decoder.kernels();
            let hidden = decoder.forward_whole(decoder.embed(input.clone())).unwrap();
            let found: Vec<f32> = decoder.logits(hidden).into_data().iter::<f32>().collect();
            let error =
                found.iter().zip(&expected).fold(0.0f64, |max, (&f, e)| max.max((f64::from(f) - e).abs()));
            assert_eq!(found.len(), expected.len());
            let what = format!("biases {attention_bias} {mlp_bias}, tied {tied}, sinks {sinks}, {kernels:?}");
            assert!(error / largest < 1e-5, "{what}: {}", error / largest);
        }
    }
}

/// Kernels of an app: operations that they do not override are done by tensor operations.
#[derive(Debug, Default)]
struct Counted {
    linear: AtomicUsize,
    attention: AtomicUsize,
}

impl Kernels<Flex> for Counted {
    fn linear(&self, layer: &Linear<Flex>, x: Tensor<Flex, 2>) -> Tensor<Flex, 2> {
        self.linear.fetch_add(1, Relaxed);
        layer.forward(x)
    }

    fn attention(
        &self,
        q: Tensor<Flex, 2>,
        kv: Option<[Tensor<Flex, 2>; 2]>,
        pass: &AttentionPass<'_, Flex>,
        blocks: &mut LayerBlocks<Flex>,
    ) -> Tensor<Flex, 2> {
        self.attention.fetch_add(pass.tokens(), Relaxed);
        assert_eq!(pass.runs().iter().map(|run| run.len).sum::<usize>(), pass.tokens());
        assert_eq!(pass.spans().len(), 1);
        pass.by_tensor_operations(q, kv, blocks)
    }
}

#[test]
fn an_app_gives_kernels_of_its_own() {
    let (decoder, _) = model(json!({ "tie_word_embeddings": false }));
    let input = decoder.embed(Tensor::from_ints([1, 2, 3], &Default::default()));
    let logits = |decoder: &Decoder<Flex>| decoder.logits(decoder.forward_whole(input.clone()).unwrap());
    let expected = logits(&decoder.clone().with_kernels(Arc::new(TensorOperations)));
    let counted = Arc::new(Counted::default());
    let found = logits(&decoder.with_kernels(counted.clone()));
    assert_eq!(found.into_data(), expected.into_data());
    // The calls are four of attention, three of the feed-forward block, and one of the LM head.
    assert_eq!(counted.linear.load(Relaxed), 7 * LAYERS + 1);
    assert_eq!(counted.attention.load(Relaxed), 3 * LAYERS);
}

#[test]
fn a_full_context_and_wrong_shapes_are_refused() {
    let (decoder, _) = model(json!({ "max_position_embeddings": 8 }));
    let zeros = |shape: [usize; 2]| Tensor::<Flex, 2>::zeros(shape, &Default::default());
    let mut pool = decoder.new_pool(&Default::default());
    let mut table = pool.table();
    decoder.forward(ForwardBatch::one(zeros([6, D]), &mut table), &mut pool).unwrap();
    let batch = ForwardBatch::one(zeros([3, D]), &mut table);
    let error = decoder.forward(batch, &mut pool).unwrap_err().to_string();
    assert!(error.contains("9 positions") && error.contains("holds 8"), "{error}");
    assert_eq!(table.len(), 6);
    for (shape, len) in [([2, D], 1), ([0, D], 0), ([1, D + 1], 1)] {
        let spans = vec![Span { table: &mut table, len, visible: Visible::Causal }];
        let batch = ForwardBatch { inputs: zeros(shape), spans };
        let error = decoder.forward(batch, &mut pool).unwrap_err().to_string();
        assert!(error.contains(&format!("[{len}, {D}]")), "{error}");
    }
    for parents in [vec![None], vec![None, Some(1)]] {
        let spans = vec![Span { table: &mut table, len: 2, visible: Visible::Tree(parents) }];
        let batch = ForwardBatch { inputs: zeros([2, D]), spans };
        let error = decoder.forward(batch, &mut pool).unwrap_err().to_string();
        assert!(error.contains("the tree of a span of 2 positions"), "{error}");
    }
    let mut other = decoder.new_pool(&Default::default()).table();
    let batch = ForwardBatch::one(zeros([1, D]), &mut other);
    assert!(matches!(decoder.forward(batch, &mut pool), Err(ModelError::ForeignTable)));
    assert!(decoder.forward(ForwardBatch::one(zeros([2, D]), &mut table), &mut pool).is_ok());
}
