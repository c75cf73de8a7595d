/* test_prefix.c: the prefix cache against a list of all pasts that were ever computed. Seeds are printed on failure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/prefix.h"

enum { TOKENS_MAX = 400, PAGES = 60, SLOTS = 12, SEQS = 4, PASTS_MAX = 4000, STATE_BYTES = 64 };

/* ---- a sequence that is computed by nobody: a page holds its tokens, the state how many there were ----------- */

typedef struct world {
    uint64_t rng;
    qw_seq_pool *pool;
    qw_prefix *cache;
    qw_seq *seq[SEQS];
    bool recurrent;
    int64_t now_us;
    struct past {
        int32_t tokens[TOKENS_MAX];
        uint32_t n, owner;
    } *pasts; /* everything that was ever computed */
    size_t n_pasts;
} world;

static uint32_t below(world *w, uint32_t n)
{
    w->rng = w->rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((w->rng >> 33) % n);
}

static void open_world(world *w, uint64_t seed, bool recurrent, uint32_t n_pages, uint32_t n_snapshots)
{
    const qw_seq_pool_options po = {.shape = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 64, .type = QW_KV_F32},
                                    .n_pages = n_pages, .seq_tokens_max = TOKENS_MAX,
                                    .recurrent_bytes = recurrent ? STATE_BYTES : 0, .n_slots = SEQS + n_snapshots};
    *w = (world){.rng = seed * 2654435761u + 12345, .recurrent = recurrent, .now_us = 1000};
    assert_int_equal(qw_seq_pool_create(&po, &w->pool, NULL), QW_OK);
    const qw_prefix_options o = {.pool = w->pool, .key = {{1, 2}}, .n_remembered_max = 40, .n_pinned_max = SEQS,
                                 .n_snapshots_max = n_snapshots, .us_per_token = 1000};
    assert_int_equal(qw_prefix_create(&o, &w->cache, NULL), QW_OK);
    for (int i = 0; i < SEQS; i++) assert_int_equal(qw_seq_create(w->pool, &w->seq[i], NULL), QW_OK);
    w->pasts = calloc(PASTS_MAX, sizeof *w->pasts);
    assert_non_null(w->pasts);
}

static void close_world(world *w)
{
    for (int i = 0; i < SEQS; i++) qw_seq_release(w->seq[i]);
    qw_prefix_destroy(w->cache);
    qw_seq_pool_destroy(w->pool); /* asserts that every page and slot came back */
    free(w->pasts);
}

static qw_prefix_node *root_of(world *w, uint32_t owner)
{
    uint8_t id[QW_OWNER_BYTES] = {(uint8_t)owner, (uint8_t)(owner >> 8), 7};
    return qw_prefix_root(w->cache, id, w->now_us);
}

/* Where position p's token lies: pages hold what was "computed" there. */
static int32_t *cell(const qw_seq *seq, uint32_t p)
{
    return (int32_t *)(void *)seq->pages[p / QW_KV_TILE] + p % QW_KV_TILE;
}

static uint32_t naive_common(const world *w, const int32_t *tokens, uint32_t n, uint32_t owner)
{
    uint32_t best = 0;
    for (size_t i = 0; i < w->n_pasts; i++) {
        const struct past *p = &w->pasts[i];
        uint32_t k = 0;
        while (p->owner == owner && k < p->n && k < n && p->tokens[k] == tokens[k]) k++;
        if (k > best) best = k;
    }
    return best;
}

/* A running request, as the engine would drive it. */
typedef struct run {
    qw_seq *seq;
    qw_prefix_node *tip;
    qw_prefix_snap snaps[4];
    size_t n_snaps;
} run;

static void check_state(const world *w, const qw_seq *seq, const int32_t *tokens)
{
    for (uint32_t p = 0; p < seq->n_tokens; p++) assert_int_equal(*cell(seq, p), tokens[p]);
    for (uint32_t i = 0; i < QW_SEQ_HISTORY && i < seq->n_tokens; i++)
        assert_int_equal(seq->history[i], tokens[seq->n_tokens - 1 - i]);
    if (w->recurrent) assert_int_equal(*(uint32_t *)(void *)seq->recurrent, seq->n_tokens);
}

static void add_page(world *w, run *r, const int32_t *tokens, uint32_t n_tokens)
{
    uint32_t i = (r->seq->n_tokens - 1) / QW_KV_TILE;
    r->tip = qw_prefix_add(w->cache, r->tip, tokens + i * QW_KV_TILE, n_tokens, r->seq, i, r->snaps, r->n_snaps, w->now_us);
    r->n_snaps = 0;
}

static void snapshot(world *w, run *r)
{
    uint32_t at = (r->seq->n_tokens - 1) % QW_KV_TILE + 1;
    if (!w->recurrent || r->n_snaps == 4 || (r->n_snaps && r->snaps[r->n_snaps - 1].at == at)) return;
    uint32_t slot = qw_prefix_take_slot(w->cache);
    if (slot == QW_NO_SLOT) return;
    memcpy(qw_slot_at(w->pool, slot), r->seq->recurrent, STATE_BYTES);
    r->snaps[r->n_snaps++] = (qw_prefix_snap){at, slot};
}

