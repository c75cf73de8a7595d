/* hf_quant.c: quantised matrices of Hugging Face folders, by the written definition of each format.
 *
 *   FP8   weight [N, K] in E4M3, weight_scale_inv [N / 128, K / 128]:       w = f8 * scale
 *         or a stack of those: [E, N, K] and [E, N / 128, K / 128]
 *   GPTQ  qweight [K / 8, N], qzeros [G, N / 8], scales [G, N], g_idx [K]:  w = (q - (zero + 1)) * scale, group g_idx[k]
 *   AWQ   qweight [K, N / 8], qzeros [G, N / 8], scales [G, N]:             w = (q - zero) * scale, group k / size
 *
 * K is the input, N the output. All these products are exact in float32: a significand of at most 5 bits times one of at most
 * 11, or of 4 times 24 rounded once. So rows come as F32, or, where a GPTQ matrix is symmetric and its groups are in order, as
 * Q4_0, whose blocks say the same with the same scales. Source: the papers' reference code, AutoGPTQ, AutoAWQ, model cards.
 */
#include <endian.h>
#include <stdio.h>
#include <string.h>

#include "formats/hf_private.h"

static qw_status bad_shape(const qw_hf *hf, const qw_st_tensor *t, const char *want, qw_err *err)
{
    return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s': the shape does not fit: want %s", hf_path_of(hf, t), t->name, want);
}

static bool has_shape(const qw_st_tensor *t, uint64_t rows, uint64_t columns)
{
    return t->n_dims == 2 && t->shape[0] == rows && t->shape[1] == columns;
}

/* Little-endian numbers at any address. */
static uint32_t load32(const uint8_t *p, uint64_t i)
{
    uint32_t v;
    memcpy(&v, p + 4 * i, sizeof v);
    return le32toh(v);
}

static uint16_t load16(const uint8_t *p, uint64_t i)
{
    uint16_t v;
    memcpy(&v, p + 2 * i, sizeof v);
    return le16toh(v);
}

/* Element i of a float tensor. */
static float load_float(qw_type type, const uint8_t *p, uint64_t i)
{
    if (type == QW_TYPE_F16) return qw_half_to_f32(load16(p, i));
    if (type == QW_TYPE_BF16) return qw_bf16_to_f32(load16(p, i));
    uint32_t bits = load32(p, i);
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* ---- FP8 ---------------------------------------------------------------------------------------- */

/* Rows of one matrix, or the same rows of each of a stack. */
typedef struct fp8 {
    qw_rows base;
    const uint8_t *weight, *scales; /* of the first row of the first matrix, and of its block */
    qw_type scale_type;
    uint64_t n, k;                  /* rows here of each matrix */
    uint64_t in_block;              /* where in its block the first of them is */
    uint64_t weight_step, scale_step; /* from one matrix to the next, in elements */
    uint64_t block_rows, block_cols, scales_per_row;
    float values[256]; /* of every E4M3 number */
} fp8;

/* Sign, 4 bits of exponent with bias 7, 3 bits of fraction; no infinities, both NaN have all bits set. */
static float e4m3(uint8_t b)
{
    int exponent = b >> 3 & 15, fraction = b & 7;
    float v = exponent ? (float)(8 + fraction) : (float)fraction; /* times 2^(exponent - 10), or 2^-9 */
    int shift = (exponent ? exponent : 1) - 10;
    if ((b & 0x7f) == 0x7f) return __builtin_nanf("");
    v = shift >= 0 ? v * (float)(1 << shift) : v / (float)(1 << -shift);
    return b & 0x80 ? -v : v;
}

static void make_fp8(const qw_rows *rows, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    (void)scratch;
    const fp8 *m = (const fp8 *)rows;
    float *to = (float *)(void *)out;
    for (size_t r = 0; r < n; r++, to += m->k) {
        uint64_t matrix = (row0 + r) / m->n, row = (row0 + r) % m->n;
        const uint8_t *from = m->weight + matrix * m->weight_step + row * m->k;
        uint64_t first = matrix * m->scale_step + (m->in_block + row) / m->block_rows * m->scales_per_row;
        for (uint64_t k = 0; k < m->k; k++)
            to[k] = m->values[from[k]] * load_float(m->scale_type, m->scales, first + k / m->block_cols);
    }
}

static uint64_t blocks(uint64_t n, uint64_t size)
{
    return (n + size - 1) / size;
}

/* The maker for a description without maker and values, of n_matrices. */
static qw_status new_fp8(qw_hf *hf, const fp8 *d, uint64_t n_matrices, hf_matrix *out, qw_err *err)
{
    fp8 *m;
    QW_TRY(hf_alloc(hf, &m, 1, sizeof *m, err));
    *m = *d;
    m->base.make = make_fp8;
    for (unsigned b = 0; b < 256; b++) m->values[b] = e4m3((uint8_t)b);
    *out = (hf_matrix){.in = {.type = QW_TYPE_F32, .k = m->k, .make = &m->base}, .rows = n_matrices * m->n};
    return QW_OK;
}

static qw_status check_fp8(const qw_hf *hf, const hf_quant *q, const qw_st_tensor *weight, qw_err *err)
{
    if (q->method != HF_QUANT_FP8)
        return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' is FP8, but config.json has no quantization_config of fp8",
                       hf_path_of(hf, weight), weight->name);
    if (weight->n > 0) return QW_OK;
    return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' is empty", hf_path_of(hf, weight), weight->name);
}

