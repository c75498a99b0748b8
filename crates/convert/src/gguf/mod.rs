//! Writes GGUF files as llama.cpp's converter would.

mod newer;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use moi_checkpoint::{
    LazyTensor, Storage,
    gguf::{
        Exported, LONG_FACTORS, MUSE_FACTOR, Metadata as FileMetadata, NewTensor, ROPE_FACTORS,
        SHORT_FACTORS, Value, export, export_parameters, is_by_parameter, write_gguf,
    },
};
use moi_models::{
    AttentionConfig, AttentionKind, DecoderConfig, FeedForwardKind, LayerConfig, NormKind, RopeConfig,
    RopeScaling,
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

/// The name of the file in the result's directory.
pub(crate) const FILE: &str = "model.gguf";

type Metadata = Vec<(String, Value)>;

/// A tensor of the file, and its source: one tensor, or the experts of a stack.
struct Planned {
    new: NewTensor,
    parts: Vec<(String, Part)>,
}

enum Part {
    Stored(LazyTensor),
    Values(Vec<f32>),
}

/// Writes the GGUF file.
pub(crate) fn write(
    source: &Source,
    directory: &Path,
    options: &Options,
    reporter: &Reporter,
    notes: &mut Vec<String>,
) -> Result<Written, ConvertError> {
    let config = &source.pretrained.architecture.config;
    let architecture = architecture(config)?;
    let mut metadata = match is_by_parameter(architecture) {
        true => newer::metadata(config, architecture),
        false => metadata(config, architecture),
    };
    let exported = exported(source, architecture, &metadata)?;
    metadata.extend(activation_numbers(source, architecture)?);
    // This key is no part of GGUF.
    metadata.retain(|(key, _)| key != MUSE_FACTOR);
    if let Files::Gguf(file) = &source.files {
        // Keys that are made anew; the others, such as author and licence, are kept.
        const MADE: &[&str] = &["architecture", "file_type", "quantization_version", "alignment"];
        let kept = file
            .metadata
            .iter()
            .filter(|(key, _)| key.strip_prefix("general.").is_some_and(|key| !MADE.contains(&key)));
        metadata.extend(kept.map(|(key, value)| (key.to_owned(), value.clone())));
    }
    metadata.extend(tokenizer::to_gguf(source, architecture, notes)?);
    let planned = plan(config, exported, options);
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
        // llama.cpp has no number for mixed and for other types, and counts them as float32.
        _ => 0,
    }
}

/// llama.cpp's name of the architecture.
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
        "qwen3_5" | "qwen3_5_text" => "qwen35",
        "qwen3_5_moe" | "qwen3_5_moe_text" => "qwen35moe",
        "qwen3_next" => "qwen3next",
        "gemma4" | "gemma4_text" | "gemma4_unified" | "gemma4_unified_text" => "gemma4",
        "qwen3_vl" | "qwen3_vl_text" => "qwen3vl",
        "qwen3_vl_moe" | "qwen3_vl_moe_text" => "qwen3vlmoe",
        "qwen2_5_vl" | "qwen2_5_vl_text" | "qwen2_vl" | "qwen2_vl_text" => "qwen2vl",
        "gpt_oss" => "gpt-oss",
        "nemotron_h" if has_experts(config) => "nemotron_h_moe",
        "nemotron_h" => "nemotron_h",
        "deepseek_v2" | "deepseek_v3" | "kimi_k2" | "kimi_k25" | "glm4_moe_lite" => "deepseek2",
        "mistral4" => "mistral4",
        "lfm2" => "lfm2",
        "lfm2_moe" => "lfm2moe",
        "mistral3" if config.layers.iter().any(has_latent) => "mistral4",
        "mistral3" | "ministral3" => "mistral3",
        "exaone" => "exaone",
        "exaone4" => "exaone4",
        "apertus" => "apertus",
        "laguna" => "laguna",
        "olmo3" => "olmo2",
        "glm4_moe" => "glm4moe",
        "granitemoe" => "granitemoe",
        "granitemoehybrid" => "granitehybrid",
        "phi" => "phi2",
        "muse_glimmer" | "muse_glimmer_text" => "muse-glimmer",
        "seed_oss" => "seed_oss",
        "ernie4_5" => "ernie4_5",
        "ernie4_5_moe" => "ernie4_5-moe",
        "hunyuan_v1_dense" => "hunyuan-dense",
        "minimax_m2" => "minimax-m2",
        other @ ("deepseek_v32" | "glm_moe_dsa") => {
            let what = format!(
                "files of `{other}` need its indexer, which is not read here; write safetensors or burnpack"
            );
            return Err(ConvertError::Refused(what));
        }
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

