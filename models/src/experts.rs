//! A mixture of experts, of which only the picked ones are computed.

use std::sync::OnceLock;

use burn::{
    module::{Module, Param},
    tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData, activation::sigmoid, backend::Backend},
};

use crate::{
    DecoderConfig, ExpertStack, ExpertsConfig, Kernels, LatentExperts, Linear, Mlp, MlpConfig, Norm,
    NormConfig, NormKind,
    linear::uninitialized,
    router::{ExpertNumbers, Picks, pick},
};

/// A router and its experts. Each position is routed to the experts that the router picks; their outputs are summed
/// with the router's weights, and added to the output of a shared expert.
///
/// # Examples
/// ```
/// use burn::tensor::Tensor;
/// use burn_flex::Flex;
/// use moi_models::{Activation, Experts, ExpertsConfig, MlpConfig, RouterConfig, TensorOperations};
///
/// let config = ExpertsConfig {
///     num_experts: 8,
///     num_per_token: 2,
///     router: RouterConfig::softmax(true),
///     expert: MlpConfig { intermediate_size: 24, gated: true, bias: false, activation: Activation::Silu },
///     latent: None,
///     shared: None,
/// };
/// let device = Default::default();
/// let experts = Experts::<Flex>::new(16, &config, &device);
/// let x = Tensor::<Flex, 2>::ones([3, 16], &device);
/// assert_eq!(experts.forward(x, &TensorOperations).dims(), [3, 16]);
/// ```
#[derive(Module, Debug)]
pub struct Experts<B: Backend> {
    /// The router's linear layer, `[experts, d]`.
    pub gate: Linear<B>,
    /// The norm of the router's input.
    pub input_norm: Option<Norm<B>>,
    /// Added to the scores for picking experts, `[experts]`.
    pub correction: Option<Param<Tensor<B, 1>>>,
    /// Factors on the weights, `[experts]`.
    pub expert_scales: Option<Param<Tensor<B, 1>>>,
    /// All experts.
    pub experts: Vec<Mlp<B>>,
    /// Projection to the latent vector that the experts read, `[latent, d]`, if they do.
    pub latent_in: Option<Linear<B>>,
    /// Projection of the sum of the experts' outputs, `[d, latent]`.
    pub latent_out: Option<Linear<B>>,
    /// The shared expert, which works on every position.
    pub shared_expert: Option<Mlp<B>>,
    /// Gate of the shared expert, `[1, d]`: its output is multiplied by the sigmoid of this.
    pub shared_expert_gate: Option<Linear<B>>,
    /// The matrices of all experts together, for kernels that read these.
    pub(crate) stack: ExpertStack,
    #[module(skip)]
    config: ExpertsConfig,
    #[module(skip)]
    on_host: OnHost,
}

/// Corrections and scales of the experts, which are read back from the device when they are first needed.
#[derive(Clone, Debug, Default)]
struct OnHost {
    correction: OnceLock<Vec<f32>>,
    scales: OnceLock<Vec<f32>>,
}

impl<B: Backend> Experts<B> {
    /// A block for a residual stream of `hidden_size`.
    pub fn new(hidden_size: usize, config: &ExpertsConfig, device: &B::Device) -> Self {
        let expert = |_| Mlp::new(config.expert_width(hidden_size), &config.expert, device);
        let latent = |there: LatentExperts, [inputs, outputs]: [usize; 2]| {
            Linear::new(inputs, outputs, there.bias, device)
        };
        let (count, router) = (config.num_experts, &config.router);
        let of_experts = |there: bool| there.then(|| uninitialized([count], device));
        let norm = |eps| Norm::new(hidden_size, NormConfig { kind: NormKind::Rms, eps }, device);
        let shared = config.shared.as_ref();
        Self {
            gate: Linear::new(hidden_size, count, router.bias, device),
            input_norm: router.input_norm.map(norm),
            correction: of_experts(router.correction),
            expert_scales: of_experts(router.expert_scales),
            experts: (0..count).map(expert).collect(),
            latent_in: config.latent.map(|there| latent(there, [hidden_size, there.width])),
            latent_out: config.latent.map(|there| latent(there, [there.width, hidden_size])),
            shared_expert: shared.map(|shared| Mlp::new(hidden_size, &shared.mlp, device)),
            shared_expert_gate: shared
                .filter(|shared| shared.gated)
                .map(|_| Linear::new(hidden_size, 1, false, device)),
            stack: ExpertStack::default(),
            config: config.clone(),
            on_host: OnHost::default(),
        }
    }

