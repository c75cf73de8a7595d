/* loops.h: does an answer say the same again and again?
 *
 * A loop: the last tokens, at least so many as qw_loop_tokens says, are one block of 1 to QW_LOOP_BLOCK_MAX tokens over and
 * over, without any change: four times and more, a short block a good deal more often. The numbers were measured
 * (docs/engine-thinking.md): text, code, tables, art made of letters and long rows of zeros stay below them.
 * Each token costs QW_LOOP_BLOCK_MAX comparisons, which is nothing beside a pass. One thread at a time.
 */
#ifndef QW_ENGINE_LOOPS_H
#define QW_ENGINE_LOOPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    QW_LOOP_BLOCK_MAX = 512, /* tokens of the block */
    QW_LOOP_TOKENS = 2048,   /* of all repetitions together */
    QW_LOOP_SHORT = 256,     /* with a block of at most so many: */
    QW_LOOP_SHORT_TOKENS = 4096
};

/* How many tokens have to be the repetition of a block of `block` tokens. */
uint32_t qw_loop_tokens(uint32_t block);

typedef struct qw_loops qw_loops;
qw_status qw_loops_create(qw_loops **out, qw_err *err) QW_MUST_CHECK;
size_t qw_loops_bytes(void); /* of one */
void qw_loops_destroy(qw_loops *l); /* NULL is fine */
/* Takes the next token. True: from here on it is a loop. */
bool qw_loops_add(qw_loops *l, int32_t token);

#endif
