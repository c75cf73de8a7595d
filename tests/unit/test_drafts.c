/* test_drafts.c: the sources of drafts against slow references, and the drafts themselves on texts made from seeds. Nothing
 * between create and destroy may allocate: the Makefile wraps the allocator for that. Seeds are printed on failure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "count_allocations.h"
#include "engine/draft.h"
#include "engine/draft_cost.h"
#include "engine/draft_ngram.h"
#include "engine/draft_table.h"

enum { TEXT_MAX = 6000, VOCAB = 1000, SEEDS = 300 };

/* ---- the largest logits ----------------------------------------------------------------------------- */

static size_t slow_top(const float *x, size_t n, size_t k, qw_top *out)
{
    size_t n_out = 0;
    for (; n_out < k; n_out++) {
        size_t best = n;
        for (size_t i = 0; i < n; i++) {
            bool taken = !(x[i] > -INFINITY);
            for (size_t j = 0; j < n_out; j++) taken |= out[j].token == (int32_t)i;
            if (!taken && (best == n || x[i] > x[best])) best = i;
        }
        if (best == n) break;
        out[n_out] = (qw_top){x[best], (int32_t)best};
    }
    return n_out;
}

static void test_top(void **state)
{
    static float x[40000];
    static const size_t sizes[] = {0, 1, 7, 255, 256, 257, 1000, 16384, 16385, 20000, 40000};
    (void)state;
    for (uint32_t s = 1; s <= 200; s++) {
        qw_top got[QW_TOP_MAX], want[QW_TOP_MAX];
        seed(s);
        size_t n = sizes[below(sizeof sizes / sizeof *sizes)], k = 1 + below(QW_TOP_MAX);
        uint32_t values = s % 3 == 0 ? 4 : 1000000, kind = below(4); /* few values: many are equal */
        for (size_t i = 0; i < n; i++) x[i] = (float)below(values) - 1000;
        for (size_t i = 0; kind == 1 && i < n; i++) x[i] = i % 5 ? -INFINITY : x[i];
        for (size_t i = 0; kind == 2 && i < n; i++) x[i] = i % 3 ? NAN : x[i];
        for (size_t i = 0; kind == 3 && i < n; i++) x[i] = n - i > 3 ? -INFINITY : x[i];
        size_t n_got = qw_top_of(x, n, k, got), n_want = slow_top(x, n, k, want);
        bool same = n_got == n_want;
        for (size_t i = 0; same && i < n_got; i++) same = got[i].token == want[i].token;
        if (!same) fail_msg("seed %u: n %zu, k %zu, kind %u", s, n, k, kind);
    }
}

/* ---- n-grams ------------------------------------------------------------------------------------------ */

static size_t slow_ngrams(const int32_t *text, uint32_t n, const int32_t *path, size_t n_path, qw_ngram_guess *out, size_t n_max)
{
    int32_t all[TEXT_MAX];
    size_t n_all = n + n_path, n_out = 0;
    memcpy(all, text, n * sizeof *all);
    memcpy(all + n, path, n_path * sizeof *all);
    for (uint32_t length = QW_NGRAM_LENGTH_MAX; length >= QW_NGRAM_MIN; length--)
        for (uint32_t at = n; at-- > length;) { /* text[at] followed; from the newest on */
            if (length > n_all || memcmp(text + at - length, all + n_all - length, length * sizeof *all) != 0) continue;
            bool known = false;
            for (size_t i = 0; i < n_out; i++) known |= out[i].token == text[at];
            if (!known && n_out < n_max) out[n_out++] = (qw_ngram_guess){text[at], length};
        }
    return n_out;
}

static void compare_ngrams(const qw_ngrams *g, const int32_t *text, uint32_t n, uint32_t letters, uint32_t s)
{
    int32_t path[8];
    qw_ngram_guess got[4], want[4];
    size_t n_path = below(9), n_max = 1 + below(4);
    for (size_t i = 0; i < n_path; i++) path[i] = (int32_t)below(letters);
    size_t n_got = qw_ngrams_find(g, path, n_path, got, n_max), n_want = slow_ngrams(text, n, path, n_path, want, n_max);
    bool same = n_got == n_want;
    for (size_t i = 0; same && i < n_got; i++) same = got[i].token == want[i].token && got[i].length == want[i].length;
    if (!same) fail_msg("seed %u: %u tokens, %zu in the path, %zu guesses, want %zu", s, n, n_path, n_got, n_want);
}

