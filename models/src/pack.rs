//! Packing of a model's weights, and which of them can be packed.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, FloatDType, Int, Tensor, backend::Backend},
};

use crate::{
    Activations, Attention, Decoder, DecoderLayer, Experts, FeedForward, Linear, Matrix, Mlp, MlpAndExperts,
    PackedForm, PackedMatrix, ParameterPath, SelfAttention, Stack, is_held_in_float32,
    kernels::stack_experts, scales_dtype,
};

impl<B: Backend> Decoder<B> {
    /// Prepares the model for loading packed weights: the matrices for which `form` returns a packed form, given
    /// their parameters' names, are replaced by unloaded ones of that form. Matrices whose width is not a whole
    /// number of blocks stay dense, and so do routers, which are small and decide much.
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

    /// Concatenates the matrices of each block's experts, if the backend has kernels that read the picked ones by
    /// themselves; on GPUs the picks are then not read back. For a loaded model: any later change of experts' weights
    /// undoes it. While a layer is processed, its experts are in memory twice.
    pub fn with_stacked_experts(mut self) -> Self {
        for layer in &mut self.model.layers {
            let experts = match &mut layer.mlp {
                Some(FeedForward::Experts(experts)) => experts,
                Some(FeedForward::MlpAndExperts(both)) => &mut both.experts,
                Some(FeedForward::Mlp(_) | FeedForward::Linear(_)) | None => continue,
            };
            stack_experts(experts);
        }
        self
    }

    /// Sets what activations are quantized to for products with packed weights.
    pub fn with_activations(mut self, activations: Activations) -> Self {
        for (name, weight) in self.matrices() {
            let inward = name.ends_with("gate_proj") || name.ends_with("up_proj");
            if let Some(packed) = weight.packed_mut() {
                packed.set_activations(activations, inward);
            }
        }
        self
    }

    /// What activations are quantized to, if there are packed weights.
    pub fn activations(&self) -> Option<Activations> {
        let inward =
            self.model.layers.iter().filter_map(|layer| layer.mlp.as_ref()).find_map(|mlp| match mlp {
                FeedForward::Mlp(mlp) | FeedForward::MlpAndExperts(MlpAndExperts { mlp, .. }) => {
                    mlp.up_proj.weight.packed()
                }
                FeedForward::Experts(experts) => experts.experts.first()?.up_proj.weight.packed(),
                FeedForward::Linear(linear) => linear.linear_mlp.weight.packed(),
            });
        inward.or(self.model.embed_tokens.weight.packed()).map(PackedMatrix::activations)
    }

    /// All matrices but routers, with their parameters' names without `.weight`.
    fn matrices(&mut self) -> Vec<(String, &mut Matrix<B>)> {
        let Stack { embed_tokens, per_layer_model_projection, layers, .. } = &mut self.model;
        let mut all = vec![("model.embed_tokens".to_owned(), &mut embed_tokens.weight)];
        let per_layer = embed_tokens.per_layer.as_mut();
        all.extend(per_layer.map(|table| ("model.embed_tokens.per_layer".to_owned(), &mut table.weight)));
        let map = per_layer_model_projection.as_mut();
        all.extend(map.map(|map| ("model.per_layer_model_projection".to_owned(), &mut map.weight)));
        for (index, layer) in layers.iter_mut().enumerate() {
            let maps = of_layer(layer).into_iter();
            all.extend(maps.map(|(name, map)| (format!("model.layers.{index}.{name}"), &mut map.weight)));
        }
        all.extend(self.lm_head.as_mut().map(|head| ("lm_head".to_owned(), &mut head.weight)));
        all
    }

    /// Size of all parameters in memory, in bytes.
    pub fn num_bytes(&self) -> usize {
        let mut bytes = Bytes(0);
        self.visit(&mut bytes);
        bytes.0
    }

    /// Size of all parameters once they are loaded, in bytes, with matrices of floats in `dtype`. Nothing is
    /// allocated.
    pub fn planned_bytes(&self, dtype: FloatDType) -> usize {
        let mut planned = Planned { dtype, path: ParameterPath::default(), bytes: 0 };
        self.visit(&mut planned);
        planned.bytes
    }

    /// Bytes of the weights that one decoded token reads: the fraction [`DecoderConfig::weights_per_token`] of all
    /// weights.
    ///
    /// [`DecoderConfig::weights_per_token`]: crate::DecoderConfig::weights_per_token
    pub fn bytes_per_token(&self) -> usize {
        let share = self.config().weights_per_token() as f64 / self.config().num_params() as f64;
        (self.num_bytes() as f64 * share) as usize
    }
}

