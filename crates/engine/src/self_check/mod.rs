//! Checks that a device computes correctly, by a small model with known logits.
//!
//! A faulty driver may report no error: a kernel that does not compile leaves its output unchanged. So before a
//! device's first text, [`Engine`](crate::Engine) runs this model on it.

mod model;
mod step;

use std::{
    any::TypeId,
    collections::HashMap,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, backend::Backend};
use moi_models::{CausalLm, Decoder, ForwardBatch, ModelError, has_gpu_kernels, use_gpu_kernels};

pub use model::Known;

/// How far the logits of the small model are off, relative to the largest known one.
///
/// # Examples
/// ```
/// use burn::tensor::FloatDType;
/// use moi_engine::SelfCheck;
///
/// let check = SelfCheck::run::<burn_flex::Flex>(&Default::default(), FloatDType::F32)?;
/// assert!(check.is_right());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SelfCheck {
    /// The type it computed in.
    pub dtype: FloatDType,
    /// The error when all positions run at once.
    pub whole: f32,
    /// The error of a prompt followed by one position at a time with a KV cache; or the difference between a device
    /// that samples and mixes by itself and the host, if that is larger.
    pub cached: f32,
}

/// The device's logits differ from the known ones.
///
/// # Examples
/// ```
/// use burn::tensor::FloatDType;
/// use moi_engine::{SelfCheck, WrongLogits};
///
/// let check = SelfCheck { dtype: FloatDType::F32, whole: 0.0, cached: f32::NAN };
/// assert!(!check.is_right());
/// assert!(WrongLogits(check).to_string().contains("wrong numbers in F32"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WrongLogits(pub SelfCheck);

impl fmt::Display for WrongLogits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SelfCheck { dtype, whole, cached } = self.0;
        write!(
            f,
            "the device computes wrong numbers in {dtype:?}: the logits of a small model are off by {whole:.2} of the \
             largest, computed at once, and by {cached:.2} with a cache, where {:.2} is allowed; update its driver, or \
             use another device",
            SelfCheck::allowed(dtype)
        )
    }
}

impl std::error::Error for WrongLogits {}

impl SelfCheck {
    /// The difference beyond which numbers are wrong and not just rounded. In float32 it leaves room for NVIDIA's
    /// TF32, with ten bits of a number; float32 itself is a thousand times closer.
    pub fn allowed(dtype: FloatDType) -> f32 {
        match dtype {
            FloatDType::BF16 => 0.06,
            FloatDType::F16 => 0.02,
            _ => 0.01,
        }
    }

    /// The largest difference if everything is computed in float32.
    pub const EXACT: f32 = 5e-5;

    /// Whether the numbers are right. NaN counts as wrong.
    pub fn is_right(&self) -> bool {
        let allowed = Self::allowed(self.dtype);
        self.whole <= allowed && self.cached <= allowed
    }

    /// Runs the small model on a device, at once and with a cache.
    ///
    /// # Errors
    /// If the model cannot be built or run. Wrong logits are no error here.
    pub fn run<B: Backend>(device: &B::Device, dtype: FloatDType) -> Result<Self, ModelError> {
        let known = Known::read();
        let model = known.model::<B>(device, dtype)?;
        let whole = error::<B>(&known, &model, false, device)?;
        let cached = error::<B>(&known, &model, true, device)?.max(step::error::<B>(&model, device));
        Ok(Self { dtype, whole, cached })
    }

    /// Runs only the half that decoding depends on. The whole check runs only to describe a failure.
    fn quick<B: Backend>(
        device: &B::Device,
        dtype: FloatDType,
    ) -> Result<Result<(), WrongLogits>, ModelError> {
        let known = Known::read();
        let model = known.model::<B>(device, dtype)?;
        let cached = error::<B>(&known, &model, true, device)?.max(step::error::<B>(&model, device));
        Ok(match cached <= Self::allowed(dtype) {
            true => Ok(()),
            false => Err(WrongLogits(Self { cached, ..Self::run::<B>(device, dtype)? })),
        })
    }
}

/// Largest difference to the known logits, relative to the largest of them.
fn error<B: Backend>(
    known: &Known,
    model: &Decoder<B>,
    cached: bool,
    device: &B::Device,
) -> Result<f32, ModelError> {
    let (prompt, rest) = known.tokens.split_at(if cached { known.first + 1 } else { known.tokens.len() });
    let mut pool = model.new_pool(device);
    let mut table = pool.table();
    let mut found = Vec::new();
    for piece in std::iter::once(prompt).chain(rest.chunks(1)) {
        let ids: Vec<i64> = piece.iter().map(|&id| id.into()).collect();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [piece.len()]), device);
        let hidden = model.forward(ForwardBatch::one(model.embed(ids), &mut table), &mut pool)?;
        // Of a prompt, only the positions whose logits are known.
        let (seq, skipped) = (piece.len(), known.first.saturating_sub(table.len() - piece.len()));
        let logits = model.logits(hidden.narrow(0, skipped.min(seq - 1), seq - skipped.min(seq - 1)));
        // Logits that cannot be read count as an infinite error.
        let Ok(data) = logits.try_into_data() else { return Ok(f32::INFINITY) };
        found.extend(data.iter::<f32>().step_by(known.every));
    }
    let expected = || known.logits.iter().flatten();
    let largest = expected().fold(0.0f32, |max, logit| max.max(logit.abs()));
    if found.len() != expected().count() {
        return Ok(f32::INFINITY);
    }
    // NaN must win, where `max` would drop it.
    let worst = found.iter().zip(expected()).map(|(f, e)| (f - e).abs());
    Ok(worst.fold(0.0f32, |max, d| if d <= max { max } else { d }) / largest)
}

