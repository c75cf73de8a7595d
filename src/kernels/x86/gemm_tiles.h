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
#include "kernels/tile.h"

enum {
    TILE_PREFETCH = 8192,        /* bytes ahead of the stream of weights; measured, docs/kernels.md */
    TILE_CHUNK_BYTES = 192 << 10, /* weights that several column tiles read again: part of an L2 cache */
    TILE_CHUNK_GROUPS = 8,       /* groups in a chunk, at least */
    TILE_WIDE = 64               /* columns of a wide tile, at most */
};

/* A part of one packed group's product: blocks [b0, b1) of its n_blocks along k. What is needed next lies `ahead` bytes
 * after what is read now: the stream's own continuation, or the same blocks of the next group. */
typedef struct tile_part {
    size_t n_blocks, b0, b1, ahead;
    size_t group_bytes; /* from a group to the next one */
} tile_part;

/* That part of a group times the N columns whose records start at act, act_bytes apart: 16 floats a column into
 * out [N, ld_out]. A part with b0 > 0 goes on with the sums it finds there. */
typedef void tile_fn(const uint8_t *group, tile_part part, const uint8_t *act, size_t act_bytes, float *out,
                     size_t ld_out);

/* The same for n_cols columns, more than the widest instance has and up to TILE_WIDE. */
typedef void tile_wide_fn(const uint8_t *group, tile_part part, const uint8_t *act, size_t act_bytes, size_t n_cols,
                          float *out, size_t ld_out);

TILE_INLINE int32_t tile_i32(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* Prefetches the lines of [p, p + bytes) into L2 and returns p + bytes. A tile walks one such pointer at the pace of its
 * work, part.ahead bytes before its blocks: in address order, whatever it reads now. */
TILE_INLINE const uint8_t *tile_prefetch(const uint8_t *p, size_t bytes)
{
    TILE_UNROLL
    for (size_t i = 0; i < bytes; i += QW_LINE) _mm_prefetch((const char *)p + i, _MM_HINT_T1);
    return p + bytes;
}

/* What a walk needs to know of a form and a product. */
typedef struct tile_walk {
    tile_fn *const *tiles; /* [1..n_max] instances */
    tile_fn *const *pairs; /* the same for two groups at once, NULL where there is none; or NULL */
    tile_wide_fn *wide;    /* for more than n_max columns; or NULL */
    size_t n_max;
    size_t group_bytes; /* packed */
    size_t act_bytes;   /* of a column of activations */
    size_t n_blocks, n_cols, ld_out;
} tile_walk;

/* Columns of the widest tile. */
TILE_INLINE size_t tile_columns(const tile_walk *w)
{
    return w->wide ? TILE_WIDE : w->n_max;
}

/* A part of some groups times all columns, in the fewest tiles, split evenly (9 columns: 5 + 4). Tiles are outside:
 * weights come again from L2, the activations of one tile stay in L1. */
static void tile_chunk(const tile_walk *w, tile_part part, const uint8_t *packed, size_t n_groups, const uint8_t *act,
                       float *out)
{
    size_t widest = tile_columns(w), n_tiles = (w->n_cols + widest - 1) / widest;
    for (size_t t = 0, c = 0; t < n_tiles; t++) {
        size_t n = (w->n_cols - c + n_tiles - t - 1) / (n_tiles - t);
        for (size_t g = 0, step; g < n_groups; g += step) {
            const uint8_t *group = packed + g * w->group_bytes, *a = act + c * w->act_bytes;
            float *to = out + c * w->ld_out + g * QW_GROUP_ROWS;
            step = n <= w->n_max && w->pairs && w->pairs[n] && n_groups - g > 1 ? 2 : 1;
            if (n > w->n_max)
                w->wide(group, part, a, w->act_bytes, n, to, w->ld_out);
            else
                (step == 2 ? w->pairs : w->tiles)[n](group, part, a, w->act_bytes, to, w->ld_out);
        }
        c += n;
    }
}

/* Chunks of groups, and of their blocks along k, that fit L2 while all columns pass over them. Short chunks of many
 * groups beat long ones of few: all activations are read once a chunk. */
static void tile_gemm(const tile_walk *w, const uint8_t *packed, size_t n_groups, const uint8_t *act, float *out)
{
    tile_part part = {w->n_blocks, 0, w->n_blocks, TILE_PREFETCH, w->group_bytes};
    if (w->n_cols <= tile_columns(w)) { /* the weights are read once, in order */
        tile_chunk(w, part, packed, n_groups, act, out);
        return;
    }
    size_t n_most = TILE_CHUNK_BYTES / (w->group_bytes + 1);
    if (n_most < TILE_CHUNK_GROUPS) n_most = TILE_CHUNK_GROUPS;
    for (size_t g = 0; g < n_groups; g += n_most) {
        size_t n = n_groups - g < n_most ? n_groups - g : n_most;
        size_t n_parts = (n * w->group_bytes + TILE_CHUNK_BYTES - 1) / TILE_CHUNK_BYTES;
        if (n_parts > w->n_blocks) n_parts = w->n_blocks;
        part.ahead = n_parts > 1 ? (w->pairs ? 2 : 1) * w->group_bytes : TILE_PREFETCH;
        for (size_t i = 0; i < n_parts; i++) {
            part.b0 = w->n_blocks * i / n_parts;
            part.b1 = w->n_blocks * (i + 1) / n_parts;
            tile_chunk(w, part, packed + g * w->group_bytes, n, act, out + g * QW_GROUP_ROWS);
        }
    }
}

/* Instances of a tile template `tile(form, N, ...)` and the slot gemm_<name> that walks over them. */
#define TILE_INSTANCE(name, form, tile, n)                                                                     \
    static void name##_x##n(const uint8_t *group, tile_part part, const uint8_t *act, size_t act_bytes,        \
                            float *out, size_t ld_out)                                                         \
    {                                                                                                          \
        tile(form, n, group, part, act, act_bytes, out, ld_out);                                               \
    }
#define TILE_SLOT(name, form, block_n, wide_tile)                                                              \
    static void gemm_##name(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,     \
                            float *out, size_t ld_out)                                                         \
    {                                                                                                          \
        tile_walk w = {.tiles = name##_tiles, .n_max = sizeof name##_tiles / sizeof name##_tiles[0] - 1,       \
                       .wide = wide_tile, .group_bytes = qw_pack_group_bytes(form, k),                         \
                       .act_bytes = qw_act_bytes(qw_pack_act(form), k), .n_blocks = k / block_n,               \
                       .n_cols = n_cols, .ld_out = ld_out};                                                    \
        tile_gemm(&w, packed, n_groups, act, out);                                                             \
    }
/* wide(form, ...): the template of wide tiles. */
#define GEMM_4_WIDE(name, form, block_n, tile, wide)                                                        \
    TILE_INSTANCE(name, form, tile, 1)                                                                      \
    TILE_INSTANCE(name, form, tile, 2)                                                                      \
    TILE_INSTANCE(name, form, tile, 3)                                                                      \
    TILE_INSTANCE(name, form, tile, 4)                                                                      \
    static tile_fn *const name##_tiles[] = {NULL, name##_x1, name##_x2, name##_x3, name##_x4};              \
    static void name##_wide(const uint8_t *group, tile_part part, const uint8_t *act, size_t act_bytes,     \
                            size_t n_cols, float *out, size_t ld_out)                                       \
    {                                                                                                       \
        wide(form, group, part, act, act_bytes, n_cols, out, ld_out);                                       \
    }                                                                                                       \
    TILE_SLOT(name, form, block_n, name##_wide)
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
    TILE_SLOT(name, form, block_n, NULL)

#endif
