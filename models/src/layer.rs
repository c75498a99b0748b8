//! One layer of the decoder: attention or its replacement, the feed-forward block, and the norms around them.

use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor, backend::Backend},
};

use crate::{
    DecoderConfig, Experts, FeedForwardKind, Kernels, KvPool, LayerConfig, Linear, Mlp, MlpAndExperts, Norm,
    NormPlace, PerLayerInputs, RopeConfig, SelfAttention, context::ForwardContext, linear::uninitialized,
    residual::Residual,
};

/// Attention and feed-forward block, each with its norms and residual addition. [`NormPlace`] says where each norm
/// is.
///
/// # Examples
/// ```
/// use moi_models::Architecture;
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let layer = &model.model.layers[0];
/// assert!(layer.self_attn.is_some() && layer.mlp.is_some());
/// // Llama has norms before its blocks, and none after them.
/// assert!(layer.input_layernorm.is_some() && layer.post_feedforward_layernorm.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct DecoderLayer<B: Backend> {
    /// Attention or its replacement, which mixes positions.
    pub self_attn: Option<SelfAttention<B>>,
    /// The feed-forward block, which works on each position by itself.
    pub mlp: Option<FeedForward<B>>,
    /// `[d]`.
    pub input_layernorm: Option<Norm<B>>,
    /// `[d]`.
    pub post_attention_layernorm: Option<Norm<B>>,
    /// `[d]`.
    pub pre_feedforward_layernorm: Option<Norm<B>>,
    /// `[d]`.
    pub post_feedforward_layernorm: Option<Norm<B>>,
    #[module(skip)]
    norms: NormPlace,
    /// Gate on the layer's own inputs, `[width, d]`, if layers have such.
    pub per_layer_input_gate: Option<Linear<B>>,
    /// Projection of the gated inputs, `[d, width]`.
    pub per_layer_projection: Option<Linear<B>>,
    /// Norm of that, `[d]`.
    pub post_per_layer_input_norm: Option<Norm<B>>,
    #[module(skip)]
    per_layer_inputs: Option<PerLayerInputs>,
    /// Factor on the residual stream at the layer's end, `[1]`.
    pub layer_scalar: Option<Param<Tensor<B, 1>>>,
    parallel: bool,
    residual_scale: f64,
}

/// A feed-forward block, which works on each position by itself.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, FeedForward};
/// # let config = serde_json::json!({
/// #     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
/// #     "num_hidden_layers": 2, "num_attention_heads": 4,
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let Some(FeedForward::Mlp(mlp)) = &model.model.layers[0].mlp else { panic!("Llama has no experts") };
/// assert_eq!(mlp.down_proj.weight.dims(), [16, 24]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one per layer, and nearly all are the large one")]
pub enum FeedForward<B: Backend> {
    /// A network that is the same for all positions.
    Mlp(Mlp<B>),
    /// A mixture of experts, of which a few are picked for each position.
    Experts(Experts<B>),
    /// The sum of both.
    MlpAndExperts(MlpAndExperts<B>),
    /// A linear layer in place of a feed-forward network.
    Linear(LinearMlp<B>),
}

/// A linear layer in place of a feed-forward network.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, FeedForward};
/// # let config = serde_json::json!({
/// #     "model_type": "nemotron-nas", "vocab_size": 32, "hidden_size": 16,
/// #     "num_hidden_layers": 1, "num_attention_heads": 4,
/// #     "block_configs": [{
/// #         "attention": { "replace_with_linear": true }, "ffn": { "replace_with_linear": true },
/// #     }],
/// # });
/// # let device = Default::default();
/// # let model = Architecture::from_config(&config)?.config.init::<burn_flex::Flex>(&device);
/// let mlp = &model.model.layers[0].mlp;
/// assert!(matches!(mlp, Some(FeedForward::Linear(own)) if own.linear_mlp.weight.dims() == [16, 16]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Module, Debug)]
pub struct LinearMlp<B: Backend> {
    /// The linear layer, `[d, d]`.
    pub linear_mlp: Linear<B>,
}

impl<B: Backend> DecoderLayer<B> {
    pub(crate) fn new(
        model: &DecoderConfig,
        config: &LayerConfig,
        ropes: &[RopeConfig],
        device: &B::Device,
    ) -> Self {
        let d = model.hidden_size;
        let [before, behind] = config.norm_names();
        let norm = |name: &str| {
            let config = if before.contains(&name) { model.norm } else { model.post_norm };
            let is_there = before.contains(&name) || behind.contains(&name);
            is_there.then(|| Norm::new(d, config, device))
        };
        let own = model.per_layer_inputs;
        let attention = |kind| SelfAttention::new(d, kind, ropes, device);
        let feed_forward = |kind: &FeedForwardKind| match kind {
            FeedForwardKind::Mlp(mlp) => FeedForward::Mlp(Mlp::new(d, mlp, device)),
            FeedForwardKind::Experts(experts) => FeedForward::Experts(Experts::new(d, experts, device)),
            FeedForwardKind::MlpAndExperts(mlp, experts) => {
                FeedForward::MlpAndExperts(MlpAndExperts::new(model, mlp, experts, device))
            }
            FeedForwardKind::Linear => {
                FeedForward::Linear(LinearMlp { linear_mlp: Linear::new(d, d, false, device) })
            }
        };
        Self {
            self_attn: config.attention.as_ref().map(attention),
            mlp: config.feed_forward.as_ref().map(feed_forward),
            input_layernorm: norm("input_layernorm"),
            post_attention_layernorm: norm("post_attention_layernorm"),
            pre_feedforward_layernorm: norm("pre_feedforward_layernorm"),
            post_feedforward_layernorm: norm("post_feedforward_layernorm"),
            per_layer_input_gate: own.map(|own| Linear::new(d, own.width, false, device)),
            per_layer_projection: own.map(|own| Linear::new(own.width, d, false, device)),
            post_per_layer_input_norm: own.map(|_| Norm::new(d, model.post_norm, device)),
            per_layer_inputs: own,
            norms: config.norms,
            layer_scalar: config.output_scale.then(|| uninitialized([1], device)),
            parallel: config.parallel,
            residual_scale: config.residual_scale,
        }
    }

