//! Finds where values stop being finite, for error messages. It only runs after such values have occurred.

use std::ops::RangeInclusive;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Tensor, backend::Backend},
};

use crate::{Decoder, ParameterPath};

/// Whether a tensor has values that are not finite.
pub(crate) fn is_broken<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> bool {
    tensor.into_data().convert::<f32>().iter::<f32>().any(|value| !value.is_finite())
}

impl<B: Backend> Decoder<B> {
    /// The name of the first weight with values that are not finite, in these layers and, where they include the
    /// first or the last one, in the parts before or after them. The quants of packed weights are always finite;
    /// their scales need not be.
    pub(crate) fn first_broken_weight(&self, layers: &RangeInclusive<usize>) -> Option<String> {
        let config = self.config();
        let (last, is_tied) = (config.layers.len(), config.tie_word_embeddings);
        let mut finder = Finder { layers, last, is_tied, path: ParameterPath::default(), found: None };
        self.visit(&mut finder);
        finder.found
    }
}

struct Finder<'a> {
    layers: &'a RangeInclusive<usize>,
    /// Number of layers, which stands for the parts after them.
    last: usize,
    /// Whether the embedding table is also the LM head.
    is_tied: bool,
    path: ParameterPath,
    found: Option<String>,
}

impl Finder<'_> {
    /// The layer of the current parameter: the first one for parts before all layers, one past the last for those
    /// after them.
    fn layer(&self) -> usize {
        match self.path.parts()[..] {
            ["model", "layers", layer, ..] => layer.parse().unwrap_or(0),
            ["model", "embed_tokens" | "embed_positions", ..] => 0,
            _ => self.last,
        }
    }
}

impl<B: Backend> ModuleVisitor<B> for Finder<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let is_head = self.is_tied && matches!(self.path.parts()[..], ["model", "embed_tokens", ..]);
        let is_there = self.layers.contains(&self.layer()) || is_head && self.layers.contains(&self.last);
        if self.found.is_none() && is_there && is_broken(param.val()) {
            self.found = Some(self.path.name());
        }
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
}
