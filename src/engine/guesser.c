/* guesser.c: see guesser.h. */
#include "engine/guesser.h"

#include <stdlib.h>

#include "base/mem.h"
#include "engine/draft_table.h"

struct qw_guesses {
    qw_drafts *drafts;
    qw_draft **draft; /* [n_lanes] */
    qw_draft_mtp *mtp; /* borrows; or NULL */
    uint32_t n_lanes;
};

static void begin(void *ctx, uint32_t lane, const qw_job *job, uint32_t n)
{
    qw_guesses *g = ctx;
    qw_draft_begin(g->draft[lane], job->tokens, n);
    if (g->mtp) qw_draft_mtp_begin(g->mtp, lane, job->tokens);
}

static uint32_t guess(void *ctx, uint32_t lane, const qw_guess_ask *ask, int32_t *out, double *n_expected)
{
    qw_draft_node nodes[QW_DRAFT_NODES_MAX];
    const qw_draft_ask chain = {.n_max = ask->n_max, .depth_max = ask->n_max, .n_rows = ask->n_rows,
                                .n_expected = ask->n_expected, .chain = true};
    uint32_t n = qw_draft_propose(((qw_guesses *)ctx)->draft[lane], &chain, nodes, n_expected);
    for (uint32_t i = 0; i < n; i++) out[i] = nodes[i].token;
    return n;
}

static void advance(void *ctx, uint32_t lane, uint32_t n)
{
    qw_draft_advance(((qw_guesses *)ctx)->draft[lane], n);
}

static void note_logits(void *ctx, int32_t token, const float *logits)
{
    qw_drafts_note_logits(((qw_guesses *)ctx)->drafts, token, logits);
}

static void note_cost(void *ctx, uint32_t n_rows, double us)
{
    qw_drafts_note_cost(((qw_guesses *)ctx)->drafts, n_rows, us);
}

static void computed(void *ctx, uint32_t lane, uint32_t first_row, uint32_t n, uint32_t pos)
{
    qw_draft_mtp_computed(((qw_guesses *)ctx)->mtp, lane, first_row, n, pos);
}

qw_guesser qw_guesses_guesser(qw_guesses *g)
{
    return (qw_guesser){.ctx = g, .begin = begin, .guess = guess, .advance = advance, .note_logits = note_logits,
                        .note_cost = note_cost, .computed = g->mtp ? computed : NULL, .n_hidden = g->mtp ? QW_MTP_WAITING : 0};
}

qw_status qw_guesses_create(const qw_guesses_options *o, qw_guesses **out, qw_err *err)
{
    qw_guesses *g = NULL;
    const qw_drafts_options d = {.n_vocab = o->n_vocab, .us_per_pass = o->us_per_pass, .model = o->model};
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&g, 1, sizeof *g, "drafts", err));
    g->n_lanes = o->n_lanes;
    g->mtp = o->mtp;
    QW_TRY_GOTO(qw_drafts_create(&d, &g->drafts, err));
    QW_TRY_GOTO(qw_alloc(&g->draft, o->n_lanes, sizeof(qw_draft *), "drafts", err));
    for (uint32_t i = 0; i < o->n_lanes; i++)
        QW_TRY_GOTO(qw_draft_create(g->drafts, o->context + 1, (void *)(uintptr_t)i, &g->draft[i], err));
    *out = g;
    return QW_OK;
fail:
    qw_guesses_destroy(g);
    return status;
}

/* Three orders of n-grams with a list head and a link a token, and the table of successors. */
size_t qw_guesses_bytes(uint32_t n_lanes, uint32_t n_vocab, uint32_t context)
{
    return (size_t)n_vocab * sizeof(qw_successors) + (size_t)n_lanes * context * 3 * 3 * sizeof(uint32_t);
}

void qw_guesses_destroy(qw_guesses *g)
{
    if (!g) return;
    for (uint32_t i = 0; g->draft && i < g->n_lanes; i++) qw_draft_destroy(g->draft[i]);
    qw_drafts_destroy(g->drafts);
    free(g->draft);
    free(g);
}
