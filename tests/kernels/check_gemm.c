/* check_gemm.c: matrix products and activation quantisation against the reference, bit for bit, and the
 * packers against dequantised rows.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkasm.h"

static const qw_type types[] = {
    QW_TYPE_Q4_0, QW_TYPE_Q4_1, QW_TYPE_Q5_0, QW_TYPE_Q5_1, QW_TYPE_Q8_0, QW_TYPE_IQ4_NL, QW_TYPE_MXFP4, QW_TYPE_Q2_K,
    QW_TYPE_Q3_K, QW_TYPE_Q4_K, QW_TYPE_Q5_K, QW_TYPE_Q6_K, QW_TYPE_IQ4_XS, QW_TYPE_F32, QW_TYPE_F16, QW_TYPE_BF16,
    QW_TYPE_IQ1_S, QW_TYPE_IQ1_M, QW_TYPE_IQ2_XXS, QW_TYPE_IQ2_XS, QW_TYPE_IQ2_S, QW_TYPE_IQ3_XXS, QW_TYPE_IQ3_S,
    QW_TYPE_TQ1_0, QW_TYPE_TQ2_0, QW_TYPE_NVFP4,
};
enum { N_TYPES = sizeof types / sizeof types[0], N_COLS_MAX = 33, N_GROUPS_MAX = 5, ROWS = QW_GROUP_ROWS };

/* Where a block keeps its half scales. */
static size_t scale_offsets(qw_type type, size_t at[2])
{
    switch (type) {
    case QW_TYPE_Q4_1: at[0] = offsetof(qw_block_q4_1, d); at[1] = offsetof(qw_block_q4_1, m); return 2;
    case QW_TYPE_Q5_1: at[0] = offsetof(qw_block_q5_1, d); at[1] = offsetof(qw_block_q5_1, m); return 2;
    case QW_TYPE_Q2_K: at[0] = offsetof(qw_block_q2_k, d); at[1] = offsetof(qw_block_q2_k, dmin); return 2;
    case QW_TYPE_Q3_K: at[0] = offsetof(qw_block_q3_k, d); return 1;
    case QW_TYPE_Q4_K: at[0] = offsetof(qw_block_q4_k, d); at[1] = offsetof(qw_block_q4_k, dmin); return 2;
    case QW_TYPE_Q5_K: at[0] = offsetof(qw_block_q5_k, d); at[1] = offsetof(qw_block_q5_k, dmin); return 2;
    case QW_TYPE_Q6_K: at[0] = offsetof(qw_block_q6_k, d); return 1;
    case QW_TYPE_TQ1_0: at[0] = offsetof(qw_block_tq1_0, d); return 1;
    case QW_TYPE_TQ2_0: at[0] = offsetof(qw_block_tq2_0, d); return 1;
    case QW_TYPE_IQ1_M: /* its half lies in pieces */
    case QW_TYPE_NVFP4:
    case QW_TYPE_MXFP4: return 0;
    default: at[0] = 0; return 1;
    }
}

static bool is_float(qw_type type)
{
    return qw_type_get(type)->block_n == 1;
}

/* A float that the type holds: of any size whose products cannot overflow (fill < 0), or one of a few odd ones. */
static float float_weight(ca_ctx *ctx, qw_type type, int fill)
{
    float least = type == QW_TYPE_F16 ? 0x1p-24f : type == QW_TYPE_BF16 ? 0x1p-133f : 0x1p-149f;
    float most = type == QW_TYPE_F16 ? 65504.0f : 0x1.fep100f;
    const float odd[] = {least, -least, most, -most, 0.0f, -0.0f, 1.0f};
    if (fill >= 0) return odd[(size_t)fill % (sizeof odd / sizeof *odd)];
    return ca_rand_normal(ctx) * exp2f((float)ca_rand_below(ctx, 16) - 12.0f);
}

