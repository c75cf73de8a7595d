/* fake_model.c: a model whose next token is a hash of everything that was read back from the sequence's state: of the page
 * itself, of pages far behind, of the recurrent state. A page too few, too many, shared too long or given back too early
 * changes every token after it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checksum.h"
#include "model.h"

enum { VOCAB = 61, STATE_BYTES = 64, ROWS_MAX = 1024, CONTEXT_MAX = 4096 };

typedef struct fake {
    sim_model base;
    qw_seq_pool *pool;
    uint64_t hash[ROWS_MAX];    /* of the rows of the last pass */
    uint64_t alone[CONTEXT_MAX]; /* of the positions of the last solo */
} fake;

uint64_t sim_mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9E3779B97F4A7C15u ^ (b + 0xD1B54A32D192ED03u);
    z ^= z >> 29;
    z *= 0xBF58476D1CE4E5B9u;
    return z ^ z >> 32;
}

uint64_t sim_hash_floats(const float *x, size_t n)
{
    return qw_checksum(x, n * sizeof *x);
}

/* Hash of a position: of its token, of the position before, of four others, of the state. at(ctx, i): hash of position i. */
static uint64_t position_hash(uint64_t (*at)(const void *ctx, uint32_t i), const void *ctx, uint32_t pos, int32_t token,
                              uint64_t state)
{
    uint64_t h = sim_mix(sim_mix(pos > 0 ? at(ctx, pos - 1) : 7, (uint64_t)token), state);
    for (int k = 0; pos > 0 && k < 4; k++) h = sim_mix(h, at(ctx, (uint32_t)((h >> 8) % pos)));
    return h;
}

static uint64_t *cell(const qw_seq *seq, uint32_t pos)
{
    return (uint64_t *)(void *)seq->pages[pos / QW_KV_TILE] + pos % QW_KV_TILE;
}

static uint64_t at_page(const void *seq, uint32_t i)
{
    return *cell(seq, i);
}

static uint64_t at_array(const void *hashes, uint32_t i)
{
    return ((const uint64_t *)hashes)[i];
}

static void forward(void *model, const qw_row *rows, size_t n)
{
    fake *f = model;
    for (size_t r = 0; r < n; r++) {
        const qw_row *row = &rows[r];
        uint64_t *state = (uint64_t *)(void *)row->seq->recurrent, none = 0;
        if (state) *state = sim_mix(*state, (uint64_t)row->token + 1);
        else state = &none;
        f->hash[r] = position_hash(at_page, row->seq, row->pos, row->token, *state);
        *cell(row->seq, row->pos) = f->hash[r];
        if (row->keep) memcpy(row->keep, row->seq->recurrent, STATE_BYTES);
    }
}

static void logits_of(uint64_t hash, float *out)
{
    for (uint32_t t = 0; t < VOCAB; t++) out[t] = (float)(sim_mix(hash, t) % 8192) / 512.0f;
}

static void logits(void *model, const uint32_t *rows, size_t n, float *out, size_t ld)
{
    for (size_t i = 0; i < n; i++) logits_of(((fake *)model)->hash[rows[i]], out + i * ld);
}

static void solo(sim_model *m, const int32_t *prompt, uint32_t n_prompt, const qw_sampling *sampling, uint32_t n, sim_solo *out)
{
    uint64_t *hashes = ((fake *)m)->alone;
    float l[VOCAB];
    qw_sampling_run *draws = NULL;
    qw_sampler *sampler = NULL;
    uint64_t state = 0;
    if (qw_sampler_create(VOCAB, &sampler, NULL) != QW_OK ||
        qw_sampling_run_create(sampling, VOCAB, prompt, n_prompt, n, &draws, NULL) != QW_OK)
        abort();
    for (uint32_t pos = 0; pos < n_prompt + n; pos++) {
        int32_t token = pos < n_prompt ? prompt[pos] : 0;
        if (pos >= n_prompt) {
            qw_sample sample;
            logits_of(hashes[pos - 1], l);
            out->hashes[pos - n_prompt] = sim_hash_floats(l, VOCAB);
            qw_sampler_draw(sampler, draws, l, pos, &sample);
            qw_sampling_run_accept(draws, sample.token);
            token = out->tokens[pos - n_prompt] = sample.token;
        }
        if (m->recurrent) state = sim_mix(state, (uint64_t)token + 1);
        hashes[pos] = position_hash(at_array, hashes, pos, token, state);
    }
    qw_sampling_run_destroy(draws);
    qw_sampler_destroy(sampler);
}

static void begin(sim_model *m, uint64_t seed, uint32_t context)
{
    if (context > CONTEXT_MAX) abort();
    m->recurrent = sim_mix(seed, 77) % 2;
}

static qw_seq_pool *open_run(sim_model *m, uint64_t seed, uint32_t n_pages, uint32_t n_slots, uint32_t n_rows_max,
                             uint32_t context)
{
    fake *f = (fake *)m;
    (void)seed;
    const qw_seq_pool_options o = {.shape = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 64, .type = QW_KV_F32},
                                   .n_pages = n_pages, .seq_tokens_max = context,
                                   .recurrent_bytes = m->recurrent ? STATE_BYTES : 0, .n_slots = n_slots};
    if (n_rows_max > ROWS_MAX || qw_seq_pool_create(&o, &f->pool, NULL) != QW_OK) abort();
    return f->pool;
}

static void close_run(sim_model *m)
{
    qw_seq_pool_destroy(((fake *)m)->pool); /* asserts that every page and slot came back */
}

static uint64_t row_hash(const sim_model *m, uint32_t row)
{
    return ((const fake *)m)->hash[row];
}

static uint64_t alone_hash(const sim_model *m, uint32_t pos)
{
    return ((const fake *)m)->alone[pos];
}

static int64_t cost_us(size_t n_rows)
{
    return 5000 + 500 * (int64_t)n_rows;
}

static void close_model(sim_model *m)
{
    (void)m;
}

sim_model *sim_fake_model(void)
{
    static fake f = {.base = {.n_vocab = VOCAB, .begin = begin, .open_run = open_run, .close_run = close_run, .forward = forward,
                              .logits = logits, .solo = solo, .cost_us = cost_us, .row = row_hash, .position = alone_hash,
                              .close = close_model}};
    return &f.base;
}
