//! How often drafts can be accepted at most, and how often some verifiers accept them.

use std::cmp::Ordering;

use crate::{greedy_split, k_seq_division, verify::accepted_share};

/// The largest probability with which any verifier can emit one of `drafts` tokens drawn from `q`, with or without
/// replacement, where the token must follow `p`. Both are `[vocab]` and sum to 1.
///
/// It is `1 + min(P(H) - Q(H))` over sets H of the tokens with the largest `q / p`, Q(H) being the probability that
/// all drafts are in H. Without replacement, Q(H) of three and more drafts is computed by an integral, to about 1e-9.
///
/// # Examples
/// ```
/// use moi_speculation::optimal_acceptance;
///
/// // With one draft: the sum of the smaller ones.
/// let most = optimal_acceptance(&[0.5, 0.5], &[0.25, 0.75], 1, true);
/// assert!((most - 0.75).abs() < 1e-12);
/// assert_eq!(optimal_acceptance(&[0.5, 0.5], &[0.25, 0.75], 2, false), 1.0);
/// ```
pub fn optimal_acceptance(p: &[f64], q: &[f64], drafts: usize, replacement: bool) -> f64 {
    let order = |&a: &usize, &b: &usize| match (p[a] == 0.0, p[b] == 0.0) {
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (true, true) => a.cmp(&b),
        (false, false) => (q[b] / p[b]).total_cmp(&(q[a] / p[a])).then(a.cmp(&b)),
    };
    let mut ids: Vec<usize> = (0..p.len()).collect();
    ids.sort_unstable_by(order);
    // Of two drafts without replacement both are in H with the sum of q_i (q(H) - q_i) / (1 - q_i) over H.
    let (mut least, mut of_p, mut of_q) = (0.0f64, 0.0, 0.0);
    let (mut shares, mut own_shares) = (0.0, 0.0);
    for (count, &id) in ids.iter().enumerate() {
        of_p += p[id];
        of_q += q[id];
        if q[id] < 1.0 {
            shares += q[id] / (1.0 - q[id]);
            own_shares += q[id] * q[id] / (1.0 - q[id]);
        }
        let inside = match (replacement, drafts) {
            (_, 0) => 1.0,
            (true, _) => of_q.powi(i32::try_from(drafts).unwrap_or(i32::MAX)),
            (false, 1) => of_q,
            (false, 2) => of_q * shares - own_shares,
            (false, _) => inside_without(q, &ids[..=count], drafts),
        };
        least = least.min(of_p - inside.min(1.0));
    }
    1.0 + least
}

/// The probability that `drafts` tokens drawn without replacement are all in a set, by exponential clocks: token i
/// rings at a rate of `q_i`, the drafts are the first to ring, and all are in H if at least so many of H have rung
/// when the first one outside does.
fn inside_without(q: &[f64], set: &[usize], drafts: usize) -> f64 {
    let rates: Vec<f64> = set.iter().map(|&id| q[id]).filter(|&rate| rate > 0.0).collect();
    let outside = (1.0 - rates.iter().sum::<f64>()).max(0.0);
    let all = q.iter().filter(|&&rate| rate > 0.0).count();
    if rates.len() == all {
        return 1.0;
    }
    if rates.len() < drafts || outside <= 0.0 {
        return 0.0;
    }
    // With s = e^(-outside * t), uniform in (0, 1): the mean over s of the probability that enough have rung by t.
    let enough = |s: f64| {
        let time = -s.ln() / outside;
        // The probabilities that 0, 1, .. of them have rung, up to one less than is enough.
        let mut few = vec![0.0; drafts];
        few[0] = 1.0;
        for rate in &rates {
            let rung = -(-rate * time).exp_m1();
            for count in (0..drafts).rev() {
                let before = if count > 0 { few[count - 1] } else { 0.0 };
                few[count] = few[count] * (1.0 - rung) + before * rung;
            }
        }
        1.0 - few.iter().sum::<f64>()
    };
    integral(&enough)
}

/// The integral over (0, 1) by the double exponential rule, which does not mind singular ends.
fn integral(of: &dyn Fn(f64) -> f64) -> f64 {
    const STEP: f64 = 1.0 / 32.0;
    const STEPS: i32 = 4 * 32;
    let half_pi = std::f64::consts::FRAC_PI_2;
    (-STEPS..=STEPS)
        .map(|step| {
            let at = f64::from(step) * STEP;
            let bent = half_pi * at.sinh();
            // (1 + tanh bent) / 2, without cancellation near 0.
            let place = 1.0 / (1.0 + (-2.0 * bent).exp());
            let weight = half_pi * at.cosh() / (2.0 * bent.cosh().powi(2));
            if weight > 0.0 && place > 0.0 && place < 1.0 { of(place) * weight * STEP } else { 0.0 }
        })
        .sum()
}

/// How often [`crate::Verifier::Greedy`] emits a draft, if `drafts` of them are from [`greedy_split`].
///
/// # Examples
/// ```
/// use moi_speculation::greedy_acceptance;
///
/// assert_eq!(greedy_acceptance(&[0.5, 0.25, 0.25], &[0.5, 0.25, 0.25], 2), 1.0);
/// ```
pub fn greedy_acceptance(p: &[f64], q: &[f64], drafts: usize) -> f64 {
    let (fixed, rest) = greedy_split(q, drafts);
    let of_fixed: f64 = fixed.iter().map(|&token| p[token as usize]).sum();
    let others = rest.map_or(0.0, |rest| p.iter().zip(&rest).map(|(p, rest)| p.min(*rest)).sum());
    of_fixed + others
}

/// A lower bound of how often [`crate::Verifier::KSeq`] emits one of `drafts` drafts.
///
/// # Examples
/// ```
/// use moi_speculation::k_seq_acceptance;
///
/// assert!(k_seq_acceptance(&[0.5, 0.5], &[0.25, 0.75], 2) > 0.6);
/// ```
pub fn k_seq_acceptance(p: &[f64], q: &[f64], drafts: usize) -> f64 {
    let share = accepted_share(p, q, k_seq_division(p, q, drafts));
    1.0 - (1.0 - share).powi(i32::try_from(drafts).unwrap_or(i32::MAX))
}