static void fill_floats(ca_ctx *ctx, qw_type type, int fill, uint8_t *rows, size_t bytes)
{
    size_t size = qw_type_get(type)->block_bytes;
    for (size_t at = 0; at < bytes; at += size) {
        float f = float_weight(ctx, type, fill);
        uint16_t h = type == QW_TYPE_F16 ? qw_f32_to_half(f) : qw_f32_to_bf16(f);
        memcpy(rows + at, size == 4 ? (const void *)&f : (const void *)&h, size);
    }
}

/* Rows of blocks whose quants and integer scales are random bytes (fill < 0) or all equal to fill; their
 * half scales and exponents are finite, the halves of both signs. Of float types see float_weight. */
static void fill_rows(ca_ctx *ctx, qw_type type, int fill, uint8_t *rows, size_t bytes)
{
    size_t block = qw_type_get(type)->block_bytes, at[2], n = scale_offsets(type, at);
    if (is_float(type)) {
        fill_floats(ctx, type, fill, rows, bytes);
        return;
    }
    if (fill < 0)
        ca_fill_bytes(ctx, rows, bytes);
    else
        memset(rows, fill, bytes);
    for (size_t b = 0; b < bytes; b += block) {
        if (type == QW_TYPE_MXFP4) rows[b] = (uint8_t)ca_rand_below(ctx, 200); /* subnormal scales too */
        if (type == QW_TYPE_IQ1_M) rows[b + 55] = (uint8_t)((rows[b + 55] & 0x0f) | ca_rand_below(ctx, 4) << 4 | 0x80);
        for (size_t i = 0; i < n; i++) {
            qw_half h = qw_f32_to_half(ca_rand_normal(ctx) * 0.01f);
            memcpy(rows + b + at[i], &h, sizeof h);
        }
    }
}

typedef enum pattern { RANDOM, ALL_PLUS, ALL_MINUS, ALTERNATING, N_PATTERNS } pattern;

/* Values whose quants are random, or all +-127 (then 16-bit sums are as large as they get). */
static void fill_activations(ca_ctx *ctx, pattern p, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float v = ca_rand_normal(ctx);
        if (p == ALL_PLUS) v = 1.5f;
        if (p == ALL_MINUS) v = -1.5f;
        if (p == ALTERNATING) v = i % 4 < 2 ? 1.5f : -1.5f;
        x[i] = v;
    }
}

/* One product of both tables, the output `misalign` bytes off a line and ld_out wider than the rows. */
static void check_product(ca_ctx *ctx, qw_pack pack, const void *packed, size_t n_groups, size_t k,
                          const void *act, size_t n_cols)
{
    size_t ld = n_groups * ROWS + ca_rand_below(ctx, 20), misalign = 4 * (size_t)ca_rand_below(ctx, 16);
    size_t bytes = ((n_cols - 1) * ld + n_groups * ROWS) * sizeof(float);
    ca_buf want = ca_buf_new(bytes, 0), got = ca_buf_new(bytes, misalign);
    ctx->ref->gemm[pack](packed, n_groups, k, act, n_cols, want.data, ld);
    ctx->t->gemm[pack](packed, n_groups, k, act, n_cols, got.data, ld);
    size_t diff = ca_first_diff(want.data, got.data, bytes / sizeof(float)), n = bytes / sizeof(float);
    ca_check(ctx, diff == n, "gemm %s k %zu, %zu groups, %zu columns: column %zu row %zu is %.9g, want %.9g",
             qw_pack_name(pack), k, n_groups, n_cols, diff / ld, diff % ld,
             diff < n ? (double)((float *)got.data)[diff] : 0.0,
             diff < n ? (double)((float *)want.data)[diff] : 0.0);
    ca_check(ctx, ca_buf_intact(&got), "gemm %s k %zu, %zu groups, %zu columns: writes outside its output",
             qw_pack_name(pack), k, n_groups, n_cols);
    ca_buf_free(&want);
    ca_buf_free(&got);
}