/* Up to as many tokens as places are looked at the answer is exact. */
static void test_ngrams(void **state)
{
    (void)state;
    for (uint32_t s = 1; s <= SEEDS; s++) {
        int32_t text[QW_NGRAM_PLACES_MAX];
        qw_ngrams *g;
        seed(s);
        uint32_t letters = 1 + below(5), n = 0;
        assert_int_equal(qw_ngrams_create(QW_NGRAM_PLACES_MAX, &g, NULL), QW_OK);
        size_t before = n_allocations;
        qw_ngrams_begin(g, text);
        for (int step = 0; step < 60; step++) {
            if (step == 40) qw_ngrams_begin(g, text), n = 0;
            uint32_t n_new = below(QW_NGRAM_PLACES_MAX + 1);
            for (uint32_t i = n; i < n_new; i++) text[i] = (int32_t)below(letters);
            qw_ngrams_set_length(g, n = n_new);
            compare_ngrams(g, text, n, letters, s);
        }
        assert_int_equal(n_allocations, before);
        qw_ngrams_destroy(g);
    }
}

/* In a long text the newest places are looked at, and what is found is so. */
static void test_ngrams_long(void **state)
{
    static int32_t text[TEXT_MAX];
    qw_ngrams *g;
    qw_ngram_guess found[4];
    (void)state;
    seed(7);
    for (uint32_t i = 0; i < TEXT_MAX; i++) text[i] = (int32_t)below(3);
    assert_int_equal(qw_ngrams_create(TEXT_MAX, &g, NULL), QW_OK);
    qw_ngrams_begin(g, text);
    for (uint32_t n = 1000; n <= TEXT_MAX; n += 59) {
        qw_ngrams_set_length(g, n);
        size_t n_found = qw_ngrams_find(g, NULL, 0, found, 4);
        assert_true(n_found >= 1 && found[0].length >= 4);
        for (size_t i = 0; i < n_found; i++) {
            bool so = false;
            for (uint32_t at = found[i].length; at < n; at++)
                so |= text[at] == found[i].token && memcmp(text + at - found[i].length, text + n - found[i].length,
                                                           found[i].length * sizeof *text) == 0;
            assert_true(so);
        }
    }
    qw_ngrams_destroy(g);
}

/* ---- the table ----------------------------------------------------------------------------------------- */

static void test_table(void **state)
{
    static qw_top noted[VOCAB][QW_SUCCESSORS];
    static size_t n_noted[VOCAB];
    qw_recycled *r;
    (void)state;
    seed(3);
    assert_int_equal(qw_recycled_create(VOCAB, &r, NULL), QW_OK);
    size_t before = n_allocations;
    for (int step = 0; step < 20000; step++) {
        int32_t token = step == 0 ? 0 : step == 1 ? VOCAB - 1 : (int32_t)below(VOCAB);
        size_t n = below(QW_SUCCESSORS + 1);
        float logit = 20;
        if (n > 0) n_noted[token] = n; /* no news changes nothing */
        for (size_t i = 0; i < n; i++)
            noted[token][i] = (qw_top){logit -= (float)below(100) / 20, (int32_t)below(VOCAB)};
        qw_recycled_note(r, token, noted[token], n);
        int32_t asked = (int32_t)below(VOCAB);
        const qw_successors *got = qw_recycled_after(r, asked);
        assert_int_equal(got != NULL, n_noted[asked] > 0);
        double sum = 0;
        for (size_t i = 0; i < n_noted[asked]; i++) sum += exp((double)(noted[asked][i].logit - noted[asked][0].logit));
        for (size_t i = 0; i < n_noted[asked]; i++) {
            double share = 255 * exp((double)(noted[asked][i].logit - noted[asked][0].logit)) / sum;
            assert_int_equal(got->token[i], noted[asked][i].token);
            assert_true(got->share[i] >= 1 && fabs(got->share[i] - share) <= 1.01);
        }
        for (size_t i = n_noted[asked]; got && i < QW_SUCCESSORS; i++) assert_int_equal(got->share[i], 0);
    }
    assert_int_equal(n_allocations, before);
    qw_recycled_destroy(r);
}

