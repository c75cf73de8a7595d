/* pack.c: packed weight forms: which one a type has, how large a group is, and the packers.
 *
 * Packing is a permutation of the stored bits (pack_layout.h): nothing is requantised, so a packed matrix
 * means exactly what the file says. Plain C that compilers turn into vector code; it runs once per model.
 * Pure functions over caller memory, any thread.
 */
#include <string.h>

#include "base/status.h"
#include "kernels/pack_layout.h"
#include "kernels/ref/grids.h"
#include "kernels/ref/half.h"

enum { BLOCK_MAX = 256 };

/* One row's block taken apart: quants as unsigned bytes in element order, and the scales. */
typedef struct row_block {
    uint8_t q[BLOCK_MAX];
    qw_half d, dmin; /* dmin: the minimum itself where it is no product */
    uint8_t scale[16], min[16], exponent;
} row_block;

static void nibbles(const uint8_t *src, size_t n, uint8_t *lo, uint8_t *hi)
{
    for (size_t i = 0; i < n; i++) {
        lo[i] = src[i] & 15;
        hi[i] = src[i] >> 4;
    }
}

/* ---- one reader per type: block b of a row ------------------------------------------------------ */

static void read_q4_0(const void *row, size_t b, row_block *out)
{
    const qw_block_q4_0 *src = (const qw_block_q4_0 *)row + b;
    out->d = src->d;
    nibbles(src->qs, 16, out->q, out->q + 16);
}

static void read_q4_1(const void *row, size_t b, row_block *out)
{
    const qw_block_q4_1 *src = (const qw_block_q4_1 *)row + b;
    out->d = src->d;
    out->dmin = src->m;
    nibbles(src->qs, 16, out->q, out->q + 16);
}