/* Packs n_groups groups of random (or filled) rows, the last with n_last rows. */
static ca_buf pack_random(ca_ctx *ctx, qw_type type, int fill, size_t n_groups, size_t n_last, size_t k)
{
    qw_pack pack = qw_pack_of(type);
    size_t row_bytes = qw_type_row_bytes(type, k), group_bytes = qw_pack_group_bytes(pack, k);
    ca_buf rows = ca_buf_new(n_groups * ROWS * row_bytes, 2), packed = ca_buf_new(n_groups * group_bytes, 0);
    fill_rows(ctx, type, fill, rows.data, rows.bytes);
    for (size_t g = 0; g < n_groups; g++)
        qw_pack_group(pack, (uint8_t *)rows.data + g * ROWS * row_bytes, row_bytes,
                      g + 1 < n_groups ? ROWS : n_last, k, (uint8_t *)packed.data + g * group_bytes);
    ca_check(ctx, ca_buf_intact(&packed), "pack %s k %zu: writes outside its output", qw_pack_name(pack), k);
    ca_buf_free(&rows);
    return packed;
}

static void check_shape(ca_ctx *ctx, qw_type type, int fill, pattern p, size_t n_groups, size_t k,
                        size_t n_cols_first, size_t n_cols_last)
{
    qw_pack pack = qw_pack_of(type);
    qw_act act = qw_pack_act(pack);
    size_t act_bytes = qw_act_bytes(act, k);
    if (ctx->quick) n_cols_first = n_cols_last;
    ca_buf packed = pack_random(ctx, type, fill, n_groups, 1 + ca_rand_below(ctx, ROWS), k);
    ca_buf records = ca_buf_new(n_cols_last * act_bytes, 0), x = ca_buf_new(k * sizeof(float), 0);
    for (size_t c = 0; c < n_cols_last; c++) {
        fill_activations(ctx, p, x.data, k);
        ctx->ref->quantize_act[act](x.data, k, (uint8_t *)records.data + c * act_bytes);
    }
    for (size_t n = n_cols_first; n <= n_cols_last; n++)
        check_product(ctx, pack, packed.data, n_groups, k, records.data, n);
    ca_buf_free(&packed);
    ca_buf_free(&records);
    ca_buf_free(&x);
}

/* Elements of some blocks: at least n. */
static size_t elements(qw_type type, size_t n)
{
    size_t block = qw_type_get(type)->block_n;
    return (n + block - 1) / block * block;
}

/* The least k from which eight groups are multiplied in parts along k, in several parts for `parts` > 1: the x86 walk
 * keeps 192 KiB of weights in L2. */
static size_t long_k(qw_type type, double parts)
{
    size_t block = qw_type_get(type)->block_n;
    double group_bytes = (double)qw_pack_group_bytes(qw_pack_of(type), 256);
    return elements(type, (size_t)(parts * (192 << 10) / 8 / group_bytes * 256) + block);
}

