/* json_text.h: JSON text in the form that goes into prompts.
 *
 * The official templates write JSON with Python's json.dumps(value, ensure_ascii=False): separators ", "
 * and ": ", keys in their order, non-ASCII raw, numbers as Python prints them. Nothing is built in memory:
 * the text is checked and written again in one walk with an explicit stack. Any thread; no state.
 */
#ifndef QW_TEXT_JSON_TEXT_H
#define QW_TEXT_JSON_TEXT_H

#include <stddef.h>

#include "qw_types.h"

#include "base/buf.h"
#include "base/status.h"

enum { QW_JSON_DEPTH_MAX = 64 }; /* arrays and objects inside each other */

/* Appends json, one value, as json.dumps(json.loads(json), ensure_ascii=False) gives it. Stricter than
 * Python: NaN and lone surrogates are refused, and an object that has a key twice. On failure out is as
 * before and the sentence says at which byte: QW_E_FORMAT (not JSON), QW_E_ARG (key twice), QW_E_LIMIT. */
qw_status qw_json_rewrite(qw_text json, qw_buf *out, qw_err *err) QW_MUST_CHECK;
/* The same for an array of objects: appends `before` and the object for each of them, without brackets.
 * *n becomes their number; null counts as an empty array. */
qw_status qw_json_rewrite_list(qw_text json, const char *before, qw_buf *out, size_t *n, qw_err *err) QW_MUST_CHECK;

/* A JSON string with its quotes. QW_E_FORMAT when s is not UTF-8. */
qw_status qw_json_write_string(qw_text s, qw_buf *out, qw_err *err) QW_MUST_CHECK;
/* Shortest text that reads back as value: 1.0, 1e-07, 1e+16, -0.0; NaN, Infinity. Whatever the locale. */
qw_status qw_json_write_double(double value, qw_buf *out, qw_err *err) QW_MUST_CHECK;

#endif