/* ---- cost ------------------------------------------------------------------------------------------------ */

static void test_cost(void **state)
{
    qw_draft_cost c = {.us_guess = 500};
    (void)state;
    assert_true(qw_draft_cost_us(&c, 1) == 500 && qw_draft_cost_us(&c, 8) < 600);
    for (int i = 0; i < 20; i++) {
        qw_draft_cost_note(&c, 1, 1000);
        qw_draft_cost_note(&c, 9, 2000);
    }
    assert_true(fabs(qw_draft_cost_us(&c, 1) - 1000) < 100 && fabs(qw_draft_cost_us(&c, 9) - 2000) < 100);
    assert_true(qw_draft_cost_us(&c, 5) > 1300 && qw_draft_cost_us(&c, 5) < 1700); /* between */
    assert_true(qw_draft_cost_us(&c, 500) > qw_draft_cost_us(&c, 64) && qw_draft_cost_us(&c, 64) > 2000);
    double before = qw_draft_cost_us(&c, 1);
    qw_draft_cost_note(&c, 1, 1e9); /* an accident */
    assert_true(qw_draft_cost_us(&c, 1) < 1.3 * before);
    for (int i = 0; i < 100; i++) qw_draft_cost_note(&c, 1, 3000); /* everything got slower */
    assert_true(fabs(qw_draft_cost_us(&c, 1) - 3000) < 100 && qw_draft_cost_us(&c, 9) > 3200);
    qw_draft_cost_note(&c, 4, 90000); /* one measurement that was an accident, and the first of its kind: it is forgotten */
    for (int i = 0; i < 1500; i++) qw_draft_cost_note(&c, 1, 3000);
    assert_true(qw_draft_cost_us(&c, 4) < 4000);
    before = qw_draft_cost_us(&c, 2);
    qw_draft_cost_note(&c, 0, 1);
    qw_draft_cost_note(&c, 1000, 1);
    qw_draft_cost_note(&c, 2, 0);
    qw_draft_cost_note(&c, 2, (double)NAN);
    assert_true(qw_draft_cost_us(&c, 2) == before);
}

/* ---- drafts ------------------------------------------------------------------------------------------------ */

/* A text that is known in advance stands for the model's answer. */
typedef struct world {
    qw_drafts *all;
    qw_draft *d;
    int32_t text[TEXT_MAX];
    uint32_t n_prompt, n_text, n;
    double row_cost;         /* of each row beyond the first; a pass of one costs 1 */
    double cost, n_passes, n_tokens, n_expected, n_nodes, n_asked, n_allocated;
    uint32_t n_drafted; /* passes since the last one without guesses */
    int64_t now_us;
    uint32_t model_right, model_us; /* of 100 tokens of the other model; what one takes */
    int64_t accident_us;            /* that it takes more the next time */
    uint32_t n_has, lacking_us;     /* tokens that it has computed; what one in advance takes, 0: it lacks nothing ever */
} world;

enum { PASS_US = 10000 };

static int64_t world_clock(void *ctx)
{
    return ((world *)ctx)->now_us;
}

enum { FEW = 8, MODEL_PIECE = 32 };

static uint32_t model_lacks(void *ctx, void *user, const int32_t *tokens, uint32_t n_tokens)
{
    const world *w = ctx;
    assert_ptr_equal(user, w);
    assert_ptr_equal(tokens, w->text);
    uint32_t n = w->lacking_us > 0 ? n_tokens - w->n_has : 0;
    return n > FEW ? n : 0;
}

