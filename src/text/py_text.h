/* py_text.h: what Python's str methods and str() give, which the official templates lean on.
 *
 * Any thread; no state. Internal to src/text.
 */
#ifndef QW_TEXT_PY_TEXT_H
#define QW_TEXT_PY_TEXT_H

#include <stdbool.h>

#include "qw_types.h"

#include "base/buf.h"
#include "base/status.h"

qw_text qw_py_strip(qw_text s);  /* strip(): white space as str.isspace has it, off both ends */
qw_text qw_py_lstrip_lines(qw_text s); /* lstrip("\n") */
qw_text qw_py_rstrip_lines(qw_text s); /* rstrip("\n") */
/* split(part)[0] and split(part)[-1]: s when it does not hold part. */
qw_text qw_py_before(qw_text s, const char *part);
qw_text qw_py_after_last(qw_text s, const char *part);
bool qw_py_has(qw_text s, const char *part);

/* Appends str(value) of a JSON value as qw_json_rewrite wrote it: a string as it is, True, None, ['a', 1]. What counts
 * as printable is utf8proc's. */
qw_status qw_py_str(qw_text json, qw_buf *out, qw_err *err) QW_MUST_CHECK;

#endif
