//! Verifiers: which token is emitted, given a model's distribution and drafts that another distribution gave.

use crate::Chance;

/// Decides the token at a position. All give a token that follows the model's distribution `p` exactly, whatever was
/// drafted; they differ in how often it is one of the drafts.
///
/// # Examples
/// ```
/// use moi_speculation::Verifier;
///
/// let (p, q) = ([0.5, 0.5, 0.0], [0.0, 0.5, 0.5]);
/// // The model gives token 1 what the drafter gave it: it is accepted, whatever the number.
/// let mut numbers = [0.9].into_iter();
/// let token = Verifier::WithoutReplacement.choose(&p, &q, &[1], &mut || numbers.next().unwrap_or(0.0));
/// assert_eq!(token, 1);
/// // It never gives token 2, and draws from what the drafter gives too seldom.
/// assert_eq!(Verifier::WithoutReplacement.choose(&p, &q, &[2], &mut || 0.9), 0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verifier {
    /// The model's own draw, which takes the same number as without drafts, so that the tokens are the same, too.
    /// Needs no distribution of the drafts.
    Match,
    /// Recursive rejection of drafts that were sampled without replacement. With one draft it is the speculative
    /// sampling of arXiv 2211.17192 and 2302.01318.
    WithoutReplacement,
    /// Recursive rejection of independent drafts.
    WithReplacement,
    /// Selection among independent drafts, duplicates included: SpecTr, arXiv 2310.15141.
    KSeq,
    /// For drafts from [`greedy_split`]: the likeliest tokens, and one that was drawn from the rest (arXiv
    /// 2502.18779).
    Greedy,
}

impl Verifier {
    /// The token at a position: the model's distribution is `p` `[vocab]`, the drafts were drawn from `q` `[vocab]`
    /// in this order. Distributions sum to 1; `p` has a positive value. Without drafts, the model's own draw.
    ///
    /// # Panics
    /// If a draft is outside the vocabulary.
    pub fn choose(self, p: &[f64], q: &[f64], drafts: &[u32], source: &mut dyn Chance) -> u32 {
        match (self, drafts.split_last()) {
            (_, None) | (Self::Match, _) => drawn(p, source),
            (Self::WithoutReplacement, _) => rejection(p, q, drafts, source, false),
            (Self::WithReplacement, _) => rejection(p, q, drafts, source, true),
            (Self::KSeq, _) => k_seq(p, q, drafts, source),
            (Self::Greedy, Some((&last, _))) => greedy(p, q, (drafts.len(), last), source),
        }
    }
}

fn drawn(weights: &[f64], source: &mut dyn Chance) -> u32 {
    source.draw(weights).unwrap_or(0) as u32
}

/// `max(p - q, 0)`, normalised; `p` itself where nothing is left, which happens only by rounding.
///
/// # Examples
/// ```
/// use moi_speculation::residual;
///
/// assert_eq!(residual(&[0.5, 0.5], &[0.75, 0.25]), [0.0, 1.0]);
/// assert_eq!(residual(&[0.5, 0.5], &[0.5, 0.5]), [0.5, 0.5]);
/// ```
pub fn residual(p: &[f64], q: &[f64]) -> Vec<f64> {
    let mut left: Vec<f64> = p.iter().zip(q).map(|(p, q)| (p - q).max(0.0)).collect();
    let sum: f64 = left.iter().sum();
    if sum <= 0.0 {
        return p.to_vec();
    }
    left.iter_mut().for_each(|value| *value /= sum);
    left
}

fn ratio(p: f64, q: f64) -> f64 {
    if q > 0.0 { p / q } else { 0.0 }
}

fn rejection(p: &[f64], q: &[f64], drafts: &[u32], source: &mut dyn Chance, replacement: bool) -> u32 {
    let (mut p, mut q) = (p.to_vec(), q.to_vec());
    for &draft in drafts {
        let at = draft as usize;
        if source.accept(ratio(p[at], q[at])) {
            return draft;
        }
        p = residual(&p, &q);
        if !replacement {
            q[at] = 0.0;
            let sum: f64 = q.iter().sum();
            if sum <= 0.0 {
                break;
            }
            q.iter_mut().for_each(|value| *value /= sum);
        }
    }
    drawn(&p, source)
}

