//! The types of request bodies. An absent field and `null` mean the same.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod generation;
pub(crate) mod messages;
pub(crate) mod responses;
pub(crate) mod unions;
