/* grids.c: see grids.h; the layouts are in docs/blocks.md. Pure functions, any thread. */
#include "kernels/ref/grids.h"

#include <string.h>

#include "kernels/ref/grid_books.h"

/* ---- pieces ------------------------------------------------------------------------------------- */

static const int8_t LEVELS_IQ2[4] = {8, 25, 43, 0}, LEVELS_IQ1[4] = {-1, 0, 1, 0};
static const int8_t LEVELS_IQ3_XXS[8] = {4, 12, 20, 28, 36, 44, 52, 62}, LEVELS_IQ3_S[8] = {1, 3, 5, 7, 9, 11, 13, 15};

static void put_8(uint16_t entry, const int8_t levels[4], int8_t out[8])
{
    for (int i = 0; i < 8; i++) out[i] = levels[entry >> (2 * i) & 3];
}

static void put_4(uint16_t entry, const int8_t levels[8], int8_t out[4])
{
    for (int i = 0; i < 4; i++) out[i] = levels[entry >> (3 * i) & 7];
}

static void negate(uint8_t signs, int8_t x[8])
{
    for (int i = 0; i < 8; i++)
        if (signs >> i & 1) x[i] = (int8_t)-x[i];
}

/* Seven signs are stored; the eighth makes their number even. */
static uint8_t even_signs(uint32_t seven)
{
    return (uint8_t)((seven & 127) | (uint32_t)__builtin_parity(seven & 127) << 7);
}

static uint8_t odd(uint32_t scale)
{
    return (uint8_t)(2 * scale + 1);
}

static uint32_t u32_at(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* ---- one reader a type -------------------------------------------------------------------------- */

/* For 32 elements: four indices, then four times seven signs and the scale in 32 bits. */
static void read_iq2_xxs(const void *block, qw_grid_block *out)
{
    const qw_block_iq2_xxs *b = block;
    out->d = b->d;
    for (int s = 0; s < 8; s++) {
        const uint8_t *at = b->qs + 8 * s;
        uint32_t rest = u32_at(at + 4);
        out->scale[2 * s] = out->scale[2 * s + 1] = odd(rest >> 28);
        for (int i = 0; i < 4; i++) {
            put_8(BOOK_IQ2_XXS[at[i]], LEVELS_IQ2, out->level + 32 * s + 8 * i);
            negate(even_signs(rest >> (7 * i)), out->level + 32 * s + 8 * i);
        }
    }
}

static void read_iq2_xs(const void *block, qw_grid_block *out)
{
    const qw_block_iq2_xs *b = block;
    out->d = b->d;
    for (int i = 0; i < 16; i++) out->scale[i] = odd(b->scales[i / 2] >> (4 * (i & 1)) & 15);
    for (int i = 0; i < 32; i++) {
        put_8(BOOK_IQ2_XS[b->qs[i] & 511], LEVELS_IQ2, out->level + 8 * i);
        negate(even_signs(b->qs[i] >> 9), out->level + 8 * i);
    }
}

static void read_iq2_s(const void *block, qw_grid_block *out)
{
    const qw_block_iq2_s *b = block;
    out->d = b->d;
    for (int i = 0; i < 16; i++) out->scale[i] = odd(b->scales[i / 2] >> (4 * (i & 1)) & 15);
    for (int i = 0; i < 32; i++) {
        int high = b->qh[i / 4] >> (2 * (i & 3)) & 3;
        put_8(BOOK_IQ2_S[b->qs[i] | high << 8], LEVELS_IQ2, out->level + 8 * i);
        negate(b->signs[i], out->level + 8 * i);
    }
}

static void read_iq3_xxs(const void *block, qw_grid_block *out)
{
    const qw_block_iq3_xxs *b = block;
    out->d = b->d;
    for (int i = 0; i < 64; i++) put_4(BOOK_IQ3_XXS[b->qs[i]], LEVELS_IQ3_XXS, out->level + 4 * i);
    for (int s = 0; s < 8; s++) {
        uint32_t rest = u32_at(b->signs + 4 * s);
        out->scale[2 * s] = out->scale[2 * s + 1] = odd(rest >> 28);
        for (int i = 0; i < 4; i++) negate(even_signs(rest >> (7 * i)), out->level + 32 * s + 8 * i);
    }
}

static void read_iq3_s(const void *block, qw_grid_block *out)
{
    const qw_block_iq3_s *b = block;
    out->d = b->d;
    for (int s = 0; s < 8; s++)
        out->scale[2 * s] = out->scale[2 * s + 1] = odd(b->scales[s / 2] >> (4 * (s & 1)) & 15);
    for (int i = 0; i < 64; i++) {
        int high = b->qh[i / 8] >> (i & 7) & 1;
        put_4(BOOK_IQ3_S[b->qs[i] | high << 8], LEVELS_IQ3_S, out->level + 4 * i);
    }
    for (int i = 0; i < 32; i++) negate(b->signs[i], out->level + 8 * i);
}

/* -1, 0, 1 with an eighth added or taken off, in eighths. */
static void put_iq1(uint32_t index, bool minus, int8_t out[8])
{
    put_8(BOOK_IQ1[index], LEVELS_IQ1, out);
    for (int i = 0; i < 8; i++) out[i] = (int8_t)(8 * out[i] + (minus ? -1 : 1));
}

/* 16 bits for 32 elements: upper three bits of four indices, the scale, the sign of the eighth. */
static void read_iq1_s(const void *block, qw_grid_block *out)
{
    const qw_block_iq1_s *b = block;
    out->d = b->d;
    for (int s = 0; s < 8; s++) {
        uint32_t qh = b->qh[s];
        out->scale[2 * s] = out->scale[2 * s + 1] = odd(qh >> 12 & 7);
        for (int i = 0; i < 4; i++)
            put_iq1(b->qs[4 * s + i] | (qh >> (3 * i) & 7) << 8, qh >> 15, out->level + 32 * s + 8 * i);
    }
}

/* 4 bits for 8 elements: upper three bits of the index, the sign of the eighth. The half is in the upper four bits of
 * the four words of scales, the lowest first. */
static void read_iq1_m(const void *block, qw_grid_block *out)
{
    const qw_block_iq1_m *b = block;
    unsigned d = 0;
    for (int i = 0; i < 4; i++) d |= (unsigned)(b->scales[i] >> 12) << (4 * i);
    out->d = (qw_half)d;
    for (int i = 0; i < 16; i++) out->scale[i] = odd((unsigned)b->scales[i / 4] >> (3 * (i & 3)) & 7u);
    for (int i = 0; i < 32; i++) {
        uint32_t high = (uint32_t)b->qh[i / 2] >> (4 * (i & 1));
        put_iq1(b->qs[i] | (high & 7) << 8, high >> 3 & 1, out->level + 8 * i);
    }
}

/* The first of the ternary digits in a byte, after i of them: a byte is a fraction of 256, so times 3 the digit comes out
 * on top. */
static int8_t digit(uint8_t byte, int i)
{
    static const uint8_t POWERS[5] = {1, 3, 9, 27, 81};
    return (int8_t)(((uint8_t)(byte * POWERS[i]) * 3 >> 8) - 1);
}

static void read_tq1_0(const void *block, qw_grid_block *out)
{
    const qw_block_tq1_0 *b = block;
    int8_t *to = out->level;
    out->d = b->d;
    memset(out->scale, 1, sizeof out->scale);
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 32; j++) *to++ = digit(b->qs[j], i);
    for (int i = 0; i < 5; i++)
        for (int j = 32; j < 48; j++) *to++ = digit(b->qs[j], i);
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) *to++ = digit(b->qh[j], i);
}

