//! Options of feed-forward blocks.

/// The second block of a layer, which works on each position by itself.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, FeedForwardKind};
///
/// let config = serde_json::json!({
///     "model_type": "qwen3_moe", "num_hidden_layers": 2, "mlp_only_layers": [0],
/// });
/// let layers = Architecture::from_config(&config)?.config.layers;
/// assert!(matches!(layers[0].feed_forward, Some(FeedForwardKind::Mlp(_))));
/// assert!(matches!(layers[1].feed_forward, Some(FeedForwardKind::Experts(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one per layer")]
pub enum FeedForwardKind {
    /// A feed-forward network, the same for every position.
    Mlp(MlpConfig),
    /// A mixture of experts, of which a router picks a few for each position.
    Experts(ExpertsConfig),
    /// The sum of both, each followed by norms of its own (Gemma 4). The router and the experts read the residual
    /// stream without the norm before the block.
    MlpAndExperts(MlpConfig, ExpertsConfig),
    /// A linear layer in place of a feed-forward network, `mlp.linear_mlp`.
    Linear,
}

/// `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate.
///
/// # Examples
/// ```
/// use moi_models::{Activation, Architecture, FeedForwardKind, MlpConfig};
///
/// let config = serde_json::json!({"model_type": "opt", "num_hidden_layers": 1, "ffn_dim": 256});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let mlp = MlpConfig { intermediate_size: 256, gated: false, bias: true, activation: Activation::Relu };
/// assert_eq!(layers[0].feed_forward, Some(FeedForwardKind::Mlp(mlp)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// Inner width.
    pub intermediate_size: usize,
    /// Whether there is a gate.
    pub gated: bool,
    /// Biases on gate, up and down.
    pub bias: bool,
    /// The activation function.
    pub activation: Activation,
}

/// A mixture of experts.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, ExpertsConfig, FeedForwardKind};
///
/// let config = serde_json::json!({
///     "model_type": "qwen3_moe", "num_hidden_layers": 1, "num_experts": 64, "num_experts_per_tok": 4,
/// });
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(FeedForwardKind::Experts(experts)) = &layers[0].feed_forward else { panic!("it has experts") };
/// let ExpertsConfig { num_experts, num_per_token, .. } = *experts;
/// assert_eq!((num_experts, num_per_token), (64, 4));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// Number of experts.
    pub num_experts: usize,
    /// Number of experts that each position is routed to.
    pub num_per_token: usize,
    /// How these experts are picked and weighted.
    pub router: RouterConfig,
    /// The network of each expert.
    pub expert: MlpConfig,
    /// If experts work on a latent vector instead of the residual stream, its options.
    pub latent: Option<LatentExperts>,
    /// A shared expert, which works on every position.
    pub shared: Option<SharedExpertConfig>,
}

/// How experts are picked and weighted. A position's scores are the softmax or sigmoid of the router's logits. The
/// experts with the largest *choices*, score plus correction, are picked. The weight of each is its score, optionally
/// divided by the sum of the picked scores, times a factor.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, FeedForwardKind, RouterConfig};
///
/// let config = serde_json::json!({"model_type": "mixtral", "num_hidden_layers": 1});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(FeedForwardKind::Experts(experts)) = &layers[0].feed_forward else { panic!("it has experts") };
/// assert_eq!(experts.router, RouterConfig::softmax(true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RouterConfig {
    /// How scores are computed from the router's logits.
    pub score: RouterScore,
    /// Soft cap: logits become `cap * tanh(logit / cap)` before the scores.
    pub softcap: Option<f64>,
    /// Whether the router's linear layer has a bias.
    pub bias: bool,
    /// Whether a correction of each expert is added to its score for picking, but not to its weight.
    pub correction: bool,
    /// Groups of experts of which only some can be picked from.
    pub groups: Option<ExpertGroups>,
    /// Whether weights are divided by their sum.
    pub normalized: bool,
    /// Added to that sum.
    pub sum_plus: f64,
    /// The minimum of that sum.
    pub sum_at_least: f64,
    /// A factor on the weights.
    pub factor: f64,
    /// Whether each expert also has a factor of its own.
    pub expert_scales: bool,
    /// If the router's input is divided by the root of its mean square, and multiplied by a weight of its own and by
    /// d^-1/2 (Gemma 4), the epsilon that is added to the mean square.
    pub input_norm: Option<f64>,
}

/// How a router's scores are computed from its logits.
///
/// # Examples
/// ```
/// use moi_models::{RouterConfig, RouterScore};
///
/// assert_eq!(RouterConfig::softmax(true).score, RouterScore::Softmax);
/// assert_eq!(RouterConfig::corrected_sigmoid(true).score, RouterScore::Sigmoid);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScore {
    /// The softmax over all experts.
    Softmax,
    /// The sigmoid of each logit, 1 / (1 + e^-x).
    Sigmoid,
}

