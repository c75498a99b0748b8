//! The drafts of a pass, and the walk through what it gave.

use std::time::Duration;

use burn::tensor::{Tensor, backend::Backend};
use moi_models::{CausalLm, with_values};
use moi_speculation::{Draft, DraftTree, Verifier};

use super::{Drafting, Verification};
use crate::{Batch, EngineError, SequenceId, TokenEvent, round::Clock, rows::ids_tensor, sequence::Sequence};

/// What ran behind the next inputs of rows that speculate.
#[derive(Debug)]
pub(crate) struct Drafted<B: Backend> {
    /// The logits behind all nodes of all rows that decode `[nodes, vocab]`, and others behind them.
    logits: Tensor<B, 2>,
    rows: Vec<Walk>,
}

/// The walk through the drafts of one row.
#[derive(Debug)]
pub(crate) struct Walk {
    pub(crate) row: SequenceId,
    tree: DraftTree,
    /// The token of the first node: the last one before the pass, if its text has any.
    last: Option<u32>,
    /// Index of its first node among those of all rows.
    first: usize,
    /// Number of cached positions before the pass.
    len: usize,
    /// The nodes so far, whose inputs are right.
    path: Vec<usize>,
    /// The node of the last token, if it was right and its input was not near enough.
    refines: Option<usize>,
    /// When the pass began, which is the same for all rows.
    begun: Clock,
}

impl Walk {
    /// The node behind which a token is chosen next.
    pub(crate) fn node(&self) -> usize {
        self.path.last().copied().unwrap_or(0)
    }

    /// The node of a token behind the current one, if it was drafted.
    pub(crate) fn child(&self, token: u32) -> Option<usize> {
        self.tree.child(self.node(), token)
    }

    /// Goes on to a node.
    pub(crate) fn go(&mut self, node: usize) {
        self.path.push(node);
    }

    /// Index of the current node among those of all rows.
    fn place(&self) -> usize {
        self.first + self.node()
    }
}

impl<B: Backend> Drafted<B> {
    /// The logits of a pass `[nodes and more, vocab]`, the trees of the rows at `decoding` with the number of positions
    /// that these had before the pass, and when it began.
    pub(crate) fn new(
        logits: Tensor<B, 2>,
        rows: &[Sequence<B>],
        decoding: &[usize],
        (trees, lens): (Vec<DraftTree>, &[usize]),
        begun: Clock,
    ) -> Self {
        let mut first = 0;
        let walks = decoding.iter().zip(trees).zip(lens).filter_map(|((&at, tree), &len)| {
            let begin = first;
            first += tree.len();
            let row = &rows[at];
            let last = row.chooser.sampler.history().all(1).first().copied();
            row.drafting.is_some().then(|| Walk {
                row: row.id,
                tree,
                last,
                first: begin,
                len,
                path: vec![0],
                refines: None,
                begun,
            })
        });
        let rows = walks.collect();
        Self { logits, rows }
    }

    /// The walk of a row, if it speculates.
    pub(crate) fn of(&mut self, row: SequenceId) -> Option<&mut Walk> {
        self.rows.iter_mut().find(|walk| walk.row == row)
    }

    /// Sets what decides the next token of a row, if drafts behind its current node were drawn.
    pub(crate) fn set_verification(&self, row: &mut Sequence<B>) {
        let walk = self.rows.iter().find(|walk| walk.row == row.id);
        if let (Some(walk), Some(drafting)) = (walk, &row.drafting) {
            let (verifier, sampler) = (drafting.verifier(), &row.chooser.sampler);
            let mut verification = Verification::behind(walk.node(), &walk.tree, verifier, sampler);
            if let Some(verification) = verification.as_mut().filter(|_| drafting.measures_optimum()) {
                verification.measure_optimum(row.chooser.generated());
            }
            row.chooser.verification = verification;
        }
    }

    /// The logits behind all nodes `[nodes and more, vocab]`.
    pub(crate) fn logits(&self) -> Tensor<B, 2> {
        self.logits.clone()
    }

    /// The logits behind the current nodes of some rows `[rows, vocab]`, in the order of `of`.
    pub(crate) fn current(&self, of: &[SequenceId], device: &B::Device) -> Tensor<B, 2> {
        let place = |row: &SequenceId| self.rows.iter().find(|walk| walk.row == *row).map(Walk::place);
        let places: Vec<u32> = of.iter().filter_map(place).map(|place| place as u32).collect();
        self.logits.clone().select(0, ids_tensor::<B>(&places, device))
    }
}

