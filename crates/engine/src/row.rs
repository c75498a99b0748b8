//! One sequence of a batch: what it carries from step to step.

use burn::tensor::{Tensor, backend::Backend};
use moi::RowMix;
use moi_models::{BlockTable, CausalLm, Checkpoint, ParkedTable};

use crate::{
    Engine, EngineError, RowId, Sampled, Scored, Step, StopReason, StopRules, StoppedBy,
    decider::Decider,
    stop::StopMatcher,
    text::{Detokenizer, Tokenizer, special_text},
};

/// How far a row is.
#[derive(Clone, Debug)]
pub(crate) enum Stage<B: Backend> {
    /// Its prompt runs: the inputs that have not yet `[positions, d]`.
    Prompt(Tensor<B, 2>),
    /// It waits for the prompt of another row, which is the same.
    Follows(RowId),
    /// It decodes.
    Decode,
    /// It is parked: it takes no part, and holds no blocks of the pool.
    Parked(Parked<B>),
}

/// What a parked row goes on from.
#[derive(Clone, Debug)]
pub(crate) struct Parked<B: Backend> {
    /// What it had cached; `None` where all its inputs run anew.
    table: Option<ParkedTable>,
    /// What has to run when it goes on `[positions, d]`: its next input, or all.
    inputs: Tensor<B, 2>,
}

impl<B: Backend> Parked<B> {
    /// The inputs that have not run, where what is cached was not copied.
    pub(crate) fn waiting(&self) -> Option<Tensor<B, 2>> {
        self.table.is_none().then(|| self.inputs.clone())
    }
}

impl<B: Backend> Stage<B> {
    /// The row whose prompt it waits for.
    pub(crate) fn follows(&self) -> Option<RowId> {
        match self {
            Self::Follows(id) => Some(*id),
            Self::Prompt(_) | Self::Decode | Self::Parked(_) => None,
        }
    }
}

/// How likely the tokens of a prompt are, as far as it has run.
#[derive(Debug, Default)]
pub(crate) struct PromptScores {
    /// How many of the likeliest tokens are reported beside each.
    pub(crate) likeliest: usize,
    pub(crate) scored: Vec<Scored>,
    /// Why one could not be told, which ends the row.
    pub(crate) failed: Option<EngineError>,
}

/// What a row carries from step to step.
#[derive(Debug)]
pub(crate) struct Row<B: Backend> {
    pub(crate) id: RowId,
    pub(crate) stage: Stage<B>,
    pub(crate) decider: Decider,
    pub(crate) stop: StopRules,
    /// Stop strings that are control tokens: decoded text does not show these.
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) matcher: StopMatcher,
    pub(crate) detokenizer: Detokenizer,
    /// What it has cached.
    pub(crate) table: BlockTable,
    /// Positions of the prompt and of tokens so far, of which the last may not have run yet, or one more have.
    pub(crate) positions: usize,
    /// Positions of the prompt that were cached before it came.
    pub(crate) reused: usize,
    /// Whether its prompt is of tokens, so that others may share what is cached of it.
    pub(crate) is_public: bool,
    /// With whom it shares that.
    pub(crate) salt: String,
    /// All inputs so far, where what is cached of them may have to be computed anew.
    pub(crate) inputs: Option<Vec<Tensor<B, 2>>>,
    /// States of its prompt where pieces of it have ended, to be shared with what it is shared.
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// Whether it is to be parked as soon as its next input is known.
    pub(crate) parks: bool,
    /// Whether it keeps its blocks while it is parked: it is to wait, and not to make room for others.
    pub(crate) keeps_blocks: bool,
    /// Control tokens whose text is part of the text.
    pub(crate) shown: Vec<u32>,
    /// Of its prompt, where that was asked for.
    pub(crate) scores: Option<PromptScores>,
}

impl<B: Backend> Row<B> {
    /// Whether the next token is the last, whatever it is.
    pub(crate) fn ends_with_next<M: CausalLm<B>>(&self, engine: &Engine<B, M>) -> bool {
        self.stop.max_tokens.is_some_and(|max| self.decider.generated() + 1 >= max)
            || self.positions >= engine.model.context_length()
    }

