//! An answer as a list of blocks, each of one kind, as in Anthropic's messages and OpenAI's responses.

use crate::{choice::Piece, routes::chat::Call, tools::CallDelta};

/// A block of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Thought(String),
    Text(String),
    Call(Call),
}

/// What happens to a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Begins,
    /// A piece of its text, or of a call's arguments.
    Grows(String),
    Ends,
}

/// The blocks of an answer in progress.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    pub(crate) all: Vec<Block>,
    /// Whether the last block may grow.
    is_open: bool,
}

impl Blocks {
    /// Adds a piece. Returns the changes, each with the index of its block.
    pub(crate) fn push(&mut self, piece: &Piece) -> Vec<(usize, Change)> {
        let mut changes = Vec::new();
        // Arguments that continue a call come before the text behind that call.
        let (more, begun): (Vec<&CallDelta>, Vec<&CallDelta>) =
            piece.calls.iter().partition(|delta| delta.begins.is_none());
        for delta in more {
            self.grow(Block::Call(Call::default()), &delta.arguments, &mut changes);
        }
        if !piece.thought.is_empty() {
            self.grow(Block::Thought(String::new()), &piece.thought, &mut changes);
        }
        if !piece.answer.is_empty() {
            self.grow(Block::Text(String::new()), &piece.answer, &mut changes);
        }
        for CallDelta { begins, arguments, .. } in begun {
            if let Some((id, name)) = begins {
                let call = Call { id: id.clone(), name: name.clone(), arguments: String::new() };
                self.begin(Block::Call(call), &mut changes);
            }
            if !arguments.is_empty() {
                self.grow(Block::Call(Call::default()), arguments, &mut changes);
            }
        }
        changes
    }

    /// Ends the last block, because nothing more comes.
    pub(crate) fn finish(&mut self) -> Vec<(usize, Change)> {
        let mut changes = Vec::new();
        self.end(&mut changes);
        changes
    }

    fn begin(&mut self, block: Block, changes: &mut Vec<(usize, Change)>) {
        self.end(changes);
        self.all.push(block);
        self.is_open = true;
        changes.push((self.all.len() - 1, Change::Begins));
    }

    fn end(&mut self, changes: &mut Vec<(usize, Change)>) {
        if self.is_open {
            changes.push((self.all.len() - 1, Change::Ends));
            self.is_open = false;
        }
    }

    /// Adds text to the last block, or to a new one if the last one has ended or is of another kind.
    fn grow(&mut self, kind: Block, text: &str, changes: &mut Vec<(usize, Change)>) {
        let is_same = self.all.last().is_some_and(|last| {
            matches!(
                (last, &kind),
                (Block::Thought(_), Block::Thought(_))
                    | (Block::Text(_), Block::Text(_))
                    | (Block::Call(_), Block::Call(_))
            )
        });
        if !(self.is_open && is_same) {
            self.begin(kind, changes);
        }
        match self.all.last_mut() {
            Some(Block::Thought(own) | Block::Text(own)) => *own += text,
            Some(Block::Call(call)) => call.arguments += text,
            None => {}
        }
        changes.push((self.all.len() - 1, Change::Grows(text.to_owned())));
    }
}
