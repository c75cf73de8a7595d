/* json_push.h: JSON that arrives byte by byte, checked as it comes.
 *
 * A push-down automaton of one value: it builds nothing and says of every byte whether the text can still become
 * JSON. UTF-8 is not checked. One thread; plain data, zero-initialised. Internal to src/text.
 */
#ifndef QW_TEXT_JSON_PUSH_H
#define QW_TEXT_JSON_PUSH_H

#include <stdbool.h>
#include <stdint.h>

#include "text/json_text.h"

typedef enum qw_json_state {
    QW_JSON_VALUE = 0,     /* a value must follow */
    QW_JSON_FIRST,         /* a value, or the end of the array */
    QW_JSON_KEY,           /* a key must follow */
    QW_JSON_FIRST_KEY,     /* a key, or the end of the object */
    QW_JSON_COLON,
    QW_JSON_AFTER,         /* a comma or the end of what is open */
    QW_JSON_DONE,          /* white space alone */
    QW_JSON_STRING, QW_JSON_ESCAPE, QW_JSON_HEX,
    QW_JSON_MINUS, QW_JSON_ZERO, QW_JSON_WHOLE, QW_JSON_POINT, QW_JSON_FRACTION, QW_JSON_E, QW_JSON_SIGN,
    QW_JSON_EXPONENT,
    QW_JSON_WORD,
    QW_JSON_BAD
} qw_json_state;

typedef struct qw_json_push {
    qw_json_state state;
    bool key;              /* the string is a key */
    uint8_t left;          /* hexadecimal digits still to come */
    uint8_t depth;         /* open arrays and objects */
    uint64_t objects;      /* a bit for each of them, the innermost lowest: it is an object */
    const char *word;      /* what is left of true, false, null */
} qw_json_push;

/* Takes one byte. False: no JSON begins like this (state is QW_JSON_BAD from then on). A number at the outermost level
 * stays open until something follows it. */
bool qw_json_push_byte(qw_json_push *p, char c);

#endif
