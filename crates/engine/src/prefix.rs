//! The prefix cache: keys and values of earlier prompts, found by their tokens, for prompts with the same beginning.
//!
//! It is a tree of blocks (RadixAttention, arXiv 2312.07104, with one block of the KV cache per node): a node has the
//! 64 tokens of its positions, and its children are the blocks that followed it in some sequence. Every block was
//! computed from the plain embeddings of tokens, from the first position on. What a position holds depends on every
//! input before it, so positions behind a mixture, or behind an embedding given by a caller, cannot be found by
//! tokens.

use std::collections::HashMap;

use burn::tensor::backend::Backend;
use moi_models::{BLOCK_POSITIONS, BlockTable, Checkpoint, KvPool, SharedBlock};

/// Blocks of prompts. The least recently used ones are evicted first.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    /// The first blocks of prompts, by the request's salt and then by their tokens.
    roots: HashMap<String, Level>,
    nodes: Vec<Option<Node>>,
    free: Vec<usize>,
    /// The most nodes that are kept, and the most nodes with states.
    most: usize,
    most_states: usize,
    /// Counts uses, so that nodes know when they were last used.
    clock: u64,
}

/// Nodes by the tokens of their blocks.
type Level = HashMap<Vec<u32>, usize>;

#[derive(Debug)]
struct Node {
    tokens: Vec<u32>,
    block: SharedBlock,
    parent: Parent,
    children: Level,
    used: u64,
}

/// The parent of a node.
#[derive(Clone, Debug)]
enum Parent {
    /// The node has no parent: it is a first block, for requests with this salt.
    Root(String),
    Node(usize),
}

impl PrefixCache {
    /// A cache of at most `most` blocks, of which at most `most_states` have states. With 0 it keeps nothing.
    pub(crate) fn new(most: usize, most_states: usize) -> Self {
        Self { most, most_states, ..Self::default() }
    }

    /// Whether it keeps states.
    pub(crate) fn keeps_states(&self) -> bool {
        self.most > 0 && self.most_states > 0
    }

    /// Number of blocks that are kept.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// A table of the longest cached beginning of a prompt: whole blocks, and without the prompt's last position,
    /// because its logits are needed. `None` if nothing is cached, or not all that an attention window sees.
    pub(crate) fn find<B: Backend>(
        &mut self,
        salt: &str,
        prompt: &[u32],
        pool: &KvPool<B>,
    ) -> Option<BlockTable> {
        self.clock += 1;
        let (mut blocks, mut level) = (Vec::new(), self.roots.get(salt)?);
        let mut found = Vec::new();
        for tokens in prompt[..prompt.len().saturating_sub(1)].chunks_exact(BLOCK_POSITIONS) {
            let Some(&index) = level.get(tokens) else { break };
            let Some(node) = &self.nodes[index] else { break };
            level = &node.children;
            found.push(index);
            blocks.push(node.block.clone());
        }
        // A shorter beginning may still have all that a window sees.
        while !blocks.is_empty() {
            if let Some(table) = pool.table_of(&blocks) {
                for &index in &found[..blocks.len()] {
                    if let Some(node) = &mut self.nodes[index] {
                        node.used = self.clock;
                    }
                }
                return Some(table);
            }
            blocks.pop();
        }
        None
    }

    /// Keeps the whole blocks of a prompt whose first positions a table has, with the states that were saved at their
    /// ends.
    pub(crate) fn insert(
        &mut self,
        salt: &str,
        prompt: &[u32],
        table: &BlockTable,
        checkpoints: &[Checkpoint],
    ) {
        if self.most == 0 {
            return;
        }
        self.clock += 1;
        let (mut parent, clock) = (Parent::Root(salt.to_owned()), self.clock);
        let whole = prompt.len().min(table.len()) / BLOCK_POSITIONS;
        for (index, tokens) in prompt.chunks_exact(BLOCK_POSITIONS).take(whole).enumerate() {
            let mut block = table.shared_block(index);
            let end = (index + 1) * BLOCK_POSITIONS;
            if let Some(checkpoint) = checkpoints.iter().find(|one| one.positions() == end) {
                block = block.with_checkpoint(checkpoint);
            }
            let node = match self.level_mut(&parent).get(tokens).copied() {
                Some(node) => {
                    if let Some(node) = &mut self.nodes[node] {
                        // One copy of a block may have the keys and values that the other lacks because they were out
                        // of its window.
                        node.block.complete(&block);
                        node.used = clock;
                    }
                    node
                }
                None => self.add(tokens, block, parent),
            };
            parent = Parent::Node(node);
        }
        while self.len() > self.most && self.evict() {}
        while self.nodes.iter().flatten().filter(|node| node.block.has_state()).count() > self.most_states
            && self.drop_oldest_state()
        {}
    }

