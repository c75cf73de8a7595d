/* quantize.c: floats to stored blocks.
 *
 * The one-scale formats (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1) and the plain halves follow the public closed form,
 * bit-equal to the `gguf` Python package, unless importances are given. Everything else, and every block
 * format with importances, goes through the search of fit.c. Deterministic, pure functions, any thread.
 * A row holds finite numbers; others do no harm but give an undefined block.
 */
#include <float.h>
#include <math.h>

#include "base/status.h"
#include "kernels/blocks.h"
#include "kernels/ref/codebook.h"
#include "kernels/ref/fit.h"
#include "kernels/ref/half.h"

/* ---- closed forms ------------------------------------------------------------------------------ */

/* Inverse of a step; 0 for a block of zeros. */
static float inverse_of(float d)
{
    return d == 0.0f ? 0.0f : 1.0f / d;
}

/* Truncates t to 0..hi; NaN becomes 0. */
static uint8_t code_below(float t, float hi)
{
    t = t > 0.0f ? t : 0.0f;
    return (uint8_t)(t < hi ? t : hi);
}

static float extreme_of(const float *x) /* first element of the largest magnitude */
{
    float extreme = x[0];
    for (int j = 1; j < 32; j++) extreme = fabsf(x[j]) > fabsf(extreme) ? x[j] : extreme;
    return extreme;
}

static void range_of(const float *x, float *lo, float *hi)
{
    *lo = *hi = x[0];
    for (int j = 1; j < 32; j++) {
        *lo = x[j] < *lo ? x[j] : *lo;
        *hi = x[j] > *hi ? x[j] : *hi;
    }
}

/* d maps the extreme to the lowest level, -offset; returns its half. */
static qw_half codes_around_zero(const float *x, int offset, uint8_t q[32])
{
    float d = extreme_of(x) / (float)-offset, inverse = inverse_of(d);
    float hi = (float)(2 * offset - 1), shift = (float)offset + 0.5f;
    for (int j = 0; j < 32; j++) q[j] = code_below(x[j] * inverse + shift, hi);
    return half_from_f32(d);
}

/* d spreads 0..q_hi over the range; *m gets the half of the lowest element. */
static qw_half codes_over_range(const float *x, int q_hi, uint8_t q[32], qw_half *m)
{
    float lo, hi;
    range_of(x, &lo, &hi);
    float d = (hi - lo) / (float)q_hi, inverse = inverse_of(d);
    for (int j = 0; j < 32; j++) q[j] = code_below((x[j] - lo) * inverse + 0.5f, (float)q_hi);
    *m = half_from_f32(lo);
    return half_from_f32(d);
}

static void pack_nibbles(const uint8_t q[32], uint8_t qs[16])
{
    for (int j = 0; j < 16; j++) qs[j] = (uint8_t)((q[j] & 15) | (q[j + 16] & 15) << 4);
}

static void pack_fifth(const uint8_t q[32], uint8_t qh[4])
{
    for (int i = 0; i < 4; i++) {
        unsigned byte = 0;
        for (int j = 0; j < 8; j++) byte |= (q[8 * i + j] >> 4 & 1u) << j;
        qh[i] = (uint8_t)byte;
    }
}

static void quantize_q4_0(const float *x, void *dst)
{
    qw_block_q4_0 *b = dst;
    uint8_t q[32];
    b->d = codes_around_zero(x, 8, q);
    pack_nibbles(q, b->qs);
}

static void quantize_q4_1(const float *x, void *dst)
{
    qw_block_q4_1 *b = dst;
    uint8_t q[32];
    b->d = codes_over_range(x, 15, q, &b->m);
    pack_nibbles(q, b->qs);
}

static void quantize_q5_0(const float *x, void *dst)
{
    qw_block_q5_0 *b = dst;
    uint8_t q[32];
    b->d = codes_around_zero(x, 16, q);
    pack_nibbles(q, b->qs);
    pack_fifth(q, b->qh);
}

static void quantize_q5_1(const float *x, void *dst)
{
    qw_block_q5_1 *b = dst;
    uint8_t q[32];
    b->d = codes_over_range(x, 31, q, &b->m);
    pack_nibbles(q, b->qs);
    pack_fifth(q, b->qh);
}

static void quantize_q8_0(const float *x, void *dst)
{
    qw_block_q8_0 *b = dst;
    float d = fabsf(extreme_of(x)) / 127.0f, inverse = inverse_of(d);
    b->d = half_from_f32(d);
    for (int j = 0; j < 32; j++) {
        float t = roundf(x[j] * inverse); /* ties away from zero */
        t = t > -127.0f ? t : -127.0f;
        b->qs[j] = (int8_t)(t < 127.0f ? t : 127.0f);
    }
}

