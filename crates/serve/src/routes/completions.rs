//! `POST /v1/completions`.

use std::sync::Arc;

use axum::{body::Body, http::Response};
use base64::Engine as _;
use bytes::Bytes;
use half::{bf16, f16};
use moi_engine::PromptReport;
use moi_text::{Detokenizer, Tokenizer};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use super::{Asked, answered, check_length};
use crate::{
    choice::Piece,
    chunks::{Chunks, Shape},
    error::ApiError,
    job::JobPrompt,
    json::{self, Ignored},
    knobs::Knobs,
    model::Loaded,
    parts::PartParser,
    plan::{MAX_LOGPROBS, Plan},
    server::{Caller, Server},
    tokens::{TokenLogprob, TokenNames, logprob},
    wire::{completions::Completion, generation::Generation, unions::Prompts},
};

/// The default number of tokens of a completion, as at OpenAI.
const DEFAULT_MAX_TOKENS: usize = 16;
/// The most prompts of a request.
const MAX_PROMPTS: usize = 1024;

/// Answers a request to continue texts.
pub(crate) async fn completions(
    server: Arc<Server>,
    caller: Caller,
    body: Bytes,
) -> Result<Response<Body>, ApiError> {
    answered(&server, caller, (body.len(), &[]), move |server| read(&body, server)).await
}

fn read(body: &[u8], server: &Server) -> Result<Asked<Chunks<TextShape>>, ApiError> {
    let loaded = server.loaded()?;
    let mut ignored = Ignored::default();
    let generation: Generation = json::parse(body, &mut ignored)?;
    let completion: Completion = json::parse(body, &mut ignored)?;
    let knobs: Knobs = json::parse(body, &mut Ignored::default())?;
    ignored.known(knobs.fields());
    if completion.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported("suffix", "`suffix` is not supported"));
    }
    let listed = match completion.logprobs {
        None => None,
        Some(asked) => match usize::try_from(asked) {
            Ok(listed) if listed <= MAX_LOGPROBS => Some(listed),
            _ => {
                let message = format!("`logprobs` is {asked}, and must be 0 to {MAX_LOGPROBS}");
                return Err(ApiError::value("logprobs", message));
            }
        },
    };
    let echo = completion.echo.unwrap_or(false);
    let mut plan = Plan::new(&generation, &knobs, &loaded, Some(DEFAULT_MAX_TOKENS))?;
    let prompt_only = plan.max_tokens() == Some(0);
    if prompt_only && !echo {
        return Err(ApiError::value("max_tokens", "max_tokens is 0, which is for prompts with `echo`"));
    }
    if prompt_only {
        plan = plan.for_prompts();
    }
    plan = plan.with_logprobs(listed.unwrap_or(0));
    let (prompts, texts) = prompts(&completion, &loaded)?;
    if echo && prompts.iter().any(|prompt| prompt.ids().is_empty()) {
        return Err(ApiError::value("echo", "`echo` needs a prompt of tokens, and `prompt_embeds` has none"));
    }
    for prompt in &prompts {
        // A prompt that is only scored needs no room for a token behind it.
        if !prompt_only || prompt.len() > loaded.model.context_length {
            check_length(prompt.len(), &loaded, "prompt")?;
        }
    }
    let echoed: Vec<Echoed> = match echo {
        true => {
            let of = |(prompt, text): (&JobPrompt, Option<String>)| {
                Echoed::new(prompt.ids().to_vec(), text, &loaded.model.tokenizer)
            };
            prompts.iter().zip(texts).map(of).collect::<Result<_, _>>()?
        }
        false => Vec::new(),
    };
    let parsers = prompts.iter().map(|_| PartParser::plain()).collect();
    let jobs = plan.jobs(prompts, listed.filter(|_| echo), loaded.model.context_length)?;
    let shape = TextShape {
        per_prompt: plan.per_prompt(),
        texts: vec![TextChoice::default(); jobs.len()],
        echoed,
        lists: listed.is_some(),
    };
    Ok(Asked { id: "cmpl-", plan, jobs, parsers, format: Chunks(shape), prompt_only, ignored })
}