    /// Drops the state that was used the longest ago, but keeps its block. Returns whether there was one.
    fn drop_oldest_state(&mut self) -> bool {
        let nodes = self.nodes.iter().enumerate();
        let with_states = nodes.filter_map(|(index, node)| Some((index, node.as_ref()?)));
        let with_states = with_states.filter(|(_, node)| node.block.has_state());
        // Within one prompt the earliest state goes first, because the next turn of a conversation begins from the
        // last.
        let oldest = with_states.min_by_key(|&(index, node)| (node.used, self.depth(index)));
        let Some((index, _)) = oldest else { return false };
        if let Some(node) = &mut self.nodes[index] {
            node.block.drop_state();
        }
        true
    }

    /// Number of blocks before a block.
    fn depth(&self, mut index: usize) -> usize {
        let mut depth = 0;
        while let Some(Node { parent: Parent::Node(before), .. }) = &self.nodes[index] {
            (index, depth) = (*before, depth + 1);
        }
        depth
    }

    fn add(&mut self, tokens: &[u32], block: SharedBlock, parent: Parent) -> usize {
        let (tokens, children) = (tokens.to_vec(), Level::new());
        let node = Node { tokens: tokens.clone(), block, parent: parent.clone(), children, used: self.clock };
        let index = self.free.pop().unwrap_or(self.nodes.len());
        match self.nodes.get_mut(index) {
            Some(place) => *place = Some(node),
            None => self.nodes.push(Some(node)),
        }
        self.level_mut(&parent).insert(tokens, index);
        index
    }

    /// The children of a parent.
    fn level_mut(&mut self, parent: &Parent) -> &mut Level {
        match parent {
            Parent::Root(salt) => self.roots.entry(salt.clone()).or_default(),
            Parent::Node(index) => match &mut self.nodes[*index] {
                Some(node) => &mut node.children,
                None => unreachable!("a node goes after those below it"),
            },
        }
    }

