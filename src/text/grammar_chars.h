/* grammar_chars.h: reading the characters, escapes, classes and numbers that regular expressions and grammars share.
 *
 * A reader over UTF-8 that was checked. Internal to the grammar compiler; one thread.
 */
#ifndef QW_TEXT_GRAMMAR_CHARS_H
#define QW_TEXT_GRAMMAR_CHARS_H

#include "text/grammar_private.h"

enum { CHARS_NONE = 0x110000, CHARS_RANGES_MAX = 16 };

typedef struct chars {
    grammar_build *b;
    const char *s; /* borrows */
    size_t n, pos;
    const char *what; /* borrows: for messages */
} chars;

static inline bool chars_end(const chars *c)
{
    return c->pos == c->n;
}
/* The code point here, CHARS_NONE at the end. */
uint32_t chars_peek(const chars *c);
/* The same, and moves on. */
uint32_t chars_next(chars *c);
/* Moves past an ASCII character if it is here. */
bool chars_take(chars *c, char expected);
/* A decimal number of at most seven digits. */
bool chars_number(chars *c, uint32_t *value);
/* Is {min,max} in order and within its limit? An error is set if not. */
bool chars_repeat_ok(chars *c, uint32_t min, uint32_t max);
/* Errors: what is wrong with the text, and what it has that cannot be had. Both say where. */
void chars_bad(chars *c, const char *sentence);
void chars_refuse(chars *c, const char *what);
/* What follows a backslash, as ranges; *negated: all but these. Returns their number, 0 with an error set. */
uint32_t chars_escape(chars *c, cp_range ranges[CHARS_RANGES_MAX], bool *negated);
/* [...], with its brackets, as an expression. */
uint32_t chars_class(chars *c, grammar_build *b);

#endif