/// The prompts of a request, and the texts of those that are given as texts.
fn prompts(
    completion: &Completion,
    loaded: &Loaded,
) -> Result<(Vec<JobPrompt>, Vec<Option<String>>), ApiError> {
    let special = completion.add_special_tokens.unwrap_or(true);
    let parse = completion.parse_special.unwrap_or(true);
    let prompts = match (&completion.prompt, &completion.prompt_embeds) {
        (Some(_), Some(_)) => {
            return Err(ApiError::value("prompt_embeds", "`prompt` and `prompt_embeds` do not go together"));
        }
        (None, None) => return Err(ApiError::value("prompt", "`prompt` is missing")),
        (None, Some(files)) => {
            let read = |file: &String| embeddings(file, loaded.model.embedding[1]);
            let read: Vec<JobPrompt> = files.0.iter().map(read).collect::<Result<_, _>>()?;
            let texts = vec![None; read.len()];
            (read, texts)
        }
        (Some(Prompts::Ids(lists)), None) => {
            let texts = vec![None; lists.len()];
            (lists.iter().cloned().map(JobPrompt::Ids).collect(), texts)
        }
        (Some(Prompts::Texts(texts)), None) => {
            let encode =
                |text: &String| super::tokenize::encode(text, special, parse, loaded).map(JobPrompt::Ids);
            let prompts = texts.iter().map(encode).collect::<Result<_, _>>()?;
            (prompts, texts.iter().cloned().map(Some).collect())
        }
    };
    match prompts.0.len() {
        0 => Err(ApiError::value("prompt", "`prompt` is empty")),
        count if count > MAX_PROMPTS => {
            Err(ApiError::value("prompt", format!("`prompt` has {count} prompts, and at most {MAX_PROMPTS}")))
        }
        _ if prompts.0.iter().any(|prompt| prompt.len() == 0) => Err(ApiError::value(
            "prompt",
            "a prompt is empty; a model needs at least one token to continue from",
        )),
        _ => Ok(prompts),
    }
}

/// Embeddings that a client computed: base64 of a safetensors file with one tensor `[positions, width]`.
fn embeddings(text: &str, width: usize) -> Result<JobPrompt, ApiError> {
    let wrong = |what: String| ApiError::value("prompt_embeds", format!("`prompt_embeds`: {what}"));
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    let bytes = bytes.map_err(|error| wrong(format!("it is no base64: {error}")))?;
    let file = SafeTensors::deserialize(&bytes);
    let file = file.map_err(|error| wrong(format!("it is no safetensors file: {error}")))?;
    let mut tensors = file.iter();
    let (Some((_, tensor)), None) = (tensors.next(), tensors.next()) else {
        return Err(wrong(format!("it has {} tensors, and must have one", file.len())));
    };
    let &[_, found] = tensor.shape() else {
        return Err(wrong(format!("its shape is {:?}, and must be [positions, {width}]", tensor.shape())));
    };
    if found != width {
        return Err(wrong(format!("it is {found} wide, and the model's embedding {width}")));
    }
    let data = tensor.data();
    let pair = |bytes: &[u8]| [bytes[0], bytes[1]];
    let values: Vec<f32> = match tensor.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes(pair(b)).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes(pair(b)).to_f32()).collect(),
        other => return Err(wrong(format!("its type is {other:?}, and must be F32, F16 or BF16"))),
    };
    match values.iter().all(|value| value.is_finite()) {
        true => Ok(JobPrompt::Embeddings { values, width }),
        false => Err(wrong("it has values that are no finite numbers".to_owned())),
    }
}

/// A prompt that is repeated before its continuation.
#[derive(Clone, Debug)]
struct Echoed {
    ids: Vec<u32>,
    text: String,
    /// Where each token begins, in code points of the text.
    offsets: Vec<usize>,
    scored: Option<PromptReport>,
}

impl Echoed {
    fn new(ids: Vec<u32>, text: Option<String>, tokenizer: &Tokenizer) -> Result<Self, ApiError> {
        let (mut detokenizer, mut offsets, mut decoded) =
            (Detokenizer::default(), Vec::with_capacity(ids.len()), String::new());
        let mut count = 0;
        for &id in &ids {
            offsets.push(count);
            let rest = text.as_ref().and_then(|text| text.get(decoded.len()..)).unwrap_or_default();
            // A control token is part of the text where its author wrote it, but not where the tokenizer added it.
            let piece = match tokenizer.special_text(id) {
                Some(control) if rest.starts_with(control) => control.to_owned(),
                _ => detokenizer.push(tokenizer, id)?,
            };
            count += piece.chars().count();
            decoded += &piece;
        }
        decoded += &detokenizer.finish(tokenizer)?;
        Ok(Self { ids, text: text.unwrap_or(decoded), offsets, scored: None })
    }

    /// The tokens with their log-probabilities.
    fn tokens(&self) -> Vec<TokenLogprob> {
        let scored = self.scored.as_ref().map(|report| report.scored.as_slice()).unwrap_or_default();
        let first = TokenLogprob { token: self.ids[0], logprob: None, likeliest: Vec::new() };
        let rest = scored.iter().map(|scored| TokenLogprob {
            token: scored.token,
            logprob: Some(scored.logprob),
            likeliest: scored.likeliest.clone(),
        });
        [first].into_iter().chain(rest).collect()
    }
}

/// The content of a choice so far.
#[derive(Clone, Debug, Default)]
struct TextChoice {
    text: String,
    lists: Lists,
    /// Code points of the text of all tokens so far, and the bytes of a character that is not complete yet.
    count: usize,
    bytes: Vec<u8>,
}

