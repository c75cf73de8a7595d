/* nfc.h: the canonical composition (NFC) that the official tokenizers apply to text.
 *
 * Text that needs nothing is handed back as it is, without a copy. Time and memory are linear in the text
 * whatever it holds. A qw_nfc is scratch space of one thread.
 */
#ifndef QW_TEXT_NFC_H
#define QW_TEXT_NFC_H

#include <stddef.h>
#include <stdint.h>

#include "qw_types.h"

#include "base/buf.h"
#include "base/status.h"

/* Zero-initialise; qw_nfc_free frees. */
typedef struct qw_nfc {
    qw_buf text;     /* owns: the result, when it is a copy */
    uint32_t *items; /* owns: code points of one region, see nfc.c */
    uint32_t *spare; /* owns: as long as items */
    size_t cap;
} qw_nfc;
void qw_nfc_free(qw_nfc *w);

/* NFC of s, which must be well-formed UTF-8. *out borrows from s or from w until its next use. */
qw_status qw_nfc_run(qw_nfc *w, qw_text s, qw_text *out, qw_err *err) QW_MUST_CHECK;

#endif