/// The metadata of the model. If the metadata cannot express the model, the check at the end fails, which compares
/// the config of the written file with the source's.
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
    // A layer without a sliding window determines the keys for all layers.
    let full = attentions(config).flatten().find(|attention| attention.window.is_none()).or(first);
    if let Some(rope) = full.and_then(|attention| attention.rope.as_ref()) {
        all.extend(rope_metadata(rope, architecture));
    }
    all
}

/// The metadata that only this architecture has.
fn own(config: &DecoderConfig, architecture: &str) -> Metadata {
    let mut all = Vec::new();
    let mut set = |key: &str, value: Value| all.push((format!("{architecture}.{key}"), value));
    let number = |n: usize| Value::Unsigned(n as u64);
    let first = attentions(config).flatten().next();
    let window = attentions(config).flatten().find_map(|attention| attention.window);
    if let Some(window) = window {
        set("attention.sliding_window", number(window));
        if architecture == "olmo2" {
            let has_window = |own: Option<&AttentionConfig>| own.is_some_and(|own| own.window.is_some());
            let pattern = attentions(config).map(|own| Value::Bool(has_window(own)));
            set("attention.sliding_window_pattern", Value::Array(pattern.collect()));
        }
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
            // llama.cpp assumes six if the key is absent.
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
        // The original config has this field with every scaling; 4096 is its default.
        set("scaling.original_context_length", Value::Unsigned(4096));
    }
    all
}

/// Factors of the rotary frequencies, which a file holds as tensors.
fn rope_tensors(config: &DecoderConfig) -> Vec<(&'static str, Vec<f32>)> {
    let ropes = || attentions(config).flatten().filter_map(|attention| attention.rope.as_ref());
    let is_proportional = |rope: &&RopeConfig| matches!(rope.scaling, RopeScaling::Proportional { .. });
    let rope = ropes().find(is_proportional).or(ropes().next());
    let single = |factors: &[f64]| factors.iter().map(|&factor| factor as f32).collect();
    match rope.map(|rope| (rope, &rope.scaling)) {
        Some((rope, RopeScaling::Llama3 { .. })) => {
            let plain = RopeConfig { scaling: RopeScaling::Default, ..rope.clone() };
            let (plain, scaled) = (plain.frequencies(1), rope.frequencies(1));
            let factors: Vec<f64> = plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect();
            vec![(ROPE_FACTORS, single(&factors))]
        }
        // The huge divisors stop the rotation of the remaining pairs.
        Some((rope, &RopeScaling::Proportional { pairs, .. })) => {
            let divisor = |pair: usize| if pair < pairs { 1.0 } else { 1e30 };
            vec![(ROPE_FACTORS, single(&(0..rope.dims / 2).map(divisor).collect::<Vec<f64>>()))]
        }
        Some((_, RopeScaling::Factors(factors))) => vec![(ROPE_FACTORS, single(factors))],
        Some((_, RopeScaling::LongRope { short_factor, long_factor, .. })) => {
            vec![(SHORT_FACTORS, single(short_factor)), (LONG_FACTORS, single(long_factor))]
        }
        _ => Vec::new(),
    }
}

fn has_experts(config: &DecoderConfig) -> bool {
    config.layers.iter().any(|layer| matches!(layer.feed_forward, Some(FeedForwardKind::Experts(_))))
}

fn has_latent(layer: &LayerConfig) -> bool {
    matches!(layer.attention, Some(AttentionKind::Latent(_)))
}

/// The parameters of Apertus' activation, which files hold in the metadata.
fn activation_numbers(source: &Source, architecture: &str) -> Result<Metadata, ConvertError> {
    let mut all = Vec::new();
    if architecture != "apertus" {
        return Ok(all);
    }
    let parameters = source.pretrained.parameters()?;
    let layers = source.pretrained.architecture.config.layers.len();
    for number in ["alpha_p", "alpha_n", "beta", "eps"] {
        let of_layer = |layer: usize| {
            let tensor = parameters.tensors().get(&format!("model.layers.{layer}.mlp.act_fn.{number}"))?;
            tensor.read().first().map(|&value| Value::Float(value.into()))
        };
        let values: Option<Vec<Value>> = (0..layers).map(of_layer).collect();
        all.extend(values.map(|values| (format!("xielu.{number}"), Value::Array(values))));
    }
    Ok(all)
}

