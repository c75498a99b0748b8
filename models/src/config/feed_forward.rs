//! Options of what works on each position.

/// The second block of a layer.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there is one per layer")]
pub enum FeedForwardKind {
    /// The same for every position.
    Mlp(MlpConfig),
    /// A few of many, picked by a router for each position.
    Experts(ExpertsConfig),
    /// Both, each behind norms of its own, and added up (Gemma 4). The router and the experts read the residual stream as it
    /// is, without the norm before the block.
    MlpAndExperts(MlpConfig, ExpertsConfig),
    /// One linear map in its place, `mlp.linear_mlp`.
    Linear,
}

/// `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` where it is not gated.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// Inner width.
    pub intermediate_size: usize,
    /// Whether there is a gate.
    pub gated: bool,
    /// Biases on gate, up and down.
    pub bias: bool,
    /// The non-linearity.
    pub activation: Activation,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// How many there are.
    pub num_experts: usize,
    /// How many of them each position is given to.
    pub num_per_token: usize,
    /// How these are picked and weighed.
    pub router: RouterConfig,
    /// Each of them.
    pub expert: MlpConfig,
    /// Where experts work on a latent in the place of the residual stream's values.
    pub latent: Option<LatentExperts>,
    /// One more, which works on every position.
    pub shared: Option<SharedExpertConfig>,
}

/// How experts are picked and weighed. Of a position's scores, softmax or sigmoid of the router's map, the experts with the
/// largest *choices*, score and correction, are picked; each weighs its score, perhaps divided by the sum of those picked,
/// times a factor.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterConfig {
    /// What the scores are.
    pub score: RouterScore,
    /// `cap * tanh(x / cap)` of the map's values, before the scores.
    pub softcap: Option<f64>,
    /// Whether the map has a bias.
    pub bias: bool,
    /// Whether a number of each expert is added to its score to choose it, and for that alone.
    pub correction: bool,
    /// Groups of experts of which only some can be picked from.
    pub groups: Option<ExpertGroups>,
    /// Whether weights are divided by their sum.
    pub normalized: bool,
    /// What is added to that sum.
    pub sum_plus: f64,
    /// What that sum is at least.
    pub sum_at_least: f64,
    /// A factor on the weights.
    pub factor: f64,
    /// Whether each expert has a factor of its own besides.
    pub expert_scales: bool,
    /// Where the map's input is divided by the root of its mean square, and multiplied by a weight of its own and by d^-1/2:
    /// what is added under the root (Gemma 4).
    pub input_norm: Option<f64>,
}

/// What a router's scores are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouterScore {
    /// The softmax over all experts.
    Softmax,
    /// 1 / (1 + e^-x) of each.
    Sigmoid,
}

/// Equal groups of experts, of which only the best can be picked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// How many there are.
    pub count: usize,
    /// How many of them stay.
    pub kept: usize,
    /// What makes one better.
    pub score: GroupScore,
}

/// What groups of experts are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// The largest choice among its experts.
    Best,
    /// The sum of the two largest.
    BestTwo,
}

/// Experts that work on a latent: a map of the block's input, and back (Nemotron 3 Super). The router and the shared expert
/// read the input itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentExperts {
    /// Width of the latent.
    pub width: usize,
    /// Biases on both maps.
    pub bias: bool,
}

/// An expert that works on every position.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedExpertConfig {
    /// What it computes.
    pub mlp: MlpConfig,
    /// Whether it is multiplied by the sigmoid of a map of the position to one number.
    pub gated: bool,
}

/// A feed-forward non-linearity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x * sigmoid(x), also called swish.
    Silu,
    /// x * Phi(x), with the error function.
    Gelu,
    /// The same with a tanh in its place: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    GeluTanh,
    /// x * sigmoid(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)^2.
    ReluSquared,
    /// `(u + 1) g sigmoid(1.702 g)` with g = min(gate, limit) and u = up, but within -limit and limit (gpt-oss).
    ClampedSwiGlu {
        /// The limit.
        limit: f64,
    },
    /// With numbers of each layer: `a x^2 + beta x` for x > 0, else `b (expm1(min(x, eps)) - x) + beta x`, where a =
    /// softplus(alpha_p) and b = beta + softplus(alpha_n) (xIELU, arXiv 2411.13010).
    Xielu,
}

impl ExpertsConfig {
    /// Width of what experts read and give, in a model of this width.
    pub(crate) fn expert_width(&self, d: usize) -> usize {
        self.latent.map_or(d, |latent| latent.width)
    }
}

impl RouterConfig {
    /// The softmax over all experts, without anything else.
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

    /// Sigmoids, and a correction of each expert.
    pub fn corrected_sigmoid(normalized: bool) -> Self {
        Self { score: RouterScore::Sigmoid, correction: true, ..Self::softmax(normalized) }
    }
}