static uint32_t model_propose(void *ctx, void *user, const int32_t *tokens, uint32_t n_tokens, uint32_t n, double sure,
                              int32_t *out)
{
    world *w = ctx;
    assert_ptr_equal(user, w);
    assert_ptr_equal(tokens, w->text);
    assert_int_equal(n_tokens, w->n);
    assert_true(sure >= 0);
    w->now_us += w->accident_us;
    w->accident_us = 0;
    if (sure > 0.5 && n > 1) n = 1; /* each token is held for right with one half */
    if (model_lacks(ctx, user, tokens, n_tokens) > 0) {
        uint32_t piece = n_tokens - w->n_has < MODEL_PIECE ? n_tokens - w->n_has : MODEL_PIECE;
        w->n_has += piece;
        w->now_us += (int64_t)piece * w->lacking_us;
        return 0;
    }
    w->n_has = n_tokens;
    for (uint32_t i = 0; i < n; i++)
        out[i] = n_tokens + i < w->n_text && below(100) < w->model_right ? tokens[n_tokens + i] : (int32_t)below(VOCAB);
    w->now_us += (int64_t)n * w->model_us;
    w->n_asked++;
    return n;
}

static void open_world(world *w, uint64_t s, bool with_model)
{
    qw_drafts_options o = {.n_vocab = VOCAB, .us_per_pass = PASS_US};
    if (with_model)
        o.model = (qw_draft_model){.ctx = w, .propose = model_propose, .lacks = model_lacks, .us_per_token = 1000,
                                   .us_per_lacking = 500, .clock_us = world_clock};
    memset(w, 0, sizeof *w);
    seed(s);
    assert_int_equal(qw_drafts_create(&o, &w->all, NULL), QW_OK);
    assert_int_equal(qw_draft_create(w->all, TEXT_MAX, w, &w->d, NULL), QW_OK);
    w->n_allocated = (double)n_allocations;
}

static void close_world(world *w)
{
    assert_int_equal(n_allocations, (size_t)w->n_allocated);
    qw_draft_destroy(w->d);
    qw_drafts_destroy(w->all);
}

static void check_tree(const qw_draft_node *nodes, uint32_t n, const qw_draft_ask *ask)
{
    assert_true(n <= ask->n_max && n <= QW_DRAFT_NODES_MAX);
    for (uint32_t i = 0; i < n; i++) {
        const qw_draft_node *node = &nodes[i];
        assert_true(node->parent >= QW_DRAFT_ROOT && node->parent < (int)i);
        assert_int_equal(node->depth, node->parent < 0 ? 1 : nodes[node->parent].depth + 1);
        assert_true(node->depth <= ask->depth_max && node->depth <= QW_DRAFT_DEPTH_MAX);
        assert_true(node->token >= 0 && node->token < VOCAB && node->source < QW_DRAFT_SOURCES);
        assert_true(node->probability >= 0 && node->probability <= (i ? nodes[i - 1].probability : 1));
        assert_true(!ask->chain || node->parent == (int)i - 1);
        /* the other model's tokens follow one another */
        assert_true(node->source != QW_DRAFT_MODEL || node->parent < 0 || nodes[node->parent].source == QW_DRAFT_MODEL);
        assert_int_equal(qw_draft_child(nodes, n, node->parent, node->token), i); /* the only one of its name */
    }
}

static double children_p(const qw_draft_node *nodes, uint32_t n, int parent)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) sum += nodes[i].parent == parent ? (double)nodes[i].probability : 0;
    return sum;
}

/* The model thought of the right token and of some others. */
static void note_logits(world *w, uint32_t place)
{
    float logits[VOCAB];
    for (size_t i = 0; i < VOCAB; i++) logits[i] = (float)below(1000) / 100;
    logits[w->text[place + 1]] = 12;
    qw_drafts_note_logits(w->all, w->text[place], logits);
}

