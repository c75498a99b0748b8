//! Drafters for tests of speculation.

use std::sync::Arc;

use moi_engine::{
    OwnDrafter,
    speculation::{Chance, Draft, DraftError, DraftTree, Drafter, Growth},
};

use crate::hostile::Dice;

/// Drafts trees of the tokens that will come, with wrong ones among them.
#[derive(Debug)]
pub struct Oracle {
    /// The tokens that will come, with those of the prompt before them.
    text: Arc<Vec<u32>>,
    /// Number of tokens so far.
    at: usize,
    /// One draft in so many is wrong; all are if it is 1.
    wrong: usize,
    dice: Dice,
}

impl Drafter for Oracle {
    fn draft(&mut self, ahead: &[u32], growth: &Growth, _: &mut dyn Chance) -> Result<Draft, DraftError> {
        if self.dice.once_in(20) {
            return Err("a drafter may fail".into());
        }
        let (mut tree, mut main) = (DraftTree::default(), 0);
        for depth in 0..growth.depth {
            // Wrong tokens beside the right one, and behind other wrong ones.
            for _ in 0..self.dice.below(3) {
                if tree.drafted() < growth.nodes {
                    let parent = if self.dice.once_in(3) { self.dice.below(tree.len()) } else { main };
                    if tree.depth(parent) < growth.depth {
                        tree.add(parent, self.dice.below(300) as u32);
                    }
                }
            }
            let Some(&right) = self.text.get(self.at + ahead.len() + depth) else { break };
            let token = if self.dice.once_in(self.wrong) { self.dice.below(256) as u32 } else { right };
            if tree.drafted() >= growth.nodes {
                break;
            }
            main = tree.add(main, token);
        }
        let values = vec![0.5; tree.drafted()];
        Ok(Draft { tree, values })
    }

    fn push(&mut self, _: u32) {
        self.at += 1;
    }
}

impl Oracle {
    /// A drafter that knows a text, its prompt included. One draft in `wrong` is wrong; all are if that is 1.
    pub fn of(text: &Arc<Vec<u32>>, wrong: usize, seed: u64) -> OwnDrafter {
        let text = Arc::clone(text);
        OwnDrafter::new(move || {
            Box::new(Self { text: Arc::clone(&text), at: 0, wrong, dice: Dice::new(seed) })
        })
    }
}
