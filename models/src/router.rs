//! The experts to which a position is routed, and their weights.

use crate::{ExpertGroups, ExpertsConfig, GroupScore, RouterConfig, RouterScore};

/// The positions for which an expert was picked, and its weight in each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Picks {
    pub(crate) positions: Vec<i64>,
    pub(crate) weights: Vec<f32>,
}

/// Parameters of each expert that a router has in addition to its linear layer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExpertNumbers<'a> {
    /// Added to the scores for picking experts, `[experts]`.
    pub(crate) correction: Option<&'a [f32]>,
    /// Factors on the weights, `[experts]`.
    pub(crate) scales: Option<&'a [f32]>,
}

/// For each expert, the positions for which it is picked, given the router's logits `[positions, experts]`.
pub(crate) fn pick(config: &ExpertsConfig, of: ExpertNumbers<'_>, values: &[f32]) -> Vec<Picks> {
    let ExpertsConfig { num_experts, num_per_token, router, .. } = config;
    let mut picks = vec![Picks::default(); *num_experts];
    for (position, values) in (0..).zip(values.chunks(*num_experts)) {
        let scores = scores(router, values);
        let mut choices: Vec<f64> = scores.clone();
        if let Some(correction) = of.correction {
            choices.iter_mut().zip(correction).for_each(|(choice, &by)| *choice += f64::from(by));
        }
        if let Some(groups) = router.groups {
            leave_out_groups(groups, &mut choices);
        }
        let picked = largest(&choices, *num_per_token);
        let sum: f64 = picked.iter().map(|&expert| scores[expert]).sum();
        let divisor = match router.normalized {
            true => (sum + router.sum_plus).max(router.sum_at_least),
            false => 1.0,
        };
        for expert in picked {
            let own = of.scales.map_or(1.0, |scales| f64::from(scales[expert]));
            picks[expert].positions.push(position);
            picks[expert].weights.push((scores[expert] / divisor * router.factor * own) as f32);
        }
    }
    picks
}

fn scores(router: &RouterConfig, values: &[f32]) -> Vec<f64> {
    let capped = |&value: &f32| match router.softcap {
        Some(cap) => cap * (f64::from(value) / cap).tanh(),
        None => f64::from(value),
    };
    let values = values.iter().map(capped);
    match router.score {
        RouterScore::Sigmoid => values.map(|value| 1.0 / (1.0 + (-value).exp())).collect(),
        RouterScore::Softmax => {
            let most = values.clone().fold(f64::NEG_INFINITY, f64::max);
            let powers: Vec<f64> = values.map(|value| (value - most).exp()).collect();
            let sum: f64 = powers.iter().sum();
            powers.into_iter().map(|power| power / sum).collect()
        }
    }
}

/// Indices of the largest values, the largest first; of equal values, the first counts as larger. NaN is picked, too,
/// so that the result shows it.
fn largest(values: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(count);
    order
}

/// Sets the choices of all groups but the best ones below any other.
fn leave_out_groups(groups: ExpertGroups, choices: &mut [f64]) {
    let size = choices.len() / groups.count;
    let score = |group: &[f64]| {
        let best = largest(group, 2).into_iter().map(|expert| group[expert]);
        match groups.score {
            GroupScore::Best => best.take(1).sum(),
            GroupScore::BestTwo => best.sum::<f64>(),
        }
    };
    let scores: Vec<f64> = choices.chunks(size).map(score).collect();
    let kept = largest(&scores, groups.kept);
    for (group, choices) in choices.chunks_mut(size).enumerate() {
        if !kept.contains(&group) {
            choices.fill(f64::NEG_INFINITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, MlpConfig};

    fn experts(num_experts: usize, num_per_token: usize, router: RouterConfig) -> ExpertsConfig {
        let expert =
            MlpConfig { intermediate_size: 1, gated: true, bias: false, activation: Activation::Silu };
        ExpertsConfig { num_experts, num_per_token, router, expert, latent: None, shared: None }
    }

    fn of(positions: &[i64], weights: &[f32]) -> Picks {
        Picks { positions: positions.to_vec(), weights: weights.to_vec() }
    }

    #[test]
    fn only_the_largest_shares_are_picked() {
        let shares = [0.5f32, 0.125, 0.25, 0.125, 0.25, 0.25, 0.25, 0.25];
        let values: Vec<f32> = shares.iter().map(|share| share.ln()).collect();
        let picks = |normalized| {
            let config = experts(4, 2, RouterConfig::softmax(normalized));
            pick(&config, ExpertNumbers::default(), &values)
        };
        assert_eq!(
            picks(false),
            [of(&[0, 1], &[0.5, 0.25]), of(&[1], &[0.25]), of(&[0], &[0.25]), of(&[], &[])]
        );
        assert_eq!(picks(true)[0], of(&[0, 1], &[0.5 / 0.75, 0.5]));
    }

    /// A correction affects picking but not weights; a group that is left out has the best expert.
    #[test]
    fn corrections_choose_and_groups_leave_out() {
        let values = [2.0, -2.0, 1.0, 0.9, 0.0, 0.0];
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let router = RouterConfig { factor: 2.0, ..RouterConfig::corrected_sigmoid(false) };
        let correction = [0.0, 0.0, 0.0, 0.0, 0.0, 9.0];
        let of_experts = ExpertNumbers { correction: Some(&correction), scales: None };
        let picked = |router: RouterConfig, of_experts| -> Vec<(usize, f32)> {
            let picks = pick(&experts(6, 2, router), of_experts, &values);
            (0..).zip(&picks).filter_map(|(at, picks)| Some((at, *picks.weights.first()?))).collect()
        };
        let close = |found: Vec<(usize, f32)>, expected: [(usize, f32); 2]| {
            let pairs = found.iter().zip(&expected);
            found.len() == 2 && pairs.into_iter().all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6)
        };
        assert!(close(picked(router.clone(), of_experts), [(0, 2.0 * sigmoid(2.0)), (5, 1.0)]));
        let groups = ExpertGroups { count: 3, kept: 1, score: GroupScore::BestTwo };
        let grouped = RouterConfig { groups: Some(groups), factor: 1.0, correction: false, ..router };
        let expected = [(2, sigmoid(1.0)), (3, sigmoid(0.9))];
        assert!(close(picked(grouped.clone(), ExpertNumbers::default()), expected));
        let best =
            RouterConfig { groups: Some(ExpertGroups { score: GroupScore::Best, ..groups }), ..grouped };
        assert!(close(picked(best, ExpertNumbers::default()), [(0, sigmoid(2.0)), (1, sigmoid(-2.0))]));
    }
}
