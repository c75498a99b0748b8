//! Which weights of a model can be packed, and packing them.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, FloatDType, Int, Tensor, backend::Backend},
};

use crate::{
    Attention, BLOCK, Decoder, DecoderLayer, FeedForward, Linear, Mlp, PackedForm, SelfAttention,
    is_held_in_float32,
};

impl<B: Backend> Decoder<B> {
    /// The model with the weights for which `form` names one packed in it, yet to be loaded. It is asked for the
    /// matrices by their parameters' names; widths that are no multiple of 32 stay as they are, and so do
    /// routers, which decide and weigh little.
    pub fn packed(mut self, form: impl Fn(&str) -> Option<PackedForm>, device: &B::Device) -> Self {
        let form_of = |name: &str, [_, columns]: [usize; 2]| {
            form(&format!("{name}.weight")).filter(|_| columns.is_multiple_of(BLOCK))
        };
        let table = "model.embed_tokens";
        if let Some(form) = form_of(table, self.model.embed_tokens.dims()) {
            self.model.embed_tokens.pack(form, device);
        }
        let layers = self.model.layers.iter_mut().enumerate();
        let maps = layers.flat_map(|(index, layer)| {
            let named = move |(name, map)| (format!("model.layers.{index}.{name}"), map);
            of_layer(layer).into_iter().map(named)
        });
        for (name, map) in maps.chain(self.lm_head.as_mut().map(|head| ("lm_head".to_owned(), head))) {
            if let Some(form) = form_of(&name, map.weight.dims()) {
                map.pack(form, device);
            }
        }
        self
    }

    /// Bytes of all parameters in memory.
    pub fn num_bytes(&self) -> usize {
        let mut bytes = Bytes(0);
        self.visit(&mut bytes);
        bytes.0
    }

    /// Bytes of all parameters once they are loaded, floats that are no norms in `dtype`. Nothing is allocated.
    pub fn planned_bytes(&self, dtype: FloatDType) -> usize {
        let mut planned = Planned { dtype, path: Vec::new(), bytes: 0 };
        self.visit(&mut planned);
        planned.bytes
    }

    /// Bytes of the weights that one decoded token reads: the share of [`DecoderConfig::weights_per_token`] in all.
    ///
    /// [`DecoderConfig::weights_per_token`]: crate::DecoderConfig::weights_per_token
    pub fn bytes_per_token(&self) -> usize {
        let share = self.config().weights_per_token() as f64 / self.config().num_params() as f64;
        (self.num_bytes() as f64 * share) as usize
    }
}

/// All linear maps of a layer but routers, by their names in it.
fn of_layer<B: Backend>(layer: &mut DecoderLayer<B>) -> Vec<(String, &mut Linear<B>)> {
    let mut all = Vec::new();
    match &mut layer.self_attn {
        Some(SelfAttention::Heads(Attention { q_proj, k_proj, v_proj, o_proj, .. })) => {
            let maps = [("q_proj", q_proj), ("k_proj", k_proj), ("v_proj", v_proj), ("o_proj", o_proj)];
            all.extend(maps.map(|(name, map)| (format!("self_attn.{name}"), map)));
        }
        Some(SelfAttention::Linear(linear)) => {
            all.push(("self_attn.linear_attn".to_owned(), &mut linear.linear_attn));
        }
        None => {}
    }
    match &mut layer.mlp {
        Some(FeedForward::Mlp(mlp)) => all.extend(of_mlp("mlp", mlp)),
        Some(FeedForward::Experts(experts)) => {
            for (index, expert) in experts.experts.iter_mut().enumerate() {
                all.extend(of_mlp(&format!("mlp.experts.{index}"), expert));
            }
        }
        Some(FeedForward::Linear(linear)) => {
            all.push(("mlp.linear_mlp".to_owned(), &mut linear.linear_mlp));
        }
        None => {}
    }
    all
}

fn of_mlp<'a, B: Backend>(prefix: &str, mlp: &'a mut Mlp<B>) -> Vec<(String, &'a mut Linear<B>)> {
    let Mlp { gate_proj, up_proj, down_proj, .. } = mlp;
    let maps =
        [("gate_proj", gate_proj.as_mut()), ("up_proj", Some(up_proj)), ("down_proj", Some(down_proj))];
    maps.into_iter().filter_map(|(name, map)| Some((format!("{prefix}.{name}"), map?))).collect()
}

struct Bytes(usize);

impl<B: Backend> ModuleVisitor<B> for Bytes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0 += param.lazy_shape().num_elements() * param.val().dtype().size();
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        self.0 += param.lazy_shape().num_elements() * param.val().dtype().size();
    }
}

struct Planned {
    dtype: FloatDType,
    path: Vec<String>,
    bytes: usize,
}

impl<B: Backend> ModuleVisitor<B> for Planned {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let of_blocks = self.path.last().is_some_and(|name| ["scales", "minima"].contains(&name.as_str()));
        let single = of_blocks || is_held_in_float32(&self.path.join("."));
        let dtype = if single { FloatDType::F32 } else { self.dtype };
        self.bytes += param.lazy_shape().num_elements() * DType::from(dtype).size();
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        self.bytes += param.lazy_shape().num_elements() * DType::I32.size();
    }

    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
}
