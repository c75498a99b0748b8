//! Which weights of a model can be packed, and packing them.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, FloatDType, Int, Tensor, backend::Backend},
};

use crate::{
    Activations, Attention, Decoder, DecoderLayer, FeedForward, Linear, Matrix, Mlp, PackedForm,
    PackedMatrix, SelfAttention, is_held_in_float32, scales_dtype,
};

impl<B: Backend> Decoder<B> {
    /// The model with the weights for which `form` names one packed in it, yet to be loaded. It is asked for the
    /// matrices by their parameters' names; widths that are no whole number of
    /// blocks stay as they are, and so do routers, which decide and weigh little.
    pub fn packed(mut self, form: impl Fn(&str) -> Option<PackedForm>, device: &B::Device) -> Self {
        let form_of = |name: &str, [_, columns]: [usize; 2]| {
            form(&format!("{name}.weight")).filter(|form| columns.is_multiple_of(form.span()))
        };
        for (name, weight) in self.matrices() {
            let [rows, columns] = weight.dims();
            if let Some(form) = form_of(&name, [rows, columns]) {
                *weight = Matrix::new(rows, columns, Some(form), device);
            }
        }
        self.with_activations(Activations::default())
    }

    /// The model with its activations rounded to this for products with packed weights.
    pub fn with_activations(mut self, activations: Activations) -> Self {
        for (name, weight) in self.matrices() {
            let inward = name.ends_with("gate_proj") || name.ends_with("up_proj");
            if let Some(packed) = weight.packed_mut() {
                packed.set_activations(activations, inward);
            }
        }
        self
    }

    /// What activations are rounded to, if there are packed weights.
    pub fn activations(&self) -> Option<Activations> {
        let inward =
            self.model.layers.iter().filter_map(|layer| layer.mlp.as_ref()).find_map(|mlp| match mlp {
                FeedForward::Mlp(mlp) => mlp.up_proj.weight.packed(),
                FeedForward::Experts(experts) => experts.experts.first()?.up_proj.weight.packed(),
                FeedForward::Linear(linear) => linear.linear_mlp.weight.packed(),
            });
        inward.or(self.model.embed_tokens.weight.packed()).map(PackedMatrix::activations)
    }

    /// All matrices but routers, by their parameters' names without `.weight`.
    fn matrices(&mut self) -> Vec<(String, &mut Matrix<B>)> {
        let mut all = vec![("model.embed_tokens".to_owned(), &mut self.model.embed_tokens.weight)];
        for (index, layer) in self.model.layers.iter_mut().enumerate() {
            let maps = of_layer(layer).into_iter();
            all.extend(maps.map(|(name, map)| (format!("model.layers.{index}.{name}"), &mut map.weight)));
        }
        all.extend(self.lm_head.as_mut().map(|head| ("lm_head".to_owned(), &mut head.weight)));
        all
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
        let dtype = match of_blocks {
            true => scales_dtype::<B>(&param.lazy_device()),
            false if is_held_in_float32(&self.path.join(".")) => FloatDType::F32,
            false => self.dtype,
        };
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