/// Groups of experts of equal size, of which only the best can be picked from.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, ExpertGroups, FeedForwardKind, GroupScore};
///
/// // The fourth layer is the first one with experts.
/// let config = serde_json::json!({"model_type": "deepseek_v3", "num_hidden_layers": 4});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(FeedForwardKind::Experts(experts)) = &layers[3].feed_forward else { panic!("it has experts") };
/// let groups = ExpertGroups { count: 8, kept: 4, score: GroupScore::BestTwo };
/// assert_eq!(experts.router.groups, Some(groups));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Number of groups.
    pub count: usize,
    /// Number of groups that can be picked from.
    pub kept: usize,
    /// The score that groups are compared by.
    pub score: GroupScore,
}

/// The score that groups of experts are compared by.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, FeedForwardKind, GroupScore};
///
/// let config = serde_json::json!({
///     "model_type": "deepseek_v2", "num_hidden_layers": 1, "num_experts_per_tok": 6,
///     "topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3,
/// });
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(FeedForwardKind::Experts(experts)) = &layers[0].feed_forward else { panic!("it has experts") };
/// assert_eq!(experts.router.groups.map(|groups| groups.score), Some(GroupScore::Best));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// The largest choice among its experts.
    Best,
    /// The sum of the two largest choices.
    BestTwo,
}

/// Experts that work on a latent vector: one linear layer computes it from the block's input, and another one maps
/// the result back (Nemotron 3 Super). The router and the shared expert read the input itself.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, FeedForwardKind, LatentExperts};
///
/// let config = serde_json::json!({
///     "model_type": "nemotron_h", "hybrid_override_pattern": "E", "moe_latent_size": 1024,
/// });
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(FeedForwardKind::Experts(experts)) = &layers[0].feed_forward else { panic!("it has experts") };
/// assert_eq!(experts.latent, Some(LatentExperts { width: 1024, bias: false }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentExperts {
    /// Width of the latent.
    pub width: usize,
    /// Whether both linear layers have biases.
    pub bias: bool,
}

/// An expert that works on every position.
///
/// # Examples
/// ```
/// use moi_models::{Architecture, FeedForwardKind, SharedExpertConfig};
///
/// let config = serde_json::json!({"model_type": "qwen3_5_moe_text", "num_hidden_layers": 1});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(FeedForwardKind::Experts(experts)) = &layers[0].feed_forward else { panic!("it has experts") };
/// let Some(SharedExpertConfig { mlp, gated }) = &experts.shared else { panic!("one of them is shared") };
/// assert_eq!((mlp.intermediate_size, *gated), (512, true));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SharedExpertConfig {
    /// The network of the expert.
    pub mlp: MlpConfig,
    /// Whether its output is multiplied by the sigmoid of a linear layer with a single output per position.
    pub gated: bool,
}

/// The activation function of a feed-forward block.
///
/// # Examples
/// ```
/// use moi_models::{Activation, Architecture, FeedForwardKind};
///
/// let config = serde_json::json!({"model_type": "gpt_oss", "num_hidden_layers": 1});
/// let layers = Architecture::from_config(&config)?.config.layers;
/// let Some(FeedForwardKind::Experts(experts)) = &layers[0].feed_forward else { panic!("it has experts") };
/// assert_eq!(experts.expert.activation, Activation::ClampedSwiGlu { limit: 7.0 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x * sigmoid(x), also called swish.
    Silu,
    /// x * Phi(x), with the error function.
    Gelu,
    /// The approximation of GELU with tanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    GeluTanh,
    /// x * sigmoid(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)^2.
    ReluSquared,
    /// `(u + 1) g sigmoid(1.702 g)`, where g = min(gate, limit), and u is up clamped between -limit and limit
    /// (gpt-oss).
    ClampedSwiGlu {
        /// The limit.
        limit: f64,
    },
    /// With parameters of each layer: `a x^2 + beta x` for x > 0, else `b (expm1(min(x, eps)) - x) + beta x`, where
    /// `a = softplus(alpha_p)` and `b = beta + softplus(alpha_n)` (xIELU, arXiv 2411.13010).
    Xielu,
}

impl ExpertsConfig {
    /// Width of the experts' inputs and outputs, in a model of width `d`.
    pub(crate) fn expert_width(&self, d: usize) -> usize {
        self.latent.map_or(d, |latent| latent.width)
    }
}

impl RouterConfig {
    /// The softmax over all experts, without other options.
    pub fn softmax(normalized: bool) -> Self {
        Self {
            score: RouterScore::Softmax,
            softcap: None,
            bias: false,
            correction: false,
            groups: None,
            normalized,
            sum_plus: 0.0,
            sum_at_least: 0.0,
            factor: 1.0,
            expert_scales: false,
            input_norm: None,
        }
    }

    /// Sigmoid scores, with a correction of each expert.
    pub fn corrected_sigmoid(normalized: bool) -> Self {
        Self { score: RouterScore::Sigmoid, correction: true, ..Self::softmax(normalized) }
    }
}
