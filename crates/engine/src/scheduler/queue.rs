//! The queue of waiting requests.

use std::collections::VecDeque;

use burn::tensor::backend::Backend;

use crate::{PreparedRequest, RequestId};

/// Tokens that are added to an owner's share at each visit.
const QUANTUM: usize = 512;
/// Prompt positions by which a request counts as shorter for each round that it has waited.
const AGEING: usize = 16;

/// A request that waits.
pub(super) struct Queued<B: Backend> {
    pub(super) id: RequestId,
    pub(super) request: PreparedRequest<B>,
    /// Positions of its prompt.
    pub(super) prompt: usize,
    /// Number of positions that it is expected to reach, and the largest number that it may reach.
    pub(super) counted: usize,
    pub(super) limit: usize,
    /// Number of rounds that it has waited.
    pub(super) waited: usize,
}

impl<B: Backend> Queued<B> {
    /// Orders the requests of an owner: the smallest priority first, then the shortest prompt, where waiting makes a
    /// prompt count as shorter.
    fn rank(&self) -> (i64, usize, RequestId) {
        (self.request.priority(), self.prompt.saturating_sub(AGEING * self.waited), self.id)
    }
}

/// The requests of an owner, and how many tokens of its share are left.
struct Owner<B: Backend> {
    name: String,
    queue: Vec<Queued<B>>,
    deficit: usize,
}

impl<B: Backend> Owner<B> {
    fn first(&self) -> Option<usize> {
        (0..self.queue.len()).min_by_key(|&at| self.queue[at].rank())
    }

    fn priority(&self) -> Option<i64> {
        self.queue.iter().map(|queued| queued.request.priority()).min()
    }
}

/// All waiting requests: the smallest priority first, and among equals owner after owner (deficit round robin,
/// Shreedhar and Varghese, 1996).
pub(super) struct Queue<B: Backend>(VecDeque<Owner<B>>);

impl<B: Backend> Queue<B> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    fn all(&self) -> impl Iterator<Item = &Queued<B>> {
        self.0.iter().flat_map(|owner| &owner.queue)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|owner| owner.queue.len()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tokens of all waiting prompts.
    pub(super) fn tokens(&self) -> usize {
        self.all().map(|queued| queued.prompt).sum()
    }

    pub(super) fn push(&mut self, owner: &str, new: Queued<B>) {
        match self.0.iter_mut().find(|known| known.name == owner) {
            Some(known) => known.queue.push(new),
            None => self.0.push_back(Owner { name: owner.to_owned(), queue: vec![new], deficit: 0 }),
        }
    }

    /// Removes a request. Returns whether it was there.
    pub(super) fn remove(&mut self, id: RequestId) -> bool {
        let before = self.len();
        self.0.iter_mut().for_each(|owner| owner.queue.retain(|queued| queued.id != id));
        self.0.retain(|owner| !owner.queue.is_empty());
        self.len() < before
    }

    /// Counts a round for all waiting requests.
    pub(super) fn age(&mut self) {
        self.0.iter_mut().flat_map(|owner| &mut owner.queue).for_each(|queued| queued.waited += 1);
    }

    /// The next request, which stays in the queue. Its owner moves to the front.
    pub(super) fn next(&mut self) -> Option<&Queued<B>> {
        let least = self.0.iter().filter_map(Owner::priority).min()?;
        let contenders = self.0.iter().filter(|owner| owner.priority() == Some(least)).count();
        loop {
            let owner = self.0.front_mut()?;
            let at = owner.first().filter(|&at| owner.queue[at].request.priority() == least);
            match at.map(|at| (at, owner.queue[at].counted)) {
                Some((at, cost)) if owner.deficit >= cost || contenders == 1 => {
                    owner.deficit = owner.deficit.max(cost);
                    return self.0.front().map(|owner| &owner.queue[at]);
                }
                Some(_) => owner.deficit += QUANTUM,
                None => {}
            }
            self.0.rotate_left(1);
        }
    }

    /// Takes the next request out of the queue.
    pub(super) fn take(&mut self) -> Option<Queued<B>> {
        self.next()?;
        let owner = self.0.front_mut()?;
        let taken = owner.queue.remove(owner.first()?);
        owner.deficit = owner.deficit.saturating_sub(taken.counted);
        if owner.queue.is_empty() {
            self.0.pop_front();
        }
        Some(taken)
    }
}