/* "Computes" up to n tokens; false when memory does not allow it. */
static bool compute(world *w, run *r, const int32_t *tokens, uint32_t n)
{
    while (r->seq->n_tokens < n) {
        uint32_t p = r->seq->n_tokens;
        if (qw_seq_reserve(r->seq, p + 1, NULL) != QW_OK) {
            if (!qw_prefix_free_pages(w->cache, 1)) return false;
            if (qw_seq_reserve(r->seq, p + 1, NULL) != QW_OK) return false;
        }
        *cell(r->seq, p) = tokens[p];
        if (w->recurrent) *(uint32_t *)(void *)r->seq->recurrent = p + 1;
        qw_seq_advance(r->seq, tokens + p, 1);
        if (below(w, 40) == 0) snapshot(w, r);
        if ((p + 1) % QW_KV_TILE == 0) add_page(w, r, tokens, QW_KV_TILE);
    }
    return true;
}

static void end_run(world *w, run *r, const int32_t *tokens)
{
    uint32_t left = r->seq->n_tokens % QW_KV_TILE;
    if (r->seq->n_tokens > 0) snapshot(w, r);
    if (left) add_page(w, r, tokens, left);
    for (size_t i = 0; i < r->n_snaps; i++) qw_prefix_drop_slot(w->cache, r->snaps[i].slot); /* came after its page */
    r->n_snaps = 0;
    qw_prefix_unpin(w->cache, r->tip);
    assert_int_equal(qw_seq_truncate(r->seq, 0, NULL, NULL), QW_OK);
}

/* ---- random conversations ------------------------------------------------------------------------------------ */

static uint32_t make_tokens(world *w, int32_t *tokens, uint32_t *owner)
{
    uint32_t keep = 0, n;
    *owner = below(w, 3);
    if (w->n_pasts && below(w, 10) < 8) { /* goes on from something that was there */
        const struct past *p = &w->pasts[w->n_pasts - 1 - below(w, w->n_pasts < 12 ? (uint32_t)w->n_pasts : 12)];
        keep = below(w, 4) ? p->n : below(w, p->n + 1);
        memcpy(tokens, p->tokens, keep * sizeof *tokens);
        if (below(w, 8)) *owner = p->owner;
    }
    n = keep + below(w, 100);
    if (n == 0) n = 1;
    if (n > TOKENS_MAX) n = TOKENS_MAX;
    for (uint32_t i = keep; i < n; i++) tokens[i] = (int32_t)below(w, 3); /* few, so that chance makes common pasts too */
    return n;
}

static void one_request(world *w, uint32_t which)
{
    struct past *p = &w->pasts[w->n_pasts];
    run r = {.seq = w->seq[which]};
    qw_prefix_match m;
    p->n = make_tokens(w, p->tokens, &p->owner);
    w->now_us += 1 + below(w, 100000);
    qw_prefix_node *root = root_of(w, p->owner);
    qw_prefix_find(w->cache, root, p->tokens, p->n, &m);
    uint32_t known = naive_common(w, p->tokens, p->n, p->owner), most = p->n - 1;
    assert_true(m.n_known <= known && m.n_tokens <= most && m.n_tokens <= m.n_known);
    qw_prefix_counts counts;
    qw_prefix_get_counts(w->cache, &counts);
    if (counts.pages_evicted == 0) { /* nothing was ever lost */
        assert_int_equal(m.n_known, known);
        if (!w->recurrent) assert_int_equal(m.n_tokens, known < most ? known : most);
    }
    bool all = m.n_tokens == (m.n_known < most ? m.n_known : most);
    assert_int_equal(m.miss, m.n_known == 0 ? QW_MISS_UNKNOWN : all ? QW_MISS_NONE : m.miss);
    if (!all) assert_true(m.miss == QW_MISS_EVICTED || m.miss == QW_MISS_SNAPSHOT);
    if (!w->recurrent) assert_true(m.miss != QW_MISS_SNAPSHOT);
    r.tip = qw_prefix_continue(w->cache, &m, p->tokens, r.seq, w->now_us);
    check_state(w, r.seq, p->tokens);
    if (!compute(w, &r, p->tokens, p->n)) p->n = r.seq->n_tokens;
    check_state(w, r.seq, p->tokens);
    end_run(w, &r, p->tokens);
    if (p->n > 0) w->n_pasts++;
    qw_prefix_check(w->cache);
}

static void random_requests(uint64_t seed, bool recurrent, uint32_t n_pages, uint32_t n_snapshots, int n)
{
    world w;
    printf("seed %llu, %s, %u pages, %u snapshots\n", (unsigned long long)seed, recurrent ? "recurrent" : "attention", n_pages,
           n_snapshots);
    open_world(&w, seed, recurrent, n_pages, n_snapshots);
    for (int i = 0; i < n && w.n_pasts < PASTS_MAX; i++) one_request(&w, below(&w, SEQS));
    close_world(&w);
}

