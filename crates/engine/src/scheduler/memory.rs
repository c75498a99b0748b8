//! The cache memory that requests take, and which of them are parked if there is not enough.

use burn::tensor::backend::Backend;
use moi_models::CausalLm;

use super::{Event, Running, Scheduler};
use crate::{RequestId, SequenceError, SequenceId, round::MAX_CHECKPOINTS};

impl<B: Backend, M: CausalLm<B>> Scheduler<'_, B, M> {
    /// Bytes of the cache that a sequence of this many positions takes.
    pub(super) fn bytes_for(&self, positions: usize) -> usize {
        let engine = self.batch.engine();
        // Inputs are kept in float32 at most.
        let width = engine.model().embedding().dims()[1];
        let inputs = if self.batch.replays { positions * width * size_of::<f32>() } else { 0 };
        // A prompt keeps saved states until it has run.
        let pool = engine.pool();
        let kept = if self.batch.keeps_checkpoints { MAX_CHECKPOINTS * pool.state_bytes() } else { 0 };
        pool.bytes_for(positions, engine.prefill_chunk()) + kept + inputs
    }

    /// Bytes that are counted for running requests.
    pub(super) fn used(&self) -> usize {
        self.running.values().filter(|running| !running.is_parked).map(|running| running.bytes).sum()
    }

    /// Parks the requests that came last, as long as the running ones need more than there is. One request always
    /// runs.
    pub(super) fn preempt(&mut self) {
        let Some(budget) = self.options.cache_bytes else { return };
        self.make_room(0);
        while self.active() > 1 && self.used() > budget {
            let active = self.running.iter_mut().filter(|(_, running)| running.is_active());
            let Some((&row, last)) = active.max_by_key(|(_, running)| running.id) else { return };
            last.is_parked = true;
            self.preempted += 1;
            self.batch.park(row);
        }
    }

    /// Parks paused requests, those that came last first, until there is room for `bytes` more or no paused request
    /// is left.
    pub(super) fn make_room(&mut self, bytes: usize) {
        let Some(budget) = self.options.cache_bytes else { return };
        while self.used().saturating_add(bytes) > budget {
            let paused =
                self.running.iter_mut().filter(|(_, running)| running.is_paused && !running.is_parked);
            let Some((&row, last)) = paused.max_by_key(|(_, running)| running.id) else { return };
            last.is_parked = true;
            self.preempted += 1;
            self.batch.park_paused(row);
        }
    }

    /// Lets parked requests continue, the oldest first, as long as there is room. No other request overtakes them.
    pub(super) fn resume(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let parked = self.running.iter().filter(|(_, running)| running.is_parked && !running.is_paused);
        let mut parked: Vec<(RequestId, SequenceId)> =
            parked.map(|(&row, running)| (running.id, row)).collect();
        parked.sort_unstable();
        for (id, row) in parked {
            let Some(running) = self.running.get(&row).copied() else { continue };
            self.make_room(running.bytes);
            let is_room = self.options.cache_bytes.is_none_or(|budget| self.used() + running.bytes <= budget);
            if !is_room && self.active() > 0 {
                break;
            }
            match self.batch.unpark(row) {
                Ok(()) => {
                    self.running.insert(row, Running { is_parked: false, ..running });
                }
                Err(SequenceError { error, text, .. }) => {
                    self.running.remove(&row);
                    events.push(Event::Failed(id, error, text));
                }
            }
        }
        events
    }
}
