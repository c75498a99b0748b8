//! Routes positions to experts on the device, without reading anything back.

use cubecl::prelude::*;

use crate::{
    Buffer, Device,
    reduce::{SHARED, UNITS, largest, sum},
};

/// Maximum number of experts of a router here: their scores are in shared memory twice.
const MAX_EXPERTS: usize = 1024;

/// Below any score.
const LEAST: f32 = -3.0e38;

/// Above any score.
const MAX_LOGIT: f32 = 3.0e38;

/// A router, which is applied to the outputs of its linear layer.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// Number of experts.
    pub experts: usize,
    /// Number of experts that each position is routed to.
    pub per_token: usize,
    /// Whether scores are the softmax over all experts; else they are the sigmoid of each logit.
    pub softmax: bool,
    /// Soft cap: logits become `cap * tanh(x / cap)` before the scores.
    pub softcap: Option<f32>,
    /// Groups of experts, only some of which can be picked from.
    pub groups: Option<Groups>,
    /// Whether weights are divided by their sum.
    pub normalized: bool,
    /// Added to that sum.
    pub sum_plus: f32,
    /// The minimum of that sum.
    pub sum_at_least: f32,
    /// A factor on the weights.
    pub factor: f32,
    /// Added to the scores for picking experts, but not to the weights, `[experts]`.
    pub correction: Option<&'a Buffer>,
    /// Factors on the weights, `[experts]`.
    pub scales: Option<&'a Buffer>,
}

/// Groups of experts, of equal size.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Groups {
    /// Number of groups.
    pub count: usize,
    /// Number of groups that can be picked from.
    pub kept: usize,
    /// Whether a group's score is the sum of its two best scores; else it is its best score.
    pub two: bool,
}

/// The picked experts of each position, the best first.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Indices of the experts, `[n, per_token]`, 32-bit.
    pub ids: Buffer,
    /// Weights of the experts, `[n, per_token]` in float32.
    pub weights: Buffer,
    /// Number of experts per position.
    pub per_token: usize,
}

/// Compile-time constants of the kernel.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Fixed {
    experts: usize,
    per_token: usize,
    softmax: bool,
    softcap: bool,
    groups: Option<Groups>,
    normalized: bool,
    correction: bool,
    scales: bool,
}

/// Values that are passed when the kernel is launched.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    softcap: f32,
    sum_plus: f32,
    sum_at_least: f32,
    factor: f32,
}

/// Computes the scores of a position's experts with all units of a cube. Unit `i` writes those of experts `i`,
/// `i + UNITS` and so on.
#[cube]
fn score(
    values: &Array<f32>,
    first: usize,
    scores: &mut SharedMemory<f32>,
    shared: &mut SharedMemory<f32>,
    softcap: f32,
    #[comptime] fixed: Fixed,
) {
    let experts = comptime![fixed.experts];
    let mut most = f32::new(LEAST);
    for expert in range_stepped(UNIT_POS as usize, experts, UNITS) {
        let mut value = values[first + expert];
        if comptime![fixed.softcap] {
            value = softcap * (value / softcap).tanh();
        }
        if comptime![!fixed.softmax] {
            value = 1.0f32 / (1.0f32 + (-value).exp());
        }
        scores[expert] = value;
        most = max(most, value);
    }
    if comptime![fixed.softmax] {
        let most = largest(most, shared);
        let mut total = 0.0f32;
        for expert in range_stepped(UNIT_POS as usize, experts, UNITS) {
            let power = (scores[expert] - most).exp();
            scores[expert] = power;
            total += power;
        }
        let total = sum(total, shared);
        for expert in range_stepped(UNIT_POS as usize, experts, UNITS) {
            scores[expert] = scores[expert] / total;
        }
    }
}

/// Sets the choices of all groups but the best ones below any score.
#[cube]
fn leave_out_groups(
    choices: &mut SharedMemory<f32>,
    shared: &mut SharedMemory<f32>,
    #[comptime] experts: usize,
    #[comptime] groups: Groups,
) {
    let (group, size) = (UNIT_POS as usize, comptime![experts / groups.count]);
    sync_cube();
    if group < comptime![groups.count] {
        let mut best = f32::new(LEAST);
        let mut second = f32::new(LEAST);
        for i in 0..size {
            let choice = choices[group * size + i];
            second = max(second, min(best, choice));
            best = max(best, choice);
        }
        if comptime![groups.two] {
            best += second;
        }
        shared[group] = best;
    }
    sync_cube();
    if group < comptime![groups.count] {
        // Of equal groups, the first one counts as better.
        let own = shared[group];
        let mut better = 0u32;
        for other in 0..comptime![groups.count] {
            if shared[other] > own || (shared[other] == own && other < group) {
                better += 1;
            }
        }
        if better >= comptime![groups.kept as u32] {
            for i in 0..size {
                choices[group * size + i] = LEAST;
            }
        }
    }
    sync_cube();
}

