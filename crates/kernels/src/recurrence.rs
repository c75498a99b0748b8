//! Recurrent steps of layers that keep a state matrix for each head: gated delta nets, and Mamba 2.

use crate::{
    isa,
    lanes::{Lanes, dispatch},
    pool::{self, Shared, Unwritten},
};

/// Steps over consecutive positions of one sequence. Each head computes `S = exp(decay) S; S += k w^T; o = S^T q`,
/// where w is `v`, or, with a `beta`, the correction of the delta rule, `beta (v - S^T k)`.
#[derive(Clone, Copy, Debug)]
pub struct StateSteps<'a> {
    /// Value heads; each has a state matrix.
    pub heads: usize,
    /// Query and key heads, a divisor of `heads`. Each serves `heads / groups` consecutive value heads.
    pub groups: usize,
    /// Width of a query and a key.
    pub keys: usize,
    /// Width of a value.
    pub values: usize,
    /// Queries, `[positions, groups, keys]`.
    pub q: &'a [f32],
    /// Keys, `[positions, groups, keys]`.
    pub k: &'a [f32],
    /// Values, `[positions, heads, values]`.
    pub v: &'a [f32],
    /// The logarithm of each position's decay, `[positions, heads]`.
    pub decay: &'a [f32],
    /// The step size of the delta rule, `[positions, heads]`.
    pub beta: Option<&'a [f32]>,
}

/// Minimum number of state values per task: fewer are not worth a thread.
const MIN_PART: usize = 1 << 14;

/// Returns the outputs `[positions, heads, values]`, and advances `states` `[heads, keys, values]` past all
/// positions.
///
/// # Panics
/// If the length of a slice does not match its shape.
pub fn state_steps(steps: &StateSteps<'_>, states: &mut [f32]) -> Vec<f32> {
    state_steps_on(isa(), steps, states)
}

fn state_steps_on(isa: crate::Isa, steps: &StateSteps<'_>, states: &mut [f32]) -> Vec<f32> {
    let &StateSteps { heads, groups, keys, values, q, k, v, decay, beta } = steps;
    let positions = decay.len().checked_div(heads).unwrap_or(0);
    let fits = [q.len(), k.len()] == [positions * groups * keys; 2]
        && v.len() == positions * heads * values
        && decay.len() == positions * heads
        && beta.is_none_or(|beta| beta.len() == decay.len())
        && states.len() == heads * keys * values
        && groups > 0
        && heads.is_multiple_of(groups);
    assert!(fits, "lists have the lengths of their shapes");
    let mut out = Vec::new();
    let (memory, shared) = (Unwritten::new(&mut out, v.len()), Shared::new(states));
    let size = keys * values;
    pool::run_ranges(heads, (MIN_PART / size.max(1)).max(1), |start, end| {
        let mut scratch = vec![0.0f32; values];
        for head in start..end {
            // SAFETY: only one task changes each head's matrix.
            let state = unsafe { shared.slice(head * size, size) };
            for position in 0..positions {
                // SAFETY: each row of the vector, which is alive, is written once.
                let out = unsafe { memory.zeroed((position * heads + head) * values, values) };
                step(isa, steps, [position, head], state, &mut scratch, out);
            }
        }
    });
    // SAFETY: all rows were written.
    unsafe { memory.written(&mut out) };
    out
}

/// Computes one position of one head.
fn step(
    isa: crate::Isa,
    steps: &StateSteps<'_>,
    place: [usize; 2],
    state: &mut [f32],
    scratch: &mut [f32],
    out: &mut [f32],
) {
    dispatch!(isa, |steps: &StateSteps<'_>,
                    place: [usize; 2],
                    state: &mut [f32],
                    scratch: &mut [f32],
                    out: &mut [f32]|
     -> () {
        // SAFETY: the CPU has the instruction set.
        unsafe { one_step::<L>(steps, place, state, scratch, out) }
    });
}

/// # Safety
/// The CPU must have the instruction set; `scratch` and `out` have the width of a value, and `state` is a head's
/// matrix.
#[inline(always)]
unsafe fn one_step<L: Lanes>(
    steps: &StateSteps<'_>,
    [position, head]: [usize; 2],
    state: &mut [f32],
    scratch: &mut [f32],
    out: &mut [f32],
) {
    let &StateSteps { heads, groups, keys, values, .. } = steps;
    let (number, group) = (position * heads + head, head / (heads / groups));
    let at = (position * groups + group) * keys;
    let (q, k) = (&steps.q[at..at + keys], &steps.k[at..at + keys]);
    let v = &steps.v[number * values..][..values];
    let left = steps.decay[number].exp();
    // SAFETY: all rows have the width of a value.
    unsafe {
        if let Some(beta) = steps.beta {
            scratch.fill(0.0);
            for (row, &k) in state.chunks_exact_mut(values).zip(k) {
                scale_and_sum::<L>(row, left, k, scratch);
            }
            let beta = beta[number];
            scratch.iter_mut().zip(v).for_each(|(known, &v)| *known = (v - *known) * beta);
            for ((row, &k), &q) in state.chunks_exact_mut(values).zip(k).zip(q) {
                add_and_read::<L>(row, 1.0, k, scratch, q, out);
            }
        } else {
            for ((row, &k), &q) in state.chunks_exact_mut(values).zip(k).zip(q) {
                add_and_read::<L>(row, left, k, v, q, out);
            }
        }
    }
}

