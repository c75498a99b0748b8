//! One sequence of a batch: what it carries from step to step.

use burn::tensor::{Tensor, backend::Backend};
use moi::RowMix;
use moi_models::{BlockTable, CausalLm, Checkpoint, ParkedTable};
use moi_speculation::Guess;

use crate::{
    Engine, EngineError, Sampled, Scored, SequenceId, StopReason, StopRules, StoppedBy, TokenEvent,
    speculation::Drafting,
    stop::StopMatcher,
    text::{Detokenizer, Tokenizer, special_text},
    token_chooser::TokenChooser,
};

/// The stage that a sequence has reached.
#[derive(Clone, Debug)]
pub(crate) enum Stage<B: Backend> {
    /// Its prompt runs. These inputs have not run yet `[positions, d]`.
    Prompt(Tensor<B, 2>),
    /// It waits for the prompt of another row, which is the same.
    Follows(SequenceId),
    /// It decodes.
    Decode,
    /// It is parked: it takes no part, and holds no blocks of the pool.
    Parked(Parked<B>),
}

/// What a parked row continues from.
#[derive(Clone, Debug)]
pub(crate) struct Parked<B: Backend> {
    /// Its KV cache on the host; `None` if its blocks are kept, or if all its inputs run again.
    table: Option<ParkedTable>,
    /// The inputs that run when it continues `[positions, d]`: the next one, or all.
    inputs: Tensor<B, 2>,
}

impl<B: Backend> Parked<B> {
    /// The inputs that have not run, if the KV cache was not copied to the host.
    pub(crate) fn waiting(&self) -> Option<Tensor<B, 2>> {
        self.table.is_none().then(|| self.inputs.clone())
    }
}

impl<B: Backend> Stage<B> {
    /// The row whose prompt it waits for.
    pub(crate) fn follows(&self) -> Option<SequenceId> {
        match self {
            Self::Follows(id) => Some(*id),
            Self::Prompt(_) | Self::Decode | Self::Parked(_) => None,
        }
    }
}

/// The scores of a prompt's tokens, as far as it has run.
#[derive(Debug, Default)]
pub(crate) struct PromptScores {
    /// How many of the most likely tokens are reported for each.
    pub(crate) likeliest: usize,
    pub(crate) scored: Vec<Scored>,
    /// Why a token could not be scored, which ends the row.
    pub(crate) failed: Option<EngineError>,
}

/// A sequence of a batch, with all that it keeps from step to step.
#[derive(Debug)]
pub(crate) struct Sequence<B: Backend> {
    pub(crate) id: SequenceId,
    pub(crate) stage: Stage<B>,
    pub(crate) chooser: TokenChooser,
    pub(crate) stop: StopRules,
    /// Stop tokens, including stop strings that are control tokens, because decoded text does not show those.
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) matcher: StopMatcher,
    pub(crate) detokenizer: Detokenizer,
    /// The block table of its KV cache.
    pub(crate) table: BlockTable,
    /// Number of positions of the prompt and of the tokens so far. The last one may not have run yet, or one more may
    /// have.
    pub(crate) positions: usize,
    /// Number of prompt positions that were already cached.
    pub(crate) reused: usize,
    /// Whether its prompt consists of tokens, so that other requests may share its cached blocks.
    pub(crate) is_public: bool,
    /// Only requests with the same salt share its cached blocks.
    pub(crate) salt: String,
    /// All inputs so far, if its KV cache may have to be computed again.
    pub(crate) inputs: Option<Vec<Tensor<B, 2>>>,
    /// Recurrent states that were saved where pieces of its prompt ended, to be shared with its cached blocks.
    pub(crate) checkpoints: Vec<Checkpoint>,
    /// Whether it is to be parked as soon as its next input is known.
    pub(crate) parks: bool,
    /// Whether it keeps its blocks while it is parked, because it is paused and need not make room for others.
    pub(crate) keeps_blocks: bool,
    /// Control tokens whose text is part of the answer's text.
    pub(crate) shown: Vec<u32>,
    /// The scores of its prompt, if they were asked for.
    pub(crate) scores: Option<PromptScores>,
    /// Its drafter, if it speculates.
    pub(crate) drafting: Option<Drafting>,
    /// Guesses of the next tokens and inputs, each behind the one before it, which a pass with nearly the right inputs
    /// has left.
    pub(crate) guesses: Vec<Guess<Tensor<B, 2>>>,
}

impl<B: Backend> Sequence<B> {
    /// Whether the next token is the last, whatever it is.
    pub(crate) fn ends_with_next<M: CausalLm<B>>(&self, engine: &Engine<B, M>) -> bool {
        self.stop.max_tokens.is_some_and(|max| self.chooser.generated() + 1 >= max)
            || self.positions >= engine.model.context_length()
    }

    /// Whether the KV cache was computed for a short sequence, while this many positions make it a long one: see
    /// [`CausalLm::recompute_beyond`].
    fn is_short<M: CausalLm<B>>(&self, engine: &Engine<B, M>, positions: usize) -> bool {
        let most = engine.model.recompute_beyond();
        most.is_some_and(|most| self.table.sequence_length() <= most && positions > most)
    }

