//! Drafters whose output layer knows only some tokens.

/// A draft model's distribution where its output layer has the tokens of `kept` alone: renormalised over them, 0
/// elsewhere (VocabTrim, arXiv 2506.22694). Verifying stays exact, since the model verified may choose any token.
///
/// # Examples
/// ```
/// use moi_speculation::trimmed;
///
/// assert_eq!(trimmed(&[0.5, 0.25, 0.25], &[0, 2]), [2.0 / 3.0, 0.0, 1.0 / 3.0]);
/// ```
pub fn trimmed(row: &[f64], kept: &[u32]) -> Vec<f64> {
    let mut only = vec![0.0; row.len()];
    let sum: f64 = kept.iter().map(|&token| row[token as usize]).sum();
    if sum > 0.0 {
        kept.iter().for_each(|&token| only[token as usize] = row[token as usize] / sum);
    }
    only
}
