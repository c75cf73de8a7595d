/* attn_layout.h: a tile of keys and values in 16-bit integers, as the integer attention reads it.
 *
 * QW_KV_TILE positions of one KV head; hd is head_dim rounded up to QW_ATTN_UNIT:
 *   keys    int16 [hd / 2][QW_KV_TILE][2]   neighbouring dimensions of a key side by side
 *   values  int16 [QW_KV_TILE / 2][hd][2]   neighbouring positions of a dimension side by side
 *   scales of the keys, of the values: float [QW_KV_TILE] each
 * Element = quant * scale. A pair is what a 16-bit dot product takes (vpdpwssd, vpmaddwd), and its lanes are keys in the
 * first product, dimensions in the second. No sum of products leaves 32 bits: that of a query and a key is at most the
 * product of their norms (Cauchy and Schwarz), which leaves a key of one large element, as Qwen2.5 has them, 15 bits for
 * it, and one of equal elements 12 to 13; values have 11 bits (8 would do, docs/SPEED.md), weights 14. Slots that no query
 * sees may hold anything. Any thread.
 */
#ifndef QW_KERNELS_ATTN_LAYOUT_H
#define QW_KERNELS_ATTN_LAYOUT_H

#include <float.h>
#include <math.h>

#include "kernels/kernels.h"

enum {
    QW_ATTN_UNIT = 16,         /* dimensions come in such groups */
    QW_ATTN_MOST = 32767,      /* magnitude of a query's or a key's quant, at most */
    QW_ATTN_NORM_MOST = 46330, /* their norm: (this + 16 / 2)^2 < 2^31, 16 / 2 the most that rounding 256 elements adds */
    QW_ATTN_VALUE_MOST = 2047, /* magnitude of a value's quant */
    QW_ATTN_WEIGHT_MOST = 16383 /* of a quantised weight, p * scale of the value: 64 * this * QW_ATTN_VALUE_MOST < 2^31 */
};
#define QW_ATTN_D_MIN 0x1p-100f   /* scales of weights below it count as 0 */
#define QW_ATTN_AMAX_MIN 0x1p-60f /* so do vectors with no larger element: their squares must not underflow */

typedef struct qw_attn_tile {
    int16_t *k, *v;
    float *dk, *dv;
} qw_attn_tile;

static inline size_t qw_attn_padded(size_t head_dim)
{
    return (head_dim + QW_ATTN_UNIT - 1) / QW_ATTN_UNIT * QW_ATTN_UNIT;
}

static inline size_t qw_attn_tile_bytes(size_t hd)
{
    return 2 * QW_KV_TILE * (hd * sizeof(int16_t) + sizeof(float));
}

static inline qw_attn_tile qw_attn_tile_at(void *tile, size_t hd)
{
    qw_attn_tile t = {.k = tile};
    t.v = t.k + hd * QW_KV_TILE;
    t.dk = (float *)(void *)(t.v + hd * QW_KV_TILE);
    t.dv = t.dk + QW_KV_TILE;
    return t;
}

/* s of quantize_i16, by which x is multiplied. amax: the largest |x|, at least QW_ATTN_AMAX_MIN */
static inline float qw_attn_factor(float amax, size_t n, float most, float norm_most, float norm2)
{
    float by_amax = most / amax;
    if (norm2 == 0.0f) return by_amax;
    /* infinite or NaN: n elements of the largest magnitude */
    float by_norm = norm2 <= FLT_MAX ? norm_most / sqrtf(norm2) : norm_most / sqrtf((float)n) / amax;
    return by_amax < by_norm ? by_amax : by_norm;
}

/* Writes a position: k, v [hd] */
static inline void qw_attn_tile_set(void *tile, size_t hd, size_t slot, const int16_t *k, float dk, const int16_t *v,
                                    float dv)
{
    qw_attn_tile t = qw_attn_tile_at(tile, hd);
    int16_t *to_k = t.k + 2 * slot, *to_v = t.v + slot / 2 * hd * 2 + slot % 2;
    for (size_t d = 0; d < hd; d += 2, to_k += 2 * QW_KV_TILE) {
        to_k[0] = k[d];
        to_k[1] = k[d + 1];
    }
    for (size_t d = 0; d < hd; d++) to_v[2 * d] = v[d];
    t.dk[slot] = dk;
    t.dv[slot] = dv;
}

/* Copies position `from` of one tile to position `to` of another. */
static inline void qw_attn_tile_copy(void *tile, size_t hd, size_t to, const void *source, size_t from)
{
    qw_attn_tile t = qw_attn_tile_at(tile, hd), s = qw_attn_tile_at((void *)(uintptr_t)source, hd);
    for (size_t d = 0; d < hd / 2; d++)
        for (size_t i = 0; i < 2; i++) t.k[(d * QW_KV_TILE + to) * 2 + i] = s.k[(d * QW_KV_TILE + from) * 2 + i];
    for (size_t d = 0; d < hd; d++)
        t.v[(to / 2 * hd + d) * 2 + to % 2] = s.v[(from / 2 * hd + d) * 2 + from % 2];
    t.dk[to] = s.dk[from];
    t.dv[to] = s.dv[from];
}

#endif
