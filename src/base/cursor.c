/* cursor.c: the one way to read untrusted bytes.
 *
 * One thread. Every read goes through qw_cursor_take(), which compares with what remains instead of
 * adding to the position, so that no length a file names can overflow it.
 */
#include "base/cursor.h"

#include <endian.h>
#include <string.h>

qw_status qw_cursor_take(qw_cursor *c, size_t n, const char *field, const uint8_t **out, qw_err *err)
{
    size_t left = qw_cursor_remaining(c);
    if (n > left)
        return qw_fail(err, QW_E_FORMAT,
                       "%s: ends inside %s: %zu bytes are needed at byte %zu, %zu remain", c->what, field,
                       n, c->pos, left);
    *out = c->data + c->pos;
    c->pos += n;
    return QW_OK;
}

static qw_status take_le(qw_cursor *c, size_t n, const char *field, uint64_t *out, qw_err *err)
{
    const uint8_t *p = NULL;
    QW_TRY(qw_cursor_take(c, n, field, &p, err));
    uint64_t v = 0;
    memcpy(&v, p, n); /* the low bytes come first, whatever this machine's own order */
    *out = le64toh(v);
    return QW_OK;
}

qw_status qw_cursor_u8(qw_cursor *c, const char *field, uint8_t *out, qw_err *err)
{
    uint64_t v = 0;
    QW_TRY(take_le(c, 1, field, &v, err));
    *out = (uint8_t)v;
    return QW_OK;
}

qw_status qw_cursor_u16(qw_cursor *c, const char *field, uint16_t *out, qw_err *err)
{
    uint64_t v = 0;
    QW_TRY(take_le(c, 2, field, &v, err));
    *out = (uint16_t)v;
    return QW_OK;
}

qw_status qw_cursor_u32(qw_cursor *c, const char *field, uint32_t *out, qw_err *err)
{
    uint64_t v = 0;
    QW_TRY(take_le(c, 4, field, &v, err));
    *out = (uint32_t)v;
    return QW_OK;
}

qw_status qw_cursor_u64(qw_cursor *c, const char *field, uint64_t *out, qw_err *err)
{
    return take_le(c, 8, field, out, err);
}