    /// Computes `[rows, d]` from `[rows, d]`.
    pub fn forward(&self, x: Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        let values = self.router_values(x.clone(), kernels);
        self.compute(x, &values, kernels)
    }

    /// The config that the experts were built from.
    #[cfg(feature = "gpu")]
    pub(crate) fn config(&self) -> &ExpertsConfig {
        &self.config
    }

    /// The activation function of an expert.
    #[cfg(feature = "gpu")]
    pub(crate) fn activation(&self) -> crate::Activation {
        self.config.expert.activation
    }

    /// The router's logits, `[rows, experts]`.
    fn router_values(&self, x: Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        let x = match &self.input_norm {
            Some(norm) => {
                let width = x.dims()[1] as f64;
                kernels.norm(norm, x).mul_scalar(width.powf(-0.5))
            }
            None => x,
        };
        kernels.linear(&self.gate, x)
    }

    /// For each expert, the rows for which it is picked.
    ///
    /// The router's logits are read back to the host, which must know which experts to run.
    fn pick(&self, values: &Tensor<B, 2>) -> Vec<Picks> {
        let values: Vec<f32> = values.to_data().iter::<f32>().collect();
        let of = ExpertNumbers {
            correction: read_back(&self.on_host.correction, self.correction.as_ref()),
            scales: read_back(&self.on_host.scales, self.expert_scales.as_ref()),
        };
        pick(&self.config, of, &values)
    }

    /// The outputs of the picked experts and the shared one for rows `[rows, d]`, given the router's logits.
    fn compute(&self, x: Tensor<B, 2>, values: &Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        let shared = self.shared(&x, kernels);
        if let (Some(inward), Some(outward)) = (&self.latent_in, &self.latent_out) {
            let latent = kernels.linear(inward, x).cast(DType::F32);
            let routed = self.add_routed(None, latent, values, kernels);
            let routed = kernels.linear(outward, routed).cast(DType::F32);
            return match shared {
                Some(shared) => shared + routed,
                None => routed,
            };
        }
        self.add_routed(shared, x, values, kernels)
    }

    /// Adds the outputs of the picked experts, for their inputs `[rows, width]`, to `others`, if there are any.
    fn add_routed(
        &self,
        others: Option<Tensor<B, 2>>,
        x: Tensor<B, 2>,
        values: &Tensor<B, 2>,
        kernels: &dyn Kernels<B>,
    ) -> Tensor<B, 2> {
        match (kernels.experts(self, values, &x), others) {
            (Some(routed), Some(others)) => others + routed,
            (Some(routed), None) => routed,
            (None, others) => {
                let out = others.unwrap_or_else(|| x.zeros_like());
                self.add_picked(out, x, self.pick(values), kernels)
            }
        }
    }

