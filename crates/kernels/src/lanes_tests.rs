use super::*;

#[test]
fn exponentials_and_halves_are_right_on_all() {
    let values: Vec<f32> =
        (-1100..900).map(|i| i as f32 * 0.08).chain([0.0, -1e9, f32::NEG_INFINITY, -88.0]).collect();
    for isa in Isa::available() {
        for chunk in values.chunks(16) {
            let mut x = [0.0f32; 16];
            x[..chunk.len()].copy_from_slice(chunk);
            let (from, mut out, mut halves) = (x.as_ptr(), [0.0f32; 16], [0u16; 16]);
            let (to, half, back) = (out.as_mut_ptr(), halves.as_mut_ptr(), &mut [0.0f32; 16]);
            let wide = back.as_mut_ptr();
            dispatch!(isa, |from: *const f32, to: *mut f32, half: *mut u16, wide: *mut f32| -> () {
                // SAFETY: each pointer is valid for sixteen values, and the CPU has the instruction set.
                unsafe {
                    let x = L::load(from);
                    x.exp().store(to);
                    x.store_f16(half);
                    L::load_f16(half).store(wide);
                }
            });
            for ((x, y), (h, w)) in x.iter().zip(out).zip(halves.iter().zip(&*back)) {
                let expected = f64::from(x.min(88.0)).exp();
                let near = (f64::from(y) - expected).abs() <= 3e-7 * expected || (*x < -86.9 && y < 2e-38);
                assert!(near, "{isa:?}: e^{x} = {y}, expected {expected}");
                assert_eq!(half::f16::from_f32(*x).to_bits(), *h);
                assert_eq!(half::f16::from_bits(*h).to_f32(), *w);
            }
        }
    }
}

/// The results of every operation but `exp`, sixteen values each, and the values of `a` in 8 bits.
fn operations(isa: Isa, a: &[f32; 16], b: &[f32; 16], special: &[f32; 16]) -> (Vec<f32>, [i8; 16]) {
    let (mut out, mut bytes) = (vec![0.0f32; 15 * 16], [0i8; 16]);
    let (from, to, low) = ([a, b, special], out.as_mut_ptr(), &mut bytes);
    dispatch!(isa, |from: [&[f32; 16]; 3], to: *mut f32, low: &mut [i8; 16]| -> () {
        // SAFETY: each slice has sixteen values, and the CPU has the instruction set.
        unsafe {
            let [a, b, special] = from.map(|values| L::load(values.as_ptr()));
            let sums = L::sums([a, b, a.mul(b), a.sub(b)]);
            let of_bf16 = L::load_bf16(from[0].as_ptr().cast());
            let results = [
                a.add(b),
                a.sub(b),
                a.mul(b),
                a.div(b),
                a.mul_add(b, a),
                a.max(special),
                special.max(a),
                a.min(special),
                special.min(a),
                special.cut_below(0.5, a),
                a.round(),
                a.round().power_of_two(),
                of_bf16,
                L::splat(a.sum() + a.largest()),
                L::splat(sums[0] + 2.0 * sums[1] + 3.0 * sums[2] + 4.0 * sums[3]),
            ];
            for (index, result) in results.into_iter().enumerate() {
                result.store(to.add(16 * index));
            }
            a.store_i8(low.as_mut_ptr());
        }
    });
    (out, bytes)
}

#[test]
fn operations_agree_with_the_portable_ones_on_all() {
    // The values include ties, both signs, and both ends of the 8-bit range.
    let a: [f32; 16] = std::array::from_fn(|i| [0.5, -1.5, 2.5, 126.5, -126.5, 127.0, -127.0, 0.3][i % 8]);
    let b: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.5) * 0.37);
    let mut special = b;
    special[..5].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.5, -0.0]);
    let (expected, expected_bytes) = operations(Isa::Portable, &a, &b, &special);
    for isa in Isa::available() {
        let (found, bytes) = operations(isa, &a, &b, &special);
        assert_eq!(bytes, expected_bytes, "{isa:?}");
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // Sums are added in different orders, and `mul_add` rounds once or twice.
            let near = (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
            let same = found.to_bits() == expected.to_bits();
            assert!(same || near, "{isa:?}, operation {}: {found}, expected {expected}", index / 16);
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[test]
fn neon_is_always_there() {
    assert_eq!(Isa::available()[..2], [Isa::Portable, Isa::Neon]);
}
