//! Reports weights that are NaN or infinite; such weights are loaded unchanged.

use std::fmt;

use burn::tensor::FloatDType;
use half::{bf16, f16};

use crate::{LazyTensor, file::shown};

/// A tensor that has NaN or infinite values.
///
/// # Examples
/// ```
/// use moi_checkpoint::{NotFinite, open_safetensors};
/// # use safetensors::{Dtype, tensor::TensorView};
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.safetensors");
/// # let bytes: Vec<u8> = [1.0, f32::NAN, f32::INFINITY].into_iter().flat_map(f32::to_le_bytes).collect();
/// # let view = TensorView::new(Dtype::F32, vec![3], &bytes)?;
/// # std::fs::write(&path, safetensors::serialize([("bias", view)], None)?)?;
/// let checkpoint = open_safetensors(&path)?; // `bias` is 1, NaN and infinity
/// let report = NotFinite::of("bias", &checkpoint.tensors()["bias"]);
/// assert_eq!(report.map(|report| (report.nan, report.infinite)), Some((1, 1)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// The file that holds the tensor.
    pub file: String,
    /// The tensor's name.
    pub tensor: String,
    /// The number of values that are NaN.
    pub nan: usize,
    /// The number of values that are infinite.
    pub infinite: usize,
    /// The type that the values are held in, if it makes finite values of the file infinite because they are too
    /// large.
    pub overflow: Option<FloatDType>,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, tensor, nan, infinite, overflow } = self;
        write!(f, "{file}: tensor `{}` has {nan} NaN and {infinite} infinite values", shown(tensor))?;
        match overflow {
            Some(dtype) => write!(f, " as {dtype:?}, which cannot hold what the file has; --dtype f32 can"),
            None => write!(f, "; the file is broken, and what the model computes may be"),
        }
    }
}

impl NotFinite {
    /// Counts the NaN and infinite values of a tensor as stored; `None` if there are none.
    pub fn of(name: &str, tensor: &LazyTensor) -> Option<Self> {
        let mut count = Count::default();
        match tensor.pieces() {
            Some(pieces) => pieces.iter().for_each(|piece| count.add(Count::of_f32(&piece.read()))),
            None => count.add(Count::of_f32(&tensor.read())),
        }
        tensor.release();
        let Count { nan, infinite } = count;
        let (file, tensor) = (tensor.file_name(), name.to_owned());
        (count != Count::default()).then_some(Self { file, tensor, nan, infinite, overflow: None })
    }
}

/// The number of NaN and infinite values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    nan: usize,
    infinite: usize,
}

impl Count {
    pub(crate) fn add(&mut self, other: Self) {
        self.nan += other.nan;
        self.infinite += other.infinite;
    }

    /// The report about a tensor; `None` if all values are finite.
    pub(crate) fn of(self, name: &str, tensor: &LazyTensor, dtype: FloatDType) -> Option<NotFinite> {
        let Self { nan, infinite } = self;
        if self == Self::default() {
            return None;
        }
        let as_stored = Self::of_f32(&tensor.read());
        let overflow = (as_stored.infinite < infinite).then_some(dtype);
        Some(NotFinite { file: tensor.file_name(), tensor: name.to_owned(), nan, infinite, overflow })
    }

    pub(crate) fn of_f32(values: &[f32]) -> Self {
        const EXPONENT: u32 = 0x7f80_0000;
        Self::looked_up(values, |value| value.to_bits() & EXPONENT == EXPONENT, |value| value.is_nan())
    }

    pub(crate) fn of_f16(values: &[f16]) -> Self {
        Self::looked_up(values, |value| !value.is_finite(), |value| value.is_nan())
    }

    pub(crate) fn of_bf16(values: &[bf16]) -> Self {
        Self::looked_up(values, |value| !value.is_finite(), |value| value.is_nan())
    }

    /// Counts with a first pass without branches, because nearly always no value is NaN or infinite.
    fn looked_up<T: Copy>(values: &[T], broken: impl Fn(T) -> bool, nan: impl Fn(T) -> bool) -> Self {
        let mut count = Self::default();
        for chunk in values.chunks(1024) {
            if chunk.iter().fold(false, |any, &value| any | broken(value)) {
                count.nan += chunk.iter().filter(|&&value| nan(value)).count();
                count.infinite += chunk.iter().filter(|&&value| broken(value) && !nan(value)).count();
            }
        }
        count
    }
}
