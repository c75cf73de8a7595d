/* checksum.c: see checksum.h.
 *
 * Eight lanes take every eighth word: lane = rotate((lane ^ word) * odd). For a given word that is one-to-one in the lane,
 * and for a given lane one-to-one in the word, so a change of one word always changes its lane; the lanes are joined in
 * the same way. The rotation brings high bits, which a product only moves upwards, back to where they are multiplied.
 * Lanes do not wait for each other, so the products of a row overlap. The odd constants are the fractional bits of the
 * square roots of 2, 3, 5, ... with the lowest bit set.
 */
#include "base/checksum.h"

#include <string.h>

enum { LANES = 8, ROW_BYTES = LANES * 8 };

static const uint64_t odd = 0x6a09e667f3bcc909u;
static const uint64_t start[LANES] = {0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u, 0x510e527fade682d1u,
                                      0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u, 0xcbbb9d5dc1059ed9u};

static inline uint64_t rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

static inline uint64_t take(uint64_t lane, uint64_t word)
{
    return rotate((lane ^ word) * odd, 29);
}

static inline uint64_t word_at(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

uint64_t qw_checksum(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint64_t a = start[0], b = start[1], c = start[2], d = start[3], e = start[4], f = start[5], g = start[6], h = start[7];
    size_t left = n;
    for (; left >= ROW_BYTES; left -= ROW_BYTES, p += ROW_BYTES) {
        a = take(a, word_at(p));
        b = take(b, word_at(p + 8));
        c = take(c, word_at(p + 16));
        d = take(d, word_at(p + 24));
        e = take(e, word_at(p + 32));
        f = take(f, word_at(p + 40));
        g = take(g, word_at(p + 48));
        h = take(h, word_at(p + 56));
    }
    uint64_t lanes[LANES] = {a, b, c, d, e, f, g, h}, sum = n;
    uint8_t tail[ROW_BYTES] = {0}; /* zeros at the end count, by n */
    if (left > 0) memcpy(tail, p, left);
    for (int i = 0; i < LANES; i++) sum = take(sum, take(lanes[i], word_at(tail + 8 * i)));
    sum = (sum ^ sum >> 32) * odd;
    return sum ^ sum >> 29;
}