    /// Whether the next input is the first one for which all inputs have to run again.
    pub(crate) fn recomputes_with_next<M: CausalLm<B>>(&self, engine: &Engine<B, M>) -> bool {
        self.is_short(engine, self.positions + 1)
    }

    /// Whether the next input is a mixture that need not be met exactly, so that passes run a window of guesses.
    pub(crate) fn is_in_window(&self) -> bool {
        let inexact = self.drafting.as_ref().is_some_and(|drafting| drafting.limits().tolerance > 0.0);
        inexact && self.chooser.row.rule().mixes() && self.chooser.row.is_inside()
    }

    /// Keeps the next input `[1, d]`, one of `of` in a step, if the KV cache may have to be computed again.
    pub(crate) fn keep_input(&mut self, input: &Tensor<B, 2>, of: usize) {
        if let Some(inputs) = &mut self.inputs {
            let dtype = inputs.first().map_or(input.dtype(), Tensor::dtype);
            // Without a copy, one row would keep the tensor of the whole step in memory.
            let own = if of > 1 { input.clone().mul_scalar(1.0) } else { input.clone() };
            inputs.push(own.cast(dtype));
        }
    }

    /// Parks the row if that was asked for, or restarts it with all its inputs as a prompt if that is due. `input` is
    /// the next one, which was kept and has not run. Returns whether the row does not continue with it at once.
    pub(crate) fn parks_or_restarts<M: CausalLm<B>>(
        &mut self,
        input: Tensor<B, 2>,
        engine: &Engine<B, M>,
    ) -> bool {
        let restarts = self.is_short(engine, self.positions);
        // A restart discards the KV cache, so it is of no use to wait with it.
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

    /// Restarts the row with these inputs as its prompt and an empty KV cache.
    fn begin_anew<M: CausalLm<B>>(&mut self, inputs: Tensor<B, 2>, engine: &Engine<B, M>) {
        (self.table, self.reused) = (engine.pool().table(), 0);
        self.table.set_sequence_length(inputs.dims()[0]);
        self.checkpoints.clear();
        self.stage = Stage::Prompt(inputs);
    }

    /// Gives the blocks of the row back, unless it keeps them. `input` has not run `[positions, d]`. If all inputs
    /// are kept, the row will continue from them; otherwise its KV cache is copied to the host.
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

    /// Lets the row take part again, if it is parked.
    ///
    /// # Errors
    /// If the pool has no room for its KV cache.
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

    /// Counts a sampled token, turns it into text and checks whether it is the last.
    pub(crate) fn take<M: CausalLm<B>>(
        &mut self,
        Sampled { token, logprob, likeliest }: Sampled,
        mut mix: RowMix,
        engine: &Engine<B, M>,
    ) -> Result<TokenEvent, EngineError> {
        let thought = self.chooser.row.is_thinking();
        let is_complete = self.chooser.push(token)?;
        let thinking = thought || self.chooser.row.is_thinking();
        let generated = self.chooser.generated();
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
            _ if mix.ends && self.chooser.may_end() => Some(StopReason::Rule),
            Some(max) if generated >= max => Some(StopReason::Length),
            _ if context_full => Some(StopReason::Context),
            _ => None,
        };
        if let (Some(_), Some(tokenizer)) = (stop, &engine.tokenizer)
            && !stopped
        {
            let (rest, stopped) = self.flush(tokenizer, thinking)?;
            text += &rest;
            // The bytes that were held back complete a stop string. The text ends there, whatever other reason ends
            // it now.
            if stopped.is_some() {
                (stop, stopped_by) = (Some(StopReason::Stop), stopped);
            }
        }
        self.positions += 1;
        mix.top.truncate(self.chooser.top);
        let RowMix { entropy, gate, top, .. } = mix;
        let stopped_by = stopped_by.filter(|_| stop == Some(StopReason::Stop));
        Ok(TokenEvent {
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
            speculated: None,
        })
    }

    /// The text that was held back, for a row that ends without another token.
    pub(crate) fn held_back(&mut self, tokenizer: &Tokenizer) -> Result<String, EngineError> {
        let thinking = self.chooser.row.is_thinking();
        Ok(self.flush(tokenizer, thinking)?.0)
    }

    /// The text that was held back at the end, and the stop string that was found behind it.
    pub(crate) fn flush(
        &mut self,
        tokenizer: &Tokenizer,
        thinking: bool,
    ) -> Result<(String, Option<StoppedBy>), EngineError> {
        let rest = std::mem::take(&mut self.detokenizer).finish(tokenizer)?;
        let looks =
            self.chooser.generated() >= self.stop.min_tokens && !(thinking && self.stop.spares_thoughts);
        let (mut text, found) = self.matcher.push(&rest, None, looks);
        let stopped_by = found.map(|found| StoppedBy::String(found.to_owned()));
        if stopped_by.is_none() {
            text += &self.matcher.finish();
        }
        Ok((text, stopped_by))
    }
}