static void pass(world *w, qw_draft_ask ask)
{
    qw_draft_node nodes[QW_DRAFT_NODES_MAX];
    double n_expected = -1;
    uint32_t from = w->n, n_nodes;
    int64_t begun_us = w->now_us;
    if (ask.depth_max > w->n_text - w->n - 1) ask.depth_max = w->n_text - w->n - 1;
    n_nodes = qw_draft_propose(w->d, &ask, nodes, &n_expected);
    check_tree(nodes, n_nodes, &ask);
    assert_true(n_expected >= 1 && n_expected <= 1.001 + n_nodes);
    for (int at = QW_DRAFT_ROOT; at < (int)n_nodes; at++)
        assert_true(children_p(nodes, n_nodes, at) <= 1e-5 + (at < 0 ? 1 : (double)nodes[at].probability));
    for (int at = QW_DRAFT_ROOT;;) {
        at = qw_draft_child(nodes, n_nodes, at, w->text[w->n++]);
        if (at < 0) break;
    }
    assert_true(w->n <= w->n_text);
    for (uint32_t place = from - 1; place + 1 < w->n; place++) note_logits(w, place);
    double cost = 1 + w->row_cost * n_nodes;
    qw_drafts_note_cost(w->all, ask.n_rows + n_nodes + 1, PASS_US * (cost + w->row_cost * ask.n_rows));
    w->cost += cost + (double)(w->now_us - begun_us) / PASS_US;
    w->n_nodes += n_nodes;
    w->n_expected += n_expected;
    w->n_drafted = n_nodes ? w->n_drafted + 1 : 0;
    assert_true(w->n_drafted < 64); /* what a plain pass costs stays known */
    w->n_passes++;
    w->n_tokens += w->n - from;
    qw_draft_advance(w->d, w->n);
}

static void begin_text(world *w, uint32_t n_prompt, uint32_t n_text)
{
    w->n_drafted = 0;
    w->n_prompt = n_prompt;
    w->n_text = n_text;
    w->n = n_prompt;
    w->cost = w->n_passes = w->n_tokens = w->n_expected = w->n_nodes = w->n_asked = 0;
    qw_draft_begin(w->d, w->text, n_prompt);
}

static void run_text(world *w, uint32_t n_max, bool chain)
{
    const qw_draft_ask ask = {.n_max = n_max, .depth_max = 1000, .chain = chain};
    while (w->n < w->n_text) pass(w, ask);
}

static void make_random(world *w, uint32_t from, uint32_t to, uint32_t letters)
{
    for (uint32_t i = from; i < to; i++) w->text[i] = (int32_t)below(letters);
}

static void make_copy(world *w, uint32_t from, uint32_t to, uint32_t period)
{
    for (uint32_t i = from; i < to; i++) w->text[i] = w->text[i - period];
}

/* Every kind of text, shape and budget; check_tree looks at every tree. */
static void test_trees(void **state)
{
    static world w;
    (void)state;
    for (uint32_t s = 1; s <= 60; s++) {
        open_world(&w, s, s % 4 == 0);
        w.row_cost = (double)below(3) / 10;
        w.model_right = below(101);
        for (int text = 0; text < 4; text++) {
            uint32_t letters = text == 0 ? 1 : text == 1 ? 2 : text == 2 ? 30 : VOCAB;
            make_random(&w, 0, 400, letters);
            if (text == 3) w.text[5] = w.text[9] = 0, w.text[6] = w.text[10] = VOCAB - 1;
            if (text == 3) make_copy(&w, 200, 400, 150);
            begin_text(&w, 1 + below(150), 400);
            while (w.n < w.n_text) {
                const qw_draft_ask ask = {.n_max = below(40), .depth_max = below(30), .n_rows = below(80),
                                          .n_expected = below(5), .chain = s % 2};
                pass(&w, ask);
            }
        }
        close_world(&w);
    }
}

/* Copied text comes many tokens at a time, also where one letter is all there is. */
static void test_copies(void **state)
{
    static world w;
    (void)state;
    for (int chain = 0; chain < 2; chain++) {
        open_world(&w, 11, false);
        w.row_cost = 0.01;
        make_random(&w, 0, 300, VOCAB);
        make_copy(&w, 300, 3000, 300);
        begin_text(&w, 310, 3000);
        run_text(&w, 7, chain);
        assert_true(w.n_tokens / w.cost > 5);
        make_random(&w, 0, 3000, 1);
        begin_text(&w, 10, 3000);
        run_text(&w, 7, chain);
        assert_true(w.n_tokens / w.cost > 5);
        close_world(&w);
    }
}

