/* cursor.h: the one way to read untrusted bytes.
 *
 * A cursor walks [data, data + n); take() fails when fewer bytes remain, and the offset in the message
 * is the file's. Integers are little-endian and may be unaligned. Borrows the bytes. One thread.
 */
#ifndef QW_BASE_CURSOR_H
#define QW_BASE_CURSOR_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct qw_cursor {
    const uint8_t *data;
    size_t n;
    size_t pos;
    const char *what; /* borrows: "model.gguf", for messages */
} qw_cursor;

static inline size_t qw_cursor_remaining(const qw_cursor *c)
{
    return c->n - c->pos;
}
/* Returns a pointer to n bytes and moves past them, or QW_E_FORMAT "<what>: ends inside <field>". */
qw_status qw_cursor_take(qw_cursor *c, size_t n, const char *field, const uint8_t **out,
                         qw_err *err) QW_MUST_CHECK;
qw_status qw_cursor_u8(qw_cursor *c, const char *field, uint8_t *out, qw_err *err) QW_MUST_CHECK;
qw_status qw_cursor_u16(qw_cursor *c, const char *field, uint16_t *out, qw_err *err) QW_MUST_CHECK;
qw_status qw_cursor_u32(qw_cursor *c, const char *field, uint32_t *out, qw_err *err) QW_MUST_CHECK;
qw_status qw_cursor_u64(qw_cursor *c, const char *field, uint64_t *out, qw_err *err) QW_MUST_CHECK;

#endif