    /// Whether what is cached is that of a sequence which is short enough for it: see [`CausalLm::recompute_beyond`].
    fn is_short<M: CausalLm<B>>(&self, engine: &Engine<B, M>, positions: usize) -> bool {
        let most = engine.model.recompute_beyond();
        most.is_some_and(|most| self.table.sequence_length() <= most && positions > most)
    }

    /// Whether the next input is the first with which all have to be computed anew.
    pub(crate) fn recomputes_with_next<M: CausalLm<B>>(&self, engine: &Engine<B, M>) -> bool {
        self.is_short(engine, self.positions + 1)
    }

    /// Keeps the next input `[1, d]`, one of so many of a step, if what is cached may have to be computed anew.
    pub(crate) fn keep_input(&mut self, input: &Tensor<B, 2>, of: usize) {
        if let Some(inputs) = &mut self.inputs {
            let dtype = inputs.first().map_or(input.dtype(), Tensor::dtype);
            // Without a copy a part of a step would keep all of it.
            let own = if of > 1 { input.clone().mul_scalar(1.0) } else { input.clone() };
            inputs.push(own.cast(dtype));
        }
    }

    /// Parks the row if that was asked for, or begins anew with all its inputs for a prompt where that is due. `input` is the
    /// next one, which was kept and has not run. Whether the row does not go on with it at once.
    pub(crate) fn parks_or_restarts<M: CausalLm<B>>(
        &mut self,
        input: Tensor<B, 2>,
        engine: &Engine<B, M>,
    ) -> bool {
        let restarts = self.is_short(engine, self.positions);
        // What is cached serves no longer, so it is no use to wait with it.
        if self.parks && !(self.keeps_blocks && restarts) {
            self.park(input, engine);
            return true;
        }
        if restarts {
            let inputs = Tensor::cat(self.inputs.take().unwrap_or_default(), 0);
            self.begin_anew(inputs.clone(), engine);
            if self.parks {
                self.park(inputs, engine);
            }
        }
        restarts
    }

    /// With these inputs for a prompt and nothing cached.
    fn begin_anew<M: CausalLm<B>>(&mut self, inputs: Tensor<B, 2>, engine: &Engine<B, M>) {
        (self.table, self.reused) = (engine.pool().table(), 0);
        self.table.set_sequence_length(inputs.dims()[0]);
        self.checkpoints.clear();
        self.stage = Stage::Prompt(inputs);
    }

    /// Gives its blocks back, unless it keeps them. `input` has not run `[positions, d]`. Where all inputs are kept, these are
    /// what the row goes on from; else what is cached is copied to the host.
    pub(crate) fn park<M: CausalLm<B>>(&mut self, input: Tensor<B, 2>, engine: &Engine<B, M>) {
        if self.keeps_blocks {
            let parked = Parked { table: None, inputs: input };
            (self.stage, self.parks) = (Stage::Parked(parked), false);
            return;
        }
        let parked = match self.inputs.take() {
            Some(inputs) => Parked { table: None, inputs: Tensor::cat(inputs, 0) },
            None => Parked { table: Some(engine.pool().park(&self.table)), inputs: input },
        };
        self.table.clear();
        self.checkpoints.clear();
        (self.stage, self.parks) = (Stage::Parked(parked), false);
    }

    /// Takes part again, if it is parked.
    ///
    /// # Errors
    /// If the pool has no room for what was cached.
    pub(crate) fn unpark<M: CausalLm<B>>(&mut self, engine: &Engine<B, M>) -> Result<(), EngineError> {
        let Stage::Parked(Parked { table, inputs }) = &self.stage else { return Ok(()) };
        let inputs = inputs.clone();
        if std::mem::take(&mut self.keeps_blocks) {
            self.stage = Stage::Prompt(inputs);
            return Ok(());
        }
        match table {
            Some(table) => {
                self.table = engine.pool().unpark(table)?;
                self.stage = Stage::Prompt(inputs);
            }
            None => {
                self.inputs = Some(vec![inputs.clone()]);
                self.begin_anew(inputs, engine);
            }
        }
        Ok(())
    }