static void check_products(ca_ctx *ctx, qw_type type)
{
    static const int fills[] = {-1, 0xff, 0x00, 0x0f, 0xf0, 0x80, 0x7f};
    size_t block = qw_type_get(type)->block_n;
    qw_pack pack = qw_pack_of(type);
    if (ctx->quick && ctx->t->gemm[pack] == ctx->below->gemm[pack]) return;
    for (size_t n_cols = 1; n_cols <= N_COLS_MAX; n_cols++)
        check_shape(ctx, type, -1, RANDOM, 1 + ca_rand_below(ctx, N_GROUPS_MAX),
                    block * (1 + ca_rand_below(ctx, block == 32 ? 40 : block == 1 ? 300 : 6)), n_cols, n_cols);
    for (size_t n_blocks = 1; n_blocks <= 5; n_blocks++)
        check_shape(ctx, type, -1, RANDOM, n_blocks, block * n_blocks, 1, 9);
    for (size_t f = 0; f < sizeof fills / sizeof fills[0]; f++)
        for (pattern p = RANDOM; p < N_PATTERNS; p++) check_shape(ctx, type, fills[f], p, 2, elements(type, 90), 1, 8);
    /* Long rows, and groups enough for several chunks. */
    check_shape(ctx, type, -1, RANDOM, 2, 4864, 1, 3);
    check_shape(ctx, type, -1, RANDOM, 40, 1536, 20, ctx->quick ? 5 : 20);
    if (ctx->quick) return;
    /* More columns, past those of a wide tile (64 with AVX2), which one block and a row of several go through. */
    check_shape(ctx, type, -1, RANDOM, 1, block, N_COLS_MAX + 1, 70);
    check_shape(ctx, type, -1, RANDOM, 3, elements(type, 700), 63, 67);
    /* Rows so long that a chunk is multiplied in parts along k: two, three, and of a single group. */
    check_shape(ctx, type, -1, RANDOM, 9, long_k(type, 1.0), 65, 66);
    check_shape(ctx, type, -1, RANDOM, 8, long_k(type, 2.1), 67, 67);
    check_shape(ctx, type, -1, RANDOM, 1, long_k(type, 8.0), 70, 70);
}

/* ---- activations -------------------------------------------------------------------------------- */

static void check_record(ca_ctx *ctx, qw_act act, const float *x, size_t k, const char *what)
{
    size_t bytes = qw_act_bytes(act, k);
    ca_buf want = ca_buf_new(bytes, 0), got = ca_buf_new(bytes, 0);
    ctx->ref->quantize_act[act](x, k, want.data);
    ctx->t->quantize_act[act](x, k, got.data);
    size_t i = 0;
    while (i < bytes && ((uint8_t *)want.data)[i] == ((uint8_t *)got.data)[i]) i++;
    ca_check(ctx, i == bytes, "quantize_act %d k %zu, %s: byte %zu differs", act, k, what, i);
    ca_check(ctx, ca_buf_intact(&got), "quantize_act %d k %zu, %s: writes outside its record", act, k, what);
    ca_buf_free(&want);
    ca_buf_free(&got);
}

static void check_activations(ca_ctx *ctx, qw_act act)
{
    static const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, FLT_MAX,
                                -FLT_MAX, FLT_MIN, 1e-45f, -0.0f, 0x1p-120f};
    size_t group = qw_act_group(act), n_most = act == QW_ACT_F32 ? 12 * 256 : 12;
    float *x = calloc(12 * 256 + 1, sizeof *x), *at = x + 1; /* not on a vector's boundary */
    if (!x) exit(2);
    for (size_t round = 0; round < 60; round++) {
        size_t k = group * (1 + ca_rand_below(ctx, (uint32_t)n_most));
        ca_fill_normal(ctx, at, k, exp2f((float)ca_rand_below(ctx, 60) - 40.0f));
        check_record(ctx, act, at, k, "random");
        for (size_t i = 0; i < k; i++) at[i] = (float)((int)ca_rand_below(ctx, 254) - 127) + 0.5f;
        for (size_t i = 0; i < k; i += group) at[i] = 127.0f; /* scale 1: every element is a tie */
        check_record(ctx, act, at, k, "ties");
        for (size_t i = 0; i < k; i += 1 + ca_rand_below(ctx, 100))
            at[i] = odd[ca_rand_below(ctx, sizeof odd / sizeof odd[0])];
        check_record(ctx, act, at, k, "special values");
        ca_fill_normal(ctx, at, k, 0x1p-120f);
        check_record(ctx, act, at, k, "tiny");
        ca_fill_bytes(ctx, at, k * sizeof *at);
        check_record(ctx, act, at, k, "random bits");
        memset(at, 0, k * sizeof *at);
        check_record(ctx, act, at, k, "zeros");
    }
    free(x);
}

void check_gemm(ca_ctx *ctx)
{
    for (size_t i = 0; i < N_TYPES; i++) check_products(ctx, types[i]);
    for (qw_act act = 0; act < QW_ACT_COUNT; act++) check_activations(ctx, act);
}

