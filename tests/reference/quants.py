"""Writes crates/checkpoint/src/gguf/grids.rs: the code words of ggml's IQ formats, as the `gguf` package lists them.

    python quants.py            writes the file
    python quants.py --check    ends with an error where the file is another

Run with gguf 0.19.0 and numpy 2.4.6. A code word is one number here: its values are places in a list of a few that
iq_blocks.rs has, the first in the lowest bits. blocks.gguf, which make_blocks.py writes beside the tests of
crates/checkpoint, holds blocks of these formats and the values that the package makes of them.
"""

import sys
from pathlib import Path

import gguf.quants as quants
import numpy as np

FILE = Path(__file__).parent.parent.parent / "crates/checkpoint/src/gguf/grids.rs"
HEAD = '''//! Code words of ggml's IQ formats: `ggml-common.h`, by way of tests/reference/quants.py, which writes this file.
//!
//! A code word of eight values has two bits for each, one of four values three; the first value is in the lowest
//! bits. They are places in the lists of values in `iq_blocks.rs`.
'''
# Name here, the package's class, bits of a value, and what the words are.
TABLES = [
    ("IQ2_XXS", quants.IQ2_XXS, 2, "Eight values of `IQ2_VALUES`."),
    ("IQ2_XS", quants.IQ2_XS, 2, "Eight values of `IQ2_VALUES`."),
    ("IQ2_S", quants.IQ2_S, 2, "Eight values of `IQ2_VALUES`."),
    ("IQ3_XXS", quants.IQ3_XXS, 3, "Four values of `IQ3_XXS_VALUES`."),
    ("IQ3_S", quants.IQ3_S, 3, "Four odd numbers: a place `p` is the value `2 p + 1`."),
    ("IQ1", quants.IQ1_S, 2, "Eight values of `IQ1_VALUES`, for IQ1_S and IQ1_M."),
]


def words(kind, bits):
    kind.init_grid()
    values = np.array(kind.grid_map, dtype=np.float32)
    grid = kind.grid.reshape(kind.grid_shape)
    places = np.searchsorted(values, grid)
    assert (values[places] == grid).all()
    shifts = bits * np.arange(kind.grid_shape[1])
    return (places << shifts).sum(axis=1)


def text():
    # The sign of the last of eight values makes the number of minus signs even, so iq_blocks.rs has no table of signs.
    parity = [i | (bin(i).count("1") % 2) << 7 for i in range(128)]
    assert list(quants.IQ2_XXS.ksigns) == parity
    out = [HEAD]
    for name, kind, bits, doc in TABLES:
        numbers = words(kind, bits)
        spelled = [f"{n:#06x}" if bits == 2 else f"0o{n:04o}" for n in numbers]
        lines = [", ".join(spelled[i:i + 13]) for i in range(0, len(spelled), 13)]
        body = "\n".join(f"    {line}," for line in lines)
        out.append(f"/// {doc}\n#[rustfmt::skip]\npub(super) static {name}: [u16; {len(numbers)}] = [\n{body}\n];\n")
    return "\n".join(out)


if "--check" in sys.argv[1:]:
    sys.exit(0 if FILE.read_text() == text() else f"{FILE} is not what this script writes")
FILE.write_text(text())
