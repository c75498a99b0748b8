//! The lanes for aarch64. NEON is part of its baseline, so no function here has to enable a feature.

use std::arch::{aarch64::*, asm};

use super::{DotLanes, Lanes};

/// Widens four float16 values to float32.
///
/// This is assembly because the intrinsic needs Rust 1.94. The instruction is part of the baseline: arithmetic in
/// float16 is an extension, but conversions are not.
///
/// # Safety
/// It can always be called on aarch64; it is unsafe because it replaces an unsafe intrinsic.
#[inline(always)]
pub(crate) unsafe fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: the instruction only computes one register from another.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    wide
}

/// Rounds four float32 values to float16, ties to even.
///
/// # Safety
/// As for [`widen_f16`].
#[inline(always)]
unsafe fn narrow_f16(wide: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: the instruction only computes one register from another.
    unsafe {
        asm!(
            "fcvtn {halves:v}.4h, {wide:v}.4s",
            halves = lateout(vreg) halves,
            wide = in(vreg) wide,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

/// Sixteen lanes in four NEON registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon(float32x4_t, float32x4_t, float32x4_t, float32x4_t);

impl Neon {
    #[inline(always)]
    fn from_quarters(quarter: impl Fn(usize) -> float32x4_t) -> Self {
        Self(quarter(0), quarter(1), quarter(2), quarter(3))
    }

    #[inline(always)]
    fn map(self, f: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        Self(f(self.0), f(self.1), f(self.2), f(self.3))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        Self(f(self.0, other.0), f(self.1, other.1), f(self.2, other.2), f(self.3, other.3))
    }

    /// The sum of the four registers, lane by lane.
    #[inline(always)]
    unsafe fn folded(self) -> float32x4_t {
        unsafe { vaddq_f32(vaddq_f32(self.0, self.2), vaddq_f32(self.1, self.3)) }
    }
}

impl Lanes for Neon {
    const REGISTERS: usize = 8;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        let value = unsafe { vdupq_n_f32(value) };
        Self(value, value, value, value)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self::from_quarters(|quarter| unsafe { vld1q_f32(from.add(4 * quarter)) })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Self::from_quarters(|quarter| unsafe { widen_f16(vld1_u16(from.add(4 * quarter))) })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        Self::from_quarters(|quarter| unsafe {
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(4 * quarter))))
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            vst1q_f32(to, self.0);
            vst1q_f32(to.add(4), self.1);
            vst1q_f32(to.add(8), self.2);
            vst1q_f32(to.add(12), self.3);
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        unsafe {
            vst1_u16(to, narrow_f16(self.0));
            vst1_u16(to.add(4), narrow_f16(self.1));
            vst1_u16(to.add(8), narrow_f16(self.2));
            vst1_u16(to.add(12), narrow_f16(self.3));
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vdivq_f32(a, b) })
    }
    // With a NaN in either operand the result is the second operand, as in the x86-64 and the portable lanes. No NEON
    // instruction does that: `fmax` always returns the NaN and `fmaxnm` always the number.
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe {
            Self(
                vfmaq_f32(b.0, self.0, a.0),
                vfmaq_f32(b.1, self.1, a.1),
                vfmaq_f32(b.2, self.2, a.2),
                vfmaq_f32(b.3, self.3, a.3),
            )
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(|x| unsafe { vrndnq_f32(x) })
    }
    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        self.map(|n| unsafe {
            let biased = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        })
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { vaddvq_f32(self.folded()) }
    }
    #[inline(always)]
    unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
        unsafe {
            let [a, b, c, d] = four.map(|lanes| lanes.folded());
            let sums = vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
            let mut out = [0.0; 4];
            vst1q_f32(out.as_mut_ptr(), sums);
            out
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // These maxima ignore a NaN beside a number, as the portable lanes do.
        unsafe {
            let four = vmaxnmq_f32(vmaxnmq_f32(self.0, self.1), vmaxnmq_f32(self.2, self.3));
            vmaxnmvq_f32(four)
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8) {
        unsafe {
            let narrow = |x| vqmovn_s32(vcvtnq_s32_f32(x));
            let first = vqmovn_s16(vcombine_s16(narrow(self.0), narrow(self.1)));
            let second = vqmovn_s16(vcombine_s16(narrow(self.2), narrow(self.3)));
            vst1q_s8(to, vcombine_s8(first, second));
        }
    }
    #[inline(always)]
    unsafe fn cut_below(self, limit: f32, value: Self) -> Self {
        self.zip(value, |x, value| unsafe {
            let kept = vcgeq_f32(x, vdupq_n_f32(limit));
            vreinterpretq_f32_u32(vandq_u32(kept, vreinterpretq_u32_f32(value)))
        })
    }
}

/// Four lanes in one NEON register.
#[derive(Clone, Copy)]
pub(crate) struct QuarterNeon(float32x4_t);

impl DotLanes for QuarterNeon {
    const WIDTH: usize = 4;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: NEON is part of the baseline.
        Self(unsafe { vdupq_n_f32(value) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller upholds the contract of the trait.
        Self(unsafe { vld1q_f32(from) })
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller upholds the contract of the trait.
        Self(unsafe { widen_f16(vld1_u16(from)) })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller upholds the contract of the trait.
        Self(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from))) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: NEON is part of the baseline.
        Self(unsafe { vfmaq_f32(b.0, self.0, a.0) })
    }
    #[inline(always)]
    unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
        let [a, b, c, d] = four.map(|lanes| lanes.0);
        let mut out = [0.0; 4];
        // SAFETY: NEON is part of the baseline.
        unsafe { vst1q_f32(out.as_mut_ptr(), vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))) };
        out
    }
}
