/* top.c: see top.h.
 *
 * The logits lie in blocks. The k largest of all are at least as large as the k-th largest of the blocks' maxima, so after
 * one pass that only takes maxima, which a compiler turns into vector instructions, about k blocks are looked at closely.
 */
#include "engine/top.h"

#include <math.h>
#include <stdbool.h>

#include "base/status.h"

enum {
    LANES = 16,
    BLOCK = 16 * LANES,
    BLOCKS_MAX = 64  /* maxima that are known at a time: of 16384 logits */
};

static bool before(qw_top a, qw_top b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/* Puts t among the best, which are in order. */
static size_t insert(qw_top *best, size_t n, size_t k, qw_top t)
{
    size_t at = n;
    if (n == k && !before(t, best[k - 1])) return n;
    if (n == k) at--;
    for (; at > 0 && before(t, best[at - 1]); at--) best[at] = best[at - 1];
    best[at] = t;
    return n < k ? n + 1 : k;
}

static float max_of_block(const float *x)
{
    float most[LANES];
    for (size_t i = 0; i < LANES; i++) most[i] = -INFINITY;
    for (size_t at = 0; at < BLOCK; at += LANES)
        for (size_t i = 0; i < LANES; i++) most[i] = x[at + i] > most[i] ? x[at + i] : most[i];
    for (size_t i = 1; i < LANES; i++) most[0] = most[i] > most[0] ? most[i] : most[0];
    return most[0];
}

static size_t look(const float *logits, size_t from, size_t to, qw_top *best, size_t n, size_t k)
{
    for (size_t i = from; i < to; i++)
        if (logits[i] > -INFINITY) n = insert(best, n, k, (qw_top){logits[i], (int32_t)i});
    return n;
}

/* Blocks in which nothing can be among the best are left out. Equal to the k-th counts: the block may come first. */
static size_t look_at_blocks(const float *logits, size_t first, size_t n_blocks, qw_top *best, size_t n, size_t k)
{
    float most[BLOCKS_MAX];
    qw_top floors[QW_TOP_MAX];
    size_t n_floors = 0;
    for (size_t b = 0; b < n_blocks; b++) {
        most[b] = max_of_block(logits + first + b * BLOCK);
        n_floors = insert(floors, n_floors, k, (qw_top){most[b], (int32_t)b});
    }
    float least = n_floors == k ? floors[k - 1].logit : -INFINITY;
    if (n == k && best[k - 1].logit > least) least = best[k - 1].logit;
    for (size_t b = 0; b < n_blocks; b++) {
        size_t at = first + b * BLOCK;
        if (most[b] >= least) n = look(logits, at, at + BLOCK, best, n, k);
    }
    return n;
}

size_t qw_top_of(const float *logits, size_t n_logits, size_t k, qw_top *out)
{
    size_t n = 0, at = 0;
    QW_ASSERT(k >= 1 && k <= QW_TOP_MAX);
    while (n_logits - at >= BLOCK) {
        size_t blocks = (n_logits - at) / BLOCK;
        if (blocks > BLOCKS_MAX) blocks = BLOCKS_MAX;
        n = look_at_blocks(logits, at, blocks, out, n, k);
        at += blocks * BLOCK;
    }
    return look(logits, at, n_logits, out, n, k);
}

double qw_top_share(const qw_top *top, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += exp((double)top[i].logit - (double)top[0].logit);
    return 1 / sum;
}
