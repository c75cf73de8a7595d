/* unicode_tables.h: what the tokenizer knows about each code point. Immutable; any thread.
 *
 * The classes follow the official tokenizers' regular expressions, the NFC roles their normaliser; the
 * two follow different Unicode versions (see the version strings). Made by scripts/make_unicode.py.
 */
#ifndef QW_TEXT_UNICODE_TABLES_H
#define QW_TEXT_UNICODE_TABLES_H

#include <stddef.h>
#include <stdint.h>

extern const char qw_unicode_class_version[]; /* "16.0": of the classes */
extern const char qw_unicode_nfc_version[];   /* "9.0": of the NFC roles */

enum {
    QW_UNI_OTHER = 0,
    QW_UNI_LETTER = 1,     /* \p{L} */
    QW_UNI_NUMBER = 2,     /* \p{N} */
    QW_UNI_MARK = 3,       /* \p{M} */
    QW_UNI_SPACE = 4,      /* \s */
    QW_UNI_CLASS = 7,      /* mask of the class */
    QW_UNI_NFC_KNOWN = 8,  /* takes part in NFC; all others are inert */
    QW_UNI_NFC_STOP = 16,  /* a text without such a code point is NFC */
    QW_UNI_BLOCK_BITS = 6
};

extern const uint16_t qw_unicode_index[0x110000 >> QW_UNI_BLOCK_BITS];
extern const uint8_t qw_unicode_blocks[];

/* Class and NFC bits of a code point below 0x110000. */
static inline unsigned qw_unicode(uint32_t cp)
{
    size_t block = qw_unicode_index[cp >> QW_UNI_BLOCK_BITS];
    return qw_unicode_blocks[(block << QW_UNI_BLOCK_BITS) + (cp & ((1u << QW_UNI_BLOCK_BITS) - 1))];
}

/* The code point at s, which must be well-formed UTF-8; *len becomes its length. */
static inline uint32_t qw_unicode_read(const char *s, size_t *len)
{
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) {
        *len = 1;
        return u[0];
    }
    if (u[0] < 0xE0) {
        *len = 2;
        return (uint32_t)(u[0] & 0x1F) << 6 | (u[1] & 0x3F);
    }
    if (u[0] < 0xF0) {
        *len = 3;
        return (uint32_t)(u[0] & 0x0F) << 12 | (uint32_t)(u[1] & 0x3F) << 6 | (u[2] & 0x3F);
    }
    *len = 4;
    return (uint32_t)(u[0] & 0x07) << 18 | (uint32_t)(u[1] & 0x3F) << 12 | (uint32_t)(u[2] & 0x3F) << 6 |
           (u[3] & 0x3F);
}

#endif
