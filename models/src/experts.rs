//! A mixture of experts, of which only the picked ones compute.

use burn::{
    module::Module,
    tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData, activation::softmax, backend::Backend},
};

use crate::{ExpertsConfig, Kernels, Linear, Mlp};

/// A router and its experts. Each position goes to the experts with the largest shares of the softmax of the
/// router's scores; their outputs are summed with those shares.
#[derive(Module, Debug)]
pub struct Experts<B: Backend> {
    /// The router, `[experts, d]`.
    pub gate: Linear<B>,
    /// All of them.
    pub experts: Vec<Mlp<B>>,
    num_per_token: usize,
    normalized: bool,
}

/// Positions that an expert was picked for, and its share in each.
#[derive(Clone, Debug, Default, PartialEq)]
struct Picks {
    positions: Vec<i64>,
    shares: Vec<f32>,
}

impl<B: Backend> Experts<B> {
    /// A block for a residual stream of `hidden_size`.
    pub fn new(hidden_size: usize, config: &ExpertsConfig, device: &B::Device) -> Self {
        let expert = |_| Mlp::new(hidden_size, &config.expert, device);
        Self {
            gate: Linear::new(hidden_size, config.num_experts, false, device),
            experts: (0..config.num_experts).map(expert).collect(),
            num_per_token: config.num_per_token,
            normalized: config.normalized,
        }
    }

    /// `[rows, d]` to `[rows, d]`.
    ///
    /// The shares are read back to the host: it must know which experts to run.
    pub fn forward(&self, x: Tensor<B, 2>, kernels: &dyn Kernels<B>) -> Tensor<B, 2> {
        let device = x.device();
        let shares = softmax(kernels.linear(&self.gate, x.clone()).cast(DType::F32), 1);
        let shares: Vec<f32> = shares.into_data().iter::<f32>().collect();
        let picks = pick(&shares, self.experts.len(), self.num_per_token, self.normalized);
        let mut out = x.zeros_like();
        for (expert, picks) in self.experts.iter().zip(picks) {
            let count = picks.positions.len();
            if count == 0 {
                continue;
            }
            let positions =
                Tensor::<B, 1, Int>::from_data(TensorData::new(picks.positions, [count]), &device);
            let shares = TensorData::new(picks.shares, [count, 1]);
            let shares = Tensor::<B, 2>::from_data(shares, (&device, DType::F32)).cast(x.dtype());
            let own = x.clone().select(0, positions.clone());
            let y = kernels.mlp(expert, own).cast(x.dtype()) * shares;
            out = out.select_assign(0, positions, y, IndexingUpdateOp::Add);
        }
        out
    }
}

/// For each of `experts`, the positions it was picked for, `per_token` for each position. Of equal shares the
/// lower expert's counts as larger.
fn pick(shares: &[f32], experts: usize, per_token: usize, normalized: bool) -> Vec<Picks> {
    let mut picks = vec![Picks::default(); experts];
    for (position, shares) in (0..).zip(shares.chunks(experts)) {
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]));
        order.truncate(per_token);
        let sum: f32 = match normalized {
            true => order.iter().map(|&expert| shares[expert]).sum(),
            false => 1.0,
        };
        for expert in order {
            picks[expert].positions.push(position);
            picks[expert].shares.push(shares[expert] / sum);
        }
    }
    picks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_largest_shares_are_picked() {
        let shares = [0.5, 0.125, 0.25, 0.125, 0.25, 0.25, 0.25, 0.25];
        let picks = |normalized| pick(&shares, 4, 2, normalized);
        let of = |positions: &[i64], shares: &[f32]| Picks {
            positions: positions.to_vec(),
            shares: shares.to_vec(),
        };
        assert_eq!(
            picks(false),
            [of(&[0, 1], &[0.5, 0.25]), of(&[1], &[0.25]), of(&[0], &[0.25]), of(&[], &[])]
        );
        assert_eq!(picks(true)[0], of(&[0, 1], &[0.5 / 0.75, 0.5]));
    }
}