qw_status hf_matrix_fp8(qw_hf *hf, const hf_quant *q, const hf_quant_parts *p, hf_matrix *out, qw_err *err)
{
    hf_matrix scales;
    QW_TRY(check_fp8(hf, q, p->weight, err));
    if (p->weight->n_dims != 2) return bad_shape(hf, p->weight, "two dimensions", err);
    uint64_t n = p->weight->shape[0], k = p->weight->shape[1], across = blocks(k, q->block_cols);
    QW_TRY(hf_matrix_of(hf, p->scales, &scales, err));
    if (!has_shape(p->scales, blocks(n, q->block_rows), across))
        return bad_shape(hf, p->scales, "one scale for each block of the weight", err);
    const fp8 d = {.weight = p->weight->data, .scales = scales.in.data, .scale_type = scales.in.type, .n = n, .k = k,
                   .block_rows = q->block_rows, .block_cols = q->block_cols, .scales_per_row = across};
    return new_fp8(hf, &d, 1, out, err);
}

qw_status hf_matrix_fp8_fused(qw_hf *hf, const hf_quant *q, const qw_st_tensor *weight, const qw_st_tensor *scales,
                              uint64_t part, uint64_t n_parts, hf_matrix *out, qw_err *err)
{
    hf_matrix s;
    const uint64_t *shape = weight->shape;
    QW_TRY(check_fp8(hf, q, weight, err));
    QW_ASSERT(weight->n_dims == 3 && shape[1] % n_parts == 0);
    QW_TRY(hf_matrix_of(hf, scales, &s, err));
    uint64_t n = shape[1] / n_parts, across = blocks(shape[2], q->block_cols), row0 = part * n;
    uint64_t own = blocks(n, q->block_rows), down = scales->n_dims == 3 ? scales->shape[1] : 0;
    bool apart = down == n_parts * own; /* each part's blocks begin with it */
    if (!(apart || down == blocks(shape[1], q->block_rows)) || scales->shape[0] != shape[0] || scales->shape[2] != across)
        return bad_shape(hf, scales, "[experts, blocks of rows, blocks of columns] of the weight", err);
    uint64_t block0 = apart ? part * own : row0 / q->block_rows;
    const fp8 d = {.weight = weight->data + row0 * shape[2],
                   .scales = s.in.data + block0 * across * qw_type_row_bytes(s.in.type, 1), .scale_type = s.in.type, .n = n,
                   .k = shape[2], .in_block = apart ? 0 : row0 % q->block_rows, .weight_step = shape[1] * shape[2],
                   .scale_step = down * across, .block_rows = q->block_rows, .block_cols = q->block_cols,
                   .scales_per_row = across};
    return new_fp8(hf, &d, shape[0], out, err);
}

/* ---- GPTQ and AWQ -------------------------------------------------------------------------------- */

enum { NIBBLES = 8 }; /* in a word */

typedef struct int4 {
    qw_rows base;
    const uint8_t *weight, *zeros, *scales;
    const uint8_t *g_idx;     /* [k] of int32, or NULL: groups in order */
    qw_type scale_type;
    uint64_t n, k, group, zero_offset;
} int4;

static uint64_t group_of(const int4 *m, uint64_t k)
{
    return m->g_idx ? load32(m->g_idx, k) : k / m->group;
}

static float scale_at(const int4 *m, uint64_t group, uint64_t row)
{
    return load_float(m->scale_type, m->scales, group * m->n + row);
}

static uint32_t gptq_zero(const int4 *m, uint64_t group, uint64_t row)
{
    uint32_t word = load32(m->zeros, group * (m->n / NIBBLES) + row / NIBBLES);
    return (word >> 4 * (row % NIBBLES) & 15) + (uint32_t)m->zero_offset;
}

