/* pretok.h: cuts text into the pieces inside which tokens are merged. Any thread; no state. */
#ifndef QW_TEXT_PRETOK_H
#define QW_TEXT_PRETOK_H

#include <stddef.h>

#include "text/tokenizer.h"

/* End of the piece that begins at pos < n. s is well-formed UTF-8 in NFC, pos a character's start. Walking
 * from piece to piece is linear in n. */
size_t qw_pretok_next(qw_pre pre, const char *s, size_t n, size_t pos);

#endif