static uint64_t count_right(const world *w)
{
    qw_draft_counts c;
    uint64_t right = 0;
    qw_drafts_get_counts(w->all, &c);
    for (int source = 0; source < QW_DRAFT_SOURCES; source++)
        for (int depth = 0; depth <= QW_DRAFT_DEPTH_MAX; depth++) {
            assert_true(c.right[source][depth] <= c.checked[source][depth]);
            right += c.right[source][depth];
        }
    return right;
}

/* What follows each token has two possible ways: the tree has both, a chain one; and it is known how much that gives. */
static void test_recycled(void **state)
{
    static world w;
    double per_pass[2];
    (void)state;
    for (int chain = 0; chain < 2; chain++) {
        open_world(&w, 5, false);
        w.row_cost = 0.001;
        for (uint32_t i = 0; i < 5000; i++) w.text[i] = i ? (int32_t)(((uint32_t)w.text[i - 1] * 7 + 1 + below(2)) % 300) : 0;
        begin_text(&w, 10, 5000);
        run_text(&w, 14, chain);
        per_pass[chain] = w.n_tokens / w.n_passes;
        assert_true(fabs(w.n_expected / w.n_tokens - 1) < 0.1);
        assert_int_equal(count_right(&w), (uint64_t)(w.n_tokens - w.n_passes)); /* each pass gives one token beside those */
        close_world(&w);
    }
    assert_true(per_pass[0] > 3 && per_pass[1] > 1.3 && per_pass[0] > 1.2 * per_pass[1]);
}

/* Where rows cost and guesses are bad, nothing is lost; and drafting begins by itself when the text can be guessed. */
static void test_off_and_on(void **state)
{
    static world w;
    static const double row_costs[] = {0.02, 0.1, 0.3, 0.5, 1};
    (void)state;
    for (size_t i = 0; i < sizeof row_costs / sizeof *row_costs; i++) {
        open_world(&w, 21, false);
        w.row_cost = row_costs[i];
        make_random(&w, 0, 6000, VOCAB);
        begin_text(&w, 50, 4000);
        run_text(&w, 7, false);
        if (w.n_tokens / w.cost < 0.98) fail_msg("rows at %g: %g of the speed", w.row_cost, w.n_tokens / w.cost);
        begin_text(&w, 50, 4000); /* again, now that it has learned */
        run_text(&w, 7, false);
        if (w.n_tokens / w.cost < 0.99) fail_msg("rows at %g, later: %g of the speed", w.row_cost, w.n_tokens / w.cost);
        make_copy(&w, 4000, 4400, 500);
        w.n_text = 4400;
        w.cost = w.n_tokens = w.n_nodes = 0;
        run_text(&w, 7, false);
        if (row_costs[i] < 0.5) assert_true(w.n_nodes > 0 && w.n_tokens / w.cost > 1.2);
        close_world(&w);
    }
}

/* Beside many others, whose rows are already in the pass, a row must bring more. */
static void test_batched(void **state)
{
    static world w;
    double per_pass[2];
    (void)state;
    for (int many = 0; many < 2; many++) {
        const qw_draft_ask ask = {.n_max = 20, .depth_max = 100, .n_rows = many ? 30 : 0, .n_expected = many ? 30 : 0};
        open_world(&w, 31, false);
        w.row_cost = 0.01;
        for (uint32_t i = 0; i < 3000; i++) w.text[i] = i ? (int32_t)(((uint32_t)w.text[i - 1] * 7 + 1 + below(2)) % 200) : 0;
        begin_text(&w, 10, 3000);
        while (w.n < w.n_text) pass(&w, ask);
        per_pass[many] = w.n_nodes / w.n_passes;
        close_world(&w);
    }
    assert_true(per_pass[0] > 2 * per_pass[1] && per_pass[1] > 0.3); /* alone the same row costs the same and counts for more */
}

static void go_on(world *w, uint32_t n_text)
{
    w->n_text = n_text;
    w->cost = w->n_passes = w->n_tokens = w->n_asked = 0;
    run_text(w, 7, false);
}