    pub(crate) fn forward<'a>(
        &'a self,
        stream: Residual<'a, B>,
        index: usize,
        input: Option<Tensor<B, 2>>,
        context: &'a ForwardContext<B>,
        pool: &mut KvPool<B>,
    ) -> Residual<'a, B> {
        let [of_attention, of_feed_forward] = self.block_norms();
        let kernels = &*context.kernels;
        let (stream, x) = stream.normed(of_attention.before);
        let attended = self.self_attn.as_ref().map(|own| own.forward(x.clone(), index, context, pool));
        if self.parallel {
            let (stream, y) = match self.norms {
                NormPlace::Shared => (stream, x),
                _ => stream.normed(of_feed_forward.before),
            };
            let stream = stream.add(attended, of_attention.after, self.residual_scale);
            return stream.add(
                self.feed_forward_output(y, None, kernels),
                of_feed_forward.after,
                self.residual_scale,
            );
        }
        let stream = stream.add(attended, of_attention.after, self.residual_scale);
        let (stream, read) = match &self.mlp {
            // This block also reads the residual stream itself, so the output of attention must be added first.
            Some(FeedForward::MlpAndExperts(_)) => {
                let (stream, read) = stream.normed(None);
                (stream, Some(read))
            }
            _ => (stream, None),
        };
        let (stream, x) = stream.normed(of_feed_forward.before);
        let stream = stream.add(
            self.feed_forward_output(x, read, kernels),
            of_feed_forward.after,
            self.residual_scale,
        );
        let stream = match input {
            Some(input) => self.with_input(stream, input, kernels),
            None => stream,
        };
        match &self.layer_scalar {
            Some(scalar) => stream.scaled(scalar.val()),
            None => stream,
        }
    }

    /// Adds to the residual stream what the layer computes from its own input `[tokens, width]`.
    fn with_input<'a>(
        &'a self,
        stream: Residual<'a, B>,
        input: Tensor<B, 2>,
        kernels: &dyn Kernels<B>,
    ) -> Residual<'a, B> {
        let (Some(gate), Some(map), Some(config)) =
            (&self.per_layer_input_gate, &self.per_layer_projection, self.per_layer_inputs)
        else {
            return stream;
        };
        let (stream, x) = stream.normed(None);
        let gate = config.activation.apply(kernels.linear(gate, x).cast(DType::F32));
        let y = kernels.linear(map, gate * input);
        stream.add(Some(y), self.post_per_layer_input_norm.as_ref(), 1.0)
    }

    /// The norms around attention, and around the feed-forward block.
    fn block_norms(&self) -> [BlockNorms<'_, B>; 2] {
        let [input, post_attention, pre_feedforward, post_feedforward] = [
            &self.input_layernorm,
            &self.post_attention_layernorm,
            &self.pre_feedforward_layernorm,
            &self.post_feedforward_layernorm,
        ]
        .map(Option::as_ref);
        let (attention, feed_forward) = match self.norms {
            NormPlace::Before => ((input, None), (post_attention, None)),
            NormPlace::Shared => ((input, None), (None, None)),
            NormPlace::After => ((None, post_attention), (None, post_feedforward)),
            NormPlace::Around => ((input, post_attention), (pre_feedforward, post_feedforward)),
        };
        [attention, feed_forward].map(|(before, after)| BlockNorms { before, after })
    }

    /// The output of the feed-forward block for its input, and for the residual stream if it reads that, too.
    fn feed_forward_output(
        &self,
        x: Tensor<B, 2>,
        stream: Option<Tensor<B, 2>>,
        kernels: &dyn Kernels<B>,
    ) -> Option<Tensor<B, 2>> {
        Some(match self.mlp.as_ref()? {
            FeedForward::Mlp(mlp) => kernels.mlp(mlp, x),
            FeedForward::Experts(experts) => experts.forward(x, kernels),
            FeedForward::MlpAndExperts(both) => {
                let stream = stream.unwrap_or_else(|| x.clone());
                both.forward(x, stream, kernels)
            }
            FeedForward::Linear(linear) => kernels.linear(&linear.linear_mlp, x),
        })
    }
}

/// The norms around a block.
struct BlockNorms<'a, B: Backend> {
    before: Option<&'a Norm<B>>,
    after: Option<&'a Norm<B>>,
}
