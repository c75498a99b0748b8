//! Vectors of sixteen float32 lanes on every supported instruction set.
//!
//! A kernel is a generic function over [`Lanes`] that is inlined into one function per instruction set, and only that
//! function has the set's features enabled; [`dispatch`] generates these functions.
//!
//! # The contract
//! Every `unsafe` block of this module and of its submodules for x86-64 and aarch64 is in an `unsafe fn` of [`Lanes`]
//! or [`DotLanes`]. It relies on what the caller of that function must ensure, and on nothing else: the CPU has the
//! instruction set of the implementation, and a pointer is valid for reading or writing sixteen values of its type,
//! in any alignment. The callers are the kernels; each says in its `SAFETY` line why both hold.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one contract, stated above, holds for all of them")]

use std::sync::OnceLock;

/// Instruction sets that have kernels of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The target's baseline.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-VNNI, and those above.
    AvxVnni,
    /// AVX-512 F and BW, and those of `Avx2`.
    Avx512Bw,
    /// AVX-512 VNNI, and those of `Avx512Bw`.
    Avx512,
    /// NEON, which is part of the baseline of aarch64.
    Neon,
    /// NEON with the dot-product extension.
    NeonDot,
}

impl Isa {
    /// All sets that this CPU has, the widest last.
    pub fn available() -> Vec<Self> {
        let has = |isa: &Self| match isa {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => has_avx2() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bw => has_avx512(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => has_avx512() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            // The sets of other architectures.
            _ => false,
        };
        let x86 = [Self::Avx2, Self::AvxVnni, Self::Avx512Bw, Self::Avx512];
        let all = [Self::Portable].into_iter().chain(x86).chain([Self::Neon, Self::NeonDot]);
        all.filter(has).collect()
    }

    /// The name, as in `MOI_KERNELS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Bw => "avx512bw",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2() && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
}

/// The instruction set that kernels use: the widest that the CPU has, or the one that `MOI_KERNELS` names.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let available = Isa::available();
        let asked = std::env::var("MOI_KERNELS").ok();
        let named = available.iter().find(|isa| Some(isa.name()) == asked.as_deref());
        *named.or(available.last()).unwrap_or(&Isa::Portable)
    })
}

/// Prefetches the cache line at an address, which may be invalid. Does nothing where there is no instruction for it.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the baseline has the instruction, and it never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A vector of sixteen float32 values.
///
/// # Safety
/// For all methods: the CPU must have the instruction set of the implementation, and pointers must be valid for
/// sixteen values.
pub(crate) trait Lanes: Copy {
    /// Number of such vectors that the CPU's registers hold.
    const REGISTERS: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// Widens float16 values.
    unsafe fn load_f16(from: *const u16) -> Self;
    /// Widens bfloat16 values.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Converts signed 8-bit integers.
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        let values = unsafe { from.cast::<[i8; 16]>().read_unaligned() }.map(f32::from);
        unsafe { Self::load(values.as_ptr()) }
    }
    unsafe fn store(self, to: *mut f32);
    /// Rounds to float16, ties to even.
    unsafe fn store_f16(self, to: *mut u16);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// `self * a + b`.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `2^self`, for integers from -126 to 127.
    unsafe fn power_of_two(self) -> Self;
    unsafe fn sum(self) -> f32;
    /// The sums of four vectors.
    #[inline(always)]
    unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
        unsafe { [four[0].sum(), four[1].sum(), four[2].sum(), four[3].sum()] }
    }
    unsafe fn largest(self) -> f32;
    /// Rounds to 8-bit integers, ties to even. The values must be between -127 and 127.
    unsafe fn store_i8(self, to: *mut i8);

    /// e^x with a relative error of about 1e-7; 0 for x below -87, and at most e^88.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        unsafe {
            let x = self.max(Self::splat(-87.0)).min(Self::splat(88.0));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            // ln 2 is split in two parts, so that the subtraction is exact.
            let r = n.mul_add(Self::splat(-0.693_359_4), x);
            let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = p.mul_add(r, Self::splat(c));
            }
            let e = p.mul_add(r.mul(r), r).add(Self::splat(1.0)).mul(n.power_of_two());
            // e^x below -87 is negligible beside the other terms of a sum.
            self.cut_below(-87.0, e)
        }
    }

    /// `value` where `self` is at least `limit`, else 0; 0 for NaN.
    unsafe fn cut_below(self, limit: f32, value: Self) -> Self;
}

