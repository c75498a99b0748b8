//! Weights that are no finite numbers: loaded as they are, and named.

use std::fmt;

use burn::tensor::FloatDType;
use half::{bf16, f16};

use crate::{LazyTensor, file::shown};

/// A tensor that was loaded with values that are not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// The file that it stands in.
    pub file: String,
    /// Its name.
    pub tensor: String,
    /// Values that are NaN.
    pub nan: usize,
    /// Values that are infinite.
    pub infinite: usize,
    /// The type that they are held in, if the file has finite values that are too large for it.
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
    /// What is to be said of a tensor's values as they are stored, if anything is.
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

/// How many values are not finite.
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

    /// What is to be said of a tensor, if anything is.
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

    /// Nearly always there is none, and no branch is taken for a value.
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
