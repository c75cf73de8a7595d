/* loops.c: see loops.h. For each length of block: how long has every token been the one that stood a block before it? */
#include "engine/loops.h"

#include <stdlib.h>

#include "base/mem.h"

struct qw_loops {
    int32_t last[2 * QW_LOOP_BLOCK_MAX]; /* the newest tokens twice, so that any QW_LOOP_BLOCK_MAX lie side by side */
    uint32_t at;                         /* where the next one goes */
    uint32_t same[QW_LOOP_BLOCK_MAX + 1]; /* by length of block: tokens that agreed, up to the newest */
};

size_t qw_loops_bytes(void)
{
    return sizeof(qw_loops);
}

qw_status qw_loops_create(qw_loops **out, qw_err *err)
{
    *out = NULL;
    QW_TRY(qw_alloc(out, 1, sizeof **out, "loop detection", err));
    for (int i = 0; i < 2 * QW_LOOP_BLOCK_MAX; i++) (*out)->last[i] = -1; /* no token */
    return QW_OK;
}

void qw_loops_destroy(qw_loops *l)
{
    free(l);
}

uint32_t qw_loop_tokens(uint32_t block)
{
    return block <= QW_LOOP_SHORT ? QW_LOOP_SHORT_TOKENS : QW_LOOP_TOKENS;
}

static void count(qw_loops *l, int32_t token)
{
    const int32_t *end = l->last + l->at + QW_LOOP_BLOCK_MAX; /* behind the newest */
    for (int32_t block = 1; block <= QW_LOOP_BLOCK_MAX; block++)
        l->same[block] = end[-block] == token ? l->same[block] + 1 : 0;
    l->last[l->at] = l->last[l->at + QW_LOOP_BLOCK_MAX] = token;
    l->at = (l->at + 1) % QW_LOOP_BLOCK_MAX;
}

bool qw_loops_add(qw_loops *l, int32_t token)
{
    count(l, token);
    for (uint32_t block = 1; block <= QW_LOOP_BLOCK_MAX; block++) {
        uint32_t n = l->same[block] + block; /* the first block has nothing before it to agree with */
        if (n >= QW_LOOP_TOKENS) return n >= qw_loop_tokens(block); /* longer ones are this one, several times */
    }
    return false;
}