/// All linear layers of a layer but routers, with their names in it.
fn of_layer<B: Backend>(layer: &mut DecoderLayer<B>) -> Vec<(String, &mut Linear<B>)> {
    let mut all = Vec::new();
    match &mut layer.self_attn {
        Some(SelfAttention::Heads(Attention { q_proj, k_proj, v_proj, gate_proj, o_proj, .. })) => {
            let maps = [
                ("q_proj", Some(q_proj)),
                ("k_proj", k_proj.as_mut()),
                ("v_proj", v_proj.as_mut()),
                ("gate_proj", gate_proj.as_mut()),
                ("o_proj", Some(o_proj)),
            ];
            let there = maps.into_iter().filter_map(|(name, map)| Some((name, map?)));
            all.extend(there.map(|(name, map)| (format!("self_attn.{name}"), map)));
        }
        Some(SelfAttention::DeltaNet(net)) => {
            // The projections to decay and step size stay dense: like routers, they are small and decide much.
            let maps = [
                ("in_proj_q", &mut net.in_proj_q),
                ("in_proj_k", &mut net.in_proj_k),
                ("in_proj_v", &mut net.in_proj_v),
                ("in_proj_z", &mut net.in_proj_z),
                ("out_proj", &mut net.out_proj),
            ];
            all.extend(maps.map(|(name, map)| (format!("self_attn.{name}"), map)));
        }
        Some(SelfAttention::ShortConv(conv)) => {
            let maps = [("in_proj", &mut conv.in_proj), ("out_proj", &mut conv.out_proj)];
            all.extend(maps.map(|(name, map)| (format!("self_attn.{name}"), map)));
        }
        Some(SelfAttention::Mamba2(mamba)) => {
            let maps = [("in_proj", &mut mamba.in_proj), ("out_proj", &mut mamba.out_proj)];
            all.extend(maps.map(|(name, map)| (format!("self_attn.{name}"), map)));
        }
        Some(SelfAttention::Latent(latent)) => {
            let maps = [
                ("q_proj", latent.q_proj.as_mut()),
                ("q_a_proj", latent.q_a_proj.as_mut()),
                ("q_b_proj", latent.q_b_proj.as_mut()),
                ("kv_a_proj", Some(&mut latent.kv_a_proj)),
                ("o_proj", Some(&mut latent.o_proj)),
            ];
            let there = maps.into_iter().filter_map(|(name, map)| Some((name, map?)));
            all.extend(there.map(|(name, map)| (format!("self_attn.{name}"), map)));
        }
        Some(SelfAttention::Linear(linear)) => {
            all.push(("self_attn.linear_attn".to_owned(), &mut linear.linear_attn));
        }
        None => {}
    }
    match &mut layer.mlp {
        Some(FeedForward::Mlp(mlp)) => all.extend(of_mlp("mlp", mlp)),
        Some(FeedForward::Experts(experts)) => all.extend(of_experts("mlp", experts)),
        Some(FeedForward::MlpAndExperts(both)) => {
            all.extend(of_mlp("mlp.mlp", &mut both.mlp));
            all.extend(of_experts("mlp.experts", &mut both.experts));
        }
        Some(FeedForward::Linear(linear)) => {
            all.push(("mlp.linear_mlp".to_owned(), &mut linear.linear_mlp));
        }
        None => {}
    }
    let own = [
        ("per_layer_input_gate", layer.per_layer_input_gate.as_mut()),
        ("per_layer_projection", layer.per_layer_projection.as_mut()),
    ];
    all.extend(own.into_iter().filter_map(|(name, map)| Some((name.to_owned(), map?))));
    all
}

fn of_experts<'a, B: Backend>(prefix: &str, experts: &'a mut Experts<B>) -> Vec<(String, &'a mut Linear<B>)> {
    let Experts { experts, latent_in, latent_out, shared_expert, .. } = experts;
    let latent = [("latent_in", latent_in.as_mut()), ("latent_out", latent_out.as_mut())];
    let latent = latent.into_iter().filter_map(|(name, map)| Some((format!("{prefix}.{name}"), map?)));
    let each = experts.iter_mut().enumerate();
    let each = each.flat_map(|(index, expert)| of_mlp(&format!("{prefix}.experts.{index}"), expert));
    let shared =
        shared_expert.iter_mut().flat_map(|shared| of_mlp(&format!("{prefix}.shared_expert"), shared));
    each.chain(latent).chain(shared).collect()
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
    path: ParameterPath,
    bytes: usize,
}

impl<B: Backend> ModuleVisitor<B> for Planned {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let name = self.path.name();
        let of_blocks = name.ends_with(".scales") || name.ends_with(".minima");
        let dtype = match of_blocks {
            true => scales_dtype::<B>(&param.lazy_device()),
            false if is_held_in_float32(&name) => FloatDType::F32,
            false => self.dtype,
        };
        self.bytes += param.lazy_shape().num_elements() * DType::from(dtype).size();
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
        self.bytes += param.lazy_shape().num_elements() * DType::I32.size();
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
}
