//! Guesses of the next inputs, where the input rule feeds mixtures.

use burn::tensor::{DType, Tensor, backend::Backend};
use moi_models::{CausalLm, with_values};
use moi_speculation::{DraftTree, Guess, Verifier, relative_error};

use crate::{
    Batch, EngineError, pending_step::PendingStep, rows::ids_tensor, sequence::Sequence,
    token_chooser::TokenChooser,
};

impl<B: Backend, M: CausalLm<B>> Batch<'_, B, M> {
    /// How far the input `[1, d]` that a pass was fed behind a token is from the true one, relative to the true one's
    /// norm. `kept` is what was fed, if it was not the token's own embedding.
    pub(crate) fn input_error(
        &self,
        row: &Sequence<B>,
        (token, gate): (u32, f32),
        kept: Option<&Tensor<B, 2>>,
        input: &Tensor<B, 2>,
    ) -> f64 {
        let rule = row.chooser.row.rule();
        match rule.gated() {
            // With a gate of 0, the mean embedding adds nothing.
            Some(_) if gate == 0.0 && kept.is_none() => return 0.0,
            // Where inputs have to be exact, a gated mixture that the host need not look at is none.
            Some(_)
                if kept.is_none() && row.drafting.as_ref().is_some_and(|d| d.limits().tolerance == 0.0) =>
            {
                return f64::INFINITY;
            }
            _ => {}
        }
        let fed = kept.cloned().unwrap_or_else(|| self.engine().embedded(&[token]));
        with_values(&fed.cast(DType::F32), |fed| {
            with_values(&input.clone().cast(DType::F32), |input| relative_error(fed, input))
        })
    }

    /// Guesses of the tokens and inputs behind a token that was right, by the rows `[nodes, vocab]` of a pass that was
    /// fed nearly the right input for it: `from` is its node in `tree`, whose first node is row `first`.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn refined(
        &self,
        row: &Sequence<B>,
        (tree, first): (&DraftTree, usize),
        from: usize,
        rows: &Tensor<B, 2>,
    ) -> Result<Vec<Guess<Tensor<B, 2>>>, EngineError> {
        let Some(drafting) = &row.drafting else { return Ok(Vec::new()) };
        let limits = drafting.limits();
        if !drafting.refines() || !row.chooser.row.is_inside() {
            return Ok(Vec::new());
        }
        let is_drawn = drafting.verifier() != Verifier::Match;
        let rows_of = if is_drawn { first_drafts(tree, from) } else { behind(tree, from) };
        // The last of a chain of drafts that were drawn has none behind it, so that there is nothing to refine.
        let nodes: Vec<usize> = match is_drawn {
            true => rows_of[..rows_of.len() - 1].to_vec(),
            false => rows_of,
        };
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let mut choosers: Vec<TokenChooser> = Vec::with_capacity(nodes.len());
        for &node in &nodes {
            let before = tree.parent(node).and_then(|parent| nodes.iter().position(|&of| of == parent));
            choosers.push(match before.zip(tree.token(node)) {
                Some((before, token)) => choosers[before].behind(token),
                None => row.chooser.without_grammar(),
            });
        }
        if is_drawn {
            // Drafts that were drawn stay, and get a better input: each is accepted or rejected once.
            let drafts = nodes.iter().map(|&node| tree.drafts(node)[0]);
            choosers.iter_mut().zip(drafts).for_each(|(chooser, token)| chooser.force(token));
        }
        let places: Vec<u32> = nodes.iter().map(|&node| (first + node) as u32).collect();
        let rows = rows.clone().select(0, ids_tensor::<B>(&places, self.engine().device()));
        let mut choosers: Vec<&mut TokenChooser> = choosers.iter_mut().collect();
        let step = PendingStep::new(self.engine(), rows, &mut choosers)?;
        let (outcomes, inputs) = step.wait(|at| row.chooser.generated() + at)?;
        let (mut guesses, mut at) = (Vec::new(), Some(0));
        while let Some(index) = at {
            let Ok((sampled, mix)) = &outcomes[index] else { break };
            // A mixture is not met exactly, so nothing behind it would be right.
            if limits.tolerance == 0.0 && row.chooser.row.rule().gated().is_some() && mix.gate > 0.0 {
                break;
            }
            let (node, token) = (nodes[index], mix.token.unwrap_or(sampled.token));
            guesses.push(Guess {
                token,
                input: inputs.clone().narrow(0, index, 1),
                row: tree.row(node).filter(|_| is_drawn).map(<[f64]>::to_vec),
            });
            // Where another token was drafted, the rows behind it are better than none.
            let drafted = tree.drafts(node).first().and_then(|&first| tree.child(node, first));
            let next = tree.child(node, token).or(drafted);
            at = next.and_then(|next| nodes.iter().position(|&of| of == next));
        }
        Ok(guesses)
    }
}

/// A node and all nodes behind it, in order.
fn behind(tree: &DraftTree, from: usize) -> Vec<usize> {
    let mut is_behind = vec![false; tree.len()];
    is_behind[from] = true;
    for node in from + 1..tree.len() {
        is_behind[node] = tree.parent(node).is_some_and(|parent| is_behind[parent]);
    }
    (from..tree.len()).filter(|&node| is_behind[node]).collect()
}

/// A node, its first draft, the first draft behind that, and so on. What was drawn later depends on what was drawn
/// first.
fn first_drafts(tree: &DraftTree, from: usize) -> Vec<usize> {
    let child = |&node: &usize| tree.drafts(node).first().and_then(|&token| tree.child(node, token));
    std::iter::successors(Some(from), child).collect()
}
