#!/usr/bin/env python3
"""Writes src/kernels/ref/grid_books.h: the code books of the IQ1, IQ2 and IQ3 formats.

Use:   make_grids.py > src/kernels/ref/grid_books.h        (in the environment "test": the package `gguf`)

The books are part of the formats: an index in a block stands for 8 (IQ3: 4) levels. They are taken from the `gguf`
package and packed: 2 bits a level (IQ3: 3), the first element lowest.
"""

import gguf.quants as q

BOOKS = [
    ("IQ2_XXS", q.IQ2_XXS, "levels 8, 25, 43"),
    ("IQ2_XS", q.IQ2_XS, "levels 8, 25, 43"),
    ("IQ2_S", q.IQ2_S, "levels 8, 25, 43"),
    ("IQ3_XXS", q.IQ3_XXS, "levels 4, 12, 20, 28, 36, 44, 52, 62"),
    ("IQ3_S", q.IQ3_S, "levels 1, 3, 5, 7, 9, 11, 13, 15"),
    ("IQ1", q.IQ1_S, "levels -1, 0, 1: IQ1_S and IQ1_M"),
]


def main():
    """Prints the header."""
    print("/* grid_books.h: code books of the IQ1, IQ2 and IQ3 formats. Made by scripts/make_grids.py from the package gguf;\n"
          " * do not edit. An entry holds the level numbers of 8 elements in 2 bits each (IQ3: of 4 elements in 3), the first\n"
          " * lowest. Private to src/kernels/ref. */")
    print("#ifndef QW_KERNELS_REF_GRID_BOOKS_H\n#define QW_KERNELS_REF_GRID_BOOKS_H\n\n#include <stdint.h>")
    for name, kind, levels in BOOKS:
        kind.init_grid()
        grid = kind.grid.reshape(-1, kind.grid_shape[1])
        index = {float(level): i for i, level in enumerate(kind.grid_map)}
        bits = 3 if len(kind.grid_map) == 8 else 2
        entries = [sum(index[float(x)] << (bits * i) for i, x in enumerate(row)) for row in grid]
        print(f"\n/* {levels} */\nstatic const uint16_t BOOK_{name}[{len(entries)}] = {{")
        for at in range(0, len(entries), 16):
            print("    " + " ".join(f"{e}," for e in entries[at:at + 16]))
        print("};")
    print("\n#endif")


if __name__ == "__main__":
    main()