impl<B: Backend, M: CausalLm<B>> Batch<'_, B, M> {
    /// Drafts tokens behind the rows at `decoding`: a tree for each, without drafts where nothing is to be drafted.
    /// `others` is the number of other positions of the pass.
    pub(crate) fn draft(
        &self,
        rows: &mut [Sequence<B>],
        decoding: &[usize],
        others: usize,
    ) -> Vec<DraftTree> {
        if decoding.iter().all(|&row| rows[row].drafting.is_none()) {
            return vec![DraftTree::default(); decoding.len()];
        }
        let drafts: Vec<(Draft, Duration)> =
            decoding.iter().map(|&row| self.draft_behind(&mut rows[row])).collect();
        let counts = self.paying(rows, decoding, &drafts, others);
        let all = decoding.iter().zip(drafts).zip(counts);
        all.map(|((&row, (draft, time)), count)| {
            let tree = draft.best(count).tree;
            // Guesses that were kept come first, each behind the one before it.
            rows[row].guesses.truncate(tree.drafted());
            if let Some(drafting) = &mut rows[row].drafting {
                drafting.begin(tree.without_rows(), time);
            }
            tree
        })
        .collect()
    }

    /// Drafts behind one row, and the time that it took.
    fn draft_behind(&self, row: &mut Sequence<B>) -> (Draft, Duration) {
        let engine = self.engine();
        let (vocab, context) = (engine.model().embedding().dims()[0], engine.model().context_length());
        let in_window = row.is_in_window();
        let Some(drafting) = &mut row.drafting else { return Default::default() };
        drafting.enter(in_window);
        if drafting.rests() {
            row.guesses.clear();
            return Default::default();
        }
        let begun = Clock::start();
        let left = row.stop.max_tokens.map(|max| max.saturating_sub(row.chooser.generated() + 1));
        let depth = left.unwrap_or(usize::MAX).min(context.saturating_sub(row.positions));
        // Up to here, rotary frequencies are those of a short sequence.
        let most = engine.model().recompute_beyond().filter(|&most| row.positions <= most);
        let nodes = most.map_or(usize::MAX, |most| most - row.positions).min(drafting.most(in_window));
        let sampling = row.chooser.sampler.sampling();
        // Whether a draft that was drawn is verified must not depend on its token.
        let is_drawn = drafting.verifier() != Verifier::Match;
        let passes = |token: u32| {
            let ends = engine.eos.contains(&token) || row.stop_tokens.contains(&token);
            (token as usize) < vocab && (is_drawn || (!ends && !sampling.banned.contains(&token)))
        };
        let kept = row.guesses.iter().take_while(|guess| passes(guess.token)).count();
        row.guesses.truncate(kept.min(depth).min(nodes));
        let kept = row.guesses.len();
        let ahead: Vec<u32> = row.guesses.iter().map(|guess| guess.token).collect();
        let Draft { tree, values } = drafting.draft(&ahead, (depth - kept, nodes - kept), passes);
        let mut tree = tree.behind(&ahead);
        for (node, guess) in row.guesses.iter().enumerate() {
            guess.row.iter().for_each(|row| tree.set_row(node, row.clone()));
        }
        let all = drafting.kept_values(kept);
        let last = all.last().copied().unwrap_or(1.0);
        let values = all.into_iter().chain(values.into_iter().map(|value| value * last)).collect();
        (Draft { tree, values }, begun.elapsed().unwrap_or_default())
    }

    /// How many drafts of each row run: all, or as many as pay for rows that adapt.
    fn paying(
        &self,
        rows: &[Sequence<B>],
        decoding: &[usize],
        drafts: &[(Draft, Duration)],
        others: usize,
    ) -> Vec<usize> {
        let mut counts: Vec<usize> = drafts.iter().map(|(draft, _)| draft.tree.drafted()).collect();
        let promises = |at: usize| rows[decoding[at]].drafting.as_ref().is_some_and(Drafting::promises);
        let adapting: Vec<usize> = (0..decoding.len()).filter(|&at| promises(at) && counts[at] > 0).collect();
        if adapting.is_empty() {
            return counts;
        }
        let mut values: Vec<(f64, usize)> = adapting
            .iter()
            .flat_map(|&at| drafts[at].0.values.iter().map(move |&value| (value, at)))
            .collect();
        values.sort_by(|a, b| b.0.total_cmp(&a.0));
        adapting.iter().for_each(|&at| counts[at] = 0);
        let base = decoding.len() + others + counts.iter().sum::<usize>();
        let promised: Vec<f64> = values.iter().map(|(value, _)| *value).collect();
        let count = self.engine().pass_costs().best_count(base, &promised);
        values[..count].iter().for_each(|&(_, at)| counts[at] += 1);
        counts
    }

    /// The next inputs of the rows at `decoding` `[rows, d]` with the inputs of the drafts behind each, in parts.
    pub(crate) fn with_drafts(
        &self,
        inputs: Tensor<B, 2>,
        rows: &[Sequence<B>],
        (decoding, trees): (&[usize], &[DraftTree]),
    ) -> Vec<Tensor<B, 2>> {
        let engine = self.engine();
        let mut parts = Vec::with_capacity(2 * trees.len());
        for (at, (&row, tree)) in decoding.iter().zip(trees).enumerate() {
            parts.push(inputs.clone().narrow(0, at, 1));
            let kept = &rows[row].guesses;
            parts.extend(kept.iter().map(|guess| guess.input.clone()));
            let new = &tree.tokens()[kept.len()..];
            if !new.is_empty() {
                parts.push(engine.embedded(new));
            }
        }
        parts
    }

    /// Notes what speculation did for a token of a row. Returns the token and, if the walk goes on behind it because it
    /// was drafted and what ran for it is near enough to `input` `[1, d]`, the next one, what ran for it.
    pub(crate) fn speculated(
        &self,
        row: &mut Sequence<B>,
        mut step: TokenEvent,
        walk: Option<&mut Walk>,
        input: &Tensor<B, 2>,
    ) -> (TokenEvent, Option<Tensor<B, 2>>) {
        let Some(drafting) = &mut row.drafting else { return (step, None) };
        let is_last = step.stop.is_some();
        let Some(walk) = walk else {
            row.guesses.clear();
            // The first token comes from the prompt's pass.
            drafting.begin(DraftTree::default(), Duration::ZERO);
            step.speculated = Some(drafting.emitted((0, step.token, is_last), Duration::ZERO, None));
            return (step, None);
        };
        let time = walk.begun.elapsed().unwrap_or_default();
        let optimal = row.chooser.optimal.take();
        step.speculated = Some(drafting.emitted((walk.node(), step.token, is_last), time, optimal));
        let Some(node) = walk.child(step.token).filter(|_| !is_last) else { return (step, None) };
        let kept = node.checked_sub(1).and_then(|at| row.guesses.get(at)).map(|guess| guess.input.clone());
        let error = self.input_error(row, (step.token, step.gate), kept.as_ref(), input);
        let Some(drafting) = &mut row.drafting else { return (step, None) };
        let is_near = match row.chooser.row.rule().mixes() {
            true => drafting.was_fed(error, kept.is_some()),
            false => error == 0.0,
        };
        if !is_near {
            walk.refines = Some(node);
            return (step, None);
        }
        walk.go(node);
        let fed = match kept {
            Some(kept) => kept,
            None if error > 0.0 => self.engine().embedded(&[step.token]),
            None => input.clone(),
        };
        (step, Some(fed))
    }

    /// Ends the walk of a row: what was not reached is dropped from its cache. If it ended because an input was not near
    /// enough, the `logits` `[nodes, vocab]` behind give guesses for the next pass.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn end_walk(
        &self,
        row: &mut Sequence<B>,
        walk: &Walk,
        logits: &Tensor<B, 2>,
    ) -> Result<(), EngineError> {
        row.guesses = match walk.refines {
            Some(node) => self.refined(row, (&walk.tree, walk.first), node, logits)?,
            None => Vec::new(),
        };
        if !walk.tree.is_empty() {
            self.engine().pool().keep_path(&mut row.table, walk.len, &walk.path)?;
        }
        Ok(())
    }

    /// Ends a pass with drafts: drafters learn from it.
    pub(crate) fn end_drafted(&self, rows: &mut [Sequence<B>], drafted: &Drafted<B>) {
        let mut ended: Vec<(&Walk, &mut Drafting)> = Vec::with_capacity(drafted.rows.len());
        for row in rows {
            let walk = drafted.rows.iter().find(|walk| walk.row == row.id);
            ended.extend(walk.zip(row.drafting.as_mut()));
        }
        ended.iter_mut().for_each(|(walk, drafting)| drafting.end(walk.begun.elapsed().unwrap_or_default()));
        ended.retain(|(_, drafting)| drafting.learns());
        if ended.is_empty() {
            return;
        }
        let vocab = drafted.logits.dims()[1];
        with_values(&drafted.logits, |logits| {
            for (walk, drafting) in ended {
                for node in 0..walk.tree.len() {
                    if let Some(token) = walk.tree.token(node).or(walk.last) {
                        drafting.learn(token, &logits[(walk.first + node) * vocab..][..vocab]);
                    }
                }
            }
        });
    }
}