/// A backend, a device of it, and a type.
type Key = (TypeId, String, FloatDType);
/// The results of the check for what was used so far.
static SEEN: Mutex<Option<HashMap<Key, Result<(), WrongLogits>>>> = Mutex::new(None);

fn key<B: Backend>(device: &B::Device, dtype: FloatDType) -> Key {
    (TypeId::of::<B>(), format!("{device:?}"), dtype)
}

/// Runs the quick half of the check at a device's first use in this process, and remembers how it ended.
pub(crate) fn at_first_use<B: Backend>(device: &B::Device, dtype: DType) -> Result<(), WrongLogits> {
    let dtype = match dtype {
        DType::F16 => FloatDType::F16,
        DType::BF16 => FloatDType::BF16,
        DType::F32 => FloatDType::F32,
        // The models of this crate never compute in other types.
        _ => return Ok(()),
    };
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = seen.get_or_insert_default();
    *seen.entry(key::<B>(device, dtype)).or_insert_with(|| {
        let broken = WrongLogits(SelfCheck { dtype, whole: f32::INFINITY, cached: f32::INFINITY });
        let check = || SelfCheck::quick::<B>(device, dtype).unwrap_or(Err(broken));
        check().or_else(|wrong| {
            if !has_gpu_kernels::<B>() {
                return Err(wrong);
            }
            // The kernels may be wrong instead of the device: burn's own operations are used, and thereby tested, by
            // many.
            use_gpu_kernels(false);
            let without = check();
            match without {
                Ok(()) => KERNELS_FAILED.store(true, Ordering::Relaxed),
                Err(_) => use_gpu_kernels(true),
            }
            without
        })
    })
}

static KERNELS_FAILED: AtomicBool = AtomicBool::new(false);

/// Whether a device computed wrong numbers with the kernels of [`moi_models`] and right ones without: they are then off
/// for the process, and decoding is slower.
///
/// # Examples
/// ```
/// use moi_engine::self_check;
///
/// // Nothing has run on a GPU.
/// assert!(!self_check::kernels_failed());
/// ```
pub fn kernels_failed() -> bool {
    KERNELS_FAILED.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;

    #[test]
    fn the_cpu_is_right_in_every_type() {
        let check = |dtype| SelfCheck::run::<Flex>(&Default::default(), dtype).unwrap();
        let exact = check(FloatDType::F32);
        assert!(exact.whole <= SelfCheck::EXACT && exact.cached <= SelfCheck::EXACT, "{exact:?}");
        for dtype in [FloatDType::F16, FloatDType::BF16] {
            let rounded = check(dtype);
            println!("{rounded:?}");
            assert!(rounded.is_right() && rounded.cached > SelfCheck::EXACT, "{rounded:?}");
        }
        assert_eq!(at_first_use::<Flex>(&Default::default(), DType::F32), Ok(()));
    }

    /// This is the only test here that decodes in float16, because it marks the device as wrong in that type.
    #[test]
    fn a_wrong_device_is_refused_before_its_first_token() {
        use crate::{Engine, EngineError, Prompt, Request};

        let (device, dtype) = (Default::default(), FloatDType::F16);
        let wrong = WrongLogits(SelfCheck { dtype, whole: 0.0, cached: 0.7 });
        SEEN.lock().unwrap().get_or_insert_default().insert(key::<Flex>(&device, dtype), Err(wrong));
        let engine = Engine::new(Known::read().model::<Flex>(&device, dtype).unwrap(), device);
        let refused = engine.generate(Request::new(Prompt::Ids(vec![1]))).map(|_| ()).unwrap_err();
        assert!(matches!(refused, EngineError::Device(found) if found == wrong));
        assert!(refused.to_string().contains("0.70 with a cache, where 0.02 is allowed"), "{refused}");
        assert!(engine.logits(&[1]).is_err());
        let unchecked = engine.without_self_check();
        assert!(unchecked.generate(Request::new(Prompt::Ids(vec![1]))).is_ok());
    }

    #[test]
    fn wrong_logits_are_seen() {
        let device = Default::default();
        let known = Known::read();
        let model = known.model::<Flex>(&device, FloatDType::F32).unwrap();
        // Another answer than the known one, in one place; and other tokens than the known ones.
        let mut other = known.clone();
        other.logits[12][63] += 0.2;
        assert!(error::<Flex>(&other, &model, true, &device).unwrap() > SelfCheck::allowed(FloatDType::F32));
        let mut shifted = known.clone();
        shifted.tokens.swap(0, 39);
        assert!(error::<Flex>(&shifted, &model, false, &device).unwrap() > 0.1);
        let nan = SelfCheck { dtype: FloatDType::F32, whole: 0.0, cached: f32::NAN };
        assert!(!nan.is_right());
        assert!(WrongLogits(nan).to_string().contains("NaN"));
    }
}
