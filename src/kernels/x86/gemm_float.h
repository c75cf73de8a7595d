/* gemm_float.h: the template of matrix products with float weights, for the x86 levels. A level's file defines the
 * vector operations below and includes this; everything is static.
 *
 * A row is a lane: its sum is one chain of fused multiply-adds in order of k, whatever the tile. A tile is G groups (1
 * or 2) times N columns; elements of k come in pairs (pack_layout.h). Bits as ref/gemm_float_ref.c. Any thread.
 *
 * From the level: float_vec; FLOAT_LANES; FLOAT_N_MAX, columns of a tile; and
 *   float_vec float_load(const void *), float_set(float), float_fma(a, b, c); void float_store(float *, float_vec)
 *   float_vec float_weights(qw_pack form, const uint8_t *pair, int v, size_t e)
 *       weights of element e of a pair and FLOAT_LANES rows, from row v * FLOAT_LANES
 */
#ifndef QW_KERNELS_X86_GEMM_FLOAT_H
#define QW_KERNELS_X86_GEMM_FLOAT_H

enum { FLOAT_VECS = QW_GROUP_ROWS / FLOAT_LANES, FLOAT_SUMS = 2 * FLOAT_VECS };

/* Bytes of a pair of elements of a group. */
TILE_INLINE size_t float_pair_bytes(qw_pack form)
{
    return form == QW_PACK_F32 ? 2 * QW_LINE : QW_LINE;
}

TILE_INLINE void float_tile(qw_pack form, int G, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                            size_t act_bytes, float *out, size_t ld_out)
{
    const size_t pair_bytes = float_pair_bytes(form);
    const uint8_t *w = group + part.b0 * pair_bytes, *end = group + part.b1 * pair_bytes;
    const float *x[FLOAT_N_MAX];
    float_vec acc[FLOAT_N_MAX][FLOAT_SUMS];
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        x[n] = (const float *)(const void *)(act + (size_t)n * act_bytes) + 2 * part.b0;
        TILE_UNROLL
        for (int v = 0; v < G * FLOAT_VECS; v++)
            acc[n][v] = part.b0 == 0 ? float_set(0.0f) : float_load(out + (size_t)n * ld_out + v * FLOAT_LANES);
    }
    for (size_t k = 0; w < end; w += pair_bytes, k += 2) {
        TILE_UNROLL
        for (size_t g = 0; g < (size_t)G; g++) tile_prefetch(w + g * part.group_bytes + part.ahead, pair_bytes);
        TILE_UNROLL
        for (size_t e = 0; e < 2; e++) {
            float_vec weights[FLOAT_SUMS];
            TILE_UNROLL
            for (int v = 0; v < G * FLOAT_VECS; v++)
                weights[v] = float_weights(form, w + (size_t)(v / FLOAT_VECS) * part.group_bytes, v % FLOAT_VECS, e);
            TILE_UNROLL
            for (int n = 0; n < N; n++) {
                float_vec b = float_set(x[n][k + e]);
                TILE_UNROLL
                for (int v = 0; v < G * FLOAT_VECS; v++) acc[n][v] = float_fma(weights[v], b, acc[n][v]);
            }
        }
    }
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        TILE_UNROLL
        for (int v = 0; v < G * FLOAT_VECS; v++) float_store(out + (size_t)n * ld_out + v * FLOAT_LANES, acc[n][v]);
    }
}

/* Instances of G groups times 1 to 2, 6 or 8 columns, and the slot gemm_<name> that walks over <name>_tiles and
 * <name>_pair_tiles. */
#define FLOAT_TILE(name, form, G, n)                                                                           \
    static void name##_x##n(const uint8_t *group, tile_part part, const uint8_t *act, size_t act_bytes,        \
                            float *out, size_t ld_out)                                                         \
    {                                                                                                          \
        float_tile(form, G, n, group, part, act, act_bytes, out, ld_out);                                      \
    }
#define FLOAT_TILES_TO_2(name, form, G) FLOAT_TILE(name, form, G, 1) FLOAT_TILE(name, form, G, 2)
#define FLOAT_TILES_TO_6(name, form, G)                                                                        \
    FLOAT_TILES_TO_2(name, form, G)                                                                            \
    FLOAT_TILE(name, form, G, 3)                                                                               \
    FLOAT_TILE(name, form, G, 4)                                                                               \
    FLOAT_TILE(name, form, G, 5)                                                                               \
    FLOAT_TILE(name, form, G, 6)
#define FLOAT_TILES_TO_8(name, form, G)                                                                        \
    FLOAT_TILES_TO_6(name, form, G)                                                                            \
    FLOAT_TILE(name, form, G, 7)                                                                               \
    FLOAT_TILE(name, form, G, 8)
#define FLOAT_TILES_2(name, form, G)                                                                           \
    FLOAT_TILES_TO_2(name, form, G)                                                                            \
    static tile_fn *const name##_tiles[FLOAT_N_MAX + 1] = {NULL, name##_x1, name##_x2};
#define FLOAT_TILES_6(name, form, G)                                                                           \
    FLOAT_TILES_TO_6(name, form, G)                                                                            \
    static tile_fn *const name##_tiles[FLOAT_N_MAX + 1] = {NULL,      name##_x1, name##_x2, name##_x3,         \
                                                           name##_x4, name##_x5, name##_x6};
#define FLOAT_TILES_8(name, form, G)                                                                           \
    FLOAT_TILES_TO_8(name, form, G)                                                                            \
    static tile_fn *const name##_tiles[FLOAT_N_MAX + 1] = {NULL,      name##_x1, name##_x2, name##_x3,         \
                                                           name##_x4, name##_x5, name##_x6, name##_x7, name##_x8};
#define FLOAT_SLOT(name, form)                                                                                 \
    static void gemm_##name(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,     \
                            float *out, size_t ld_out)                                                         \
    {                                                                                                          \
        tile_walk w = {.tiles = name##_tiles, .pairs = name##_pair_tiles, .n_max = FLOAT_N_MAX,                \
                       .group_bytes = qw_pack_group_bytes(form, k), .act_bytes = qw_act_bytes(QW_ACT_F32, k),  \
                       .n_blocks = qw_float_elements(k) / 2, .n_cols = n_cols, .ld_out = ld_out};              \
        tile_gemm(&w, packed, n_groups, act, out);                                                             \
    }

#endif