/* ---- packers: the product of packed rows is the product of the dequantised rows ------------------ */

/* The largest error that quantised activations may cause: half a step for each element; and that of the sum. */
static double error_bound(const float *w, const float *x, size_t k, size_t group)
{
    double bound = 0.0;
    for (size_t i = 0; i < k; i += group) {
        double amax = 0.0, w_abs = 0.0, product = 0.0;
        for (size_t j = i; j < i + group; j++) {
            amax = fmax(amax, fabs((double)x[j]));
            w_abs += fabs((double)w[j]);
            product += fabs((double)w[j] * (double)x[j]);
        }
        if (group > 1) bound += w_abs * amax / 127.0 * 0.5001;
        bound += product * 1e-5;
    }
    return bound;
}

static void check_packed_rows(ca_ctx *ctx, qw_type type, size_t n_rows, size_t k)
{
    qw_pack pack = qw_pack_of(type);
    qw_act act = qw_pack_act(pack);
    size_t row_bytes = qw_type_row_bytes(type, k);
    ca_buf rows = ca_buf_new(n_rows * row_bytes, 2), packed = ca_buf_new(qw_pack_group_bytes(pack, k), 0);
    ca_buf record = ca_buf_new(qw_act_bytes(act, k), 0);
    float *w = calloc(k, sizeof *w), *x = calloc(k, sizeof *x), out[ROWS];
    if (!w || !x) exit(2);
    fill_rows(ctx, type, -1, rows.data, rows.bytes);
    ca_fill_normal(ctx, x, k, 1.0f);
    qw_pack_group(pack, rows.data, row_bytes, n_rows, k, packed.data);
    ctx->t->quantize_act[act](x, k, record.data);
    ctx->t->gemm[pack](packed.data, 1, k, record.data, 1, out, ROWS);
    for (size_t r = 0; r < ROWS; r++) {
        double want = 0.0, bound = 0.0;
        if (r < n_rows) {
            qw_dequantize_row(type, (uint8_t *)rows.data + r * row_bytes, w, k);
            for (size_t i = 0; i < k; i++) want += (double)w[i] * (double)x[i];
            bound = error_bound(w, x, k, qw_act_group(act));
        }
        ca_check(ctx, fabs((double)out[r] - want) <= bound,
                 "pack %s k %zu, %zu rows: row %zu gives %.9g, its dequantised row %.9g, bound %.3g",
                 qw_pack_name(pack), k, n_rows, r, (double)out[r], want, bound);
    }
    ca_check(ctx, ca_buf_intact(&packed), "pack %s k %zu: writes outside its output", qw_pack_name(pack), k);
    ca_buf_free(&rows);
    ca_buf_free(&packed);
    ca_buf_free(&record);
    free(w);
    free(x);
}

void check_pack(ca_ctx *ctx)
{
    for (size_t i = 0; i < N_TYPES; i++) {
        size_t block = qw_type_get(types[i])->block_n;
        for (size_t n_rows = 1; n_rows <= ROWS; n_rows++)
            check_packed_rows(ctx, types[i], n_rows, block * (1 + ca_rand_below(ctx, is_float(types[i]) ? 90 : 7)));
        qw_pack pack = qw_pack_of(types[i]);
        ca_check(ctx, qw_pack_group_bytes(pack, 4864) % 64 == 0 && qw_pack_group_bytes(pack, block * 3) % 64 == 0,
                 "pack %s: group sizes are not multiples of 64", qw_pack_name(pack));
    }
    for (uint32_t type = 0; type < QW_TYPE_LIMIT; type++) {
        bool known = qw_type_get(type)->name != NULL, packed = qw_pack_of((qw_type)type) != QW_PACK_NONE;
        ca_check(ctx, packed == known, "pack: type %u %s", type, known ? "has no form" : "is none, but has a form");
    }
}