impl TextChoice {
    /// Where a token's text begins. The text of the next token begins behind it.
    fn offset(&mut self, bytes: &[u8]) -> usize {
        let offset = self.count;
        self.bytes.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.bytes) {
            Ok(_) => self.bytes.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            // Bytes that are not text become replacement characters.
            Err(_) => self.bytes.len(),
        };
        self.count += String::from_utf8_lossy(&self.bytes[..whole]).chars().count();
        self.bytes.drain(..whole);
        offset
    }
}

/// Log-probabilities as text completions list them.
#[derive(Clone, Debug, Default)]
struct Lists {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    likeliest: Vec<Value>,
    offsets: Vec<usize>,
}

impl Lists {
    fn add(&mut self, token: &TokenLogprob, offset: usize, names: TokenNames<'_>) {
        self.tokens.push(json!(names.name(token.token)));
        self.logprobs.push(token.logprob.map_or(Value::Null, logprob));
        self.likeliest.push(names.dictionary(token));
        self.offsets.push(offset);
    }

    fn json(self) -> Value {
        let Self { tokens, logprobs, likeliest, offsets } = self;
        json!({
            "tokens": tokens, "token_logprobs": logprobs, "top_logprobs": likeliest, "text_offset": offsets,
        })
    }
}

pub(crate) struct TextShape {
    per_prompt: usize,
    texts: Vec<TextChoice>,
    /// The prompts, if they are repeated.
    echoed: Vec<Echoed>,
    /// Whether log-probabilities are listed.
    lists: bool,
}

impl TextShape {
    /// Text and lists of a prompt that is repeated.
    fn echo(&self, choice: usize, names: TokenNames<'_>) -> Option<(String, Lists)> {
        let echoed = self.echoed.get(choice / self.per_prompt)?;
        let mut lists = Lists::default();
        if self.lists {
            let tokens = echoed.tokens();
            tokens.iter().zip(&echoed.offsets).for_each(|(token, &offset)| lists.add(token, offset, names));
        }
        Some((echoed.text.clone(), lists))
    }

    /// Lists of a piece. Its text follows the text so far.
    fn lists_of(&mut self, choice: usize, piece: &Piece, names: TokenNames<'_>) -> Lists {
        let mut lists = Lists::default();
        if self.lists {
            for token in &piece.tokens {
                let offset = self.texts[choice].offset(&names.text_of(token.token));
                lists.add(token, offset, names);
            }
        }
        lists
    }

    fn value(&self, text: &str, lists: Lists) -> Value {
        let logprobs = if self.lists { lists.json() } else { Value::Null };
        json!({"text": text, "logprobs": logprobs, "finish_reason": null})
    }
}

impl Shape for TextShape {
    fn objects(&self) -> [&'static str; 2] {
        ["text_completion", "text_completion"]
    }

    fn opening(&self, _choice: usize) -> Option<Value> {
        None
    }

    fn waits(&self, choice: usize) -> bool {
        let echoed = self.echoed.get(choice / self.per_prompt);
        let is_later = !choice.is_multiple_of(self.per_prompt);
        self.lists && is_later && echoed.is_some_and(|echoed| echoed.scored.is_none())
    }

    fn prompt(&mut self, choice: usize, report: &PromptReport, names: TokenNames<'_>) -> Option<Value> {
        if let Some(echoed) = self.echoed.get_mut(choice / self.per_prompt)
            && choice.is_multiple_of(self.per_prompt)
        {
            echoed.scored = Some(report.clone());
        }
        let (text, lists) = self.echo(choice, names)?;
        let own = &mut self.texts[choice];
        own.count = text.chars().count();
        own.text = text.clone();
        own.lists = lists.clone();
        Some(self.value(&text, lists))
    }

    fn chunk(&mut self, choice: usize, piece: &Piece, names: TokenNames<'_>) -> Value {
        let lists = self.lists_of(choice, piece, names);
        self.value(&piece.answer, lists)
    }

    fn closing(&self) -> Value {
        json!({"text": "", "logprobs": null})
    }

    fn add(&mut self, choice: usize, piece: &Piece, names: TokenNames<'_>) {
        let lists = self.lists_of(choice, piece, names);
        let own = &mut self.texts[choice];
        own.text += &piece.answer;
        own.lists.tokens.extend(lists.tokens);
        own.lists.logprobs.extend(lists.logprobs);
        own.lists.likeliest.extend(lists.likeliest);
        own.lists.offsets.extend(lists.offsets);
    }

    fn whole(&mut self, choice: usize) -> Value {
        let TextChoice { text, lists, .. } = std::mem::take(&mut self.texts[choice]);
        self.value(&text, lists)
    }
}