/* ---- MXFP4: the scale is a power of two, so the few candidates are simply tried ------------------ */

/* Code of the level nearest to t, the smaller magnitude on a tie; plain 0 for what rounds to zero. */
static uint8_t mxfp4_code(float t)
{
    float magnitude = fabsf(t);
    unsigned code = 0;
    for (int i = 1; i < 8; i++)
        code += magnitude > 0.5f * (float)(CODEBOOK_MXFP4[i - 1] + CODEBOOK_MXFP4[i]);
    return (uint8_t)(t < 0 && code ? code | 8u : code);
}

static void quantize_mxfp4(const float *x, const float *w, void *dst)
{
    qw_block_mxfp4 *b = dst;
    float extreme = fabsf(extreme_of(x));
    int exponent = 0;
    if (extreme > 0 && extreme <= FLT_MAX) frexpf(extreme, &exponent);
    double best = INFINITY;
    *b = (qw_block_mxfp4){0};
    /* extreme is in [2^(exponent-1), 2^exponent) and the top level is 12 * 2^(e-128): the first scale
     * covers any extreme, each next one clips more of it for finer levels below. */
    for (int e = exponent + 125; e >= exponent + 122 && extreme > 0; e--) {
        if (e < 0 || e > 252) continue;
        float scale = ldexpf(1.0f, e - 128);
        uint8_t q[32];
        double error = 0;
        for (int j = 0; j < 32; j++) {
            q[j] = mxfp4_code(x[j] / scale);
            double rest = (double)x[j] - (double)scale * CODEBOOK_MXFP4[q[j]];
            error += (double)w[j] * (rest * rest);
        }
        if (error < best) {
            best = error;
            b->e = (uint8_t)e;
            pack_nibbles(q, b->qs);
        }
    }
}

/* ---- searched formats: the shape for fit.c, and where its numbers go ----------------------------- */

static void pack_q4_0(const fit_result *r, void *dst)
{
    qw_block_q4_0 *b = dst;
    uint8_t q[32];
    for (int j = 0; j < 32; j++) q[j] = (uint8_t)(r->q[j] + 8);
    b->d = r->d;
    pack_nibbles(q, b->qs);
}

static void pack_q4_1(const fit_result *r, void *dst)
{
    qw_block_q4_1 *b = dst;
    uint8_t q[32];
    for (int j = 0; j < 32; j++) q[j] = (uint8_t)r->q[j];
    b->d = r->d;
    b->m = r->dmin ^ 0x8000; /* the search subtracts, the format adds */
    pack_nibbles(q, b->qs);
}

static void pack_q5_0(const fit_result *r, void *dst)
{
    qw_block_q5_0 *b = dst;
    uint8_t q[32];
    for (int j = 0; j < 32; j++) q[j] = (uint8_t)(r->q[j] + 16);
    b->d = r->d;
    pack_nibbles(q, b->qs);
    pack_fifth(q, b->qh);
}

static void pack_q5_1(const fit_result *r, void *dst)
{
    qw_block_q5_1 *b = dst;
    uint8_t q[32];
    for (int j = 0; j < 32; j++) q[j] = (uint8_t)r->q[j];
    b->d = r->d;
    b->m = r->dmin ^ 0x8000;
    pack_nibbles(q, b->qs);
    pack_fifth(q, b->qh);
}

static void pack_q8_0(const fit_result *r, void *dst)
{
    qw_block_q8_0 *b = dst;
    b->d = r->d;
    for (int j = 0; j < 32; j++) b->qs[j] = (int8_t)r->q[j];
}

static void pack_iq4_nl(const fit_result *r, void *dst)
{
    qw_block_iq4_nl *b = dst;
    uint8_t q[32];
    for (int j = 0; j < 32; j++) q[j] = (uint8_t)r->q[j];
    b->d = r->d;
    pack_nibbles(q, b->qs);
}

/* Bit pairs of 256 elements in 64 bytes: element e in pair e % 128 / 32 of byte e / 128 * 32 + e % 32. */
static void pack_pairs(const uint8_t q[256], uint8_t qs[64])
{
    memset(qs, 0, 64);
    for (int e = 0; e < 256; e++) {
        uint8_t *byte = &qs[(e >> 7) * 32 + (e & 31)];
        *byte = (uint8_t)(*byte | (q[e] & 3) << (2 * (e >> 5 & 3)));
    }
}

/* One bit of 256 elements in 32 bytes: element e in bit e / 32 of byte e % 32. */
static void pack_bits(const uint8_t bit[256], uint8_t qs[32])
{
    memset(qs, 0, 32);
    for (int e = 0; e < 256; e++) qs[e & 31] = (uint8_t)(qs[e & 31] | bit[e] << (e >> 5));
}

