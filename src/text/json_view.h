/* json_view.h: looking into JSON text that qw_json_rewrite wrote.
 *
 * The text is known to be right and in the usual form (", " and ": " between things, no other white space), so that
 * a value is a slice of it and nothing is built. Any thread; no state; slices borrow from the text. Internal to
 * src/text.
 */
#ifndef QW_TEXT_JSON_VIEW_H
#define QW_TEXT_JSON_VIEW_H

#include <stdbool.h>

#include "qw_types.h"

#include "base/buf.h"
#include "base/status.h"

/* What a value is, by its first character: { [ " t f n, or 0 for a number (and Infinity). 'x' when there is none. */
char qw_json_first(qw_text value);
/* The next member of an object, or element of an array (key: empty). *pos begins at 0. False: there is no other. */
bool qw_json_next(qw_text container, size_t *pos, qw_text *key, qw_text *value);
/* Value of a plain ASCII key of an object; .s is NULL when value is no object or has no such key. */
qw_text qw_json_member(qw_text object, const char *key);
/* Appends what a JSON string (with its quotes) stands for. */
qw_status qw_json_unquote(qw_text string, qw_buf *out, qw_err *err) QW_MUST_CHECK;

#endif
