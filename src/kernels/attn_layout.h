/* attn_layout.h: a tile of keys and values in 13 bits, as the integer attention reads it.
 *
 * QW_KV_TILE positions of one KV head; hd is head_dim rounded up to QW_ATTN_UNIT:
 *   keys    int16 [hd / 2][QW_KV_TILE][2]   neighbouring dimensions of a key side by side
 *   values  int16 [QW_KV_TILE / 2][hd][2]   neighbouring positions of a dimension side by side
 *   scales of the keys, of the values: float [QW_KV_TILE] each
 * Element = quant * scale, quants within +-QW_ATTN_MOST. A pair is what a 16-bit dot product takes (vpdpwssd, vpmaddwd),
 * and its lanes are keys in the first product, dimensions in the second. 13 bits, not 16: sums of 64 products of
 * two such numbers fit in 32 bits. Slots that no query sees may hold anything. Any thread.
 */
#ifndef QW_KERNELS_ATTN_LAYOUT_H
#define QW_KERNELS_ATTN_LAYOUT_H

#include "kernels/kernels.h"

enum {
    QW_ATTN_UNIT = 16,         /* dimensions come in such groups */
    QW_ATTN_MOST = 4095,       /* magnitude of a key's or a value's quant, at most */
    QW_ATTN_WEIGHT_MOST = 8191 /* of a quantised weight, p * scale of the value: 64 * this * QW_ATTN_MOST < 2^31 */
};
#define QW_ATTN_D_MIN 0x1p-100f /* scales of weights below it count as 0 */

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

/* Magnitude of a query's quants, at most: hd products with QW_ATTN_MOST stay below 2^31. */
static inline float qw_attn_query_most(size_t hd)
{
    size_t most = INT32_MAX / (QW_ATTN_MOST * hd);
    return most > INT16_MAX ? (float)INT16_MAX : (float)most;
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

#endif