static void pack_q2_k(const fit_result *r, void *dst)
{
    qw_block_q2_k *b = dst;
    uint8_t q[256];
    for (int e = 0; e < 256; e++) q[e] = (uint8_t)r->q[e];
    pack_pairs(q, b->qs);
    for (int i = 0; i < 16; i++) b->scales[i] = (uint8_t)(r->s[i] | r->m[i] << 4);
    b->d = r->d;
    b->dmin = r->dmin;
}

static void pack_q3_k(const fit_result *r, void *dst)
{
    qw_block_q3_k *b = dst;
    uint8_t low[256], high[256];
    for (int e = 0; e < 256; e++) {
        int q = r->q[e] + 4;
        low[e] = (uint8_t)(q & 3);
        high[e] = (uint8_t)(q >> 2);
    }
    pack_pairs(low, b->qs);
    pack_bits(high, b->hmask);
    memset(b->scales, 0, sizeof b->scales);
    for (int i = 0; i < 16; i++) {
        int s = r->s[i] + 32;
        uint8_t *nibble = &b->scales[i & 7], *pair = &b->scales[8 + (i & 3)];
        *nibble = (uint8_t)(*nibble | (s & 15) << (4 * (i >> 3)));
        *pair = (uint8_t)(*pair | (s >> 4) << (2 * (i >> 2)));
    }
    b->d = r->d;
}

/* The twelve bytes of Q4_K and Q5_K: see unpack_scales_q4_k in dequantize.c. */
static void pack_scales_q4_k(const fit_result *r, uint8_t packed[12])
{
    for (int i = 0; i < 4; i++) {
        packed[i] = (uint8_t)(r->s[i] | (r->s[i + 4] >> 4) << 6);
        packed[i + 4] = (uint8_t)(r->m[i] | (r->m[i + 4] >> 4) << 6);
        packed[i + 8] = (uint8_t)((r->s[i + 4] & 15) | (r->m[i + 4] & 15) << 4);
    }
}

static void pack_q4_k(const fit_result *r, void *dst)
{
    qw_block_q4_k *b = dst;
    b->d = r->d;
    b->dmin = r->dmin;
    pack_scales_q4_k(r, b->scales);
    for (int e = 0; e < 128; e++) {
        const int16_t *q = &r->q[(e >> 5) * 64 + (e & 31)];
        b->qs[e] = (uint8_t)(q[0] | q[32] << 4);
    }
}

static void pack_q5_k(const fit_result *r, void *dst)
{
    qw_block_q5_k *b = dst;
    uint8_t high[256];
    b->d = r->d;
    b->dmin = r->dmin;
    pack_scales_q4_k(r, b->scales);
    for (int e = 0; e < 128; e++) {
        const int16_t *q = &r->q[(e >> 5) * 64 + (e & 31)];
        b->qs[e] = (uint8_t)((q[0] & 15) | (q[32] & 15) << 4);
    }
    for (int e = 0; e < 256; e++) high[e] = (uint8_t)(r->q[e] >> 4);
    pack_bits(high, b->qh);
}

static void pack_q6_k(const fit_result *r, void *dst)
{
    qw_block_q6_k *b = dst;
    uint8_t high[256];
    b->d = r->d;
    for (int i = 0; i < 16; i++) b->scales[i] = (int8_t)r->s[i];
    for (int e = 0; e < 128; e++) {
        const int16_t *q = &r->q[(e >> 6) * 128 + (e & 63)];
        b->ql[e] = (uint8_t)(((q[0] + 32) & 15) | ((q[64] + 32) & 15) << 4);
    }
    for (int e = 0; e < 256; e++) high[e] = (uint8_t)((r->q[e] + 32) >> 4);
    pack_pairs(high, b->qh);
}

static void pack_iq4_xs(const fit_result *r, void *dst)
{
    qw_block_iq4_xs *b = dst;
    unsigned high = 0;
    b->d = r->d;
    memset(b->scales_l, 0, sizeof b->scales_l);
    for (int i = 0; i < 8; i++) {
        int s = r->s[i] + 32;
        b->scales_l[i >> 1] = (uint8_t)(b->scales_l[i >> 1] | (s & 15) << (4 * (i & 1)));
        high |= (unsigned)(s >> 4) << (2 * i);
    }
    b->scales_h = (uint16_t)high;
    for (int e = 0; e < 128; e++) {
        const int16_t *q = &r->q[(e >> 4) * 32 + (e & 15)];
        b->qs[e] = (uint8_t)(q[0] | q[16] << 4);
    }
}

/* ---- dispatch ----------------------------------------------------------------------------------- */

