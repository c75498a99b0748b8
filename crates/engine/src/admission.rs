//! From a request to a row that can take part.

use burn::tensor::backend::Backend;
use moi::Start;
use moi_models::{BlockTable, CausalLm};

use crate::{
    Batch, Engine, EngineError, Prompt, Request, RowId, Sampler,
    decider::{Decider, Limits},
    engine::Encoded,
    row::{Row, Stage},
    stop::StopMatcher,
    text::{Detokenizer, control_token},
};

impl<B: Backend, M: CausalLm<B>> Batch<'_, B, M> {
    /// A row whose prompt is to run, behind as many of its positions as a table has.
    pub(crate) fn prompted(
        &self,
        id: RowId,
        request: Request<B>,
        Encoded { inputs, ids }: Encoded<B>,
        behind: Option<(BlockTable, usize)>,
    ) -> Result<Row<B>, EngineError> {
        let total = inputs.dims()[0];
        let mut row = self.row(id, request, &ids, total)?.keeping(&inputs, self.engine());
        let known = behind.map_or(0, |(table, known)| {
            row.table = table;
            known
        });
        row.table.set_sequence_length(total);
        row.stage = Stage::Prompt(inputs.narrow(0, known, total - known));
        row.reused = known;
        row.is_public = !ids.is_empty();
        Ok(row)
    }

    /// A row before its first token, behind a prompt of these ids, if it has any, and so many positions.
    pub(crate) fn row(
        &self,
        id: RowId,
        request: Request<B>,
        prompt: &[u32],
        positions: usize,
    ) -> Result<Row<B>, EngineError> {
        request.check()?;
        let Engine { tokenizer, eos, markers, .. } = self.engine();
        if !request.stop.strings.is_empty() && tokenizer.is_none() {
            return Err(EngineError::NoTokenizer("a stop string"));
        }
        self.check_tokens(&request)?;
        let room = self.engine().model.context_length().saturating_sub(positions) + 1;
        let marker = prompt.iter().rev().find(|&&id| markers.is_some_and(|m| id == m.open || id == m.close));
        let start = Start {
            seed: request.seed,
            scope: request.scope,
            markers: *markers,
            thinking: marker.is_some_and(|&id| markers.is_some_and(|markers| id == markers.open)),
            limit: Some(request.stop.max_tokens.map_or(room, |max| max.min(room))),
        };
        let breakers = self.engine().breakers(&request.sampling.dry)?;
        let sampler =
            Sampler::new(request.sampling, request.seed)?.with_prompt(prompt).with_breakers(breakers);
        let constraint = request.grammar.map(|grammar| self.engine().constraint(&grammar)).transpose()?;
        let control = |text: &String| control_token(tokenizer.as_ref()?, text);
        let stop_tokens: Vec<u32> = request.stop.strings.iter().filter_map(control).collect();
        // None of them may come before its time.
        let ends: Vec<u32> = eos.iter().chain(&stop_tokens).copied().collect();
        let limits = Limits::new(&request.stop, &ends, constraint, request.mix_constrained);
        let decider = Decider::new(moi::Row::new(request.rule, &start)?, sampler, limits);
        Ok(Row {
            id,
            stage: Stage::Decode,
            stop_tokens,
            decider: decider.reporting(request.top, request.logprobs),
            matcher: StopMatcher::new(request.stop.strings.clone()),
            stop: request.stop,
            detokenizer: Detokenizer::default(),
            table: self.engine().pool().table(),
            positions,
            reused: 0,
            is_public: false,
            inputs: None,
        })
    }

    /// Whether a request can be added; it as it is then best added, and the length of its prompt.
    pub(crate) fn check(&self, request: Request<B>) -> Result<(Request<B>, usize), EngineError> {
        request.check()?;
        let (prompt, ids) = self.engine().check_prompt(&request.prompt)?;
        let request = match ids {
            Some(ids) => Request { prompt: Prompt::Ids(ids), ..request },
            None => request,
        };
        self.row(RowId(0), request.clone(), &[], prompt)?;
        Ok((request, prompt))
    }

    /// Tokens that are named by a request or of the engine must be the model's.
    fn check_tokens(&self, request: &Request<B>) -> Result<(), EngineError> {
        let vocab_size = self.engine().model.embedding().dims()[0];
        let markers = self.engine().markers.iter().flat_map(|markers| [markers.open, markers.close]);
        let biased = request.sampling.logit_bias.0.keys().copied();
        let named = [("banned", request.sampling.banned.clone()), ("biased", biased.collect())];
        for (what, tokens) in named.into_iter().chain([("marker of thinking", markers.collect())]) {
            if let Some(token) = tokens.into_iter().find(|&token| token as usize >= vocab_size) {
                return Err(EngineError::UnknownToken { what, token, vocab_size });
            }
        }
        Ok(())
    }
}
