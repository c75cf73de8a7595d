/* draft_table.c: see draft_table.h. */
#include "engine/draft_table.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"

struct qw_recycled {
    uint32_t n_vocab;
    qw_successors *tokens; /* [n_vocab] */
};

qw_status qw_recycled_create(uint32_t n_vocab, qw_recycled **out, qw_err *err)
{
    qw_recycled *r = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&r, 1, sizeof *r, "drafts", err));
    r->n_vocab = n_vocab;
    QW_TRY_GOTO(qw_alloc(&r->tokens, n_vocab, sizeof *r->tokens, "drafts", err));
    *out = r;
    return QW_OK;
fail:
    qw_recycled_destroy(r);
    return status;
}

void qw_recycled_destroy(qw_recycled *r)
{
    if (!r) return;
    free(r->tokens);
    free(r);
}

static qw_successors successors_of(const qw_top *top, size_t n)
{
    qw_successors s = {0};
    float weight[QW_SUCCESSORS], sum = 0;
    for (size_t i = 0; i < n; i++) sum += weight[i] = expf(top[i].logit - top[0].logit);
    for (size_t i = 0; i < n; i++) {
        float share = 255 * weight[i] / sum;
        s.token[i] = top[i].token;
        s.share[i] = share > 1 ? (uint8_t)share : 1;
    }
    return s;
}

void qw_recycled_note(qw_recycled *r, int32_t token, const qw_top *top, size_t n)
{
    QW_ASSERT(token >= 0 && (uint32_t)token < r->n_vocab && n <= QW_SUCCESSORS);
    if (n > 0) r->tokens[token] = successors_of(top, n);
}

const qw_successors *qw_recycled_after(const qw_recycled *r, int32_t token)
{
    QW_ASSERT(token >= 0 && (uint32_t)token < r->n_vocab);
    return r->tokens[token].share[0] ? &r->tokens[token] : NULL;
}