typedef struct codec {
    void (*closed)(const float *x, void *dst); /* used without importances; NULL: always searched */
    void (*pack)(const fit_result *r, void *dst);
    fit_shape shape;
} codec;

static const codec CODECS[QW_TYPE_LIMIT] = {
    /*                  closed form    packer       subs sub   levels     scales      minima */
    [QW_TYPE_Q4_0] = {quantize_q4_0, pack_q4_0, {1, 32, -8, 7, 1, 1, 0, 0, NULL, 0.75f}},
    [QW_TYPE_Q4_1] = {quantize_q4_1, pack_q4_1, {1, 32, 0, 15, 1, 1, 1, 1, NULL, 0.75f}},
    [QW_TYPE_Q5_0] = {quantize_q5_0, pack_q5_0, {1, 32, -16, 15, 1, 1, 0, 0, NULL, 0.8f}},
    [QW_TYPE_Q5_1] = {quantize_q5_1, pack_q5_1, {1, 32, 0, 31, 1, 1, 1, 1, NULL, 0.8f}},
    [QW_TYPE_Q8_0] = {quantize_q8_0, pack_q8_0, {1, 32, -127, 127, 1, 1, 0, 0, NULL, 0.95f}},
    [QW_TYPE_IQ4_NL] = {NULL, pack_iq4_nl, {1, 32, 0, 15, 1, 1, 0, 0, CODEBOOK_IQ4, 0.7f}},
    [QW_TYPE_Q2_K] = {NULL, pack_q2_k, {16, 16, 0, 3, 0, 15, 0, 15, NULL, 0.5f}},
    [QW_TYPE_Q3_K] = {NULL, pack_q3_k, {16, 16, -4, 3, -32, 31, 0, 0, NULL, 0.6f}},
    [QW_TYPE_Q4_K] = {NULL, pack_q4_k, {8, 32, 0, 15, 0, 63, 0, 63, NULL, 0.75f}},
    [QW_TYPE_Q5_K] = {NULL, pack_q5_k, {8, 32, 0, 31, 0, 63, 0, 63, NULL, 0.85f}},
    [QW_TYPE_Q6_K] = {NULL, pack_q6_k, {16, 16, -32, 31, -128, 127, 0, 0, NULL, 0.9f}},
    [QW_TYPE_IQ4_XS] = {NULL, pack_iq4_xs, {8, 32, 0, 15, -32, 31, 0, 0, CODEBOOK_IQ4, 0.7f}},
};

/* Weights of a block for the error: the importances as far as they are usable, all ones if none is. */
static void block_weights(const float *weights, size_t n, float *w)
{
    bool any = false;
    for (size_t i = 0; i < n; i++) {
        w[i] = weights && weights[i] > 0.0f && weights[i] <= FLT_MAX ? weights[i] : 0.0f;
        any |= w[i] > 0.0f;
    }
    for (size_t i = 0; i < n && !any; i++) w[i] = 1.0f;
}

static void quantize_block(qw_type type, const float *x, const float *weights, size_t n, void *dst)
{
    const codec *c = &CODECS[type];
    if (c->closed && !weights) {
        c->closed(x, dst);
        return;
    }
    float w[FIT_BLOCK_MAX];
    block_weights(weights, n, w);
    if (type == QW_TYPE_MXFP4) {
        quantize_mxfp4(x, w, dst);
        return;
    }
    QW_ASSERT(c->pack); /* else the type is read only */
    fit_result r;
    qw_fit_block(&c->shape, x, w, &r);
    c->pack(&r, dst);
}

bool qw_type_can_quantize(qw_type type)
{
    bool floats = type == QW_TYPE_F32 || type == QW_TYPE_F16 || type == QW_TYPE_BF16;
    return floats || CODECS[type].pack || CODECS[type].closed || type == QW_TYPE_MXFP4;
}

void qw_quantize_row(qw_type type, const float *src, void *dst, size_t n, const float *weights)
{
    const qw_type_info *info = qw_type_get((uint32_t)type);
    QW_ASSERT(info->name && n % info->block_n == 0);
    uint16_t *halves = dst;
    switch (type) {
    case QW_TYPE_F32: memcpy(dst, src, n * sizeof *src); return;
    case QW_TYPE_F16:
        for (size_t i = 0; i < n; i++) halves[i] = half_from_f32(src[i]);
        return;
    case QW_TYPE_BF16:
        for (size_t i = 0; i < n; i++) halves[i] = bf16_from_f32(src[i]);
        return;
    default: break;
    }
    uint8_t *out = dst;
    for (size_t i = 0; i < n; i += info->block_n, out += info->block_bytes)
        quantize_block(type, src + i, weights ? weights + i : NULL, info->block_n, out);
}