static void test_model(void **state)
{
    static world w;
    (void)state;
    open_world(&w, 41, true);
    w.row_cost = 0.01;
    w.model_right = 90;
    w.model_us = PASS_US / 20;
    make_random(&w, 0, 6000, VOCAB);
    begin_text(&w, 50, 2000);
    run_text(&w, 7, false);
    assert_true(w.n_tokens / w.cost > 2 && w.n_asked > 0.9 * w.n_passes);
    w.model_right = 0; /* it is of no use any more */
    go_on(&w, 4000);
    assert_true(w.n_tokens / w.cost > 0.97 && w.n_asked < 0.1 * w.n_passes);
    w.model_right = 100; /* and of use again: asking it once in a while shows that */
    go_on(&w, 6000);
    assert_true(w.n_tokens / w.cost > 1.5);
    w.model_us = 4 * PASS_US; /* but too slow */
    begin_text(&w, 50, 4000);
    run_text(&w, 7, false);
    assert_true(w.n_asked < 0.06 * w.n_passes);
    close_world(&w);
}

/* What the other model lacks is computed in advance when that can come back, and not for more than was brought before. */
static void test_model_lacks(void **state)
{
    static world w;
    (void)state;
    for (uint32_t right = 0; right <= 90; right += 30) {
        open_world(&w, 43, true);
        w.row_cost = 0.01;
        w.model_right = right;
        w.model_us = PASS_US / 4;
        w.lacking_us = PASS_US / 10;
        make_random(&w, 0, 6000, VOCAB);
        for (int text = 0; text < 6; text++) { /* short ones, where it has to begin anew each time */
            w.n_has = 0;
            begin_text(&w, 100, 400);
            run_text(&w, 7, false);
            if (w.n_tokens / w.cost < (text ? 0.97 : 0.93)) fail_msg("right %u, text %d: %g", right, text, w.n_tokens / w.cost);
        }
        assert_true(right == 0 || right == 30 || w.n_tokens / w.cost > 1.05);
        w.n_has = 0;
        begin_text(&w, 5000, 5300); /* the half of a long one would cost more than all of the answer */
        run_text(&w, 7, false);
        if (w.n_has > 0 || w.n_tokens / w.cost < 0.98)
            fail_msg("right %u: %u computed, %g", right, w.n_has, w.n_tokens / w.cost);
        close_world(&w);
    }
}

/* Conversations too short for what it lacks to come back while it is bad: when it gets better, that is found out all the same. */
static void test_model_gets_better(void **state)
{
    static world w;
    double n_tokens = 0, cost = 0;
    (void)state;
    open_world(&w, 47, true);
    w.row_cost = 0.05;
    w.model_us = 0.4 * PASS_US;
    w.lacking_us = PASS_US / 20;
    for (int text = 0; text < 40; text++) {
        make_random(&w, 0, 168, VOCAB); /* nothing else can guess it */
        w.n_has = 0;
        w.model_right = text < 8 ? 20 : 95;
        begin_text(&w, 40, 168);
        run_text(&w, 7, false);
        if (text < 30) continue;
        n_tokens += w.n_tokens;
        cost += w.cost;
    }
    print_message("%g of the speed\n", n_tokens / cost);
    assert_true(n_tokens / cost > 1.15);
    close_world(&w);
}

/* The first time its weights come from the disk, or it stands still for once: that is forgiven, and soon forgotten. */
static void test_model_accident(void **state)
{
    static world w;
    (void)state;
    for (int lacks = 0; lacks < 2; lacks++) {
        double n_tokens = 0, cost = 0;
        open_world(&w, 53, true);
        w.row_cost = 0.05;
        w.model_us = 0.4 * PASS_US;
        w.lacking_us = lacks ? PASS_US / 20 : 0;
        w.model_right = 95;
        for (int text = 0; text < 16; text++) {
            if (text == 0 || text == 8) w.accident_us = 200 * PASS_US;
            make_random(&w, 0, 168, VOCAB);
            w.n_has = 0;
            begin_text(&w, 40, 168);
            run_text(&w, 7, false);
            if (text % 8 < 2) continue;
            n_tokens += w.n_tokens;
            cost += w.cost;
        }
        if (n_tokens / cost < 1.15) fail_msg("%g of the speed", n_tokens / cost);
        close_world(&w);
    }
}

