//! The model that drafts: another one of the same vocabulary, or some layers of the model itself.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use moi_engine::{DrafterChoice, Engine};
use moi_models::Decoder;
use moi_text::Tokenizer;

use crate::{args::ModelArgs, backend::Device, model};

/// What `--speculate` names: a drafter, and the model that it asks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Speculate {
    Drafter(DrafterChoice),
    /// Another model, as for `--model`.
    Model(String),
    /// Layers of the model itself, counted from 0.
    Layers(Vec<usize>),
}

impl Speculate {
    pub(crate) fn drafter(&self) -> DrafterChoice {
        match self {
            Self::Drafter(drafter) => drafter.clone(),
            Self::Model(_) | Self::Layers(_) => DrafterChoice::Model,
        }
    }
}

impl fmt::Display for Speculate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drafter(drafter) => drafter.fmt(f),
            Self::Model(name) => write!(f, "model:{name}"),
            Self::Layers(layers) => {
                let ranges = layers.chunk_by(|a, b| a + 1 == *b).map(|range| match range {
                    [first, .., last] => format!("{first}-{last}"),
                    one => one.iter().map(usize::to_string).collect(),
                });
                write!(f, "layers:{}", ranges.collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl FromStr for Speculate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("model", name)) if !name.is_empty() => Ok(Self::Model(name.to_owned())),
            Some(("layers", spec)) => layers(spec).map(Self::Layers),
            _ if text == "model" || text == "model:" => {
                Err("name the draft model as for --model: model:NAME or model:PATH".to_owned())
            }
            _ => text.parse().map(Self::Drafter).map_err(|error| format!("{error}:PATH, layers:SPEC")),
        }
    }
}

/// The layers of a list like `0-9,20-29`.
fn layers(spec: &str) -> Result<Vec<usize>, String> {
    let wrong =
        || format!("`{spec}` is no list of layers; write numbers and ranges in order, such as 0-9,20-29");
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&layer| layer < 10_000);
    let mut all = Vec::new();
    for part in spec.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
        all.extend(first..=last);
    }
    match all.is_empty() || !all.is_sorted_by(|a, b| a < b) {
        true => Err(wrong()),
        false => Ok(all),
    }
}

/// Gives an engine the model that drafts, if `speculate` names one. It is loaded as `args` say of the model itself.
///
/// # Errors
/// If it cannot be loaded, its tokens mean something else, or there are no such layers.
pub(crate) fn with_draft_model<B: Backend>(
    engine: Engine<B, Decoder<B>>,
    speculate: &Speculate,
    args: &ModelArgs,
    name: Device,
) -> Result<Engine<B, Decoder<B>>> {
    match speculate {
        Speculate::Drafter(_) => Ok(engine),
        Speculate::Layers(layers) => {
            let all = engine.model().config().layers.len();
            if let Some(unknown) = layers.iter().find(|&&layer| layer >= all) {
                bail!(
                    "`{speculate}` cannot draft: there is no layer {unknown}; the model has {all}, counted from 0"
                );
            }
            let Some(some) = engine.model().with_layers(layers) else {
                bail!(
                    "`{speculate}` cannot draft: layers of this model use another one's cache, or have inputs of \
                     their own, so none can be left out"
                )
            };
            Ok(engine.with_draft_model(some)?)
        }
        Speculate::Model(model) => {
            let args = ModelArgs { model: model.clone(), revision: None, ..args.clone() };
            let pretrained = model::open(&args)?;
            let tokenizer = pretrained.tokenizer.as_ref().ok().and_then(Option::as_ref);
            check_vocabulary(engine.tokenizer(), tokenizer)
                .with_context(|| format!("the model `{model}` cannot draft"))?;
            let device = engine.device().clone();
            let form = name.weight_form::<B>(&args, &device)?;
            let drafter = model::load::<B>(&pretrained, form, &device)?;
            Ok(engine.with_draft_model(drafter)?)
        }
    }
}

/// Checks that tokens mean the same to both: each id that both have.
fn check_vocabulary(target: Option<&Tokenizer>, drafter: Option<&Tokenizer>) -> Result<()> {
    let (Some(target), Some(drafter)) = (target, drafter) else {
        bail!(
            "whether both models' tokens mean the same cannot be told, because one of them has no tokenizer"
        );
    };
    let both = target.vocab_size().min(drafter.vocab_size()) as u32;
    let differs = |id: &u32| target.token(*id) != drafter.token(*id);
    if let Some(id) = (0..both).find(differs) {
        let said = |tokenizer: &Tokenizer| tokenizer.token(id).unwrap_or_else(|| "nothing".to_owned());
        bail!("token {id} is `{}` to it, and `{}` to the model", said(drafter), said(target));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speculate_is_read_and_written() {
        for text in ["none", "auto", "lookup", "model:smol", "model:./a:b", "layers:0-2,7"] {
            assert_eq!(text.parse::<Speculate>().map(|speculate| speculate.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("layers:0-2,7".parse(), Ok(Speculate::Layers(vec![0, 1, 2, 7])));
        for (text, said) in [
            ("guess", "recycling, model:PATH"),
            ("model", "name the draft model"),
            ("layers:", "0-9,20-29"),
            ("layers:3-1", "no list"),
            ("layers:1,1", "no list"),
            ("layers:0-99999999", "no list"),
        ] {
            let error = text.parse::<Speculate>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