    /// Counts a sampled token, turns it into text and sees whether it is the last.
    pub(crate) fn take<M: CausalLm<B>>(
        &mut self,
        Sampled { token, logprob, likeliest }: Sampled,
        mut mix: RowMix,
        engine: &Engine<B, M>,
    ) -> Result<Step, EngineError> {
        let thought = self.decider.row.is_thinking();
        let is_complete = self.decider.push(token)?;
        let thinking = thought || self.decider.row.is_thinking();
        let generated = self.decider.generated();
        let eos = !self.stop.ignore_eos && engine.eos.contains(&token);
        let looks = generated >= self.stop.min_tokens && !(thinking && self.stop.spares_thoughts);
        let stops = generated >= self.stop.min_tokens && self.stop_tokens.contains(&token);
        let is_silent = eos || (stops && !self.stop.includes_string);
        let (mut text, found) = match &engine.tokenizer {
            Some(tokenizer) if !is_silent => {
                let piece = self.detokenizer.push(tokenizer, token)?;
                let shown = self.shown.contains(&token).then(|| special_text(tokenizer, token)).flatten();
                self.matcher.push(&piece, shown, looks)
            }
            _ => (String::new(), None),
        };
        let by_string = |found: &str| StoppedBy::String(found.to_owned());
        let mut stopped_by = found.map(by_string).or(stops.then_some(StoppedBy::Token(token)));
        let stopped = found.is_some();
        let context_full = self.positions >= engine.model.context_length();
        let mut stop = match self.stop.max_tokens {
            _ if eos => Some(StopReason::Eos),
            _ if stopped || stops => Some(StopReason::Stop),
            _ if is_complete => Some(StopReason::Grammar),
            _ if mix.ends && self.decider.may_end() => Some(StopReason::Rule),
            Some(max) if generated >= max => Some(StopReason::Length),
            _ if context_full => Some(StopReason::Context),
            _ => None,
        };
        if let (Some(_), Some(tokenizer)) = (stop, &engine.tokenizer)
            && !stopped
        {
            let (rest, stopped) = self.flush(tokenizer, thinking)?;
            text += &rest;
            // The bytes that were held back complete a stop string: the text ends there, whatever else ends it now.
            if stopped.is_some() {
                (stop, stopped_by) = (Some(StopReason::Stop), stopped);
            }
        }
        self.positions += 1;
        mix.top.truncate(self.decider.top);
        let RowMix { entropy, gate, top, .. } = mix;
        let stopped_by = stopped_by.filter(|_| stop == Some(StopReason::Stop));
        Ok(Step {
            row: self.id,
            token,
            text,
            logprob,
            entropy,
            gate,
            top,
            likeliest,
            thinking,
            stop,
            stopped_by,
        })
    }

    /// The text held back, where the row ends by something else than a token.
    pub(crate) fn held_back(&mut self, tokenizer: &Tokenizer) -> Result<String, EngineError> {
        let thinking = self.decider.row.is_thinking();
        Ok(self.flush(tokenizer, thinking)?.0)
    }

    /// The text held back, at the end, and the stop string that was found behind it.
    pub(crate) fn flush(
        &mut self,
        tokenizer: &Tokenizer,
        thinking: bool,
    ) -> Result<(String, Option<StoppedBy>), EngineError> {
        let rest = std::mem::take(&mut self.detokenizer).finish(tokenizer)?;
        let looks =
            self.decider.generated() >= self.stop.min_tokens && !(thinking && self.stop.spares_thoughts);
        let (mut text, found) = self.matcher.push(&rest, None, looks);
        let stopped_by = found.map(|found| StoppedBy::String(found.to_owned()));
        if stopped_by.is_none() {
            text += &self.matcher.finish();
        }
        Ok((text, stopped_by))
    }
}
