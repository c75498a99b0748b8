//! GGUF files: what llama.cpp's converter would write.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use moi_checkpoint::{
    LazyTensor, Storage,
    gguf::{LONG_FACTORS, NewTensor, ROPE_FACTORS, SHORT_FACTORS, Value, export, write_gguf},
};
use moi_models::{
    AttentionConfig, AttentionKind, DecoderConfig, FeedForwardKind, NormKind, RopeConfig, RopeScaling,
};
use serde_json::json;

use crate::{
    ConvertError, Options,
    encode::{encode, storage_of},
    report::Reporter,
    source::{Files, Source},
    tokenizer,
    write::{Written, record},
};

/// The file in the result's directory.
pub(crate) const FILE: &str = "model.gguf";

type Metadata = Vec<(String, Value)>;

/// A tensor of the file and what it is made of: one tensor, or the experts of a stack.
struct Planned {
    new: NewTensor,
    parts: Vec<(String, Part)>,
}

enum Part {
    Stored(LazyTensor),
    Values(Vec<f32>),
}

/// Writes the file.
pub(crate) fn write(
    source: &Source,
    directory: &Path,
    options: &Options,
    reporter: &Reporter,
    notes: &mut Vec<String>,
) -> Result<Written, ConvertError> {
    let config = &source.pretrained.architecture.config;
    let architecture = architecture(config)?;
    let mut metadata = metadata(config, architecture);
    if let Files::Gguf(file) = &source.files {
        // Who made the model, under which licence: not what is made anew.
        const MADE: &[&str] = &["architecture", "file_type", "quantization_version", "alignment"];
        let kept = file
            .metadata
            .iter()
            .filter(|(key, _)| key.strip_prefix("general.").is_some_and(|key| !MADE.contains(&key)));
        metadata.extend(kept.map(|(key, value)| (key.to_owned(), value.clone())));
    }
    metadata.extend(tokenizer::to_gguf(source, notes)?);
    let planned = plan(source, architecture, options)?;
    metadata.extend(record(options).map(|(key, text)| (key.to_owned(), Value::String(text))));
    let file_type =
        planned.iter().map(|planned| planned.new.storage).find(|&storage| storage != Storage::F32);
    let file_type = file_type_of(file_type.unwrap_or(Storage::F32));
    metadata.insert(1, ("general.file_type".into(), Value::Unsigned(file_type)));
    metadata.insert(2, ("general.quantization_version".into(), Value::Unsigned(2)));

    let tensors: Vec<NewTensor> = planned.iter().map(|planned| planned.new.clone()).collect();
    let total_bytes = tensors.iter().map(NewTensor::num_bytes).sum();
    reporter.begin(total_bytes);
    let path = directory.join(FILE);
    let file = File::create(&path).map_err(|error| ConvertError::io(&path, error))?;
    let mut to = BufWriter::new(file);
    let mut failed = None;
    let written = write_gguf(&mut to, &metadata, &tensors, |index, to| {
        reporter.tensor(&tensors[index].name, tensors[index].num_bytes());
        write_parts(&planned[index], &path, to).map_err(|error| {
            let text = error.to_string();
            failed = Some(error);
            io::Error::other(text)
        })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    written.and_then(|()| to.flush()).map_err(|error| ConvertError::io(&path, error))?;
    Ok(Written { tensors: tensors.len(), bytes: total_bytes })
}

fn write_parts(planned: &Planned, path: &Path, to: &mut impl Write) -> Result<(), ConvertError> {
    for (name, part) in &planned.parts {
        let mut put = |bytes: &[u8]| to.write_all(bytes).map_err(|error| ConvertError::io(path, error));
        match part {
            Part::Stored(tensor) => encode(name, tensor, planned.new.storage, put)?,
            Part::Values(values) => put(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())?,
        }
    }
    Ok(())
}

/// llama.cpp's number for the type of most tensors.
fn file_type_of(storage: Storage) -> u64 {
    match storage.name() {
        "F16" => 1,
        "Q4_0" => 2,
        "Q4_1" => 3,
        "Q8_0" => 7,
        "BF16" => 32,
        // Mixed, or what it has no number for, counts as float32 there.
        _ => 0,
    }
}

/// What llama.cpp calls the architecture.
fn architecture(config: &DecoderConfig) -> Result<&'static str, ConvertError> {
    Ok(match config.model_type {
        "llama" | "mistral" | "mixtral" => "llama",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        "qwen3_moe" => "qwen3moe",
        "gemma" => "gemma",
        "gemma2" => "gemma2",
        "gemma3_text" | "gemma3" => "gemma3",
        "phi3" => "phi3",
        "olmo2" => "olmo2",
        "granite" => "granite",
        "gpt2" => "gpt2",
        "gpt_neox" => "gptneox",
        "nemotron-nas" => "deci",
        other => {
            let what =
                format!("model type `{other}` has no GGUF architecture here; write safetensors or burnpack");
            return Err(ConvertError::Refused(what));
        }
    })
}

fn attentions(config: &DecoderConfig) -> impl Iterator<Item = Option<&AttentionConfig>> {
    config.layers.iter().map(|layer| match &layer.attention {
        Some(AttentionKind::Heads(attention)) => Some(attention),
        _ => None,
    })
}

fn inner(kind: &Option<FeedForwardKind>) -> usize {
    match kind {
        Some(FeedForwardKind::Mlp(mlp)) => mlp.intermediate_size,
        Some(FeedForwardKind::Experts(experts) | FeedForwardKind::MlpAndExperts(_, experts)) => {
            experts.expert.intermediate_size
        }
        Some(FeedForwardKind::Linear) | None => 0,
    }
}

/// What the file says about the model. Whatever it cannot say shows when it is opened again: the result's config
/// must be the source's.
fn metadata(config: &DecoderConfig, architecture: &str) -> Metadata {
    let mut all: Metadata = vec![("general.architecture".into(), Value::String(architecture.into()))];
    let mut set = |key: &str, value: Value| all.push((format!("{architecture}.{key}"), value));
    let number = |n: usize| Value::Unsigned(n as u64);
    let list = |numbers: Vec<usize>| Value::Array(numbers.iter().map(|&n| Value::Signed(n as i64)).collect());
    let first = attentions(config).flatten().next();
    let heads = first.map_or(0, |attention| attention.num_heads);
    let head_dim = first.map_or(0, |attention| attention.head_dim);
    set("context_length", number(config.context_length));
    set("embedding_length", number(config.hidden_size));
    set("block_count", number(config.layers.len()));
    set("vocab_size", number(config.vocab_size));
    let inners: Vec<usize> = config.layers.iter().map(|layer| inner(&layer.feed_forward)).collect();
    if architecture == "deci" {
        let has = |layer: &moi_models::LayerConfig| if layer.attention.is_some() { heads } else { 0 };
        set("attention.head_count", list(config.layers.iter().map(has).collect()));
        let kv = attentions(config).map(|a| a.map_or(0, |attention| attention.num_kv_heads));
        set("attention.head_count_kv", list(kv.collect()));
        set("feed_forward_length", list(inners));
    } else {
        set("attention.head_count", number(heads));
        set("attention.head_count_kv", number(first.map_or(0, |attention| attention.num_kv_heads)));
        set("feed_forward_length", number(inners.first().copied().unwrap_or(0)));
    }
    set("attention.key_length", number(head_dim));
    set("attention.value_length", number(head_dim));
    let eps = match config.norm.kind {
        NormKind::Layer => "attention.layer_norm_epsilon",
        NormKind::Rms | NormKind::RmsPlusOne | NormKind::RmsAlone => "attention.layer_norm_rms_epsilon",
    };
    set(eps, Value::Float(config.norm.eps));
    all.extend(own(config, architecture));
    // The layers that see everything say it for all.
    let full = attentions(config).flatten().find(|attention| attention.window.is_none()).or(first);
    if let Some(rope) = full.and_then(|attention| attention.rope.as_ref()) {
        all.extend(rope_metadata(rope, architecture));
    }
    all
}

/// What one architecture has besides.
fn own(config: &DecoderConfig, architecture: &str) -> Metadata {
    let mut all = Vec::new();
    let mut set = |key: &str, value: Value| all.push((format!("{architecture}.{key}"), value));
    let number = |n: usize| Value::Unsigned(n as u64);
    let first = attentions(config).flatten().next();
    let window = attentions(config).flatten().find_map(|attention| attention.window);
    if let Some(window) = window {
        set("attention.sliding_window", number(window));
    }
    let experts = config.layers.iter().find_map(|layer| match &layer.feed_forward {
        Some(FeedForwardKind::Experts(experts) | FeedForwardKind::MlpAndExperts(_, experts)) => Some(experts),
        _ => None,
    });
    if let Some(experts) = experts {
        set("expert_count", number(experts.num_experts));
        set("expert_used_count", number(experts.num_per_token));
        if architecture == "qwen3moe" {
            set("expert_feed_forward_length", number(experts.expert.intermediate_size));
        }
    }
    if let Some(cap) = config.logit_softcap {
        set("final_logit_softcapping", Value::Float(cap));
    }
    match architecture {
        "gemma2" => {
            if let Some(cap) = first.and_then(|attention| attention.softcap) {
                set("attn_logit_softcapping", Value::Float(cap));
            }
        }
        "gemma3" => {
            let sliding = attentions(config).flatten().take_while(|attention| attention.window.is_some());
            let period = sliding.count() + 1;
            // llama.cpp takes six where nothing stands.
            if period != 6 && period <= config.layers.len() {
                set("attention.sliding_window_pattern", number(period));
            }
            let local = attentions(config).flatten().find(|attention| attention.window.is_some());
            if let Some(rope) = local.and_then(|attention| attention.rope.as_ref()) {
                set("rope.freq_base_swa", Value::Float(rope.theta));
            }
        }
        "granite" => {
            set("attention.scale", Value::Float(first.map_or(1.0, |attention| attention.scale)));
            set("embedding_scale", Value::Float(config.embedding_scale));
            set("residual_scale", Value::Float(config.layers.first().map_or(1.0, |l| l.residual_scale)));
            set("logit_scale", Value::Float(config.logit_scale.recip()));
        }
        "gptneox" => {
            set("use_parallel_residual", Value::Bool(config.layers.iter().any(|layer| layer.parallel)));
        }
        _ => {}
    }
    all
}

fn rope_metadata(rope: &RopeConfig, architecture: &str) -> Metadata {
    let mut all = Vec::new();
    let mut set = |key: &str, value: Value| all.push((format!("{architecture}.rope.{key}"), value));
    set("dimension_count", Value::Unsigned(rope.dims as u64));
    set("freq_base", Value::Float(rope.theta));
    match &rope.scaling {
        RopeScaling::Linear { factor } => {
            set("scaling.type", Value::String("linear".into()));
            set("scaling.factor", Value::Float(*factor));
        }
        &RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor,
            ..
        } => {
            set("scaling.type", Value::String("yarn".into()));
            set("scaling.factor", Value::Float(factor));
            let original = Value::Unsigned(original_max_position_embeddings as u64);
            set("scaling.original_context_length", original);
            let own = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
            if (attention_factor - own).abs() > 1e-9 {
                set("scaling.attn_factor", Value::Float(attention_factor / own));
            }
            if (beta_fast, beta_slow) != (32.0, 1.0) {
                set("scaling.yarn_beta_fast", Value::Float(beta_fast));
                set("scaling.yarn_beta_slow", Value::Float(beta_slow));
            }
        }
        &RopeScaling::LongRope { original_max_position_embeddings, attention_factor, .. } => {
            let original = Value::Unsigned(original_max_position_embeddings as u64);
            set("scaling.original_context_length", original);
            set("scaling.attn_factor", Value::Float(attention_factor));
        }
        _ => {}
    }
    if architecture == "phi3" && !matches!(rope.scaling, RopeScaling::LongRope { .. }) {
        // The config has the field whatever the scaling; 4096 is its default.
        set("scaling.original_context_length", Value::Unsigned(4096));
    }
    all
}