static void read_tq2_0(const void *block, qw_grid_block *out)
{
    const qw_block_tq2_0 *b = block;
    out->d = b->d;
    memset(out->scale, 1, sizeof out->scale);
    for (int e = 0; e < 256; e++)
        out->level[e] = (int8_t)((b->qs[(e >> 7) * 32 + (e & 31)] >> (2 * (e >> 5 & 3)) & 3) - 1);
}

/* ---- the types ---------------------------------------------------------------------------------- */

#define SIX(a, b, c, d, e, f) {a, b, c, d, e, f, f, f, f, f, f, f, f, f, f, f}
#define IQ2 SIX(-43, -25, -8, 8, 25, 43)
#define IQ1 SIX(-9, -7, -1, 1, 7, 9)
#define TQ SIX(-1, 0, 1, 2, 2, 2)

static const qw_grid GRIDS[] = {
    {read_iq2_xxs, 3, IQ2},
    {read_iq2_xs, 3, IQ2},
    {read_iq2_s, 3, IQ2},
    {read_iq3_xxs, 2, {-62, -52, -44, -36, -28, -20, -12, -4, 4, 12, 20, 28, 36, 44, 52, 62}},
    {read_iq3_s, 0, {-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15}},
    {read_iq1_s, 3, IQ1},
    {read_iq1_m, 3, IQ1},
    {read_tq1_0, 0, TQ},
    {read_tq2_0, 0, TQ},
};

const qw_grid *qw_grid_of(qw_type type)
{
    switch (type) {
    case QW_TYPE_IQ2_XXS: return &GRIDS[0];
    case QW_TYPE_IQ2_XS: return &GRIDS[1];
    case QW_TYPE_IQ2_S: return &GRIDS[2];
    case QW_TYPE_IQ3_XXS: return &GRIDS[3];
    case QW_TYPE_IQ3_S: return &GRIDS[4];
    case QW_TYPE_IQ1_S: return &GRIDS[5];
    case QW_TYPE_IQ1_M: return &GRIDS[6];
    case QW_TYPE_TQ1_0: return &GRIDS[7];
    case QW_TYPE_TQ2_0: return &GRIDS[8];
    default: return NULL;
    }
}
