/* gemm_tiles.h: what the x86 matrix products share: the walk over groups and column tiles.
 *
 * A tile function multiplies one group (16 rows) with N columns; N is a compile-time constant of each
 * instance, so that its sums stay in registers. One column's sums never depend on N or on the walk.
 * Included by one file per level; everything is static. Any thread.
 */
#ifndef QW_KERNELS_X86_GEMM_TILES_H
#define QW_KERNELS_X86_GEMM_TILES_H

#include <immintrin.h>
#include <string.h>

#include "kernels/pack_layout.h"

#define TILE_INLINE static inline __attribute__((always_inline))

/* Loops over columns and words have constant counts and must vanish, or sums would live in memory. */
#if defined(__clang__)
#define TILE_UNROLL _Pragma("clang loop unroll(full)")
#define TILE_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define TILE_UNROLL _Pragma("GCC unroll 16")
#define TILE_ROLLED _Pragma("GCC unroll 1")
#endif

enum {
    TILE_PREFETCH = 8192,        /* bytes ahead of the stream of weights; measured, docs/kernels.md */
    TILE_CHUNK_BYTES = 192 << 10 /* weights that several column tiles read again: part of an L2 cache */
};

/* One packed group times the N columns whose records start at act, act_bytes apart: 16 floats a column
 * into out [N, ld_out]. */
typedef void tile_fn(const uint8_t *group, size_t n_blocks, const uint8_t *act, size_t act_bytes,
                     float *out, size_t ld_out);

TILE_INLINE int32_t tile_i32(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Prefetches the lines of [p, p + bytes) into L2 and returns p + bytes. A tile walks one such pointer through the
 * whole group at the pace of its work, TILE_PREFETCH ahead: in address order, whatever it reads now. */
TILE_INLINE const uint8_t *tile_prefetch(const uint8_t *p, size_t bytes)
{
    TILE_UNROLL
    for (size_t i = 0; i < bytes; i += QW_LINE) _mm_prefetch((const char *)p + i, _MM_HINT_T1);
    return p + bytes;
}

/* One chunk of groups times all columns, in the fewest tiles, split evenly (9 columns: 5 + 4). Tiles are
 * outside: weights come again from L2, the activations of one tile stay in L1. */
static void tile_chunk(tile_fn *const *tiles, size_t n_max, size_t group_bytes, size_t n_blocks,
                       const uint8_t *packed, size_t n_groups, const uint8_t *act, size_t act_bytes,
                       size_t n_cols, float *out, size_t ld_out)
{
    size_t n_tiles = (n_cols + n_max - 1) / n_max;
    for (size_t t = 0, c = 0; t < n_tiles; t++) {
        size_t n = (n_cols - c + n_tiles - t - 1) / (n_tiles - t);
        for (size_t g = 0; g < n_groups; g++)
            tiles[n](packed + g * group_bytes, n_blocks, act + c * act_bytes, act_bytes,
                     out + c * ld_out + g * QW_GROUP_ROWS, ld_out);
        c += n;
    }
}

/* tiles: [1..n_max] instances. */
static void tile_gemm(tile_fn *const *tiles, size_t n_max, qw_pack pack, size_t block_n, const void *packed,
                      size_t n_groups, size_t k, const void *act, size_t n_cols, float *out, size_t ld_out)
{
    size_t group_bytes = qw_pack_group_bytes(pack, k), act_bytes = qw_act_bytes(qw_pack_act(pack), k);
    size_t chunk = TILE_CHUNK_BYTES / (group_bytes + 1);
    if (chunk == 0) chunk = 1;
    if (n_cols <= n_max) chunk = n_groups;
    for (size_t g = 0; g < n_groups; g += chunk) {
        size_t n = n_groups - g < chunk ? n_groups - g : chunk;
        tile_chunk(tiles, n_max, group_bytes, k / block_n, (const uint8_t *)packed + g * group_bytes, n, act,
                   act_bytes, n_cols, out + g * QW_GROUP_ROWS, ld_out);
    }
}

/* Instances of a tile template `tile(form, N, ...)` and the slot gemm_<name> that walks over them. */
#define TILE_INSTANCE(name, form, tile, n)                                                                  \
    static void name##_x##n(const uint8_t *group, size_t n_blocks, const uint8_t *act, size_t act_bytes,    \
                            float *out, size_t ld_out)                                                      \
    {                                                                                                       \
        tile(form, n, group, n_blocks, act, act_bytes, out, ld_out);                                        \
    }
#define TILE_SLOT(name, form, block_n)                                                                      \
    static void gemm_##name(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,  \
                            float *out, size_t ld_out)                                                      \
    {                                                                                                       \
        tile_gemm(name##_tiles, sizeof name##_tiles / sizeof name##_tiles[0] - 1, form, block_n, packed,    \
                  n_groups, k, act, n_cols, out, ld_out);                                                   \
    }
#define GEMM_4(name, form, block_n, tile)                                                                   \
    TILE_INSTANCE(name, form, tile, 1)                                                                      \
    TILE_INSTANCE(name, form, tile, 2)                                                                      \
    TILE_INSTANCE(name, form, tile, 3)                                                                      \
    TILE_INSTANCE(name, form, tile, 4)                                                                      \
    static tile_fn *const name##_tiles[] = {NULL, name##_x1, name##_x2, name##_x3, name##_x4};              \
    TILE_SLOT(name, form, block_n)
#define GEMM_8(name, form, block_n, tile)                                                                   \
    TILE_INSTANCE(name, form, tile, 1)                                                                      \
    TILE_INSTANCE(name, form, tile, 2)                                                                      \
    TILE_INSTANCE(name, form, tile, 3)                                                                      \
    TILE_INSTANCE(name, form, tile, 4)                                                                      \
    TILE_INSTANCE(name, form, tile, 5)                                                                      \
    TILE_INSTANCE(name, form, tile, 6)                                                                      \
    TILE_INSTANCE(name, form, tile, 7)                                                                      \
    TILE_INSTANCE(name, form, tile, 8)                                                                      \
    static tile_fn *const name##_tiles[] = {NULL,      name##_x1, name##_x2, name##_x3, name##_x4,          \
                                            name##_x5, name##_x6, name##_x7, name##_x8};                    \
    TILE_SLOT(name, form, block_n)

#endif
