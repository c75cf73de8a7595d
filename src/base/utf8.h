/* utf8.h: decoding UTF-8 from untrusted bytes. Any thread. */
#ifndef QW_BASE_UTF8_H
#define QW_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes one scalar value at s (n >= 1 bytes). Returns its length 1..4 and sets *cp, or 0 when the
 * bytes there are not well-formed UTF-8 (overlong, surrogate, above U+10FFFF, cut short). */
int qw_utf8_decode(const char *s, size_t n, uint32_t *cp);
/* Encodes cp (a scalar value) into out; returns 1..4. */
int qw_utf8_encode(uint32_t cp, char out[4]);
/* True when all n bytes are well-formed. */
bool qw_utf8_valid(const char *s, size_t n);
/* Number of bytes at the end of s that begin a sequence which could still become well-formed (0..3):
 * what a streaming reader must hold back. */
size_t qw_utf8_incomplete_tail(const char *s, size_t n);

#endif