/// Factors of rotary frequencies that a file has as tensors.
fn rope_tensors(config: &DecoderConfig) -> Vec<(&'static str, Vec<f32>)> {
    let rope = attentions(config).flatten().find_map(|attention| attention.rope.as_ref());
    let single = |factors: &[f64]| factors.iter().map(|&factor| factor as f32).collect();
    match rope.map(|rope| (rope, &rope.scaling)) {
        Some((rope, RopeScaling::Llama3 { .. })) => {
            let plain = RopeConfig { scaling: RopeScaling::Default, ..rope.clone() };
            let (plain, scaled) = (plain.frequencies(1), rope.frequencies(1));
            let factors: Vec<f64> = plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect();
            vec![(ROPE_FACTORS, single(&factors))]
        }
        Some((_, RopeScaling::Factors(factors))) => vec![(ROPE_FACTORS, single(factors))],
        Some((_, RopeScaling::LongRope { short_factor, long_factor, .. })) => {
            vec![(SHORT_FACTORS, single(short_factor)), (LONG_FACTORS, single(long_factor))]
        }
        _ => Vec::new(),
    }
}

fn plan(source: &Source, architecture: &str, options: &Options) -> Result<Vec<Planned>, ConvertError> {
    let pretrained = &source.pretrained;
    let config = &pretrained.architecture.config;
    let first = attentions(config).flatten().next();
    let about = json!({
        "model_type": config.model_type,
        "num_attention_heads": first.map(|attention| attention.num_heads),
        "head_dim": first.map(|attention| attention.head_dim),
    });
    let mut stacks: BTreeMap<String, BTreeMap<usize, (String, LazyTensor)>> = BTreeMap::new();
    let expected = pretrained.architecture.checkpoint_tensors();
    for name in expected.keys() {
        let Some(tensor) = pretrained.checkpoint.tensors().get(name) else { continue };
        // A multimodal checkpoint's text stands under a prefix, which files do not have.
        let plain = pretrained.architecture.plain(name);
        let exported = export(architecture, &about, &plain, tensor).ok_or_else(|| {
            ConvertError::Refused(format!("GGUF's `{architecture}` has no place for tensor `{name}`"))
        })?;
        let stack = stacks.entry(exported.name).or_default();
        stack.insert(exported.expert.unwrap_or(0), (name.clone(), exported.tensor));
    }
    let mut planned: Vec<Planned> = Vec::new();
    for (name, factors) in rope_tensors(config) {
        let new = NewTensor { name: name.into(), shape: vec![factors.len()], storage: Storage::F32 };
        planned.push(Planned { new, parts: vec![(name.into(), Part::Values(factors))] });
    }
    for (name, stack) in stacks {
        let Some((_, (_, one))) = stack.first_key_value() else { continue };
        let mut shape = one.shape().to_vec();
        if name.contains("_exps.") {
            shape.insert(0, stack.len());
        }
        let storage = storage(&name, one, options);
        let parts = stack.into_values().map(|(name, tensor)| (name, Part::Stored(tensor))).collect();
        planned.push(Planned { new: NewTensor { name, shape, storage }, parts });
    }
    Ok(planned)
}

/// Vectors, norms, routers and learned positions are float32, as llama.cpp wants them.
fn storage(name: &str, tensor: &LazyTensor, options: &Options) -> Storage {
    let columns = tensor.shape().last().copied().unwrap_or(0);
    let small = ["ffn_gate_inp.", "position_embd."].iter().any(|part| name.contains(part));
    if tensor.shape().len() < 2 || small {
        return Storage::F32;
    }
    match (options.quantize, options.dtype, tensor.storage()) {
        (Some(kind), ..) if columns.is_multiple_of(kind.size().0) => Storage::Block(kind),
        (Some(_), ..) => Storage::F32,
        (None, Some(dtype), _) => storage_of(dtype),
        (None, None, kept @ Storage::Block(_)) if tensor.is_as_stored() => kept,
        (None, None, kept @ (Storage::F16 | Storage::BF16)) => kept,
        (None, None, _) => Storage::F32,
    }
}
