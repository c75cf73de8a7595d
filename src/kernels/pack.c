/* pack.c: packed weight forms: which type has one, how large a group is, and the packers.
 *
 * Packing is a permutation of the stored bits (pack_layout.h): nothing is requantised, so a packed matrix
 * means exactly what the file says. Plain C that compilers turn into vector code; it runs once per model.
 * Pure functions over caller memory, any thread.
 */
#include <string.h>

#include "base/status.h"
#include "kernels/pack_layout.h"

enum { BLOCK_MAX = 256 };

/* One row's block taken apart: quants as unsigned bytes in element order, and the scales. */
typedef struct row_block {
    uint8_t q[BLOCK_MAX];
    qw_half d, dmin;
    uint8_t scale[16], min[8];
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

static void read_q5_0(const void *row, size_t b, row_block *out)
{
    const qw_block_q5_0 *src = (const qw_block_q5_0 *)row + b;
    out->d = src->d;
    nibbles(src->qs, 16, out->q, out->q + 16);
    for (size_t i = 0; i < 4; i++) { /* bit b of a byte of high bits to bit 4 of byte b */
        uint64_t bits = src->qh[i] * 0x0101010101010101u & 0x8040201008040201u, q;
        memcpy(&q, out->q + 8 * i, sizeof q);
        q |= ((bits + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u) >> 3;
        memcpy(out->q + 8 * i, &q, sizeof q);
    }
}

static void read_q8_0(const void *row, size_t b, row_block *out)
{
    const qw_block_q8_0 *src = (const qw_block_q8_0 *)row + b;
    out->d = src->d;
    for (size_t i = 0; i < 32; i++) out->q[i] = (uint8_t)src->qs[i] ^ 0x80;
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

/* ---- writers: 32 elements of 16 rows ------------------------------------------------------------ */

/* Element-major to word-major: words [8][64] of elements [at, at + 32) of the 16 rows. */
static void gather_words(const row_block *rows, size_t at, uint8_t words[QW_WORDS][QW_LINE])
{
    for (size_t r = 0; r < QW_GROUP_ROWS; r++)
        for (size_t j = 0; j < QW_WORDS; j++) memcpy(words[j] + 4 * r, rows[r].q + at + 4 * j, 4);
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
    memset(dst, 0, QW_LINE);
    for (size_t j = 0; j < QW_WORDS; j++)
        for (size_t i = 0; i < QW_LINE; i++) dst[i] |= (uint8_t)((words[j][i] >> 4 & 1) << j);
    write_nibbles(words, dst + QW_LINE);
}

static void write_q6(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst)
{
    memset(dst, 0, 2 * QW_LINE);
    for (size_t j = 0; j < QW_WORDS; j++)
        for (size_t i = 0; i < QW_LINE; i++)
            dst[j / 4 * QW_LINE + i] |= (uint8_t)((words[j][i] >> 4 & 3) << (2 * (j % 4)));
    write_nibbles(words, dst + 2 * QW_LINE);
}

static void write_q8(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst)
{
    memcpy(dst, words, QW_Q8_BYTES);
}

/* ---- writers: the integer scales in front of a 256-block ---------------------------------------- */

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

typedef struct pack_form {
    const char *name;
    qw_act act;
    size_t block_n;
    size_t block_bytes;                                             /* of 16 source rows' block, packed */
    size_t sub_bytes;                                               /* of 32 elements in it */
    size_t head_bytes;                                              /* before them */
    int scales_first;                                               /* half scales lie before all blocks */
    void (*read)(const void *row, size_t b, row_block *out);
    void (*write_head)(const row_block *rows, uint8_t *dst);        /* NULL: none */
    void (*write_sub)(uint8_t words[QW_WORDS][QW_LINE], uint8_t *dst);
} pack_form;

static const pack_form forms[QW_PACK_COUNT] = {
    [QW_PACK_NONE] = {.name = "none"},
    [QW_PACK_Q4_0] = {"q4_0", QW_ACT_Q8_32, 32, QW_Q4_BYTES, QW_Q4_BYTES, 0, 1, read_q4_0, NULL, write_q4},
    [QW_PACK_Q5_0] = {"q5_0", QW_ACT_Q8_32, 32, QW_Q5_BYTES, QW_Q5_BYTES, 0, 1, read_q5_0, NULL, write_q5},
    [QW_PACK_Q8_0] = {"q8_0", QW_ACT_Q8_32, 32, QW_Q8_BYTES, QW_Q8_BYTES, 0, 1, read_q8_0, NULL, write_q8},
    [QW_PACK_Q4_K] = {"q4_k", QW_ACT_Q8_256, 256, QW_Q4K_BYTES, QW_Q4_BYTES, 256, 0, read_q4_k, write_kq_head,
                      write_q4},
    [QW_PACK_Q5_K] = {"q5_k", QW_ACT_Q8_256, 256, QW_Q5K_BYTES, QW_Q5_BYTES, 256, 0, read_q5_k, write_kq_head,
                      write_q5},
    [QW_PACK_Q6_K] = {"q6_k", QW_ACT_Q8_256, 256, QW_Q6K_BYTES, QW_Q6_BYTES, 256, 1, read_q6_k,
                      write_q6k_head, write_q6},
};

static const pack_form *form_of(qw_pack pack)
{
    QW_ASSERT(pack > QW_PACK_NONE && pack < QW_PACK_COUNT);
    return &forms[pack];
}

qw_pack qw_pack_of(qw_type type)
{
    switch (type) {
    case QW_TYPE_Q4_0: return QW_PACK_Q4_0;
    case QW_TYPE_Q5_0: return QW_PACK_Q5_0;
    case QW_TYPE_Q8_0: return QW_PACK_Q8_0;
    case QW_TYPE_Q4_K: return QW_PACK_Q4_K;
    case QW_TYPE_Q5_K: return QW_PACK_Q5_K;
    case QW_TYPE_Q6_K: return QW_PACK_Q6_K;
    default: return QW_PACK_NONE;
    }
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

static size_t scales_bytes(const pack_form *form, size_t n_blocks)
{
    return form->scales_first ? qw_scales_bytes(n_blocks) : 0;
}

size_t qw_pack_group_bytes(qw_pack pack, size_t k)
{
    const pack_form *form = form_of(pack);
    QW_ASSERT(k % form->block_n == 0);
    size_t n_blocks = k / form->block_n;
    return scales_bytes(form, n_blocks) + n_blocks * form->block_bytes;
}

void qw_pack_group(qw_pack pack, const void *src, size_t row_bytes, size_t n_rows, size_t k, void *dst)
{
    const pack_form *form = form_of(pack);
    QW_ASSERT(k % form->block_n == 0 && n_rows >= 1 && n_rows <= QW_GROUP_ROWS);
    size_t n_blocks = k / form->block_n;
    uint8_t *scales = dst, *out = (uint8_t *)dst + scales_bytes(form, n_blocks);
    row_block rows[QW_GROUP_ROWS];
    uint8_t words[QW_WORDS][QW_LINE];

    memset(scales, 0, (size_t)(out - scales));
    memset(rows, 0, sizeof rows);
    for (size_t b = 0; b < n_blocks; b++, out += form->block_bytes) {
        for (size_t r = 0; r < n_rows; r++) form->read((const uint8_t *)src + r * row_bytes, b, &rows[r]);
        if (form->scales_first)
            for (size_t r = 0; r < QW_GROUP_ROWS; r++)
                memcpy(scales + b * QW_HALF_LINE + 2 * r, &rows[r].d, sizeof rows[r].d);
        if (form->write_head) form->write_head(rows, out);
        for (size_t s = 0; s < form->block_n / 32; s++) {
            gather_words(rows, s * 32, words);
            form->write_sub(words, out + form->head_bytes + s * form->sub_bytes);
        }
    }
}

static const size_t act_group[QW_ACT_COUNT] = {[QW_ACT_Q8_32] = 32, [QW_ACT_Q8_256] = 256};
static const size_t act_size[QW_ACT_COUNT] = {
    [QW_ACT_Q8_32] = sizeof(qw_act32),
    [QW_ACT_Q8_256] = sizeof(qw_act256),
};

size_t qw_act_bytes(qw_act act, size_t k)
{
    QW_ASSERT(act < QW_ACT_COUNT && k % act_group[act] == 0);
    return (k / act_group[act] * act_size[act] + QW_LINE - 1) / QW_LINE * QW_LINE;
}

static void residual(const float *x, const int8_t *q, float d, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        float kept = d * (float)q[i];
        out[i] = x[i] - kept;
    }
}

void qw_act_residual(qw_act act, const float *x, size_t k, const void *record, float *out)
{
    if (act == QW_ACT_Q8_32) {
        const qw_act32 *r = record;
        for (size_t i = 0; i < k; i += 32, r++) residual(x + i, r->q, r->d, 32, out + i);
    } else {
        const qw_act256 *r = record;
        for (size_t i = 0; i < k; i += 256, r++) residual(x + i, r->q, r->d, 256, out + i);
    }
}