/// The file's tensors, each with the name of its source tensor.
fn exported(
    source: &Source,
    architecture: &str,
    metadata: &Metadata,
) -> Result<Vec<(String, Exported)>, ConvertError> {
    let pretrained = &source.pretrained;
    let no_place = |name: &str| {
        ConvertError::Refused(format!("GGUF's `{architecture}` has no place for tensor `{name}`"))
    };
    if is_by_parameter(architecture) {
        let metadata: FileMetadata = metadata.iter().cloned().collect();
        let exported = export_parameters(architecture, &metadata, &pretrained.parameters()?);
        let exported = exported.map_err(|name| no_place(&name))?;
        return Ok(exported.into_iter().map(|one| (one.name.clone(), one)).collect());
    }
    let config = &pretrained.architecture.config;
    let first = attentions(config).flatten().next();
    let about = json!({
        "model_type": config.model_type,
        "num_attention_heads": first.map(|attention| attention.num_heads),
        "head_dim": first.map(|attention| attention.head_dim),
    });
    let mut all = Vec::new();
    for name in pretrained.architecture.checkpoint_tensors().keys() {
        let Some(tensor) = pretrained.checkpoint.tensors().get(name) else { continue };
        // The text model of a multimodal checkpoint has a name prefix that GGUF files do not have.
        let plain = pretrained.architecture.plain(name);
        let exported = export(architecture, &about, &plain, tensor).ok_or_else(|| no_place(name))?;
        all.push((name.clone(), exported));
    }
    Ok(all)
}

fn plan(config: &DecoderConfig, exported: Vec<(String, Exported)>, options: &Options) -> Vec<Planned> {
    let mut stacks: BTreeMap<String, BTreeMap<usize, (String, Exported)>> = BTreeMap::new();
    for (name, exported) in exported {
        let stack = stacks.entry(exported.name.clone()).or_default();
        stack.insert(exported.expert.unwrap_or(0), (name, exported));
    }
    let mut planned: Vec<Planned> = Vec::new();
    for (name, factors) in rope_tensors(config) {
        let new = NewTensor { name: name.into(), shape: vec![factors.len()], storage: Storage::F32 };
        planned.push(Planned { new, parts: vec![(name.into(), Part::Values(factors))] });
    }
    for (name, stack) in stacks {
        let Some((_, (_, one))) = stack.first_key_value() else { continue };
        let mut shape = one.tensor.shape().to_vec();
        if name.contains("_exps.") && one.expert.is_some() {
            shape.insert(0, stack.len());
        }
        let storage = storage(&name, one, options);
        let parts = stack.into_values().map(|(name, one)| (name, Part::Stored(one.tensor))).collect();
        planned.push(Planned { new: NewTensor { name, shape, storage }, parts });
    }
    planned
}

/// The storage of a tensor. Vectors, norms, routers, convolutions and learned positions are float32, as llama.cpp
/// requires.
fn storage(name: &str, exported: &Exported, options: &Options) -> Storage {
    const SMALL: &[&str] = &[
        "ffn_gate_inp.",
        "ffn_gate_inp_shexp.",
        "position_embd.",
        "ssm_a",
        "ssm_d",
        "ssm_norm.",
        "ssm_conv1d.",
        "shortconv.conv.",
    ];
    let tensor = &exported.tensor;
    let columns = tensor.shape().last().copied().unwrap_or(0);
    let own = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, own)| own);
    if tensor.shape().len() < 2 || SMALL.iter().any(|part| own.starts_with(part)) || own.ends_with("bias") {
        return Storage::F32;
    }
    let quantize = options.quantize.filter(|_| !exported.is_float);
    match (quantize, options.dtype, tensor.storage()) {
        (Some(kind), ..) if columns.is_multiple_of(kind.size().0) => Storage::Block(kind),
        (Some(_), ..) => Storage::F32,
        (None, Some(dtype), _) => storage_of(dtype),
        (None, None, kept @ Storage::Block(_)) if tensor.is_as_stored() => kept,
        (None, None, kept @ (Storage::F16 | Storage::BF16)) => kept,
        (None, None, _) => Storage::F32,
    }
}
