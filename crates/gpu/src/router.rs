//! Which experts a position is given to, without reading anything back.

use cubecl::prelude::*;

use crate::{
    Buffer, Device,
    reduce::{SHARED, UNITS, largest, sum},
};

/// The most experts that a router may have here: their scores are in shared memory twice.
const MAX_EXPERTS: usize = 1024;

/// Less than any score.
const LEAST: f32 = -3.0e38;

/// More than any.
const MOST: f32 = 3.0e38;

/// A router behind its linear map.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// How many experts there are.
    pub experts: usize,
    /// How many each position is given to.
    pub per_token: usize,
    /// Whether scores are the softmax over all experts; else they are the sigmoid of each value.
    pub softmax: bool,
    /// `cap * tanh(x / cap)` of values, before the scores.
    pub softcap: Option<f32>,
    /// Groups of experts of which only some can be picked from.
    pub groups: Option<Groups>,
    /// Whether weights are divided by their sum.
    pub normalized: bool,
    /// What is added to that sum.
    pub sum_plus: f32,
    /// What that sum is at least.
    pub sum_at_least: f32,
    /// A factor on the weights.
    pub factor: f32,
    /// Added to scores to choose, `[experts]`.
    pub correction: Option<&'a Buffer>,
    /// Factors on the weights, `[experts]`.
    pub scales: Option<&'a Buffer>,
}

/// Equal groups of experts.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Groups {
    /// How many there are.
    pub count: usize,
    /// How many of them can be picked from.
    pub kept: usize,
    /// Whether a group's score is the sum of its two best; else it is its best.
    pub two: bool,
}

/// The experts of each position, the best first.
#[derive(Clone, Debug)]
pub struct Choice {
    /// `[n, per_token]`, 32-bit.
    pub ids: Buffer,
    /// `[n, per_token]` in float32.
    pub weights: Buffer,
    /// Experts of a position.
    pub per_token: usize,
}

/// What is known when the kernel is compiled.
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

/// Numbers that are not.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Numbers {
    softcap: f32,
    sum_plus: f32,
    sum_at_least: f32,
    factor: f32,
}

/// Scores of a position's experts, by all units of a cube; each writes those that are a multiple of [`UNITS`] behind it.
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

/// Makes the choices of all groups but the best ones less than any other.
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
        // Of equal ones the first is better.
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
            // What is no number is picked, so that what comes of it shows.
            choices[expert] = select(choice.is_nan(), f32::new(MOST), choice);
        }
        if comptime![fixed.groups.is_some()] {
            let groups = comptime![fixed.groups.unwrap_or(Groups { count: 1, kept: 1, two: false })];
            leave_out_groups(&mut choices, &mut shared, experts, groups);
        }
        for pick in 0..per_token {
            let mut best = f32::new(LEAST);
            let none = f32::new(comptime![experts as f32]);
            let mut own = none;
            // Each unit reads only what it alone writes.
            for expert in range_stepped(UNIT_POS as usize, experts, UNITS) {
                if choices[expert] > best {
                    best = choices[expert];
                    own = f32::cast_from(expert as u32);
                }
            }
            let most = largest(best, &mut shared);
            // Of equal ones the first.
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

/// The experts of positions, of what the router's map gives for them `[n, experts]` in float32; `None` of more experts
/// than there is room for.
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
    // SAFETY: cubes behind the last position do nothing, and picks are below the number of experts.
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
