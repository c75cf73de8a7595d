/* grammar.h: output that is held to a form: a JSON schema, a regular expression, choices, a grammar, tool calls.
 *
 * A source is compiled into a push-down automaton over bytes (qw_grammar). A matcher stands somewhere in it and moves
 * on by tokens; a masker says which tokens may come next. What is refused is refused when it is compiled, by name; a
 * matcher never comes to a place from which the text cannot be ended. docs/constrained.md has the forms and limits.
 *
 * A qw_grammar and a qw_token_trie are immutable: any thread. A matcher and a masker belong to one thread at a time.
 * After their creation nothing is allocated.
 */
#ifndef QW_TEXT_GRAMMAR_H
#define QW_TEXT_GRAMMAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qw_types.h"

#include "base/status.h"
#include "text/tokenizer.h"

enum {
    QW_SCHEMA_BYTES_MAX = 256 << 10,   /* text of a schema, a regular expression, a grammar, all choices together */
    QW_GRAMMAR_STATES_MAX = 64 << 10,  /* of a compiled grammar */
    QW_GRAMMAR_EDGES_MAX = 256 << 10,
    QW_GRAMMAR_RULES_MAX = 16 << 10,
    QW_DFA_STATES_MAX = 10000,         /* of one regular expression, or one rule of a grammar */
    QW_GRAMMAR_CPU_US_MAX = 250000,    /* processor time of compiling */
    QW_GRAMMAR_DEPTH_MAX = 128,        /* frames of a matcher: values inside each other */
    QW_GRAMMAR_HEADS_MAX = 32,         /* readings of a text that a matcher follows at once */
    QW_GRAMMAR_KEYS_MAX = 512,         /* keys of open objects that no schema names */
    QW_GRAMMAR_TOOLS_MAX = 128,
    QW_GRAMMAR_CALLS_MAX = 16,         /* in one answer: a model that may always call again might never end */
    QW_MASKED_TOKEN_BYTES_MAX = 256    /* longer tokens are never allowed */
};

typedef struct qw_grammar qw_grammar;

typedef struct qw_grammar_options {
    bool after_thinking; /* up to two line breaks may come before everything else */
    int64_t cpu_us_max;  /* 0: QW_GRAMMAR_CPU_US_MAX */
} qw_grammar_options;

/* All of these copy what they need; options may be NULL. QW_E_ARG: not a schema (not an expression, ...), or nothing
 * satisfies it; QW_E_UNSUPPORTED: names the keyword and its place; QW_E_LIMIT: names the limit. */
qw_status qw_grammar_schema(qw_text schema, const qw_grammar_options *options, qw_grammar **out,
                            qw_err *err) QW_MUST_CHECK;
/* Any JSON object. */
qw_status qw_grammar_json_object(const qw_grammar_options *options, qw_grammar **out, qw_err *err) QW_MUST_CHECK;
/* The whole text matches the expression. */
qw_status qw_grammar_regex(qw_text pattern, const qw_grammar_options *options, qw_grammar **out,
                           qw_err *err) QW_MUST_CHECK;
/* The whole text is one of these. */
qw_status qw_grammar_choice(const qw_text *choices, size_t n, const qw_grammar_options *options, qw_grammar **out,
                            qw_err *err) QW_MUST_CHECK;
/* A grammar in the notation of docs/constrained.md; its first rule, or the one called root, is the whole text. */
qw_status qw_grammar_ebnf(qw_text source, const qw_grammar_options *options, qw_grammar **out,
                          qw_err *err) QW_MUST_CHECK;

typedef struct qw_grammar_calls {
    qw_text tools;                 /* JSON text of the request's tools: an array of objects */
    qw_text only;                  /* the one function that may be called; empty: each */
    bool xml_calls;                /* the form (qw_chat_traits.xml_calls) */
    bool required;                 /* begins with a call; else text may come first, or alone */
    bool one;                      /* no second call; else QW_GRAMMAR_CALLS_MAX at most */
    const qw_tokenizer *tokenizer; /* borrows during the call: for the tags that are tokens */
} qw_grammar_calls;
/* Calls of tools, whose arguments satisfy the tools' schemas. */
qw_status qw_grammar_tools(const qw_grammar_calls *calls, const qw_grammar_options *options, qw_grammar **out,
                           qw_err *err) QW_MUST_CHECK;

void qw_grammar_destroy(qw_grammar *g);
size_t qw_grammar_n_states(const qw_grammar *g);

/* ---- tokens ----------------------------------------------------------------------------------- */

/* The vocabulary as a tree of bytes: once for each tokenizer, which must outlive it. */
typedef struct qw_token_trie qw_token_trie;
qw_status qw_token_trie_create(const qw_tokenizer *t, qw_token_trie **out, qw_err *err) QW_MUST_CHECK;
void qw_token_trie_destroy(qw_token_trie *trie);
size_t qw_token_trie_bytes(const qw_tokenizer *t); /* that it will take */
size_t qw_token_trie_n_vocab(const qw_token_trie *trie);

/* ---- a text on its way ------------------------------------------------------------------------ */

/* Stands behind the tokens taken so far. The grammar must outlive it. */
typedef struct qw_matcher qw_matcher;
qw_status qw_matcher_create(const qw_grammar *g, const qw_tokenizer *t, qw_matcher **out, qw_err *err) QW_MUST_CHECK;
size_t qw_matcher_bytes(void); /* of one */
void qw_matcher_destroy(qw_matcher *m);
/* Makes `to` stand where `from` stands: to look ahead and to go back. Both must be of one grammar. */
void qw_matcher_copy(qw_matcher *to, const qw_matcher *from);
/* Takes one token. QW_E_ARG, and nothing has changed: it is not allowed here. An end token is taken where the text may
 * end, and nothing after it. */
qw_status qw_matcher_advance(qw_matcher *m, int32_t id, qw_err *err) QW_MUST_CHECK;
bool qw_matcher_may_end(const qw_matcher *m);  /* the text is complete */
bool qw_matcher_must_end(const qw_matcher *m); /* and nothing can follow but an end token */
/* The least number of bytes, tokens of their own counted as one, to a place where the text may end: from here, and behind a
 * token that is allowed here. A lower bound, and close (grammar_end.c). Behind an end token: 0. */
uint32_t qw_matcher_to_end(const qw_matcher *m);
uint32_t qw_matcher_to_end_after(const qw_matcher *m, int32_t id);
/* The bytes that must come next because there is no choice, at most n of them; returns how many. */
size_t qw_matcher_forced(const qw_matcher *m, char *out, size_t n);

/* Masks of one thread's matchers, with those that were computed before. The trie must outlive it. */
typedef struct qw_masker qw_masker;
qw_status qw_masker_create(const qw_token_trie *trie, size_t n_kept, qw_masker **out, qw_err *err) QW_MUST_CHECK;
size_t qw_masker_bytes(size_t n_vocab, size_t n_kept); /* that it will take */
void qw_masker_destroy(qw_masker *w);
/* Sets bit id % 32 of bits[id / 32] for each token that may come next, and clears all others. bits: as many words as
 * qw_masker_n_words says. At least one is set, always. */
void qw_masker_fill(qw_masker *w, const qw_matcher *m, uint32_t *bits);
/* Leaves of the mask of this place the end tokens, and the tokens behind which qw_matcher_to_end is less than `room`. If there
 * are none, those behind which it is least: one is left, always. It tries all tokens that fit: within a string up to 30 ms. */
void qw_masker_close(qw_masker *w, const qw_matcher *m, uint32_t room, uint32_t *bits);
size_t qw_masker_n_words(const qw_masker *w);

#endif
