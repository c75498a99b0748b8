//! Tests of products and sums of small tensors, as recurrent layers use them, against loops on the host.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use moi_backends::{DeviceName, Job};

use crate::values;

/// Number of heads, and of keys and values per head.
const SIZES: [[usize; 3]; 4] = [[4, 8, 8], [4, 16, 8], [3, 8, 16], [32, 128, 128]];

/// Products of a row with a matrix per head, outer products of a column and a row, and convolutions of few inputs.
#[derive(Debug)]
pub(super) struct Products(pub(super) DeviceName);

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5).collect()
}

fn tensor<B: Backend, const D: usize>(values: &[f32], shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    Tensor::<B, 1>::from_data(TensorData::new(values.to_vec(), [values.len()]), device).reshape(shape)
}

impl Job for Products {
    /// The name and the largest error of each product.
    type Output = Vec<(String, f32)>;

    fn run<B: Backend>(self, device: &B::Device) -> Self::Output {
        let mut off = Vec::new();
        for [heads, keys, columns] in SIZES {
            let (m, k, v) =
                (numbers(heads * keys * columns, 1), numbers(heads * keys, 2), numbers(heads * columns, 3));
            let matrices = tensor::<B, 3>(&m, [heads, keys, columns], device);
            // The layout of a projection: positions first.
            let key = tensor::<B, 3>(&k, [1, heads, keys], device).swap_dims(0, 1);
            let value = tensor::<B, 3>(&v, [1, heads, columns], device).swap_dims(0, 1);
            let product: Vec<f32> = (0..heads * columns)
                .map(|at| {
                    let (head, column) = (at / columns, at % columns);
                    (0..keys)
                        .map(|key| k[head * keys + key] * m[(head * keys + key) * columns + column])
                        .sum()
                })
                .collect();
            let outer: Vec<f32> = (0..heads * keys * columns)
                .map(|at| k[at / columns] * v[at / columns / keys * columns + at % columns])
                .collect();
            // A row of a transposed matrix, as a view.
            let row = tensor::<B, 2>(&numbers(columns, 4), [1, columns], device);
            let weight = tensor::<B, 2>(&numbers(columns * keys, 5), [columns, keys], device);
            let by_view = row.clone() * weight.clone().transpose().narrow(0, 1, 1);
            let flat = weight.transpose().reshape([keys * columns]).narrow(0, columns, columns);
            let by_copy = row * flat.unsqueeze::<2>();
            // A row of a transposed view of several positions, with one number per head.
            let positions = tensor::<B, 2>(&numbers(heads * 3, 6), [3, heads], device).narrow(0, 1, 2);
            let by_heads = positions.clone().transpose().narrow(1, 1, 1).reshape([heads, 1, 1]);
            let by_positions = positions.narrow(0, 1, 1).reshape([heads, 1, 1]);
            let p = numbers(heads * 3, 6);
            let scaled: Vec<f32> =
                (0..heads * keys * columns).map(|at| m[at] * p[2 * heads + at / (keys * columns)]).collect();
            let (r, w) = (numbers(columns, 4), numbers(columns * keys, 5));
            let of_row: Vec<f32> = (0..columns).map(|at| r[at] * w[at * keys + 1]).collect();
            let worst = |found: Tensor<B, 3>, expected: &[f32]| {
                let found = values(found.reshape([1, expected.len()]));
                assert_eq!(found.len(), expected.len());
                let off = |(found, expected): (&f32, &f32)| {
                    if found.is_finite() { (found - expected).abs() } else { f32::MAX }
                };
                found.iter().zip(expected).map(off).fold(0.0f32, f32::max)
            };
            let column = key.clone().reshape([heads, keys, 1]);
            let found = [
                ("row by matrix", worst(key.clone().matmul(matrices.clone()), &product)),
                ("column by row", worst(key.swap_dims(1, 2).matmul(value.clone()), &outer)),
                ("sum over rows", worst((matrices.clone() * column.clone()).sum_dim(1), &product)),
                ("column times row", worst(column * value, &outer)),
                ("row by a row of a view: heads", worst(matrices.clone() * by_heads, &scaled)),
                ("positions", worst(matrices.clone() * by_positions, &scaled)),
                ("row by a row of a view", worst(by_view.unsqueeze(), &of_row)),
                ("row by a row of a copy", worst(by_copy.unsqueeze(), &of_row)),
            ];
            for (what, error) in found {
                println!("{}: {what} of {heads} heads, {keys} by {columns}: {error:.1e}", self.0);
                off.push((format!("{what}, {heads} heads, {keys} by {columns}"), error));
            }
        }
        off
    }
}
