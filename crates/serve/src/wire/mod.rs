//! What clients send, as types: an absent field and `null` are the same.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod generation;
pub(crate) mod messages;
pub(crate) mod responses;
pub(crate) mod unions;
