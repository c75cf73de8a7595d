/* grids.h: blocks of the IQ1, IQ2, IQ3 and TQ formats taken apart. Private to src/kernels.
 *
 * They store indices into code books, signs apart; what they mean is one formula:
 *     value = d * scale * level / 2^shift,   level a small integer, scale a small odd integer for 16 elements
 * with at most 22 bits from d's first to the last of the product, so every value is exact in float32. Readers for the
 * reference and the packer are the same.
 */
#ifndef QW_KERNELS_REF_GRIDS_H
#define QW_KERNELS_REF_GRIDS_H

#include "kernels/blocks.h"

typedef struct qw_grid_block {
    qw_half d;
    int8_t level[256]; /* at most 62 in magnitude */
    uint8_t scale[16]; /* at most 31 */
} qw_grid_block;

typedef struct qw_grid {
    void (*read)(const void *block, qw_grid_block *out);
    uint8_t shift;
    int8_t levels[16]; /* all levels there are, ascending; what is left is the last one again */
} qw_grid;

/* NULL when the type is none of them. */
const qw_grid *qw_grid_of(qw_type type);

#endif