static uint32_t gptq_weight(const int4 *m, uint64_t k, uint64_t row)
{
    return load32(m->weight, k / NIBBLES * m->n + row) >> 4 * (k % NIBBLES) & 15;
}

/* Rows in the inner loop: those of neighbours lie side by side. */
static void make_gptq(const qw_rows *rows, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    (void)scratch;
    const int4 *m = (const int4 *)rows;
    float *to = (float *)(void *)out;
    for (uint64_t k = 0; k < m->k; k++) {
        uint64_t g = group_of(m, k);
        for (size_t r = 0; r < n; r++) {
            int q = (int)gptq_weight(m, k, row0 + r) - (int)gptq_zero(m, g, row0 + r);
            to[r * m->k + k] = (float)q * scale_at(m, g, row0 + r);
        }
    }
}

/* Symmetric, groups in order: 32 elements are a block of Q4_0 with their group's scale. */
static void make_gptq_q4_0(const qw_rows *rows, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    (void)scratch;
    const int4 *m = (const int4 *)rows;
    uint64_t n_blocks = m->k / 32;
    for (uint64_t b = 0; b < n_blocks; b++) {
        for (size_t r = 0; r < n; r++) {
            qw_block_q4_0 block = {.d = load16(m->scales, 32 * b / m->group * m->n + row0 + r)};
            for (uint64_t i = 0; i < 16; i++)
                block.qs[i] = (uint8_t)(gptq_weight(m, 32 * b + i, row0 + r) | gptq_weight(m, 32 * b + 16 + i, row0 + r) << 4);
            memcpy(out + (r * n_blocks + b) * sizeof block, &block, sizeof block);
        }
    }
}

/* Place of column i in a word of AWQ. */
static uint32_t awq_nibble(uint32_t word, uint64_t i)
{
    static const uint8_t place[NIBBLES] = {0, 4, 1, 5, 2, 6, 3, 7};
    return word >> 4 * place[i % NIBBLES] & 15;
}

static void make_awq(const qw_rows *rows, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    (void)scratch;
    const int4 *m = (const int4 *)rows;
    float *to = (float *)(void *)out;
    for (uint64_t k = 0; k < m->k; k++) {
        uint64_t g = k / m->group, words = m->n / NIBBLES;
        for (size_t r = 0; r < n; r++) {
            uint64_t row = row0 + r, word = row / NIBBLES;
            int q = (int)awq_nibble(load32(m->weight, k * words + word), row) -
                    (int)awq_nibble(load32(m->zeros, g * words + word), row);
            to[r * m->k + k] = (float)q * scale_at(m, g, row);
        }
    }
}

/* What both formats share: k inputs, n outputs, their groups, and the tensors that go with the weight. */
static qw_status new_int4(qw_hf *hf, const hf_quant *q, const hf_quant_parts *p, uint64_t k, uint64_t n, int4 **out,
                          qw_err *err)
{
    int4 *m;
    hf_matrix scales;
    uint64_t group = q->group ? q->group : k;
    if (k % group != 0) return bad_shape(hf, p->weight, "inputs that are a multiple of group_size", err);
    if (n % NIBBLES != 0) return bad_shape(hf, p->weight, "outputs that are a multiple of 8", err);
    if (!qw_st_is(p->zeros, "I32") || !has_shape(p->zeros, k / group, n / NIBBLES))
        return bad_shape(hf, p->zeros, "I32 [groups, outputs / 8]", err);
    if (!has_shape(p->scales, k / group, n)) return bad_shape(hf, p->scales, "[groups, outputs]", err);
    QW_TRY(hf_matrix_of(hf, p->scales, &scales, err));
    QW_TRY(hf_alloc(hf, &m, 1, sizeof *m, err));
    *m = (int4){.weight = p->weight->data, .zeros = p->zeros->data, .scales = scales.in.data, .scale_type = scales.in.type,
                .n = n, .k = k, .group = group, .zero_offset = q->zero_offset};
    *out = m;
    return QW_OK;
}

/* The order of groups; g_idx that says what is so anyway is dropped. */
static qw_status read_g_idx(const qw_hf *hf, int4 *m, const qw_st_tensor *t, qw_err *err)
{
    bool ordered = true;
    if (t == NULL) return QW_OK;
    if (!qw_st_is(t, "I32") || t->n_dims != 1 || t->shape[0] != m->k) return bad_shape(hf, t, "I32 [inputs]", err);
    for (uint64_t k = 0; k < m->k; k++) {
        uint32_t g = load32(t->data, k);
        if (g >= m->k / m->group)
            return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s': element %llu is no group", hf_path_of(hf, t), t->name,
                           (unsigned long long)k);
        ordered = ordered && g == k / m->group;
    }
    if (!ordered) m->g_idx = t->data;
    return QW_OK;
}

