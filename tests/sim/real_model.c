/* real_model.c: a model file for the simulation, with the fake clock: what shares a pass, where prompts are cut and what is
 * given up is the seed's choice, and every row of logits must have the bits of the pass that computes it alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/model.h"
#include "model.h"

enum { SOLO_ROWS = 512, THREADS = 2 };

typedef struct real {
    sim_model base;
    qw_model *model;
    qw_runtime rt;      /* of the run */
    qw_runtime alone;   /* of solo */
    qw_seq *seq;        /* its sequence, */
    int32_t *known;     /* [context] and the tokens in it */
    uint32_t context;
} real;

static void must(qw_status status, const qw_err *err)
{
    if (status == QW_OK) return;
    fprintf(stderr, "sim: %s\n", err->text);
    exit(1);
}

static void begin(sim_model *m, uint64_t seed, uint32_t context)
{
    real *r = (real *)m;
    qw_err err;
    const qw_runtime_options o = {.n_threads = THREADS, .n_rows_max = SOLO_ROWS, .n_seqs = 1, .seq_tokens_max = context};
    (void)seed;
    if (r->context > 0) {
        if (r->context != context) abort();
        return;
    }
    r->context = context;
    must(qw_alloc(&r->known, context, sizeof *r->known, "tokens", &err), &err);
    must(qw_runtime_create(r->model->net, &o, &r->alone, &err), &err);
    must(qw_model_prepare(r->model, r->alone.pool, &err), &err);
    must(qw_seq_create(r->alone.seqs, &r->seq, &err), &err);
}

static qw_seq_pool *open_run(sim_model *m, uint64_t seed, uint32_t n_pages, uint32_t n_slots, uint32_t n_rows_max,
                             uint32_t context)
{
    real *r = (real *)m;
    qw_err err;
    const qw_runtime_options o = {.n_threads = 1 + (int)(seed % THREADS), .n_rows_max = n_rows_max, .n_seqs = 1,
                                  .seq_tokens_max = context, .n_pages = n_pages, .n_slots = n_slots};
    must(qw_runtime_create(r->model->net, &o, &r->rt, &err), &err);
    return r->rt.seqs;
}

static void close_run(sim_model *m)
{
    qw_runtime_destroy(&((real *)m)->rt);
}

static void forward(void *model, const qw_row *rows, size_t n)
{
    qw_forward(((real *)model)->rt.pass, rows, n);
}

static void logits(void *model, const uint32_t *rows, size_t n, float *out, size_t ld)
{
    qw_pass_logits(((real *)model)->rt.pass, rows, n, out, ld);
}

/* Logits after the tokens that follow the sequence. */
static void append_alone(real *r, const int32_t *tokens, uint32_t n, float *out)
{
    qw_err err;
    while (n > 0) {
        qw_row rows[SOLO_ROWS];
        uint32_t piece = n < SOLO_ROWS ? n : SOLO_ROWS, last = piece - 1;
        must(qw_seq_reserve(r->seq, r->seq->n_tokens + piece, &err), &err);
        for (uint32_t i = 0; i < piece; i++)
            rows[i] = (qw_row){.seq = r->seq, .pos = r->seq->n_tokens + i, .token = tokens[i], .silent = i < last};
        qw_forward(r->alone.pass, rows, piece);
        if (piece == n) qw_pass_logits(r->alone.pass, &last, 1, out, r->base.n_vocab);
        memcpy(r->known + r->seq->n_tokens, tokens, piece * sizeof *tokens);
        qw_seq_advance(r->seq, tokens, piece);
        tokens += piece;
        n -= piece;
    }
}

static void solo(sim_model *m, const int32_t *prompt, uint32_t n_prompt, const qw_sampling *sampling, uint32_t n, sim_solo *out)
{
    real *r = (real *)m;
    qw_sampling_run *draws = NULL;
    qw_sampler *sampler = NULL;
    float *l = calloc(m->n_vocab, sizeof *l);
    qw_err err;
    must(qw_sampler_create(m->n_vocab, &sampler, &err), &err);
    must(qw_sampling_run_create(sampling, m->n_vocab, prompt, n_prompt, n, &draws, &err), &err);
    /* A conversation that goes on is computed once: nothing but its own end is added. */
    uint32_t n_known = r->seq->n_tokens;
    if (n_known >= n_prompt || memcmp(r->known, prompt, n_known * sizeof *prompt) != 0) {
        must(qw_seq_truncate(r->seq, 0, NULL, &err), &err);
        n_known = 0;
    }
    for (uint32_t i = 0; i < n; i++) {
        qw_sample sample;
        append_alone(r, i ? &out->tokens[i - 1] : prompt + n_known, i ? 1 : n_prompt - n_known, l);
        out->hashes[i] = sim_hash_floats(l, m->n_vocab);
        qw_sampler_draw(sampler, draws, l, n_prompt + i, &sample);
        qw_sampling_run_accept(draws, sample.token);
        out->tokens[i] = sample.token;
    }
    qw_sampling_run_destroy(draws);
    qw_sampler_destroy(sampler);
    free(l);
}

static int64_t cost_us(size_t n_rows)
{
    return 12000 + 1200 * (int64_t)n_rows;
}

static void close_model(sim_model *m)
{
    real *r = (real *)m;
    qw_seq_release(r->seq);
    qw_runtime_destroy(&r->alone);
    qw_model_close(r->model);
    free(r->known);
    free(r);
}

sim_model *sim_real_model(const char *path)
{
    real *r = NULL;
    const qw_model_options o = {.path = path};
    qw_err err;
    must(qw_alloc(&r, 1, sizeof *r, "model", &err), &err);
    r->base = (sim_model){.begin = begin, .open_run = open_run, .close_run = close_run, .forward = forward, .logits = logits,
                          .solo = solo, .cost_us = cost_us, .close = close_model};
    must(qw_model_open(&o, &r->model, &err), &err);
    r->base.n_vocab = r->model->net->hp.n_vocab;
    r->base.recurrent = r->model->net->recurrent_bytes > 0;
    return &r->base;
}