static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        random_requests(seed, false, 2000, 0, 150); /* never full */
        random_requests(seed, true, 2000, 400, 150);
        random_requests(seed, false, PAGES, 0, 400);
        random_requests(seed, true, PAGES, SLOTS, 400);
        random_requests(seed, true, 8, 1, 200); /* hardly room for one */
    }
}

/* ---- what goes first ------------------------------------------------------------------------------------------ */

static void ask(world *w, const int32_t *tokens, uint32_t n, uint32_t *reused)
{
    run r = {.seq = w->seq[0]};
    qw_prefix_match m;
    qw_prefix_find(w->cache, root_of(w, 0), tokens, n, &m);
    r.tip = qw_prefix_continue(w->cache, &m, tokens, r.seq, w->now_us);
    assert_true(compute(w, &r, tokens, n));
    end_run(w, &r, tokens);
    *reused = m.n_tokens;
}

/* A long conversation and many short requests that share its first page and no more: however many come, and though each is
 * newer, the conversation stays whole. */
static void test_side_requests(void **state)
{
    (void)state;
    for (int recurrent = 0; recurrent < 2; recurrent++) {
        world w;
        int32_t session[TOKENS_MAX], side[TOKENS_MAX];
        uint32_t reused;
        open_world(&w, 5, recurrent, 12, recurrent ? 6 : 0);
        for (int i = 0; i < TOKENS_MAX; i++) session[i] = i;
        ask(&w, session, 300, &reused); /* 5 pages */
        for (int i = 0; i < 40; i++) {
            memcpy(side, session, 64 * sizeof *side);
            for (int k = 64; k < 130; k++) side[k] = 1000 * (i + 1) + k;
            w.now_us += 20000;
            ask(&w, side, 130, &reused); /* 2 more pages each, 7 are there for them */
            if (!recurrent) assert_int_equal(reused, 64);
        }
        w.now_us += 20000;
        ask(&w, session, 301, &reused);
        assert_int_equal(reused, 300);
        close_world(&w);
    }
}

/* Two pasts of one owner are one; of two owners they are two. */
static void test_owners(void **state)
{
    (void)state;
    world w;
    int32_t tokens[200] = {0};
    uint8_t a[QW_OWNER_BYTES] = {1}, b[QW_OWNER_BYTES] = {2};
    uint32_t reused;
    qw_prefix_match m;
    open_world(&w, 6, false, PAGES, 0);
    for (int i = 0; i < 200; i++) tokens[i] = i;
    ask(&w, tokens, 200, &reused);
    assert_int_equal(reused, 0);
    uint8_t zero[QW_OWNER_BYTES] = {0, 0, 7};
    qw_prefix_find(w.cache, qw_prefix_root(w.cache, zero, 1), tokens, 200, &m);
    assert_int_equal(m.n_tokens, 199);
    qw_prefix_find(w.cache, qw_prefix_root(w.cache, a, 1), tokens, 200, &m);
    assert_true(m.n_tokens == 0 && m.n_known == 0 && m.miss == QW_MISS_UNKNOWN);
    assert_true(qw_prefix_root(w.cache, a, 1) != qw_prefix_root(w.cache, b, 1));
    assert_true(qw_prefix_root(w.cache, a, 1) == qw_prefix_root(w.cache, a, 2));
    for (int i = 0; i < 200; i++) { /* owners without anything are forgotten in time */
        uint8_t many[QW_OWNER_BYTES] = {(uint8_t)i, 9, 9};
        qw_prefix_root(w.cache, many, i);
    }
    qw_prefix_counts counts;
    qw_prefix_get_counts(w.cache, &counts);
    assert_true(counts.n_roots <= 41);
    qw_prefix_check(w.cache);
    close_world(&w);
}

/* What was given up is known to have been there. */
static void test_explain(void **state)
{
    (void)state;
    world w;
    int32_t tokens[TOKENS_MAX], other[TOKENS_MAX];
    uint32_t reused;
    qw_prefix_match m;
    open_world(&w, 7, false, 8, 0);
    for (int i = 0; i < TOKENS_MAX; i++) {
        tokens[i] = i;
        other[i] = 5000 + i;
    }
    ask(&w, tokens, 256, &reused); /* 4 of 8 pages */
    w.now_us += 100000000;
    ask(&w, other, 384, &reused);  /* 6: two have to go, the last ones of the first */
    qw_prefix_find(w.cache, root_of(&w, 0), tokens, 256, &m);
    assert_true(m.n_known == 256 && m.n_tokens == 128 && m.miss == QW_MISS_EVICTED);
    qw_prefix_find(w.cache, root_of(&w, 0), other, 385, &m);
    assert_true(m.n_known == 384 && m.n_tokens == 384 && m.miss == QW_MISS_NONE);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_side_requests),
        cmocka_unit_test(test_owners),
        cmocka_unit_test(test_explain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