static void fifth_bits(const uint8_t qh[4], uint8_t q[32])
{
    for (size_t i = 0; i < 4; i++) { /* bit b of a byte of high bits to bit 4 of byte b */
        uint64_t bits = qh[i] * 0x0101010101010101u & 0x8040201008040201u, eight;
        memcpy(&eight, q + 8 * i, sizeof eight);
        eight |= ((bits + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
        memcpy(q + 8 * i, &eight, sizeof eight);
    }
}

static void read_q5_0(const void *row, size_t b, row_block *out)
{
    const qw_block_q5_0 *src = (const qw_block_q5_0 *)row + b;
    out->d = src->d;
    nibbles(src->qs, 16, out->q, out->q + 16);
    fifth_bits(src->qh, out->q);
}

static void read_q5_1(const void *row, size_t b, row_block *out)
{
    const qw_block_q5_1 *src = (const qw_block_q5_1 *)row + b;
    out->d = src->d;
    out->dmin = src->m;
    nibbles(src->qs, 16, out->q, out->q + 16);
    fifth_bits(src->qh, out->q);
}

static void read_iq4_nl(const void *row, size_t b, row_block *out)
{
    const qw_block_iq4_nl *src = (const qw_block_iq4_nl *)row + b;
    out->d = src->d;
    nibbles(src->qs, 16, out->q, out->q + 16);
}

static void read_mxfp4(const void *row, size_t b, row_block *out)
{
    const qw_block_mxfp4 *src = (const qw_block_mxfp4 *)row + b;
    out->exponent = src->e;
    nibbles(src->qs, 16, out->q, out->q + 16);
}

static void read_q8_0(const void *row, size_t b, row_block *out)
{
    const qw_block_q8_0 *src = (const qw_block_q8_0 *)row + b;
    out->d = src->d;
    for (size_t i = 0; i < 32; i++) out->q[i] = (uint8_t)src->qs[i] ^ 0x80;
}

/* 256 fields of 2 bits: of each 32 bytes the lowest pairs are 32 elements, the next pairs the next 32. */
static void pairs(const uint8_t src[64], uint8_t q[256])
{
    for (size_t h = 0; h < 2; h++)
        for (size_t f = 0; f < 4; f++)
            for (size_t i = 0; i < 32; i++) q[h * 128 + f * 32 + i] = (src[h * 32 + i] >> (2 * f)) & 3;
}

static void read_q2_k(const void *row, size_t b, row_block *out)
{
    const qw_block_q2_k *src = (const qw_block_q2_k *)row + b;
    out->d = src->d;
    out->dmin = src->dmin;
    nibbles(src->scales, 16, out->scale, out->min);
    pairs(src->qs, out->q);
}

static void read_q3_k(const void *row, size_t b, row_block *out)
{
    const qw_block_q3_k *src = (const qw_block_q3_k *)row + b;
    out->d = src->d;
    nibbles(src->scales, 8, out->scale, out->scale + 8);
    for (size_t i = 0; i < 16; i++) out->scale[i] |= (uint8_t)((src->scales[8 + i % 4] >> (i / 4 * 2) & 3) << 4);
    pairs(src->qs, out->q);
    for (size_t s = 0; s < 8; s++)
        for (size_t i = 0; i < 32; i++) out->q[s * 32 + i] |= (uint8_t)((src->hmask[i] >> s & 1) << 2);
}

static void read_k_scales(const uint8_t src[12], row_block *out)
{
    for (size_t j = 0; j < 4; j++) {
        out->scale[j] = src[j] & 63;
        out->min[j] = src[j + 4] & 63;
        out->scale[j + 4] = (uint8_t)((src[j + 8] & 15) | (src[j] >> 6 << 4));
        out->min[j + 4] = (uint8_t)(src[j + 8] >> 4 | (src[j + 4] >> 6 << 4));
    }
}

static void read_q4_k(const void *row, size_t b, row_block *out)
{
    const qw_block_q4_k *src = (const qw_block_q4_k *)row + b;
    out->d = src->d;
    out->dmin = src->dmin;
    read_k_scales(src->scales, out);
    for (size_t c = 0; c < 4; c++) nibbles(src->qs + c * 32, 32, out->q + c * 64, out->q + c * 64 + 32);
}

static void read_q5_k(const void *row, size_t b, row_block *out)
{
    const qw_block_q5_k *src = (const qw_block_q5_k *)row + b;
    out->d = src->d;
    out->dmin = src->dmin;
    read_k_scales(src->scales, out);
    for (size_t c = 0; c < 4; c++) nibbles(src->qs + c * 32, 32, out->q + c * 64, out->q + c * 64 + 32);
    for (size_t s = 0; s < 8; s++)
        for (size_t i = 0; i < 32; i++) out->q[s * 32 + i] |= (uint8_t)((src->qh[i] >> s & 1) << 4);
}

static void read_q6_k(const void *row, size_t b, row_block *out)
{
    const qw_block_q6_k *src = (const qw_block_q6_k *)row + b;
    out->d = src->d;
    memcpy(out->scale, src->scales, 16);
    for (size_t h = 0; h < 2; h++) {
        uint8_t *q = out->q + h * 128;
        nibbles(src->ql + h * 64, 64, q, q + 64);
        for (size_t f = 0; f < 4; f++)
            for (size_t i = 0; i < 32; i++)
                q[f * 32 + i] |= (uint8_t)((src->qh[h * 32 + i] >> (2 * f) & 3) << 4);
    }
}

static void read_iq4_xs(const void *row, size_t b, row_block *out)
{
    const qw_block_iq4_xs *src = (const qw_block_iq4_xs *)row + b;
    out->d = src->d;
    for (size_t s = 0; s < 8; s++) {
        int low = src->scales_l[s / 2] >> (s % 2 * 4) & 15, high = src->scales_h >> (2 * s) & 3;
        out->scale[s] = (uint8_t)(low | high << 4);
        nibbles(src->qs + 16 * s, 16, out->q + 32 * s, out->q + 32 * s + 16);
    }
}

/* TQ: d * (q - 1), which is Q2_K's d * q - dmin with all scales and minima 1. */
static void read_ternary(qw_type type, const void *block, row_block *out)
{
    qw_grid_block b;
    qw_grid_of(type)->read(block, &b);
    out->d = out->dmin = b.d;
    memset(out->scale, 1, sizeof out->scale);
    memset(out->min, 1, sizeof out->min);
    for (size_t e = 0; e < 256; e++) out->q[e] = (uint8_t)(b.level[e] + 1);
}

static void read_tq1_0(const void *row, size_t b, row_block *out)
{
    read_ternary(QW_TYPE_TQ1_0, (const qw_block_tq1_0 *)row + b, out);
}

static void read_tq2_0(const void *row, size_t b, row_block *out)
{
    read_ternary(QW_TYPE_TQ2_0, (const qw_block_tq2_0 *)row + b, out);
}

/* ---- writers: 32 elements of 16 rows ------------------------------------------------------------ */

/* Element-major to word-major: words [8][64] of elements [at, at + 32) of the 16 rows. */
static void gather_words(const row_block *rows, size_t at, uint8_t words[QW_WORDS][QW_LINE])
{
    for (size_t r = 0; r < QW_GROUP_ROWS; r++)
        for (size_t j = 0; j < QW_WORDS; j++) memcpy(words[j] + 4 * r, rows[r].q + at + 4 * j, 4);
}

/* Field j of `width` bits of byte i: bits [from, from + width) of word j's byte i. A line holds 8 / width fields. */
static void write_fields(uint8_t words[QW_WORDS][QW_LINE], int from, int width, uint8_t *dst)
{
    memset(dst, 0, (size_t)width * QW_LINE);
    for (int j = 0; j < QW_WORDS; j++)
        for (int i = 0; i < QW_LINE; i++)
            dst[j * width / 8 * QW_LINE + i] |=
                (uint8_t)((words[j][i] >> from & ((1 << width) - 1)) << (j * width % 8));
}

static void write_q2(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst)
{
    write_fields(words, 0, 2, dst);
}

static void write_q3(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst)
{
    write_fields(words, 2, 1, dst);
    write_fields(words, 0, 2, dst + QW_LINE);
}

static void write_nibbles(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst)
{
    for (size_t j = 0; j < QW_NIBBLE_LINES; j++)
        for (size_t i = 0; i < QW_LINE; i++)
            dst[j * QW_LINE + i] = (uint8_t)((words[2 * j][i] & 15) | (words[2 * j + 1][i] & 15) << 4);
}

static void write_q4(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst)
{
    write_nibbles(words, dst);
}

static void write_q5(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst)
{
    write_fields(words, 4, 1, dst);
    write_nibbles(words, dst + QW_LINE);
}

static void write_q6(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst)
{
    write_fields(words, 4, 2, dst);
    write_nibbles(words, dst + 2 * QW_LINE);
}

static void write_q8(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst)
{
    memcpy(dst, words, QW_Q8_BYTES);
}

/* ---- writers: the scales in front of a block ---------------------------------------- */

static void write_q1_head(const row_block *rows, uint8_t *dst)
{
    qw_packed_q1 *head = (qw_packed_q1 *)dst;
    for (size_t r = 0; r < QW_GROUP_ROWS; r++) {
        head->d[r] = rows[r].d;
        head->m[r] = rows[r].dmin;
    }
}

static void write_q2k_head(const row_block *rows, uint8_t *dst)
{
    qw_packed_q2k *head = (qw_packed_q2k *)dst;
    for (size_t r = 0; r < QW_GROUP_ROWS; r++) {
        head->d[r] = rows[r].d;
        head->dmin[r] = rows[r].dmin;
        for (size_t i = 0; i < 16; i++)
            head->scales[i / 4][4 * r + i % 4] = (uint8_t)(rows[r].scale[i] | rows[r].min[i] << 4);
    }
}

static void write_q3k_head(const row_block *rows, uint8_t *dst)
{
    for (size_t r = 0; r < QW_GROUP_ROWS; r++)
        for (size_t i = 0; i < 12; i++)
            dst[i / 4 * QW_LINE + 4 * r + i % 4] =
                (uint8_t)(rows[r].scale[i] | (rows[r].scale[12 + i % 4] >> (i / 4 * 2) & 3) << 6);
}

static void write_iq4xs_head(const row_block *rows, uint8_t *dst)
{
    qw_packed_iq4xs *head = (qw_packed_iq4xs *)dst;
    for (size_t r = 0; r < QW_GROUP_ROWS; r++) {
        head->d[r] = rows[r].d;
        head->scale_high[r] = 0;
        head->scale_low[r] = 0;
        for (size_t s = 0; s < QW_SUBS; s++) {
            head->scale_high[r] |= (uint16_t)(rows[r].scale[s] >> 4 << (2 * s));
            head->scale_low[r] |= (uint32_t)(rows[r].scale[s] & 15) << (4 * s);
        }
    }
}

static void write_kq_head(const row_block *rows, uint8_t *dst)
{
    qw_packed_kq *head = (qw_packed_kq *)dst;
    for (size_t r = 0; r < QW_GROUP_ROWS; r++) {
        head->d[r] = rows[r].d;
        head->dmin[r] = rows[r].dmin;
        for (size_t i = 0; i < 4; i++) {
            uint8_t m = rows[r].min[4 + i];
            head->scales[0][4 * r + i] = (uint8_t)(rows[r].scale[i] | (m & 3) << 6);
            head->scales[1][4 * r + i] = (uint8_t)(rows[r].scale[4 + i] | (m >> 2 & 3) << 6);
            head->scales[2][4 * r + i] = (uint8_t)(rows[r].min[i] | (m >> 4 & 3) << 6);
        }
    }
}

static void write_q6k_head(const row_block *rows, uint8_t *dst)
{
    for (size_t r = 0; r < QW_GROUP_ROWS; r++)
        for (size_t v = 0; v < 4; v++) memcpy(dst + v * QW_LINE + 4 * r, rows[r].scale + 4 * v, 4);
}

/* ---- the forms ---------------------------------------------------------------------------------- */

/* A quantised form. Scales "in front" lie before all blocks, so many bytes a block: halves or exponents. */
typedef struct pack_form {
    const char *name;
    qw_type type;
    qw_act act;
    size_t front_bytes; /* 0: none */
    size_t head_bytes;  /* in a block, before its elements */
    size_t sub_bytes;   /* of 32 elements in it */
    void (*read)(const void *row, size_t b, row_block *out);
    void (*write_head)(const row_block *rows, uint8_t *dst); /* NULL: none */
    void (*write_sub)(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst);
} pack_form;

enum { HALVES = QW_HALF_LINE, EXPONENTS = QW_BYTE_LINE };

static const pack_form forms[QW_PACK_COUNT] = {
    [QW_PACK_NONE] = {.name = "none"},
    [QW_PACK_Q4_0] = {"q4_0", QW_TYPE_Q4_0, QW_ACT_Q8_32, HALVES, 0, QW_Q4_BYTES, read_q4_0, NULL, write_q4},
    [QW_PACK_Q5_0] = {"q5_0", QW_TYPE_Q5_0, QW_ACT_Q8_32, HALVES, 0, QW_Q5_BYTES, read_q5_0, NULL, write_q5},
    [QW_PACK_Q8_0] = {"q8_0", QW_TYPE_Q8_0, QW_ACT_Q8_32, HALVES, 0, QW_Q8_BYTES, read_q8_0, NULL, write_q8},
    [QW_PACK_Q4_1] = {"q4_1", QW_TYPE_Q4_1, QW_ACT_Q8_32, 0, 64, QW_Q4_BYTES, read_q4_1, write_q1_head, write_q4},
    [QW_PACK_Q5_1] = {"q5_1", QW_TYPE_Q5_1, QW_ACT_Q8_32, 0, 64, QW_Q5_BYTES, read_q5_1, write_q1_head, write_q5},
    [QW_PACK_IQ4_NL] = {"iq4_nl", QW_TYPE_IQ4_NL, QW_ACT_Q8_32, HALVES, 0, QW_Q4_BYTES, read_iq4_nl, NULL, write_q4},
    [QW_PACK_MXFP4] = {"mxfp4", QW_TYPE_MXFP4, QW_ACT_Q8_32, EXPONENTS, 0, QW_Q4_BYTES, read_mxfp4, NULL, write_q4},
    [QW_PACK_Q2_K] = {"q2_k", QW_TYPE_Q2_K, QW_ACT_Q8_256, 0, 320, QW_Q2_BYTES, read_q2_k, write_q2k_head, write_q2},
    [QW_PACK_Q3_K] = {"q3_k", QW_TYPE_Q3_K, QW_ACT_Q8_256, HALVES, 192, QW_Q3_BYTES, read_q3_k, write_q3k_head,
                      write_q3},
    [QW_PACK_Q4_K] = {"q4_k", QW_TYPE_Q4_K, QW_ACT_Q8_256, 0, 256, QW_Q4_BYTES, read_q4_k, write_kq_head, write_q4},
    [QW_PACK_Q5_K] = {"q5_k", QW_TYPE_Q5_K, QW_ACT_Q8_256, 0, 256, QW_Q5_BYTES, read_q5_k, write_kq_head, write_q5},
    [QW_PACK_Q6_K] = {"q6_k", QW_TYPE_Q6_K, QW_ACT_Q8_256, HALVES, 256, QW_Q6_BYTES, read_q6_k, write_q6k_head,
                      write_q6},
    [QW_PACK_IQ4_XS] = {"iq4_xs", QW_TYPE_IQ4_XS, QW_ACT_Q8_256, 0, 128, QW_Q4_BYTES, read_iq4_xs, write_iq4xs_head,
                        write_q4},
    [QW_PACK_TQ1_0] = {"tq1_0", QW_TYPE_TQ1_0, QW_ACT_Q8_256, 0, 320, QW_Q2_BYTES, read_tq1_0, write_q2k_head, write_q2},
    [QW_PACK_TQ2_0] = {"tq2_0", QW_TYPE_TQ2_0, QW_ACT_Q8_256, 0, 320, QW_Q2_BYTES, read_tq2_0, write_q2k_head, write_q2},
    [QW_PACK_IQ2_XXS] = {.name = "iq2_xxs", .type = QW_TYPE_IQ2_XXS, .act = QW_ACT_Q8_256},
    [QW_PACK_IQ2_XS] = {.name = "iq2_xs", .type = QW_TYPE_IQ2_XS, .act = QW_ACT_Q8_256},
    [QW_PACK_IQ2_S] = {.name = "iq2_s", .type = QW_TYPE_IQ2_S, .act = QW_ACT_Q8_256},
    [QW_PACK_IQ1_S] = {.name = "iq1_s", .type = QW_TYPE_IQ1_S, .act = QW_ACT_Q8_256},
    [QW_PACK_IQ1_M] = {.name = "iq1_m", .type = QW_TYPE_IQ1_M, .act = QW_ACT_Q8_256},
    [QW_PACK_IQ3_XXS] = {.name = "iq3_xxs", .type = QW_TYPE_IQ3_XXS, .act = QW_ACT_Q8_256},
    [QW_PACK_IQ3_S] = {.name = "iq3_s", .type = QW_TYPE_IQ3_S, .act = QW_ACT_Q8_256},
    [QW_PACK_NVFP4] = {.name = "nvfp4", .type = QW_TYPE_NVFP4, .act = QW_ACT_F32},
    [QW_PACK_F32] = {.name = "f32", .type = QW_TYPE_F32, .act = QW_ACT_F32},
    [QW_PACK_F16] = {.name = "f16", .type = QW_TYPE_F16, .act = QW_ACT_F32},
    [QW_PACK_BF16] = {.name = "bf16", .type = QW_TYPE_BF16, .act = QW_ACT_F32},
};

static const pack_form *form_of(qw_pack pack)
{
    QW_ASSERT(pack > QW_PACK_NONE && pack < QW_PACK_COUNT);
    return &forms[pack];
}

qw_pack qw_pack_of(qw_type type)
{
    for (qw_pack pack = QW_PACK_NONE + 1; pack < QW_PACK_COUNT; pack++)
        if (forms[pack].type == type) return pack;
    return QW_PACK_NONE;
}

qw_act qw_pack_act(qw_pack pack)
{
    return form_of(pack)->act;
}

const char *qw_pack_name(qw_pack pack)
{
    QW_ASSERT(pack >= QW_PACK_NONE && pack < QW_PACK_COUNT);
    return forms[pack].name;
}

static size_t block_n(const pack_form *form)
{
    return qw_type_get(form->type)->block_n;
}

static size_t block_bytes(const pack_form *form)
{
    return form->head_bytes + block_n(form) / 32 * form->sub_bytes;
}

static size_t front_bytes(const pack_form *form, size_t n_blocks)
{
    return (n_blocks * form->front_bytes + QW_LINE - 1) / QW_LINE * QW_LINE;
}

static bool has_book(qw_pack pack)
{
    return pack >= QW_PACK_IQ2_XXS && pack <= QW_PACK_IQ3_S;
}

size_t qw_pack_group_bytes(qw_pack pack, size_t k)
{
    const pack_form *form = form_of(pack);
    if (pack == QW_PACK_NVFP4) return qw_pack_group_bytes(QW_PACK_BF16, k);
    if (has_book(pack)) return qw_book_front(k / 256) + k / 256 * QW_BOOK_BYTES;
    if (form->act == QW_ACT_F32) return qw_float_elements(k) * QW_GROUP_ROWS * qw_type_get(form->type)->block_bytes;
    QW_ASSERT(k % block_n(form) == 0);
    size_t n_blocks = k / block_n(form);
    return front_bytes(form, n_blocks) + n_blocks * block_bytes(form);
}

static void pack_blocks(const pack_form *form, const uint8_t *src, size_t row_bytes, size_t n_rows, size_t k,
                        uint8_t *dst)
{
    size_t n_blocks = k / block_n(form);
    uint8_t *front = dst, *out = dst + front_bytes(form, n_blocks);
    row_block rows[QW_GROUP_ROWS];
    uint8_t words[QW_WORDS][QW_LINE];

    memset(front, 0, (size_t)(out - front));
    memset(rows, 0, sizeof rows);
    for (size_t b = 0; b < n_blocks; b++, front += form->front_bytes) {
        for (size_t r = 0; r < n_rows; r++) form->read(src + r * row_bytes, b, &rows[r]);
        for (size_t r = 0; r < QW_GROUP_ROWS; r++) {
            if (form->front_bytes == HALVES) memcpy(front + 2 * r, &rows[r].d, sizeof rows[r].d);
            if (form->front_bytes == EXPONENTS) front[r] = rows[r].exponent;
        }
        if (form->write_head) form->write_head(rows, out);
        out += form->head_bytes;
        for (size_t s = 0; s < block_n(form) / 32; s++, out += form->sub_bytes) {
            gather_words(rows, s * 32, words);
            form->write_sub(words, out);
        }
    }
}

/* Nibble of each level: its place in the book. */
static void find_codes(const qw_grid *grid, uint8_t code[2 * QW_BOOK_OFFSET])
{
    memset(code, 0, 2 * QW_BOOK_OFFSET);
    for (int i = 15; i >= 0; i--) code[grid->levels[i] + QW_BOOK_OFFSET] = (uint8_t)i;
}

static void pack_book(const pack_form *form, const uint8_t *src, size_t row_bytes, size_t n_rows, size_t k, uint8_t *dst)
{
    const qw_grid *grid = qw_grid_of(form->type);
    const size_t n_blocks = k / 256, stored_bytes = qw_type_get(form->type)->block_bytes;
    float *front = (float *)(void *)(dst + QW_LINE);
    qw_packed_book *out = (qw_packed_book *)(void *)(dst + qw_book_front(n_blocks));
    row_block rows[QW_GROUP_ROWS];
    uint8_t words[QW_WORDS][QW_LINE], code[2 * QW_BOOK_OFFSET];
    qw_grid_block b;

    find_codes(grid, code);
    memset(dst, 0, qw_book_front(n_blocks));
    for (size_t i = 0; i < 16; i++) dst[i] = (uint8_t)(grid->levels[i] + QW_BOOK_OFFSET);
    memset(rows, 0, sizeof rows);
    for (size_t at = 0; at < n_blocks; at++, out++, front += QW_GROUP_ROWS) {
        for (size_t r = 0; r < n_rows; r++) {
            grid->read(src + r * row_bytes + at * stored_bytes, &b);
            front[r] = half_to_f32(b.d) / (float)(1 << grid->shift);
            memcpy(rows[r].scale, b.scale, sizeof b.scale);
            for (size_t e = 0; e < 256; e++) rows[r].q[e] = code[b.level[e] + QW_BOOK_OFFSET];
        }
        write_q6k_head(rows, (uint8_t *)out->scales);
        for (size_t s = 0; s < QW_SUBS; s++) {
            gather_words(rows, s * 32, words);
            write_nibbles(words, out->quants[s]);
        }
    }
}

/* Moves units (an element, or a pair of them) of `bytes` bytes to where row r's unit j lies: at (16 j + r) * bytes. */
static void interleave(const uint8_t *src, size_t row_bytes, size_t n_rows, size_t n_units, size_t bytes, uint8_t *dst)
{
    for (size_t j = 0; j < n_units; j++)
        for (size_t r = 0; r < n_rows; r++)
            memcpy(dst + (QW_GROUP_ROWS * j + r) * bytes, src + r * row_bytes + j * bytes, bytes);
}

static void pack_floats(qw_pack pack, const uint8_t *src, size_t row_bytes, size_t n_rows, size_t k, uint8_t *dst)
{
    if (n_rows < QW_GROUP_ROWS || k % 2 != 0) memset(dst, 0, qw_pack_group_bytes(pack, k));
    switch (pack) {
    case QW_PACK_F32: interleave(src, row_bytes, n_rows, k, 4, dst); break;
    case QW_PACK_F16: interleave(src, row_bytes, n_rows, k, 2, dst); break;
    default:
        interleave(src, row_bytes, n_rows, k / 2, 4, dst);
        if (k % 2 != 0)
            for (size_t r = 0; r < n_rows; r++)
                memcpy(dst + (k / 2 * QW_GROUP_ROWS + r) * 4, src + r * row_bytes + 2 * (k - 1), 2);
    }
}

/* A product of 8-bit float scale and 4-bit float has at most 6 bits: as BF16 it is the same number. */
static void pack_nvfp4(const uint8_t *src, size_t row_bytes, size_t n_rows, size_t k, uint8_t *dst)
{
    float x[64];
    uint16_t *to = (uint16_t *)(void *)dst;
    if (n_rows < QW_GROUP_ROWS) memset(dst, 0, qw_pack_group_bytes(QW_PACK_BF16, k));
    for (size_t r = 0; r < n_rows; r++)
        for (size_t at = 0; at < k; at += 64) {
            qw_dequantize_row(QW_TYPE_NVFP4, src + r * row_bytes + at / 64 * sizeof(qw_block_nvfp4), x, 64);
            for (size_t e = 0; e < 64; e++)
                to[((at + e) / 2 * QW_GROUP_ROWS + r) * 2 + e % 2] = bf16_from_f32(x[e]);
        }
}

void qw_pack_group(qw_pack pack, const void *src, size_t row_bytes, size_t n_rows, size_t k, void *dst)
{
    const pack_form *form = form_of(pack);
    QW_ASSERT(k % block_n(form) == 0 && n_rows >= 1 && n_rows <= QW_GROUP_ROWS);
    if (pack == QW_PACK_NVFP4)
        pack_nvfp4(src, row_bytes, n_rows, k, dst);
    else if (has_book(pack))
        pack_book(form, src, row_bytes, n_rows, k, dst);
    else if (form->act == QW_ACT_F32)
        pack_floats(pack, src, row_bytes, n_rows, k, dst);
    else
        pack_blocks(form, src, row_bytes, n_rows, k, dst);
}
