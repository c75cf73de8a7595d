/* checksum.c: see checksum.h.
 *
 * Eight lanes take two words at a time: lane = rotate((lane ^ first) * odd + second). For given words that is one-to-one in
 * the lane, and with the other two given one-to-one in either word, so a change of one word always changes its lane; lanes
 * are joined in the same way. The rotation brings high bits, which a product only moves upwards, back to where they are
 * multiplied. Products are what it costs, one for two words, and those of a row overlap, as lanes do not wait for each other.
 * Between two products two words meet, so a bit of one can undo a bit of the other: the plain sums of all first and of all
 * second words, which are joined too, tell those apart.
 * The odd constants are the fractional bits of the square roots of 2, 3, 5, ... with the lowest bit set.
 */
#include "base/checksum.h"

#include <string.h>

enum { LANES = 8, HALF_BYTES = LANES * 8, ROW_BYTES = 2 * HALF_BYTES };

static const uint64_t odd = 0x6a09e667f3bcc909u;
static const uint64_t start[LANES] = {0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u, 0x510e527fade682d1u,
                                      0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u, 0xcbbb9d5dc1059ed9u};

static inline uint64_t rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

static inline uint64_t take(uint64_t lane, uint64_t first, uint64_t second)
{
    return rotate((lane ^ first) * odd + second, 29);
}

static inline uint64_t word_at(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* The words of a row's halves that belong to one lane. */
static inline uint64_t take_at(uint64_t lane, const uint8_t *p)
{
    return take(lane, word_at(p), word_at(p + HALF_BYTES));
}

typedef uint64_t pair __attribute__((vector_size(16)));

/* The sum of a half's words: the even ones, the odd ones. */
static inline pair add_half(pair sum, const uint8_t *p)
{
    pair words[HALF_BYTES / sizeof(pair)];
    memcpy(words, p, sizeof words);
    return sum + (words[0] + words[1]) + (words[2] + words[3]);
}

uint64_t qw_checksum(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint64_t a = start[0], b = start[1], c = start[2], d = start[3], e = start[4], f = start[5], g = start[6], h = start[7];
    uint8_t tail[ROW_BYTES] = {0}; /* zeros at the end count, by n */
    pair first = {0}, second = {0};
    for (size_t left = n;; left -= ROW_BYTES, p += ROW_BYTES) {
        if (left < ROW_BYTES) {
            if (left > 0) memcpy(tail, p, left);
            p = tail;
        }
        a = take_at(a, p);
        b = take_at(b, p + 8);
        c = take_at(c, p + 16);
        d = take_at(d, p + 24);
        e = take_at(e, p + 32);
        f = take_at(f, p + 40);
        g = take_at(g, p + 48);
        h = take_at(h, p + 56);
        first = add_half(first, p);
        second = add_half(second, p + HALF_BYTES);
        if (left < ROW_BYTES) break;
    }
    const uint64_t all[] = {a, b, c, d, e, f, g, h, first[0], first[1], second[0], second[1]};
    uint64_t sum = n;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) sum = take(sum, all[i], 0);
    sum = (sum ^ sum >> 32) * odd;
    return sum ^ sum >> 29;
}
