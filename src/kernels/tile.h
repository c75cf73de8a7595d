/* tile.h: how small products keep their sums in registers, for the files of any processor. */
#ifndef QW_KERNELS_TILE_H
#define QW_KERNELS_TILE_H

#define TILE_INLINE static inline __attribute__((always_inline))

/* Loops over columns, rows and words of a tile have constant counts and must vanish, or sums would live in memory. */
#if defined(__clang__)
#define TILE_UNROLL _Pragma("clang loop unroll(full)")
#define TILE_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define TILE_UNROLL _Pragma("GCC unroll 16")
#define TILE_ROLLED _Pragma("GCC unroll 1")
#endif

#endif