/* A sequence that was cut drafts as one that never was longer. */
static void test_cut(void **state)
{
    static world w;
    (void)state;
    for (uint32_t s = 1; s <= 50; s++) {
        const qw_draft_ask ask = {.n_max = 12, .depth_max = 20};
        qw_draft_node cut[QW_DRAFT_NODES_MAX], fresh[QW_DRAFT_NODES_MAX];
        open_world(&w, s, false);
        make_random(&w, 0, 200, 4);
        uint32_t n = 1 + below(199);
        qw_draft_begin(w.d, w.text, 200);
        qw_draft_propose(w.d, &ask, cut, NULL);
        qw_draft_advance(w.d, n);
        uint32_t n_cut = qw_draft_propose(w.d, &ask, cut, NULL);
        qw_draft_begin(w.d, w.text, n);
        uint32_t n_fresh = qw_draft_propose(w.d, &ask, fresh, NULL);
        assert_int_equal(n_cut, n_fresh);
        for (uint32_t i = 0; i < n_cut; i++)
            assert_true(cut[i].token == fresh[i].token && cut[i].parent == fresh[i].parent && cut[i].source == fresh[i].source);
        close_world(&w);
    }
}

/* A new sequence begins with what others have learned; and what was compared once is not compared again. */
static void test_learned(void **state)
{
    static world w;
    const qw_draft_ask ask = {.n_max = 7, .depth_max = 100};
    qw_draft_node nodes[QW_DRAFT_NODES_MAX];
    qw_draft_counts once, twice;
    double before, after;
    (void)state;
    open_world(&w, 61, false);
    make_random(&w, 0, 300, VOCAB);
    make_copy(&w, 300, 3000, 300);
    begin_text(&w, 320, 3000);
    qw_draft_propose(w.d, &ask, nodes, &before);
    qw_draft_advance(w.d, 320);
    run_text(&w, 7, false);
    begin_text(&w, 320, 3000);
    assert_int_equal(qw_draft_propose(w.d, &ask, nodes, &after), 7);
    assert_true(after > before + 0.5);
    uint64_t right = count_right(&w);
    qw_draft_advance(w.d, 321);
    assert_int_equal(count_right(&w), right + 1);
    qw_drafts_get_counts(w.all, &once);
    qw_draft_advance(w.d, 322);
    qw_drafts_get_counts(w.all, &twice);
    assert_memory_equal(&once, &twice, sizeof once);
    close_world(&w);
}

static void test_counts(void **state)
{
    static world w;
    qw_draft_counts c;
    (void)state;
    open_world(&w, 51, false);
    make_random(&w, 0, 300, VOCAB);
    make_copy(&w, 300, 2000, 100);
    begin_text(&w, 300, 2000);
    run_text(&w, 7, false);
    qw_drafts_get_counts(w.all, &c);
    assert_int_equal(count_right(&w), (uint64_t)(w.n_tokens - w.n_passes));
    assert_int_equal(c.proposed[0] + c.proposed[1] + c.proposed[2], (uint64_t)w.n_nodes);
    assert_int_equal(c.steps, (uint64_t)w.n_passes);
    assert_true(c.drafted_steps > c.steps / 2 && c.drafted_steps < c.steps);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_top),       cmocka_unit_test(test_ngrams),   cmocka_unit_test(test_ngrams_long),
        cmocka_unit_test(test_table),     cmocka_unit_test(test_cost),     cmocka_unit_test(test_trees),
        cmocka_unit_test(test_copies),    cmocka_unit_test(test_recycled), cmocka_unit_test(test_off_and_on),
        cmocka_unit_test(test_batched),   cmocka_unit_test(test_model),    cmocka_unit_test(test_cut),
        cmocka_unit_test(test_learned),   cmocka_unit_test(test_counts),   cmocka_unit_test(test_model_lacks),
        cmocka_unit_test(test_model_gets_better), cmocka_unit_test(test_model_accident),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
