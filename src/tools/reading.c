/* reading.c: how fast this machine reads a model's weights when it does nothing else (reading.h). */
#include "tools/reading.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/pool.h"

enum {
    ITEM_BYTES = 64 << 10,
    DEALT_ITEMS = 32, /* 2 MiB: a large page */
    LINE = 64,
    PAIRS_MAX = 256   /* of a way; later ones take the place of the first */
};

/* A way to read: dealt out, or one share a thread; prefetched so many bytes ahead into L1 or L2. */
typedef struct way {
    bool shares;
    size_t ahead; /* 0: no prefetch */
    bool to_l2;
    const char *name;
} way;

static const way ways[] = {
    {false, 0, false, "dealt, no prefetch"},
    {true, 0, false, "shares, no prefetch"},
    {false, 2048, true, "dealt, prefetch 2 KiB ahead into L2"},
    {true, 4096, false, "shares, prefetch 4 KiB ahead into L1"},
};

enum { N_WAYS = sizeof ways / sizeof *ways };

typedef struct item {
    const uint8_t *p;
    size_t bytes;
} item;

/* A padded sum keeps the compiler from leaving the loads out, and threads from sharing a line. */
typedef struct padded_sum {
    _Alignas(LINE) uint64_t of;
} padded_sum;

typedef struct pair {
    double share, gb_per_s;
} pair;

struct qw_reading {
    qw_pool *pool; /* owns */
    item *items;   /* [n_items], owns */
    padded_sum *sums; /* [n_threads], owns */
    size_t n_items, bytes;
    const way *now;
    size_t n_turns;
    struct {
        size_t n; /* ever */
        pair of[PAIRS_MAX];
    } pairs[N_WAYS];
};

typedef struct gathering {
    qw_reading *r;
    size_t n_used; /* experts of a stack that a token reads */
    bool all_packed;
} gathering;

static void gather(void *ctx, qw_weight *w)
{
    gathering *g = ctx;
    if (w->pack == QW_PACK_NONE) {
        g->all_packed = false;
        return;
    }
    size_t n = w->n_stacked > 1 ? g->n_used : 1; /* any of them: the first */
    size_t bytes = n * qw_weight_groups(w) * qw_pack_group_bytes(w->pack, w->k);
    for (size_t at = 0; at < bytes; at += ITEM_BYTES, g->r->n_items++) {
        size_t part = bytes - at < ITEM_BYTES ? bytes - at : ITEM_BYTES;
        if (g->r->items) {
            g->r->items[g->r->n_items] = (item){(const uint8_t *)w->packed + at, part};
            g->r->bytes += part;
        }
    }
}

/* One word of each line. */
static uint64_t read_item(item it, const way *w)
{
    uint64_t sum = 0, word;
    if (w->ahead == 0) {
        for (size_t i = 0; i < it.bytes; i += LINE) {
            memcpy(&word, it.p + i, sizeof word);
            sum += word;
        }
        return sum;
    }
    for (size_t i = 0; i < it.bytes; i += LINE) {
        const uint8_t *ahead = it.p + i + w->ahead;
        if (w->to_l2)
            __builtin_prefetch(ahead, 0, 2);
        else
            __builtin_prefetch(ahead, 0, 3);
        memcpy(&word, it.p + i, sizeof word);
        sum += word;
    }
    return sum;
}

static void read_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    qw_reading *r = ctx;
    uint64_t sum = 0;
    for (int64_t i = begin; i < end; i++) sum += read_item(r->items[i], r->now);
    r->sums[thread].of += sum;
}

qw_status qw_reading_create(qw_net *net, int n_threads, qw_reading **out, qw_err *err)
{
    qw_reading *r = NULL;
    gathering g = {.n_used = net->hp.n_experts_used, .all_packed = true};
    qw_status status = QW_OK;
    QW_TRY(qw_alloc(&r, 1, sizeof *r, "readings", err));
    g.r = r;
    qw_net_each_weight(net, gather, &g);
    if (!g.all_packed) {
        status = qw_fail(err, QW_E_ARG, "reading is compared with packed weights; these are not (--exact?)");
        goto fail;
    }
    QW_TRY_GOTO(qw_alloc(&r->items, r->n_items, sizeof *r->items, "readings", err));
    r->n_items = 0;
    qw_net_each_weight(net, gather, &g);
    QW_TRY_GOTO(qw_pool_create(n_threads, &r->pool, err));
    QW_TRY_GOTO(qw_alloc_aligned(&r->sums, (size_t)n_threads * sizeof *r->sums, "readings", err));
    *out = r;
    return QW_OK;
fail:
    qw_reading_destroy(r);
    return status;
}

void qw_reading_destroy(qw_reading *r)
{
    if (r == NULL) return;
    if (r->sums) qw_free_aligned(r->sums, (size_t)qw_pool_threads(r->pool) * sizeof *r->sums);
    if (r->pool) qw_pool_destroy(r->pool);
    free(r->items);
    free(r);
}

int64_t qw_reading_pair(qw_reading *r, int64_t step_us, size_t more_bytes)
{
    size_t w = r->n_turns++ % N_WAYS, n_threads = (size_t)qw_pool_threads(r->pool);
    size_t share = (r->n_items + n_threads - 1) / n_threads;
    r->now = &ways[w];
    int64_t start = qw_clock_us();
    qw_pool_run(r->pool, (int64_t)r->n_items, r->now->shares ? (int64_t)share : DEALT_ITEMS, read_items, r);
    int64_t us = qw_clock_us() - start;
    double reading = (double)r->bytes / (double)us, step = (double)(r->bytes + more_bytes) / (double)step_us;
    r->pairs[w].of[r->pairs[w].n++ % PAIRS_MAX] = (pair){.share = step / reading, .gb_per_s = reading / 1e3};
    return us;
}

static int by_share(const void *a, const void *b)
{
    double x = ((const pair *)a)->share, y = ((const pair *)b)->share;
    return x < y ? -1 : x > y;
}

static int by_speed(const void *a, const void *b)
{
    double x = ((const pair *)a)->gb_per_s, y = ((const pair *)b)->gb_per_s;
    return x < y ? -1 : x > y;
}

qw_reading_result qw_reading_take(qw_reading *r)
{
    qw_reading_result result = {0};
    for (size_t w = 0; w < N_WAYS; w++) {
        size_t n = r->pairs[w].n < PAIRS_MAX ? r->pairs[w].n : PAIRS_MAX;
        r->pairs[w].n = 0;
        if (n == 0) continue;
        pair *of = r->pairs[w].of;
        qsort(of, n, sizeof *of, by_speed);
        double speed = of[n / 2].gb_per_s;
        qsort(of, n, sizeof *of, by_share);
        double share = of[n / 2].share;
        if (result.share > 0 && share >= result.share) continue;
        result = (qw_reading_result){.gb_per_s = speed, .share = share, .how = ways[w].name};
    }
    return result;
}
