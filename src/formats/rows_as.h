/* rows_as.h: rows of a tensor as rows of another type, made when somebody wants them (kernels/rows.h).
 *
 * To F32 the numbers stay as they are; to anything else they are rounded or quantised by qw_quantize_row, one row like any
 * other, so that a tensor has the same bytes whoever makes them. Immutable after init; any thread.
 */
#ifndef QW_FORMATS_ROWS_AS_H
#define QW_FORMATS_ROWS_AS_H

#include "kernels/blocks.h"
#include "kernels/rows.h"

/* Rows of k elements of some type: in memory one after the other (data), or made. */
typedef struct qw_rows_in {
    qw_type type;
    uint64_t k;
    const uint8_t *data;
    const qw_rows *make; /* when data is NULL */
} qw_rows_in;

static inline size_t qw_rows_in_scratch(const qw_rows_in *in)
{
    return in->data ? 0 : in->make->scratch_bytes;
}
void qw_rows_in_read(const qw_rows_in *in, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch);

typedef struct qw_rows_as {
    qw_rows base;
    qw_rows_in in;
    qw_type type;
    size_t input_bytes, float_bytes; /* of rows of the input, and of one row of floats, in the scratch */
} qw_rows_as;

/* k is a multiple of both types' blocks. */
void qw_rows_as_init(qw_rows_as *a, const qw_rows_in *in, qw_type type);

#endif