/// The portable baseline: loops over arrays, which the compiler vectorizes as the target allows.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 16]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        out.iter_mut().zip(other.0).for_each(|(a, b)| *a = f(*a, b));
        Self(out)
    }
}

impl Lanes for Portable {
    const REGISTERS: usize = 4;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 16])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        Self(bits.map(|bits| half::f16::from_bits(bits).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        Self(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        let bits = self.0.map(|value| half::f16::from_f32(value).to_bits());
        unsafe { to.cast::<[u16; 16]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // This rounds twice: a fused operation would be a library call where the baseline has no instruction for it.
        unsafe { self.mul(a).add(b) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding 1.5 * 2^23 leaves no fraction bits.
        const MAGIC: f32 = 12_582_912.0;
        Self(self.0.map(|value| value + MAGIC - MAGIC))
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32)))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut part = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                part[i] += part[i + half];
            }
        }
        part[0]
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        let rounded = unsafe { self.round() };
        unsafe { to.cast::<[i8; 16]>().write_unaligned(rounded.0.map(|value| value as i8)) }
    }
    #[inline(always)]
    unsafe fn cut_below(self, limit: f32, value: Self) -> Self {
        self.zip(value, |x, value| if x >= limit { value } else { 0.0 })
    }
}

/// The operations that dot products need, on vectors of [`DotLanes::WIDTH`] lanes.
///
/// # Safety
/// As for [`Lanes`], but pointers must be valid for [`DotLanes::WIDTH`] values.
pub(crate) trait DotLanes: Copy {
    const WIDTH: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    unsafe fn sums(four: [Self; 4]) -> [f32; 4];
}

impl<L: Lanes> DotLanes for L {
    const WIDTH: usize = 16;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller upholds the contract of the trait.
        unsafe { L::splat(value) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller upholds the contract of the trait.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller upholds the contract of the trait.
        unsafe { L::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller upholds the contract of the trait.
        unsafe { L::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller upholds the contract of the trait.
        unsafe { Lanes::mul_add(self, a, b) }
    }
    #[inline(always)]
    unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller upholds the contract of the trait.
        unsafe { <L as Lanes>::sums(four) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, HalfAvx2};
#[cfg(target_arch = "x86_64")]
#[path = "lanes_x86.rs"]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{Neon, QuarterNeon, widen_f16};
#[cfg(target_arch = "aarch64")]
#[path = "lanes_neon.rs"]
mod neon;

/// Runs a body that is generic over [`Lanes`] with the widest lanes that `isa` allows, in a function that has their
/// features enabled: `dispatch!(isa, |argument: Type| -> Output { body })`. In the body, `L` is the type of the
/// lanes.
macro_rules! dispatch {
    ($isa:expr, |$($arg:ident : $type:ty),* $(,)?| -> $result:ty { $($body:tt)* }) => {{
        #[allow(clippy::too_many_arguments, reason = "they are those of the kernel")]
        #[inline(always)]
        unsafe fn generic<L: $crate::lanes::Lanes>($($arg: $type),*) -> $result { $($body)* }
        #[cfg(target_arch = "x86_64")]
        #[allow(clippy::too_many_arguments, reason = "they are those of the kernel")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($arg: $type),*) -> $result {
            // SAFETY: the attribute above enables what these lanes need.
            unsafe { generic::<$crate::lanes::Avx2>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[allow(clippy::too_many_arguments, reason = "they are those of the kernel")]
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw")]
        unsafe fn avx512($($arg: $type),*) -> $result {
            // SAFETY: the attribute above enables what these lanes need.
            unsafe { generic::<$crate::lanes::Avx512>($($arg),*) }
        }
        match $isa {
            // SAFETY: `isa` has checked at run time that the CPU has the instruction set.
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512 | $crate::Isa::Avx512Bw => unsafe { avx512($($arg),*) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx2 | $crate::Isa::AvxVnni => unsafe { avx2($($arg),*) },
            // SAFETY: NEON is part of the baseline.
            #[cfg(target_arch = "aarch64")]
            $crate::Isa::Neon | $crate::Isa::NeonDot => unsafe { generic::<$crate::lanes::Neon>($($arg),*) },
            // SAFETY: every CPU of the target has the baseline.
            _ => unsafe { generic::<$crate::lanes::Portable>($($arg),*) },
        }
    }};
}
pub(crate) use dispatch;

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
