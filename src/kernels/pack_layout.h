/* pack_layout.h: the bytes of packed weight groups and of quantised activations. Private to src/kernels.
 *
 * One layout for all levels, little-endian; docs/kernels.md draws it. A group is 16 rows. Quants come in
 * "words": word j of 32 elements is 64 bytes that hold, for rows 0..15 in order, elements 4j..4j+3. A
 * byte pair of words 2j (low nibble) and 2j+1 (high nibble) makes one 64-byte nibble line. Floats come row
 * by row for each element, bfloat16 in pairs of elements.
 */
#ifndef QW_KERNELS_PACK_LAYOUT_H
#define QW_KERNELS_PACK_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

enum {
    QW_LINE = 64,           /* bytes of a word, and of a cache line */
    QW_WORDS = 8,           /* words of 32 elements */
    QW_NIBBLE_LINES = 4,    /* nibble lines of 32 elements */
    QW_HALF_LINE = 32,      /* 16 halves: one float scale per row */
    QW_BYTE_LINE = 16,      /* 16 bytes: one exponent per row */
    QW_Q2_BYTES = 2 * 64,   /* 32 elements of 16 rows: two lines of 2-bit fields (2j: word j, word 4 + j) */
    QW_Q3_BYTES = 3 * 64,   /* one line of high bits (bit j: word j), then 2-bit fields */
    QW_Q4_BYTES = 4 * 64,   /* nibbles */
    QW_Q5_BYTES = 5 * 64,   /* one line of high bits (bit j: word j), then nibbles */
    QW_Q6_BYTES = 6 * 64,   /* two lines of 2-bit fields (2j: word j, word 4 + j), then nibbles */
    QW_Q8_BYTES = 8 * 64,   /* bytes, w + 128 */
    QW_SUBS = 8             /* 32s of a 256-block */
};

/* Q4_0, Q5_0, Q8_0, IQ4_NL, Q3_K and Q6_K groups: the rows' half scales of all blocks first (n_blocks x 16 halves,
 * padded to a line), then the blocks. */
static inline size_t qw_scales_bytes(size_t n_blocks)
{
    return (n_blocks * QW_HALF_LINE + QW_LINE - 1) / QW_LINE * QW_LINE;
}

/* MXFP4 groups: the same with the rows' exponents, n_blocks x 16 bytes. */
static inline size_t qw_exponents_bytes(size_t n_blocks)
{
    return (n_blocks * QW_BYTE_LINE + QW_LINE - 1) / QW_LINE * QW_LINE;
}

/* Elements of k that a group of floats holds: k, made even by a zero. */
static inline size_t qw_float_elements(size_t k)
{
    return (k + 1) / 2 * 2;
}

/* Q4_1 and Q5_1: a block has its scale and minimum in front. */
typedef struct qw_packed_q1 {
    qw_half d[QW_GROUP_ROWS], m[QW_GROUP_ROWS];
    uint8_t quants[]; /* QW_Q4_BYTES or QW_Q5_BYTES */
} qw_packed_q1;

/* Q4_K and Q5_K: blocks with everything inside. The 6-bit integers: byte 4r + i of line v holds for row r
 *   line 0: scale of sub-block i    | low 2 bits of the minimum of sub-block 4 + i, at bits 6-7
 *   line 1: scale of sub-block 4 + i | middle 2 bits
 *   line 2: minimum of sub-block i  | high 2 bits */
typedef struct qw_packed_kq {
    qw_half d[QW_GROUP_ROWS], dmin[QW_GROUP_ROWS];
    uint8_t scales[3][QW_LINE];
    uint8_t quants[]; /* 8 x QW_Q4_BYTES or QW_Q5_BYTES */
} qw_packed_kq;

/* Q6_K: byte 4r + i of line v holds the scale of row r for the 16 elements 4v + i. */
typedef struct qw_packed_q6k {
    int8_t scales[4][QW_LINE];
    uint8_t quants[QW_SUBS][QW_Q6_BYTES];
} qw_packed_q6k;

/* Q2_K: byte 4r + i of line v holds for row r and the 16 elements 4v + i the scale (low nibble) and the minimum. */
typedef struct qw_packed_q2k {
    qw_half d[QW_GROUP_ROWS], dmin[QW_GROUP_ROWS];
    uint8_t scales[4][QW_LINE];
    uint8_t quants[QW_SUBS][QW_Q2_BYTES];
} qw_packed_q2k;

/* Q3_K: byte 4r + i of line v holds for row r, in bits 0-5, the scale + 32 of the 16 elements 4v + i, and in bits 6-7
 * bits 2v and 2v + 1 of that of the 16 elements 12 + i. */
typedef struct qw_packed_q3k {
    uint8_t scales[3][QW_LINE];
    uint8_t quants[QW_SUBS][QW_Q3_BYTES];
} qw_packed_q3k;

/* IQ4_XS: scale + 32 of row r and sub-block s: bits 4s.. of scale_low[r] (4 bits), bits 2s.. of scale_high[r] (2). */
typedef struct qw_packed_iq4xs {
    qw_half d[QW_GROUP_ROWS];
    uint16_t scale_high[QW_GROUP_ROWS];
    uint32_t scale_low[QW_GROUP_ROWS];
    uint8_t quants[QW_SUBS][QW_Q4_BYTES];
} qw_packed_iq4xs;

