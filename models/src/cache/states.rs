//! States of sequences, in slots.

use burn::tensor::{Tensor, backend::Backend};

use super::blocks::{Block, Blocks};
use crate::{
    non_finite::is_broken,
    states::{LayerState, States},
};

/// The states of all sequences in all layers that have one. The tensors of a slot are replaced, never written, so
/// that a copy of a slot takes no memory before one of the two runs on.
#[derive(Debug)]
pub(super) struct StateSlots<B: Backend> {
    slots: Blocks,
    /// For each layer with a state, the state of each slot; `None` where a sequence begins.
    layers: Vec<Vec<Option<LayerState<B>>>>,
}

impl<B: Backend> StateSlots<B> {
    pub(super) fn new(layers: usize) -> Self {
        Self { slots: Blocks::default(), layers: (0..layers).map(|_| Vec::new()).collect() }
    }

    /// Whether no layer has a state.
    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Number of slots in use.
    pub(super) fn used(&self) -> usize {
        self.slots.count() - self.slots.free()
    }

    /// Takes a slot without states, or with copies of another slot's states.
    pub(super) fn take(&mut self, of: Option<&Block>) -> Block {
        let block = match self.slots.take() {
            Some(block) => block,
            None => {
                self.slots.grow(1);
                self.layers.iter_mut().for_each(|slots| slots.push(None));
                match self.slots.take() {
                    Some(block) => block,
                    None => unreachable!("a slot was added"),
                }
            }
        };
        for slots in &mut self.layers {
            slots[block.id()] = of.and_then(|other| slots[other.id()].clone());
        }
        block
    }

    /// Drops the states of slots that are not in use.
    pub(super) fn clear_free(&mut self) {
        let mut held = Vec::new();
        while let Some(block) = self.slots.take() {
            self.layers.iter_mut().for_each(|slots| slots[block.id()] = None);
            held.push(block);
        }
    }

    pub(super) fn get(&self, layer: usize, slot: usize) -> Option<&LayerState<B>> {
        self.layers[layer][slot].as_ref()
    }

    pub(super) fn set(&mut self, layer: usize, slot: usize, state: LayerState<B>) {
        self.layers[layer][slot] = Some(state);
    }

    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Whether the state of a slot is finite; `None` if there is no state.
    pub(super) fn is_finite(&self, layer: usize, slot: usize) -> Option<bool> {
        let state = self.get(layer, slot)?;
        let matrices_are_broken = state.matrices.clone().is_some_and(is_broken);
        Some(!matrices_are_broken && !is_broken(state.inputs.clone()))
    }
}

impl<B: Backend> LayerState<B> {
    /// The inputs and the matrices of the state.
    pub(super) fn parts(&self) -> (Tensor<B, 2>, Option<Tensor<B, 3>>) {
        (self.inputs.clone(), self.matrices.clone())
    }
}

/// The states of one layer for the spans of a forward pass.
pub(crate) struct SpanStates<'a, B: Backend> {
    pub(super) slots: &'a mut StateSlots<B>,
    pub(super) layer: usize,
    /// The slot of each span.
    pub(super) of_spans: &'a [usize],
}

impl<B: Backend> States<B> for SpanStates<'_, B> {
    fn take(&mut self, span: usize) -> Option<LayerState<B>> {
        self.slots.layers[self.layer][self.of_spans[span]].take()
    }

    fn put(&mut self, span: usize, state: LayerState<B>) {
        self.slots.set(self.layer, self.of_spans[span], state);
    }
}
