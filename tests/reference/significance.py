#!/usr/bin/env python3
"""Writes what scipy says of some rates and pairs: crates/eval/src/scipy.rs, for the tests of crates/eval. Needs scipy."""

import pathlib

import scipy
from scipy.stats import binomtest

FILE = pathlib.Path(__file__).parents[2] / "crates/eval/src/scipy.rs"


def main():
    rates = [(0, 10), (1, 10), (5, 10), (10, 10), (3, 300), (150, 300), (299, 300), (1, 1), (0, 1)]
    pairs = [(0, 0), (1, 0), (5, 5), (2, 9), (10, 1), (30, 12), (100, 140)]
    lines = [f"// scipy {scipy.__version__}, by tests/reference/significance.py.", ""]
    lines.append("const WILSON: &[(usize, usize, f64, f64)] = &[")
    for k, n in rates:
        interval = binomtest(k, n).proportion_ci(method="wilson")
        lines.append(f"    ({k}, {n}, {interval.low:.10f}, {interval.high:.10f}),")
    lines += ["];", "", "const MCNEMAR: &[(usize, usize, f64)] = &["]
    for b, c in pairs:
        p = binomtest(b, b + c).pvalue if b + c else 1.0
        lines.append(f"    ({b}, {c}, {p:.10f}),")
    lines += ["];", ""]
    FILE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
