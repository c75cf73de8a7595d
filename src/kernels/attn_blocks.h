/* attn_blocks.h: how attention cuts its queries into blocks that fit the registers, the same on every level. */
#ifndef QW_KERNELS_ATTN_BLOCKS_H
#define QW_KERNELS_ATTN_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Queries [first, first + n), each with at least one key; the most keys of any, and the fewest. Begins as zero. */
typedef struct attn_span {
    size_t first, n;
    size_t most, common;
} attn_span;

/* Moves on to the next span of at most n_max queries of n_q; false: there is none. Queries without a key are skipped, runs
 * of others cut into spans of nearly equal size. */
static inline bool attn_next_span(attn_span *s, const uint32_t *n_keys, size_t n_q, size_t n_max)
{
    size_t at = s->first + s->n, run = 0;
    while (at < n_q && n_keys[at] == 0) at++;
    while (at + run < n_q && n_keys[at + run] > 0) run++;
    size_t n_spans = (run + n_max - 1) / n_max;
    *s = (attn_span){.first = at, .common = SIZE_MAX};
    if (run == 0) return false;
    s->n = (run + n_spans - 1) / n_spans;
    for (size_t i = at; i < at + s->n; i++) {
        if (n_keys[i] > s->most) s->most = n_keys[i];
        if (n_keys[i] < s->common) s->common = n_keys[i];
    }
    return true;
}

#endif
