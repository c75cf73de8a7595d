/* added.h: the added tokens of a vocabulary, found in text. Immutable after build; any thread. Internal to
 * src/text.
 */
#ifndef QW_TEXT_ADDED_H
#define QW_TEXT_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "text/vocab.h"

typedef struct qw_added_token {
    const char *s; /* borrows from the vocabulary */
    size_t n;
    int32_t id;
} qw_added_token;

typedef struct qw_added {
    qw_added_token *tokens; /* owns: sorted by bytes, then id */
    size_t n;
    bool first[256];        /* bytes that some token begins with */
} qw_added;

/* Collects the control and user-defined rows of v, which must outlive a. */
qw_status qw_added_build(qw_added *a, const qw_vocab *v, qw_err *err) QW_MUST_CHECK;
void qw_added_free(qw_added *a);
/* Id of the added token with exactly this text, or -1. */
int32_t qw_added_find(const qw_added *a, const char *s, size_t n);
/* The longest added token at text[0, n): its index in tokens, or -1. */
int64_t qw_added_match(const qw_added *a, const char *text, size_t n);

#endif
