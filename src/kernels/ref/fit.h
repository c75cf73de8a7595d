/* fit.h: chooses the scales of one quantised block by search. Private to the quantiser.
 *
 * Every block format but MXFP4 says: x = scale * level - minimum, where a block is cut into sub-blocks,
 * scale = d * s and minimum = dmin * m with small integers s, m of the sub-block, and d, dmin are halves
 * of the block. A fit_shape is that sentence for one format; fit_block() finds d, dmin, s, m and the
 * levels with a small squared error. Deterministic: no randomness, one order of operations.
 */
#ifndef QW_KERNELS_REF_FIT_H
#define QW_KERNELS_REF_FIT_H

#include <stdint.h>

enum { FIT_SUBS_MAX = 16, FIT_SUB_MAX = 32, FIT_BLOCK_MAX = 256 };

typedef struct fit_shape {
    uint8_t n_subs, sub_n;    /* sub-blocks, elements of one */
    int16_t q_lo, q_hi;       /* levels, or codes when there is a codebook */
    int16_t s_lo, s_hi;       /* integer scales; 1, 1: the block has d alone */
    int16_t m_lo, m_hi;       /* integer minima; 0, 0: none; 1, 1: dmin alone, of either sign */
    const int8_t *codebook;   /* 16 levels, ascending; NULL: the code is the level */
    float spread_lo;          /* smallest range tried, as a part of the block's own range */
} fit_shape;

typedef struct fit_result {
    uint16_t d, dmin;         /* binary16 bits, always finite */
    int16_t s[FIT_SUBS_MAX], m[FIT_SUBS_MAX];
    int16_t q[FIT_BLOCK_MAX]; /* code of each element */
} fit_result;

/* x, w [n_subs * sub_n]: elements and their weights in the error, none negative. */
void qw_fit_block(const fit_shape *shape, const float *x, const float *w, fit_result *out);

#endif
