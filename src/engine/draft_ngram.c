/* draft_ngram.c: see draft_ngram.h. Places are chained by the hash of the run that ends there, newest first. */
#include "engine/draft_ngram.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { ORDERS = 3, HEADS_MIN = 256, HEADS_MAX = 1 << 15 };

static const uint32_t run_tokens[ORDERS] = {4, 2, QW_NGRAM_MIN}; /* longest first */

typedef struct chains {
    uint32_t *head;   /* [n_heads]: 1 + the newest place, or 0 */
    uint32_t *before; /* [n_tokens_max]: 1 + the place before this one in its chain, or 0 */
} chains;

struct qw_ngrams {
    const int32_t *tokens; /* [n], borrows */
    uint32_t n, n_tokens_max, n_heads;
    chains orders[ORDERS];
};

qw_status qw_ngrams_create(uint32_t n_tokens_max, qw_ngrams **out, qw_err *err)
{
    qw_ngrams *g = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&g, 1, sizeof *g, "drafts", err));
    g->n_tokens_max = n_tokens_max;
    for (g->n_heads = HEADS_MIN; g->n_heads < n_tokens_max && g->n_heads < HEADS_MAX; g->n_heads *= 2) {}
    for (size_t i = 0; i < ORDERS; i++) {
        QW_TRY_GOTO(qw_alloc(&g->orders[i].head, g->n_heads, sizeof *g->orders[i].head, "drafts", err));
        QW_TRY_GOTO(qw_alloc(&g->orders[i].before, n_tokens_max, sizeof *g->orders[i].before, "drafts", err));
    }
    *out = g;
    return QW_OK;
fail:
    qw_ngrams_destroy(g);
    return status;
}

void qw_ngrams_destroy(qw_ngrams *g)
{
    if (!g) return;
    for (size_t i = 0; i < ORDERS; i++) {
        free(g->orders[i].head);
        free(g->orders[i].before);
    }
    free(g);
}

void qw_ngrams_begin(qw_ngrams *g, const int32_t *tokens)
{
    g->tokens = tokens;
    g->n = 0;
    for (size_t i = 0; i < ORDERS; i++) memset(g->orders[i].head, 0, g->n_heads * sizeof *g->orders[i].head);
}

/* The token that stands `back` places before the end of sequence and path. */
static int32_t token_back(const qw_ngrams *g, const int32_t *path, size_t n_path, size_t back)
{
    return back < n_path ? path[n_path - 1 - back] : g->tokens[g->n - 1 - (back - n_path)];
}

static uint32_t *head_of(const qw_ngrams *g, size_t order, uint64_t hash)
{
    return &g->orders[order].head[(hash * 0x9E3779B97F4A7C15u >> 40) & (g->n_heads - 1)];
}

static uint64_t hash_token(uint64_t hash, int32_t token)
{
    return (hash ^ (uint32_t)token) * 0xD1B54A32D192ED03u;
}

/* The chain of the run that ends at a place of the sequence. */
static uint32_t *head_at(const qw_ngrams *g, size_t order, uint32_t place)
{
    uint64_t hash = 0;
    for (uint32_t i = 0; i < run_tokens[order]; i++) hash = hash_token(hash, g->tokens[place - i]);
    return head_of(g, order, hash);
}

static void add_place(qw_ngrams *g, size_t order, uint32_t place)
{
    if (place + 1 < run_tokens[order]) return;
    uint32_t *head = head_at(g, order, place);
    g->orders[order].before[place] = *head;
    *head = place + 1;
}

/* The newest place is the first of its chain. */
static void remove_place(qw_ngrams *g, size_t order, uint32_t place)
{
    if (place + 1 < run_tokens[order]) return;
    uint32_t *head = head_at(g, order, place);
    QW_ASSERT(*head == place + 1);
    *head = g->orders[order].before[place];
}

void qw_ngrams_set_length(qw_ngrams *g, uint32_t n)
{
    QW_ASSERT(n <= g->n_tokens_max);
    for (size_t i = 0; i < ORDERS; i++) {
        for (uint32_t place = g->n; place < n; place++) add_place(g, i, place);
        for (uint32_t place = g->n; place > n; place--) remove_place(g, i, place - 1);
    }
    g->n = n;
}

/* How many tokens that end at the place agree with the last ones of sequence and path. */
static uint32_t agreement(const qw_ngrams *g, uint32_t place, const int32_t *path, size_t n_path)
{
    uint32_t most = place + 1 < QW_NGRAM_LENGTH_MAX ? place + 1 : QW_NGRAM_LENGTH_MAX, n = 0;
    while (n < most && g->tokens[place - n] == token_back(g, path, n_path, n)) n++;
    return n;
}

/* Keeps the guesses in order, each token once. Places come newest first, so what comes later must be longer to go before. */
static size_t insert(qw_ngram_guess *out, size_t n, size_t n_max, qw_ngram_guess guess)
{
    size_t same = 0, at;
    while (same < n && out[same].token != guess.token) same++;
    if (same < n) {
        if (out[same].length >= guess.length) return n;
        at = same;
    } else {
        if (n == n_max && out[n - 1].length >= guess.length) return n;
        at = n < n_max ? n++ : n - 1;
    }
    for (; at > 0 && out[at - 1].length < guess.length; at--) out[at] = out[at - 1];
    out[at] = guess;
    return n;
}

static size_t find_runs(const qw_ngrams *g, size_t order, const int32_t *path, size_t n_path, qw_ngram_guess *out,
                        size_t n, size_t n_max)
{
    uint64_t hash = 0;
    if (g->n + n_path < run_tokens[order]) return n;
    for (uint32_t i = 0; i < run_tokens[order]; i++) hash = hash_token(hash, token_back(g, path, n_path, i));
    uint32_t place = *head_of(g, order, hash);
    for (int i = 0; i < QW_NGRAM_PLACES_MAX && place > 0; i++, place = g->orders[order].before[place - 1]) {
        if (place == g->n) continue; /* the end of the sequence: nothing followed yet */
        uint32_t length = agreement(g, place - 1, path, n_path);
        if (length >= run_tokens[order]) n = insert(out, n, n_max, (qw_ngram_guess){g->tokens[place], length});
    }
    return n;
}

size_t qw_ngrams_find(const qw_ngrams *g, const int32_t *path, size_t n_path, qw_ngram_guess *out, size_t n_max)
{
    size_t n = 0;
    for (size_t i = 0; i < ORDERS; i++) n = find_runs(g, i, path, n_path, out, n, n_max);
    return n;
}