    /// Evicts the leaf whose use is the longest ago. Returns whether there was one.
    pub(crate) fn evict(&mut self) -> bool {
        let leaves = self.nodes.iter().enumerate().filter_map(|(index, node)| Some((index, node.as_ref()?)));
        let oldest = leaves.filter(|(_, node)| node.children.is_empty()).min_by_key(|(_, node)| node.used);
        let Some(index) = oldest.map(|(index, _)| index) else { return false };
        if let Some(node) = self.nodes[index].take() {
            self.level_mut(&node.parent).remove(&node.tokens);
            self.free.push(index);
            if let Parent::Root(salt) = &node.parent
                && self.roots.get(salt).is_some_and(Level::is_empty)
            {
                self.roots.remove(salt);
            }
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use burn::tensor::{FloatDType, Int, Tensor, TensorData};
    use burn_flex::Flex;
    use moi_models::{CausalLm, ForwardBatch};

    use super::*;
    use crate::{Engine, InputRule, Prompt, Request, StopRules, self_check::Known};

    fn tokens(seed: u32, len: u32) -> Vec<u32> {
        (0..len).map(|i| (i * 37 + seed * 61 + 5) % 509).collect()
    }

    #[test]
    fn the_least_recently_used_blocks_go_first_and_leaves_before_what_they_are_behind() {
        let device = Default::default();
        let model = Known::read().model::<Flex>(&device, FloatDType::F32).unwrap();
        let mut pool = model.new_pool(&device);
        let mut cache = PrefixCache::new(3, 0);
        let insert = |tokens: &[u32], cache: &mut PrefixCache, pool: &mut KvPool<Flex>| {
            let ids: Vec<i64> = tokens.iter().map(|&id| id.into()).collect();
            let ids = Tensor::<Flex, 1, Int>::from_data(TensorData::new(ids, [tokens.len()]), &device);
            let mut table = pool.table();
            model.forward(ForwardBatch::one(model.embed(ids), &mut table), pool).unwrap();
            cache.insert("", tokens, &table, &[]);
        };
        let (a, b) = (tokens(1, 128), tokens(2, 100));
        insert(&a, &mut cache, &mut pool);
        insert(&b, &mut cache, &mut pool);
        assert_eq!(cache.len(), 3);
        let len = |cache: &mut PrefixCache, prompt: &[u32], pool: &KvPool<Flex>| {
            cache.find("", prompt, pool).map_or(0, |table| table.len())
        };
        // The last position's logits are needed: of 128 positions at most 127 can be cached, which is one whole
        // block.
        assert_eq!(len(&mut cache, &a, &pool), 64);
        assert_eq!(len(&mut cache, &[&a[..], &[1]].concat(), &pool), 128);
        assert_eq!(len(&mut cache, &[&a[..127], &[508, 1]].concat(), &pool), 64);
        assert_eq!(len(&mut cache, &[&[3], &a[..]].concat(), &pool), 0);
        // The leaf whose use is the longest ago is the second block of `a`, then `b`.
        assert_eq!(len(&mut cache, &[&b[..64], &[1]].concat(), &pool), 64);
        let c = tokens(3, 64);
        insert(&c, &mut cache, &mut pool);
        assert_eq!(len(&mut cache, &[&a[..], &[1]].concat(), &pool), 64);
        assert_eq!(len(&mut cache, &[&b[..64], &[1]].concat(), &pool), 64);
        assert_eq!(len(&mut cache, &[&c[..], &[1]].concat(), &pool), 64);
        assert_eq!(cache.len(), 3);
        while cache.evict() {}
        assert_eq!((cache.len(), pool.used_bytes()), (0, 0));
        assert!(cache.roots.is_empty());
    }

    #[test]
    fn requests_of_another_salt_share_nothing() {
        let device = Default::default();
        let model = Known::read().model::<Flex>(&device, FloatDType::F32).unwrap();
        let engine = Engine::new(model, device).with_prefix_cache(1 << 30);
        let request = |salt: &str| Request {
            salt: salt.to_owned(),
            stop: StopRules { max_tokens: Some(2), ..StopRules::default() },
            ..Request::new(Prompt::Ids(tokens(1, 100)))
        };
        let reused = |salts: &[&str]| {
            let mut batch = engine.batch();
            batch.add_all(salts.iter().map(|salt| request(salt)).collect()).unwrap();
            while !batch.is_empty() {
                batch.step().unwrap();
            }
            batch.reused_positions()
        };
        assert_eq!(reused(&["a"]), 0);
        assert_eq!(reused(&["b"]), 0);
        assert_eq!(reused(&["a", "b", "c"]), 128);
        assert_eq!(reused(&["c"]), 64);
    }

    #[test]
    fn from_the_cache_is_fresh_and_mixtures_are_not_shared() {
        let device = Default::default();
        let model = || Known::read().model::<Flex>(&device, FloatDType::F32).unwrap();
        let fresh = Engine::new(model(), device);
        let engine = Engine::new(model(), device).with_prefix_cache(1 << 30);
        let run = |engine: &Engine<Flex, _>, prompt: &[u32], rule: InputRule| {
            let mut request = Request::new(Prompt::Ids(prompt.to_vec()));
            (request.rule, request.stop.max_tokens, request.stop.ignore_eos) = (rule, Some(9), true);
            let generation = engine.generate(request).unwrap();
            let reused = generation.reused_positions();
            let steps: Vec<_> = generation.map(Result::unwrap).collect();
            (reused, steps)
        };
        let first = tokens(1, 100);
        // Prompts with other ends and other lengths. The second run of each finds what the first one has left.
        for (prompt, expected) in [
            (first.clone(), 0),
            (first.clone(), 64),
            ([&first[..70], &tokens(4, 20)].concat(), 64),
            ([&first[..63], &tokens(5, 20)].concat(), 0),
            (first[..64].to_vec(), 0),
            (first[..65].to_vec(), 64),
        ] {
            for rule in [InputRule::default(), InputRule::TOKEN] {
                let (reused, steps) = run(&engine, &prompt, rule);
                assert_eq!(steps, run(&fresh, &prompt, rule).1, "{rule}, {} positions", prompt.len());
                if rule == InputRule::default() {
                    assert_eq!(reused, expected, "{} positions", prompt.len());
                }
            }
        }
        // Text that was generated from mixtures is continued from tokens: its positions hold other values.
        let prompt = tokens(6, 60);
        let (_, steps) = run(&engine, &prompt, InputRule::direct(crate::Support::Full).unwrap());
        let whole: Vec<u32> = prompt.iter().copied().chain(steps.iter().map(|step| step.token)).collect();
        assert!(whole.len() > 65);
        let (reused, steps) = run(&engine, &whole, InputRule::TOKEN);
        assert_eq!((reused, steps), (0, run(&fresh, &whole, InputRule::TOKEN).1));
    }
}
