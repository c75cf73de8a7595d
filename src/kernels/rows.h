/* rows.h: rows of a tensor that are made when somebody wants them.
 *
 * A container whose tensors do not lie in memory as the rest of qw wants them (another order, other numbers, another type)
 * hands out a maker instead of bytes. Making allocates nothing and cannot fail; any thread, several at once, each with
 * scratch of its own. What a maker reads lives as long as the container.
 */
#ifndef QW_KERNELS_ROWS_H
#define QW_KERNELS_ROWS_H

#include <stddef.h>
#include <stdint.h>

/* Makers read their own input in pieces of at most so many rows; callers need not care. */
enum { QW_ROWS_AT_ONCE = 16 };

typedef struct qw_rows qw_rows;
struct qw_rows {
    /* Writes rows [row0, row0 + n), one after the other, in the tensor's type. scratch: scratch_bytes, 64-byte aligned. */
    void (*make)(const qw_rows *rows, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch);
    size_t scratch_bytes; /* a multiple of 64 */
};

#endif
