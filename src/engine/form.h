/* form.h: an answer that is held to a form (qw_form_request): what may be drawn next.
 *
 *     [<think> ... </think>]  then only what the grammar allows, and the end
 *
 * Made in the caller's thread, which compiles the grammar; used by the engine thread. Thinking is free, but for end tokens:
 * the form still has to come. A draw allocates nothing.
 *
 * The text is complete before the tokens run out, where that can be: a token behind which it could not be ended any more is
 * drawn again, from those behind which it can. That hangs on the text and on the number of tokens left alone, so an answer
 * is the same whatever it shares its passes with.
 */
#ifndef QW_ENGINE_FORM_H
#define QW_ENGINE_FORM_H

#include "engine/model.h"
#include "text/grammar.h"

typedef struct qw_form qw_form;

/* NULL in *out when the request asks for none. in_thinking: the prompt opened a thinking block. Errors: those of grammar.h;
 * QW_E_ARG for a form that does not go with the rest of the request. */
qw_status qw_form_create(qw_model *m, const qw_request *r, bool in_thinking, qw_form **out, qw_err *err) QW_MUST_CHECK;
void qw_form_destroy(qw_form *f);
const qw_token_trie *qw_form_trie(const qw_form *f); /* what its masks are made with: the model's */

/* Bans what may not come next: logits [n_vocab] become -INFINITY. bits: scratch, qw_masker_n_words(w) words. */
void qw_form_mask(const qw_form *f, qw_masker *w, uint32_t *bits, float *logits, uint32_t n_vocab);
/* Is it too far to the end behind a token drawn under that mask? n_left: tokens that may still be drawn, with this one. */
bool qw_form_overruns(const qw_form *f, int32_t token, uint32_t n_left);
/* Then: bans all but what comes to the end in time, or nearest to it. bits, logits: as qw_form_mask left them. */
void qw_form_close(const qw_form *f, qw_masker *w, uint32_t *bits, float *logits, uint32_t n_vocab, uint32_t n_left);
/* Takes the token that was drawn. */
void qw_form_take(qw_form *f, int32_t token);

#endif
