/* spoken.h: an answer as the model said it: its tokens, their text, and what of it was given out as what.
 *
 * Written down while the answer is made, token by token and event by event, and immutable once it was finished. It is what
 * a chat is rendered from when a client sends the answer back as JSON (chat_recall.h): JSON does not hold the tokens, and
 * tokenising its text again often gives others. Writing never fails: what cannot be kept is `lost`, and then the answer is
 * rendered as any other. One thread while it is written, any number afterwards.
 */
#ifndef QW_TEXT_SPOKEN_H
#define QW_TEXT_SPOKEN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "text/parse.h"
#include "text/tokenizer.h"

enum {
    QW_SPOKEN_BYTES_MAX = 16 << 20, /* text of one answer */
    QW_SPOKEN_CALLS_MAX = 256       /* calls of one */
};

typedef struct qw_spoken_token {
    int32_t id;
    uint32_t end;  /* bytes of the text up to its end */
    bool inside;   /* it ends within a character: nothing may be cut here */
    bool added;    /* a control token, a user-defined one, or a row without text */
} qw_spoken_token;

typedef struct qw_spoken_call {
    char *name;       /* owns */
    qw_buf arguments; /* as given out */
} qw_spoken_call;

typedef struct qw_spoken {
    qw_buf lead;              /* what the prompt's last turn began with: "", "<think>\n", ... */
    qw_spoken_token *tokens;  /* [n_tokens], owns; without the end token */
    size_t n_tokens, cap;
    size_t n_usable;          /* of them, up to an added one that stands where the model said words */
    qw_buf text;              /* all that was given out, as the model wrote it, tags included */
    qw_buf thinking, content; /* given out */
    qw_spoken_call *calls;    /* [n_calls], owns */
    size_t n_calls;
    size_t answer_at;         /* bytes of the text before the answer proper: the thinking and its tags */
    bool answered;            /* something that is no thinking came */
    bool called_in_thinking;
    bool broken;              /* a call broke off */
    bool whole;               /* nothing is open or cut: its text and an end token are all of a turn */
    bool lost;
    struct {
        uint32_t begin, end;
    } *words;                 /* [n_words], owns; where the text is words, not tags */
    size_t n_words, words_cap;
} qw_spoken;

/* lead: copied. */
qw_status qw_spoken_create(qw_text lead, qw_spoken **out, qw_err *err) QW_MUST_CHECK;
void qw_spoken_destroy(qw_spoken *s);

/* A token whose characters bring all decoded text to n_decoded bytes; inside: not all of its bytes are characters yet. */
void qw_spoken_token_add(qw_spoken *s, const qw_tokenizer *t, int32_t id, size_t n_decoded, bool inside);
/* What the parser made of the text; in_thinking: of the parser, during the event. */
void qw_spoken_event(qw_spoken *s, const qw_parse_event *ev, bool in_thinking);
/* Nothing more comes. in_thinking: the answer ended there. */
void qw_spoken_finish(qw_spoken *s, bool in_thinking);
size_t qw_spoken_bytes(const qw_spoken *s); /* of memory */

/* Adds a finished answer, not a lost one, to out; and makes one of such bytes, which may be damaged: QW_E_FORMAT says where.
 * n_vocab: ids are below it. */
qw_status qw_spoken_pack(const qw_spoken *s, qw_buf *out, qw_err *err) QW_MUST_CHECK;
qw_status qw_spoken_unpack(qw_text bytes, size_t n_vocab, qw_spoken **out, qw_err *err) QW_MUST_CHECK;

static inline qw_text qw_spoken_slice(const qw_buf *b)
{
    return (qw_text){qw_buf_str(b), b->n};
}

#endif