#[cube(launch_unchecked)]
fn route_kernel<C: Float, S: Float>(
    values: &Array<f32>,
    correction: &Array<C>,
    scales: &Array<S>,
    ids: &mut Array<u32>,
    weights: &mut Array<f32>,
    numbers: Numbers,
    n: u32,
    #[comptime] fixed: Fixed,
    #[define(C)] _correction: StorageType,
    #[define(S)] _scale: StorageType,
) {
    let (experts, per_token) = comptime![(fixed.experts, fixed.per_token)];
    let mut shared = SharedMemory::<f32>::new(SHARED);
    let mut scores = SharedMemory::<f32>::new(experts);
    let mut choices = SharedMemory::<f32>::new(experts);
    let mut picked = SharedMemory::<f32>::new(per_token);
    let position = CUBE_POS;
    if position < n as usize {
        score(values, position * experts, &mut scores, &mut shared, numbers.softcap, fixed);
        for expert in range_stepped(UNIT_POS as usize, experts, UNITS) {
            let mut choice = scores[expert];
            if comptime![fixed.correction] {
                choice += f32::cast_from(correction[expert]);
            }
            // A NaN is picked, so that the result shows it.
            choices[expert] = select(choice.is_nan(), f32::new(MAX_LOGIT), choice);
        }
        if comptime![fixed.groups.is_some()] {
            let groups = comptime![fixed.groups.unwrap_or(Groups { count: 1, kept: 1, two: false })];
            leave_out_groups(&mut choices, &mut shared, experts, groups);
        }
        for pick in 0..per_token {
            let mut best = f32::new(LEAST);
            let none = f32::new(comptime![experts as f32]);
            let mut own = none;
            // Each unit only reads choices that it alone writes.
            for expert in range_stepped(UNIT_POS as usize, experts, UNITS) {
                if choices[expert] > best {
                    best = choices[expert];
                    own = f32::cast_from(expert as u32);
                }
            }
            let most = largest(best, &mut shared);
            // Of equal experts, the first one is picked.
            let first = -largest(select(best == most, -own, -none), &mut shared);
            let expert = min(u32::cast_from(first), experts as u32 - 1);
            if expert % UNITS as u32 == UNIT_POS {
                choices[expert as usize] = LEAST;
            }
            if UNIT_POS == 0 {
                picked[pick] = f32::cast_from(expert);
            }
        }
        sync_cube();
        if UNIT_POS == 0 {
            let mut divisor = 1.0f32;
            if comptime![fixed.normalized] {
                let mut total = 0.0f32;
                for pick in 0..per_token {
                    total += scores[u32::cast_from(picked[pick]) as usize];
                }
                divisor = max(total + numbers.sum_plus, numbers.sum_at_least);
            }
            for pick in 0..per_token {
                let expert = u32::cast_from(picked[pick]);
                let mut weight = scores[expert as usize] / divisor * numbers.factor;
                if comptime![fixed.scales] {
                    weight *= f32::cast_from(scales[expert as usize]);
                }
                ids[position * per_token + pick] = expert;
                weights[position * per_token + pick] = weight;
            }
        }
    }
}

/// Picks the experts of positions from the outputs of the router's linear layer, `[n, experts]` in float32. `None` if
/// there is no room for so many experts.
pub fn route<R: Runtime>(device: &Device<R>, values: &Buffer, router: &Router<'_>) -> Option<Choice> {
    let Router { experts, per_token, correction, scales, .. } = *router;
    let shared = (2 * experts + per_token + SHARED) * size_of::<f32>();
    let room = device.client.properties().hardware.max_shared_memory_size;
    let too_many = router.groups.is_some_and(|groups| groups.count > UNITS);
    if experts == 0 || experts > MAX_EXPERTS || shared > room || too_many {
        return None;
    }
    let n = values.len / experts;
    let ids = device.empty(n * per_token, u32::as_type_native_unchecked().storage_type());
    let weights = device.floats(n * per_token);
    let fixed = Fixed {
        experts,
        per_token,
        softmax: router.softmax,
        softcap: router.softcap.is_some(),
        groups: router.groups,
        normalized: router.normalized,
        correction: correction.is_some(),
        scales: scales.is_some(),
    };
    let (correction, scales) = (correction.unwrap_or(values), scales.unwrap_or(values));
    let Router { softcap, sum_plus, sum_at_least, factor, .. } = *router;
    let numbers = NumbersLaunch::new(softcap.unwrap_or(1.0), sum_plus, sum_at_least, factor);
    // SAFETY: cubes past the last position do nothing, and picks are below the number of experts.
    unsafe {
        route_kernel::launch_unchecked::<R>(
            &device.client,
            device.cubes(n),
            CubeDim::new_1d(UNITS as u32),
            values.numbers(),
            correction.numbers(),
            scales.numbers(),
            ids.numbers(),
            weights.numbers(),
            numbers,
            n as u32,
            fixed,
            correction.dtype,
            scales.dtype,
        );
    }
    Some(Choice { ids, weights, per_token })
}