/* Every zero is 8, in the middle: the words of all eight are the same. */
static bool is_symmetric(const int4 *m)
{
    uint32_t want = (uint32_t)(8 - m->zero_offset) * 0x11111111u;
    uint64_t n_words = m->k / m->group * (m->n / NIBBLES);
    for (uint64_t i = 0; i < n_words; i++)
        if (load32(m->zeros, i) != want) return false;
    return true;
}

qw_status hf_matrix_gptq(qw_hf *hf, const hf_quant *q, const hf_quant_parts *p, hf_matrix *out, qw_err *err)
{
    int4 *m;
    if (!qw_st_is(p->weight, "I32") || p->weight->n_dims != 2)
        return bad_shape(hf, p->weight, "I32 [inputs / 8, outputs]", err);
    QW_TRY(new_int4(hf, q, p, p->weight->shape[0] * NIBBLES, p->weight->shape[1], &m, err));
    QW_TRY(read_g_idx(hf, m, p->g_idx, err));
    bool q4_0 = m->scale_type == QW_TYPE_F16 && m->group % 32 == 0 && m->g_idx == NULL && is_symmetric(m);
    m->base.make = q4_0 ? make_gptq_q4_0 : make_gptq;
    *out = (hf_matrix){.in = {.type = q4_0 ? QW_TYPE_Q4_0 : QW_TYPE_F32, .k = m->k, .make = &m->base}, .rows = m->n};
    return QW_OK;
}

qw_status hf_matrix_awq(qw_hf *hf, const hf_quant *q, const hf_quant_parts *p, hf_matrix *out, qw_err *err)
{
    int4 *m;
    if (!qw_st_is(p->weight, "I32") || p->weight->n_dims != 2)
        return bad_shape(hf, p->weight, "I32 [inputs, outputs / 8]", err);
    QW_TRY(new_int4(hf, q, p, p->weight->shape[0], p->weight->shape[1] * NIBBLES, &m, err));
    m->base.make = make_awq;
    *out = (hf_matrix){.in = {.type = QW_TYPE_F32, .k = m->k, .make = &m->base}, .rows = m->n};
    return QW_OK;
}

/* ---- by name ------------------------------------------------------------------------------------ */

static qw_st_tensor *find_part(qw_hf *hf, const char *base, const char *part)
{
    char name[QW_ST_NAME_MAX + 1];
    return snprintf(name, sizeof name, "%s.%s", base, part) < (int)sizeof name ? hf_find(hf, name) : NULL;
}

static qw_status missing_part(const qw_hf *hf, const hf_quant_parts *p, const char *part, qw_err *err)
{
    return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' is there, '%s.%s' is missing", hf_path_of(hf, p->weight), p->weight->name,
                   p->base, part);
}

qw_status hf_matrix_find(qw_hf *hf, const hf_config *c, const char *base, hf_matrix *out, qw_err *err)
{
    hf_quant_parts p = {.base = base, .weight = find_part(hf, base, "weight")};
    if (p.weight != NULL) {
        p.scales = find_part(hf, base, "weight_scale_inv");
        if (qw_st_is(p.weight, "F8_E4M3"))
            return p.scales ? hf_matrix_fp8(hf, &c->quant, &p, out, err) : missing_part(hf, &p, "weight_scale_inv", err);
        if (p.scales == NULL) return hf_matrix_of(hf, p.weight, out, err);
        return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' has a scale but is of type %s, want F8_E4M3", hf_path_of(hf, p.weight),
                       p.weight->name, p.weight->dtype->name);
    }
    p.weight = find_part(hf, base, "qweight");
    if (p.weight == NULL) return QW_E_NOT_FOUND;
    p.zeros = find_part(hf, base, "qzeros");
    p.scales = find_part(hf, base, "scales");
    p.g_idx = find_part(hf, base, "g_idx");
    if (p.zeros == NULL || p.scales == NULL) return missing_part(hf, &p, p.zeros ? "scales" : "qzeros", err);
    if (c->quant.method == HF_QUANT_GPTQ) return hf_matrix_gptq(hf, &c->quant, &p, out, err);
    if (c->quant.method == HF_QUANT_AWQ) return hf_matrix_awq(hf, &c->quant, &p, out, err);
    return qw_fail(err, QW_E_FORMAT,
                   "%s: tensor '%s' is quantised, but config.json has no quantization_config of gptq or awq",
                   hf_path_of(hf, p.weight), p.weight->name);
}