/// Computes `row = left * row; sum += k * row`.
///
/// # Safety
/// The CPU must have the instruction set; both slices must have the same length.
#[inline(always)]
unsafe fn scale_and_sum<L: Lanes>(row: &mut [f32], left: f32, k: f32, sum: &mut [f32]) {
    let (width, vectors) = (row.len(), row.len() / 16 * 16);
    // SAFETY: all indices are below the width.
    unsafe {
        let (left_all, k_all) = (L::splat(left), L::splat(k));
        for i in (0..vectors).step_by(16) {
            let scaled = L::load(row.as_ptr().add(i)).mul(left_all);
            scaled.store(row.as_mut_ptr().add(i));
            scaled.mul_add(k_all, L::load(sum.as_ptr().add(i))).store(sum.as_mut_ptr().add(i));
        }
        for i in vectors..width {
            row[i] *= left;
            sum[i] += k * row[i];
        }
    }
}

/// Computes `row = left * row + k * added; out += q * row`.
///
/// # Safety
/// The CPU must have the instruction set; all slices must have the same length.
#[inline(always)]
unsafe fn add_and_read<L: Lanes>(row: &mut [f32], left: f32, k: f32, added: &[f32], q: f32, out: &mut [f32]) {
    let (width, vectors) = (row.len(), row.len() / 16 * 16);
    // SAFETY: all indices are below the width.
    unsafe {
        let (left_all, k_all, q_all) = (L::splat(left), L::splat(k), L::splat(q));
        for i in (0..vectors).step_by(16) {
            let scaled = L::load(row.as_ptr().add(i)).mul(left_all);
            let new = L::load(added.as_ptr().add(i)).mul_add(k_all, scaled);
            new.store(row.as_mut_ptr().add(i));
            new.mul_add(q_all, L::load(out.as_ptr().add(i))).store(out.as_mut_ptr().add(i));
        }
        for i in vectors..width {
            row[i] = row[i] * left + k * added[i];
            out[i] += q * row[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5).collect()
    }

    /// Computes the steps with plain loops in float64.
    fn slow(steps: &StateSteps<'_>, states: &mut [f64]) -> Vec<f64> {
        let &StateSteps { heads, groups, keys, values, .. } = steps;
        let positions = steps.decay.len() / heads;
        let mut out = vec![0.0; positions * heads * values];
        for position in 0..positions {
            for head in 0..heads {
                let (number, group) = (position * heads + head, head / (heads / groups));
                let of_group = |x: &[f32], key: usize| f64::from(x[(position * groups + group) * keys + key]);
                let state = &mut states[head * keys * values..][..keys * values];
                state.iter_mut().for_each(|value| *value *= f64::from(steps.decay[number]).exp());
                for j in 0..values {
                    let v = f64::from(steps.v[number * values + j]);
                    let known: f64 =
                        (0..keys).map(|key| of_group(steps.k, key) * state[key * values + j]).sum();
                    let added = steps.beta.map_or(v, |beta| f64::from(beta[number]) * (v - known));
                    for key in 0..keys {
                        state[key * values + j] += of_group(steps.k, key) * added;
                        out[number * values + j] += of_group(steps.q, key) * state[key * values + j];
                    }
                }
            }
        }
        out
    }

    #[test]
    fn steps_are_the_formula_in_float64() {
        for (heads, groups, keys, values, is_delta) in
            [(4, 4, 16, 32, true), (6, 2, 5, 19, false), (4, 2, 8, 16, true), (1, 1, 1, 1, false)]
        {
            let positions = 5;
            let (q, k) = (numbers(positions * groups * keys, 1), numbers(positions * groups * keys, 2));
            let (v, beta) = (numbers(positions * heads * values, 3), numbers(positions * heads, 4));
            let decay: Vec<f32> = numbers(positions * heads, 5).iter().map(|x| 0.3 * (x - 0.5)).collect();
            let beta = is_delta.then_some(&beta[..]);
            let steps = StateSteps { heads, groups, keys, values, q: &q, k: &k, v: &v, decay: &decay, beta };
            let states = numbers(heads * keys * values, 6);
            let mut exact: Vec<f64> = states.iter().map(|&value| value.into()).collect();
            let expected = slow(&steps, &mut exact);
            for isa in Isa::available() {
                let mut own = states.clone();
                let found = state_steps_on(isa, &steps, &mut own);
                let close = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() < 1e-5;
                assert!(found.iter().zip(&expected).all(close), "{isa:?}");
                assert!(own.iter().zip(&exact).all(close), "{isa:?}");
            }
        }
    }
}