/* "Book": IQ1, IQ2 and IQ3 types. A group begins with its book, a line whose first 16 bytes are what nibbles stand for,
 * level + 64; then the rows' float scales of all blocks (n_blocks lines), then the blocks. Byte 4r + i of line v holds the
 * scale of row r for the 16 elements 4v + i. The scale in front is the stored half, divided by the type's power of two. */
typedef struct qw_packed_book {
    int8_t scales[4][QW_LINE];
    uint8_t quants[QW_SUBS][QW_Q4_BYTES];
} qw_packed_book;

enum {
    QW_BOOK_OFFSET = 64,    /* of a level in the book */
    QW_BOOK_LEVEL_MOST = 62 /* magnitude of a level */
};

static inline size_t qw_book_front(size_t n_blocks)
{
    return (1 + n_blocks) * QW_LINE;
}

enum {
    QW_Q4K_BYTES = 256 + QW_SUBS * QW_Q4_BYTES, /* 2304: 4.5 bits a weight */
    QW_Q5K_BYTES = 256 + QW_SUBS * QW_Q5_BYTES, /* 2816: 5.5 */
    QW_Q6K_BYTES = 256 + QW_SUBS * QW_Q6_BYTES, /* 3328, and 32 of scales in front: 6.5625 */
    QW_Q41_BYTES = 64 + QW_Q4_BYTES,            /* 320: 5 */
    QW_Q51_BYTES = 64 + QW_Q5_BYTES,            /* 384: 6 */
    QW_Q2K_BYTES = 320 + QW_SUBS * QW_Q2_BYTES, /* 1344: 2.625 */
    QW_Q3K_BYTES = 192 + QW_SUBS * QW_Q3_BYTES, /* 1728, and 32 of scales in front: 3.4375 */
    QW_IQ4XS_BYTES = 128 + QW_SUBS * QW_Q4_BYTES, /* 2176: 4.25 */
    QW_BOOK_BYTES = 256 + QW_SUBS * QW_Q4_BYTES  /* 2304, and 64 of scales in front: 4.625 */
};
_Static_assert(sizeof(qw_packed_book) == QW_BOOK_BYTES, "packed in the struct's order");
_Static_assert(sizeof(qw_packed_kq) == 256, "packed in the struct's order");
_Static_assert(sizeof(qw_packed_q6k) == QW_Q6K_BYTES, "packed in the struct's order");
_Static_assert(sizeof(qw_packed_q1) == 64, "packed in the struct's order");
_Static_assert(sizeof(qw_packed_q2k) == QW_Q2K_BYTES, "packed in the struct's order");
_Static_assert(sizeof(qw_packed_q3k) == QW_Q3K_BYTES, "packed in the struct's order");
_Static_assert(sizeof(qw_packed_iq4xs) == QW_IQ4XS_BYTES, "packed in the struct's order");

/* What a nibble of the uneven forms stands for, made unsigned: IQ4_NL and IQ4_XS store level + 128, MXFP4 (whose levels
 * are doubled) level + 16. */
enum { QW_BOOK_IQ4_SHIFT = 7, QW_BOOK_MXFP4_SHIFT = 4 }; /* the offset as a power of two */
static const uint8_t qw_book_iq4[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
static const uint8_t qw_book_mxfp4[16] = {16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4};

/* Activations. Besides the quants a record holds their sums as the kernels want them: an unsigned weight
 * w + o needs -o * sum of activations as the start of its integer sum. "Lane" sums are those of elements
 * 4i, 4i+1 ([0]) and 4i+2, 4i+3 ([1]), for kernels that sum in 16-bit lanes. */
typedef struct qw_act32 {
    int8_t q[32];
    float d;
    int32_t neg_sum;     /* -sum(q) */
    int16_t neg_lane[2]; /* the same by lane: |.| <= 2032 */
    float d_sum;         /* d * (float)sum(q): what a minimum is multiplied with */
} qw_act32;

typedef struct qw_act256 {
    int8_t q[256];
    int32_t neg_sum16[16];     /* -32 * sum of 16 elements */
    int16_t neg_lane16[16][2]; /* the same by lane: |.| <= 32512 */
    int16_t sum32[4][2];       /* sums of 32 elements in the order (0,2) (1,3) (4,6) (5,7): how the packed
                                  minima come apart into 16-bit pairs */
    float d;
    int16_t sum16[8][2];       /* sums of 16 elements in the order (0,2) (1,3) (4,6) (5,7) (8,10) ... */
    int16_t most16;            /* the largest sum of magnitudes of 16 elements */
    int16_t most32;            /* of 32 elements, the largest sum of positive ones, or of negative ones' magnitudes */
    uint8_t pad[8];            /* to whole lines; zero */
} qw_act256;

_Static_assert(sizeof(qw_act32) == 48, "records are arrays of this");
_Static_assert(sizeof(qw_act256) == 448, "records are arrays of this");

/* Sub-block of each entry of sum32, and of entry i of sum16, in memory order. */
static const uint8_t qw_sum32_order[QW_SUBS] = {0, 2, 1, 3, 4, 6, 5, 7};
static inline size_t qw_sum16_order(size_t i)
{
    return i / 8 * 8 + qw_sum32_order[i % 8];
}

/* Quantisation of a group of activations: amax below this makes the group zero, so that 127 / amax stays
 * finite. Non-finite inputs: NaN counts as 0, infinities as +-FLT_MAX. */
#define QW_ACT_AMAX_MIN 0x1p-120f

#endif
