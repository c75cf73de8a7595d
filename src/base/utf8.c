/* utf8.c: UTF-8 as Unicode's table 3-7 defines well-formed sequences.
 *
 * Any thread. One small function knows which second bytes a lead byte admits; decoding, validation and
 * the incomplete tail of a stream all follow from it.
 */
#include "base/utf8.h"

#include <string.h>

/* Length of the sequence that lead byte b begins (0: none), and the range of its second byte. */
static int lead(uint8_t b, uint8_t *lo, uint8_t *hi)
{
    *lo = 0x80;
    *hi = 0xbf;
    if (b < 0x80) return 1;
    if (b < 0xc2) return 0; /* continuation bytes, and overlong two-byte forms */
    if (b < 0xe0) return 2;
    if (b < 0xf0) {
        if (b == 0xe0) *lo = 0xa0; /* else overlong */
        if (b == 0xed) *hi = 0x9f; /* else a surrogate */
        return 3;
    }
    if (b > 0xf4) return 0;
    if (b == 0xf0) *lo = 0x90; /* else overlong */
    if (b == 0xf4) *hi = 0x8f; /* else above U+10FFFF */
    return 4;
}

int qw_utf8_decode(const char *s, size_t n, uint32_t *cp)
{
    uint8_t lo, hi, first = (uint8_t)s[0];
    int len = lead(first, &lo, &hi);
    if (len == 0 || (size_t)len > n) return 0;
    if (len == 1) {
        *cp = first;
        return 1;
    }
    uint8_t second = (uint8_t)s[1];
    if (second < lo || second > hi) return 0;
    uint32_t v = (uint32_t)(first & (0x7f >> len)) << 6 | (second & 0x3fu);
    for (int i = 2; i < len; i++) {
        uint8_t b = (uint8_t)s[i];
        if ((b & 0xc0) != 0x80) return 0;
        v = v << 6 | (b & 0x3fu);
    }
    *cp = v;
    return len;
}

int qw_utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    int len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    static const uint8_t marks[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = len - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (cp & 0x3f));
        cp >>= 6;
    }
    out[0] = (char)(marks[len] | cp);
    return len;
}

bool qw_utf8_valid(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t eight;
        if (n - i >= sizeof eight) { /* most text is ASCII: eight bytes at a time */
            memcpy(&eight, s + i, sizeof eight);
            if ((eight & UINT64_C(0x8080808080808080)) == 0) {
                i += sizeof eight;
                continue;
            }
        }
        uint32_t cp;
        int len = qw_utf8_decode(s + i, n - i, &cp);
        if (len == 0) return false;
        i += (size_t)len;
    }
    return true;
}

size_t qw_utf8_incomplete_tail(const char *s, size_t n)
{
    for (size_t k = 1; k <= 3 && k <= n; k++) {
        uint8_t lo, hi, b = (uint8_t)s[n - k];
        if ((b & 0xc0) == 0x80) continue; /* a continuation byte: its lead is further left */
        int len = lead(b, &lo, &hi);
        if (len <= (int)k) return 0; /* complete, or no lead at all */
        if (k == 1) return 1;
        uint8_t second = (uint8_t)s[n - k + 1];
        return second >= lo && second <= hi ? k : 0;
    }
    return 0;
}
