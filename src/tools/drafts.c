/* drafts.c: acceptance of greedy drafts (drafts.h). */
#include "tools/drafts.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

/* What the model says: its tokens, and the hidden state of each but the last. */
typedef struct path {
    int32_t *tokens; /* [n] */
    float *hidden;   /* [n, hidden] */
    float *logits;   /* [n_vocab] */
    size_t n;
} path;

static void path_free(path *p)
{
    free(p->tokens);
    free(p->hidden);
    free(p->logits);
}

static int32_t most_probable(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++) best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

/* The hidden states of a pass's rows, which begin at position `at`. */
static void keep_hidden(qw_compute *c, path *p, size_t at, size_t n_rows)
{
    uint32_t rows[QW_COMPUTE_ROWS];
    size_t h = c->net->hp.hidden;
    for (size_t i = 0; i < n_rows; i++) rows[i] = (uint32_t)i;
    qw_pass_hidden(c->rt.pass, rows, n_rows, p->hidden + at * h);
}

static qw_status keep_prompt(void *ctx, qw_compute *c, size_t first, size_t n_rows, qw_err *err)
{
    (void)err;
    path *p = ctx;
    keep_hidden(c, p, first, n_rows);
    uint32_t last = (uint32_t)n_rows - 1;
    qw_pass_logits(c->rt.pass, &last, 1, p->logits, c->net->hp.n_vocab); /* of the last pass these are the prompt's */
    return QW_OK;
}

static qw_status follow_path(qw_compute *c, qw_seq *seq, path *p, size_t n_prompt, qw_err *err)
{
    QW_TRY(qw_compute_tokens(c, seq, p->tokens, n_prompt, keep_prompt, p, err));
    for (size_t at = n_prompt; at < p->n; at++) {
        uint32_t row = 0;
        p->tokens[at] = most_probable(p->logits, c->net->hp.n_vocab);
        QW_TRY(qw_seq_reserve(seq, (uint32_t)at + 1, err));
        qw_row one = {.seq = seq, .pos = (uint32_t)at, .token = p->tokens[at]};
        qw_forward(c->rt.pass, &one, 1);
        keep_hidden(c, p, at, 1);
        qw_pass_logits(c->rt.pass, &row, 1, p->logits, c->net->hp.n_vocab);
        qw_seq_advance(seq, &p->tokens[at], 1);
    }
    return QW_OK;
}

/* The layer's keys and values of positions [0, n). */
static void prefill_mtp(qw_compute *c, qw_seq *seq, const path *p, size_t n)
{
    qw_row rows[QW_COMPUTE_ROWS];
    size_t h = c->net->hp.hidden;
    for (size_t at = 0, step; at < n; at += step) {
        step = n - at < QW_COMPUTE_ROWS ? n - at : QW_COMPUTE_ROWS;
        for (size_t i = 0; i < step; i++)
            rows[i] = (qw_row){.seq = seq, .pos = (uint32_t)(at + i), .token = p->tokens[at + i + 1], .silent = true};
        qw_forward_mtp(c->rt.pass, rows, step, p->hidden + at * h, h);
    }
}

/* A draft that begins at position `at`: the model's own state and next token are known there. */
static void draft(qw_compute *c, qw_seq *seq, path *p, size_t at, float *hidden, qw_drafts *d)
{
    size_t h = c->net->hp.hidden;
    uint32_t row = 0;
    memcpy(hidden, p->hidden + at * h, h * sizeof *hidden);
    for (size_t i = 0; i < d->n_max && at + i + 2 < p->n; i++) {
        qw_row one = {.seq = seq, .pos = (uint32_t)(at + i), .token = p->tokens[at + i + 1]};
        qw_forward_mtp(c->rt.pass, &one, 1, hidden, h);
        qw_pass_hidden(c->rt.pass, &row, 1, hidden);
        qw_pass_logits(c->rt.pass, &row, 1, p->logits, c->net->hp.n_vocab);
        bool accepted = most_probable(p->logits, c->net->hp.n_vocab) == p->tokens[at + i + 2];
        d->drafted[i]++;
        d->accepted[i] += accepted;
        if (!accepted) break;
    }
}

qw_status qw_drafts_measure(qw_compute *c, const int32_t *prompt, size_t n_prompt, size_t n_more, qw_drafts *d, qw_err *err)
{
    size_t h = c->net->hp.hidden;
    path p = {.n = n_prompt + n_more};
    float *hidden = NULL;
    qw_seq *seq = NULL;
    qw_status status;
    QW_TRY_GOTO(qw_alloc(&p.tokens, p.n, sizeof *p.tokens, "tokens", err));
    QW_TRY_GOTO(qw_alloc(&p.hidden, p.n * h, sizeof *p.hidden, "hidden states", err));
    QW_TRY_GOTO(qw_alloc(&p.logits, c->net->hp.n_vocab, sizeof *p.logits, "logits", err));
    QW_TRY_GOTO(qw_alloc(&hidden, h, sizeof *hidden, "hidden states", err));
    QW_TRY_GOTO(qw_seq_create(c->rt.seqs, &seq, err));
    memcpy(p.tokens, prompt, n_prompt * sizeof *prompt);
    QW_TRY_GOTO(follow_path(c, seq, &p, n_prompt, err));
    prefill_mtp(c, seq, &p, n_prompt - 1);
    for (size_t at = n_prompt - 1; at + 2 < p.n; at++) draft(c, seq, &p, at, hidden, d);
fail:
    qw_seq_release(seq);
    free(hidden);
    path_free(&p);
    return status;
}