    /// The output of the shared expert, if there is one.
    fn shared(&self, x: &Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Option<Tensor<B, 2>> {
        let y = kernels.mlp(self.shared_expert.as_ref()?, x.clone()).cast(DType::F32);
        Some(match &self.shared_expert_gate {
            Some(gate) => y * sigmoid(kernels.linear(gate, x.clone()).cast(DType::F32)),
            None => y,
        })
    }

    /// Adds the outputs of the picked experts to the rows of `out`, one expert after another.
    fn add_picked(
        &self,
        mut out: Tensor<B, 2>,
        x: Tensor<B, 2>,
        picks: Vec<Picks>,
        kernels: &dyn Kernels<B>,
    ) -> Tensor<B, 2> {
        let device = x.device();
        for (expert, picks) in self.experts.iter().zip(picks) {
            let count = picks.positions.len();
            if count == 0 {
                continue;
            }
            let positions =
                Tensor::<B, 1, Int>::from_data(TensorData::new(picks.positions, [count]), &device);
            let weights = TensorData::new(picks.weights, [count, 1]);
            let weights = Tensor::<B, 2>::from_data(weights, (&device, DType::F32)).cast(out.dtype());
            let own = x.clone().select(0, positions.clone());
            let y = kernels.mlp(expert, own).cast(out.dtype()) * weights;
            out = out.select_assign(0, positions, y, IndexingUpdateOp::Add);
        }
        out
    }
}

fn read_back<'a, B: Backend>(
    cell: &'a OnceLock<Vec<f32>>,
    numbers: Option<&Param<Tensor<B, 1>>>,
) -> Option<&'a [f32]> {
    let numbers = numbers?;
    Some(cell.get_or_init(|| numbers.val().into_data().iter::<f32>().collect()))
}

/// An MLP and experts in parallel, each followed by a norm of its own (Gemma 4).
///
/// # Examples
/// ```
/// use moi_models::{Architecture, FeedForward};
///
/// let config = serde_json::json!({
///     "model_type": "gemma4_text", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
///     "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
///     "global_head_dim": 8, "hidden_size_per_layer_input": 0, "enable_moe_block": true, "num_experts": 4,
///     "top_k_experts": 2, "moe_intermediate_size": 8,
/// });
/// let config = Architecture::from_config(&config)?.config;
/// let model = config.init::<burn_flex::Flex>(&Default::default());
/// let Some(FeedForward::MlpAndExperts(both)) = &model.model.layers[0].mlp else { panic!("it has both") };
/// assert_eq!(both.mlp.up_proj.weight.dims(), [24, 16]);
/// assert_eq!(both.experts.experts.len(), 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct MlpAndExperts<B: Backend> {
    /// The MLP, which reads the block's input.
    pub mlp: Mlp<B>,
    /// Norm after the MLP, `[d]`.
    pub mlp_post_norm: Norm<B>,
    /// The experts, which read the residual stream.
    pub experts: Experts<B>,
    /// Norm before the experts, but not before their router, `[d]`.
    pub experts_norm: Norm<B>,
    /// Norm after the experts, `[d]`.
    pub experts_post_norm: Norm<B>,
}

impl<B: Backend> MlpAndExperts<B> {
    pub(crate) fn new(
        model: &DecoderConfig,
        mlp: &MlpConfig,
        experts: &ExpertsConfig,
        device: &B::Device,
    ) -> Self {
        let d = model.hidden_size;
        Self {
            mlp: Mlp::new(d, mlp, device),
            mlp_post_norm: Norm::new(d, model.post_norm, device),
            experts: Experts::new(d, experts, device),
            experts_norm: Norm::new(d, model.norm, device),
            experts_post_norm: Norm::new(d, model.post_norm, device),
        }
    }

    /// Computes `[rows, d]` from the block's input and the residual stream, `[rows, d]` each.
    pub(crate) fn forward(
        &self,
        x: Tensor<B, 2>,
        stream: Tensor<B, 2>,
        kernels: &dyn Kernels<B>,
    ) -> Tensor<B, 2> {
        let common = kernels.norm(&self.mlp_post_norm, kernels.mlp(&self.mlp, x));
        let values = self.experts.router_values(stream.clone(), kernels);
        let picked = self.experts.compute(kernels.norm(&self.experts_norm, stream), &values, kernels);
        common + kernels.norm(&self.experts_post_norm, picked)
    }
}
