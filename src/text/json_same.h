/* json_same.h: are two JSON texts the same value? Any thread; no state. */
#ifndef QW_TEXT_JSON_SAME_H
#define QW_TEXT_JSON_SAME_H

#include <stdbool.h>

#include "qw_types.h"

enum { QW_JSON_UNORDERED_MAX = 64 }; /* members of an object whose order does not matter; of larger ones it does */

/* Spaces, escapes and the order of members do not matter, nor whether a number is written 1 or 1.0. A text that is not
 * JSON is the same as itself alone. */
bool qw_json_same(qw_text a, qw_text b);

#endif