/// Sum of `min(q, p / division)`: the probability that a draft is accepted where this division factor is used.
pub(crate) fn accepted_share(p: &[f64], q: &[f64], division: f64) -> f64 {
    p.iter().zip(q).map(|(p, q)| q.min(p / division)).sum()
}

/// The division factor of [`Verifier::KSeq`] for `drafts` drafts, 1 to `drafts`: the smallest valid one, from above,
/// by 60 halvings.
///
/// # Examples
/// ```
/// use moi_speculation::k_seq_division;
///
/// assert_eq!(k_seq_division(&[0.5, 0.5], &[0.1, 0.9], 1), 1.0);
/// let division = k_seq_division(&[0.5, 0.5], &[0.5, 0.5], 2);
/// assert!((1.0..=2.0).contains(&division));
/// ```
pub fn k_seq_division(p: &[f64], q: &[f64], drafts: usize) -> f64 {
    let count = i32::try_from(drafts).unwrap_or(i32::MAX);
    let excess = |division: f64| {
        let share = accepted_share(p, q, division);
        1.0 - (1.0 - share).powi(count) - division * share
    };
    if drafts <= 1 || excess(1.0) <= 0.0 {
        return 1.0;
    }
    let (mut low, mut high) = (1.0, drafts as f64);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if excess(middle) > 0.0 { low = middle } else { high = middle }
    }
    high
}

fn k_seq(p: &[f64], q: &[f64], drafts: &[u32], source: &mut dyn Chance) -> u32 {
    let division = k_seq_division(p, q, drafts.len());
    for &draft in drafts {
        let at = draft as usize;
        if source.accept(ratio(p[at], division * q[at])) {
            return draft;
        }
    }
    let share = accepted_share(p, q, division);
    if share <= 0.0 {
        return drawn(p, source);
    }
    let factor = (1.0 - (1.0 - share).powi(i32::try_from(drafts.len()).unwrap_or(i32::MAX))) / share;
    let left: Vec<f64> = p.iter().zip(q).map(|(p, q)| (p - q.min(p / division) * factor).max(0.0)).collect();
    drawn(if left.iter().sum::<f64>() > 0.0 { &left } else { p }, source)
}

/// The `drafts - 1` likeliest tokens of a distribution, and the distribution without them, from which the last draft
/// is drawn; `None` if nothing is left.
///
/// # Examples
/// ```
/// use moi_speculation::greedy_split;
///
/// let (fixed, rest) = greedy_split(&[0.5, 0.25, 0.25], 2);
/// assert_eq!((fixed, rest), (vec![0], Some(vec![0.0, 0.5, 0.5])));
/// assert_eq!(greedy_split(&[1.0, 0.0], 2).1, None);
/// ```
pub fn greedy_split(row: &[f64], drafts: usize) -> (Vec<u32>, Option<Vec<f64>>) {
    let fixed = largest(row, drafts.saturating_sub(1));
    let mut rest = row.to_vec();
    fixed.iter().for_each(|&token| rest[token as usize] = 0.0);
    let sum: f64 = rest.iter().sum();
    let rest = (sum > 0.0).then(|| rest.iter().map(|value| value / sum).collect());
    (fixed, rest)
}

/// Indices of the largest values, the largest first, ties by the lower index.
pub(crate) fn largest(row: &[f64], count: usize) -> Vec<u32> {
    let order = |&a: &u32, &b: &u32| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b));
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    if count == 0 {
        return Vec::new();
    }
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

fn greedy(p: &[f64], q: &[f64], (drafts, last): (usize, u32), source: &mut dyn Chance) -> u32 {
    let (_, rest) = greedy_split(q, drafts);
    let rest = rest.unwrap_or_else(|| vec![0.0; q.len()]);
    let at = last as usize;
    if source.accept(ratio(p[at], rest[at])) {
        return last;
    }
    drawn(&residual(p, &rest), source)
}
