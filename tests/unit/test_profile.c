/* test_profile.c: the backend that measures passes everything on and counts it.
 *
 * Runs from the repository's root. On a tiny model a pass through it must give the same bits as one without, and its
 * rows must add up to the products and the weights of the whole network. Names, and more kinds of operations than it
 * has rows for, are tried over a backend that does nothing.
 */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend/profile.h"
#include "model/runtime.h"
#include "model/weights.h"

enum { N = 70 }; /* crosses an attention tile */

typedef struct totals {
    uint64_t n_calls, n_bytes, n_macs;
    int64_t ns;
} totals;

static totals add_up(const qw_backend *profile)
{
    const qw_profile_row *rows;
    totals all = {0};
    for (size_t i = 0, n = qw_profile_rows(profile, &rows); i < n; i++) {
        all.n_calls += rows[i].n_calls;
        all.n_bytes += rows[i].n_bytes;
        all.n_macs += rows[i].n_macs;
        all.ns += rows[i].ns;
    }
    return all;
}

static void count_matrix(void *ctx, qw_weight *w)
{
    totals *all = ctx;
    all->n_macs += w->rows * w->k;
    all->n_bytes += w->rows * w->row_bytes;
}

/* One pass over N tokens and the logits of the last one. */
static void forward(qw_runtime *rt, size_t n_vocab, float *logits)
{
    qw_row rows[N];
    qw_seq *seq;
    qw_err err;
    assert_int_equal(qw_seq_create(rt->seqs, &seq, &err), QW_OK);
    assert_int_equal(qw_seq_reserve(seq, N, &err), QW_OK);
    for (uint32_t i = 0; i < N; i++) rows[i] = (qw_row){.seq = seq, .pos = i, .token = (int32_t)(i * 7 % n_vocab)};
    qw_forward(rt->pass, rows, N);
    qw_pass_logits(rt->pass, &(uint32_t){N - 1}, 1, logits, n_vocab);
    qw_seq_release(seq);
}

static void test_same_bits_and_sums(void **state)
{
    (void)state;
    qw_gguf *file = NULL;
    qw_net *net = NULL;
    qw_weights *weights = NULL;
    qw_runtime rt = {0};
    qw_err err = {0};
    qw_runtime_options o = {.n_threads = 2, .n_rows_max = 128, .n_seqs = 1, .seq_tokens_max = 128};
    if (qw_gguf_open("tests/fixtures/tiny-q4km.gguf", &file, &err) || qw_net_open(file, &net, &err) ||
        qw_runtime_create(net, &o, &rt, &err) || qw_weights_create(net, NULL, rt.pool, &weights, &err)) {
        fail_msg("%s", err.text);
    }
    size_t n_vocab = net->hp.n_vocab;
    float *plain = calloc(n_vocab, sizeof(float)), *profiled = calloc(n_vocab, sizeof(float));
    forward(&rt, n_vocab, plain);
    qw_backend *profile;
    assert_int_equal(qw_profile_create(rt.be, &profile, &err), QW_OK);
    rt.pass->be = profile;
    forward(&rt, n_vocab, profiled);
    assert_memory_equal(plain, profiled, n_vocab * sizeof(float));

    totals matrices = {0}, all = add_up(profile);
    qw_net_each_weight(net, count_matrix, &matrices);
    uint64_t head = net->head.rows * net->head.k;
    uint64_t attention = (uint64_t)net->hp.n_layers * 2 * net->hp.n_heads * net->hp.head_dim * (N * (N + 1) / 2);
    assert_int_equal(all.n_macs, N * (matrices.n_macs - head) + head + attention);
    assert_true(all.n_bytes >= matrices.n_bytes);
    assert_true(all.ns > 0);
    assert_true(all.n_calls > net->hp.n_layers);

    qw_profile_clear(profile);
    assert_int_equal(add_up(profile).n_calls, 0);
    forward(&rt, n_vocab, profiled);
    assert_int_equal(add_up(profile).n_macs, all.n_macs);
    assert_int_equal(add_up(profile).n_bytes, all.n_bytes);
    assert_int_equal(add_up(profile).n_calls, all.n_calls);

    profile->ops->destroy(profile);
    free(plain);
    free(profiled);
    qw_runtime_destroy(&rt);
    qw_weights_destroy(weights);
    qw_net_close(net);
    qw_gguf_close(file);
}

/* ---- inputs of products ------------------------------------------------------------------------- */

typedef struct seen {
    char name[64];
    size_t n_rows;
    double squares;
} seen;

typedef struct watcher {
    seen seen[64];
    size_t n;
} watcher;

static seen *find_seen(watcher *w, const char *name)
{
    size_t i = 0;
    while (i < w->n && strcmp(w->seen[i].name, name) != 0) i++;
    assert_true(i < 64);
    if (i == w->n) snprintf(w->seen[w->n++].name, sizeof w->seen[i].name, "%s", name);
    return &w->seen[i];
}

static void note_input(void *ctx, const qw_weight *w, size_t stacked, const float *x, size_t ld, size_t n_rows)
{
    seen *s = find_seen(ctx, w->name);
    assert_true(stacked < w->n_stacked);
    s->n_rows += n_rows;
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = 0; i < w->k; i++) s->squares += (double)x[r * ld + i] * (double)x[r * ld + i];
}

/* Watched, the dense model's results are equal up to rounding, and each matrix is shown an input for each row. */
static void test_watched_model(void **state)
{
    (void)state;
    qw_gguf *file = NULL;
    qw_net *net = NULL;
    qw_runtime rt = {0};
    qw_err err = {0};
    qw_backend *profile = NULL;
    watcher watched = {0};
    qw_runtime_options o = {.n_threads = 2, .exact = true, .n_rows_max = 128, .n_seqs = 1, .seq_tokens_max = 128};
    if (qw_gguf_open("tests/fixtures/tiny-f32.gguf", &file, &err) || qw_net_open(file, &net, &err) ||
        qw_runtime_create(net, &o, &rt, &err)) {
        fail_msg("%s", err.text);
    }
    size_t n_vocab = net->hp.n_vocab;
    float *plain = calloc(n_vocab, sizeof(float)), *seen_through = calloc(n_vocab, sizeof(float));
    qw_cpu_sizes sizes = qw_net_cpu_sizes(net, 128, false);
    forward(&rt, n_vocab, plain);
    assert_int_equal(qw_profile_create(rt.be, &profile, &err), QW_OK);
    assert_int_equal(qw_profile_watch(profile, &sizes, note_input, &watched, &err), QW_OK);
    rt.pass->be = profile;
    forward(&rt, n_vocab, seen_through);
    for (size_t i = 0; i < n_vocab; i++) assert_true(fabsf(plain[i] - seen_through[i]) < 1e-4f);
    size_t n_full = 0;
    for (size_t i = 0; i < watched.n; i++) n_full += watched.seen[i].n_rows == N;
    assert_int_equal(find_seen(&watched, "blk.0.ffn_down.weight")->n_rows, N);
    assert_true(find_seen(&watched, "blk.0.ffn_down.weight")->squares > 0);
    assert_true(n_full == watched.n - 1); /* the head saw one row */
    profile->ops->destroy(profile);
    free(plain);
    free(seen_through);
    qw_runtime_destroy(&rt);
    qw_net_close(net);
    qw_gguf_close(file);
}

enum { EXPERTS = 5, USED = 2, HIDDEN = 64, EXPERT_FFN = 48, SHARED_FFN = 32, ROWS = 9 };

/* Random numbers of about 1 / sqrt(k); freed by the caller. */
static qw_weight random_stack(const char *name, size_t n, size_t rows, size_t k)
{
    static uint32_t state = 12345;
    float *data = malloc(n * rows * k * sizeof *data);
    assert_non_null(data);
    for (size_t i = 0; i < n * rows * k; i++) {
        state = state * 1664525u + 1013904223u;
        data[i] = ((float)(state >> 8) * 0x1p-23f - 1.0f) * 2.0f / sqrtf((float)k);
    }
    return (qw_weight){.name = name, .type = QW_TYPE_F32, .rows = rows, .k = k, .n_stacked = n,
                       .data = (const uint8_t *)data, .row_bytes = k * sizeof(float),
                       .stack_bytes = rows * k * sizeof(float), .pack = QW_PACK_NONE};
}

/* A block of experts in steps is the backend's, and every pair of a row and an expert is shown once. */
static void test_watched_experts(void **state)
{
    (void)state;
    qw_weight w[] = {random_stack("router", 1, EXPERTS, HIDDEN), random_stack("gate", EXPERTS, EXPERT_FFN, HIDDEN),
                     random_stack("up", EXPERTS, EXPERT_FFN, HIDDEN), random_stack("down", EXPERTS, HIDDEN, EXPERT_FFN),
                     random_stack("shared_gate", 1, SHARED_FFN, HIDDEN), random_stack("shared_up", 1, SHARED_FFN, HIDDEN),
                     random_stack("shared_down", 1, HIDDEN, SHARED_FFN), random_stack("shared_scale", 1, 1, HIDDEN),
                     random_stack("input", 1, ROWS, HIDDEN)};
    qw_cpu_sizes sizes = {.n_rows_max = ROWS, .k_max = HIDDEN, .head_dim = 16, .n_experts = EXPERTS, .n_used = USED,
                          .hidden = HIDDEN, .expert_ffn = EXPERT_FFN};
    static float gate_out[ROWS * HIDDEN], up_out[ROWS * HIDDEN];
    qw_pool *pool;
    qw_backend *be, *profile;
    qw_err err;
    assert_int_equal(qw_pool_create(2, &pool, &err), QW_OK);
    assert_int_equal(qw_cpu_create(pool, qw_cpu_isa(), &sizes, &be, &err), QW_OK);
    const float *n = (const float *)(const void *)w[8].data;
    for (int variant = 0; variant < 4; variant++) {
        qw_moe moe = {.router = &w[0], .gate = &w[1], .up = &w[2], .down = &w[3], .n_experts = EXPERTS, .n_used = USED,
                      .renormalise = variant & 1, .gate_out = gate_out, .up_out = up_out};
        float want[ROWS * HIDDEN] = {0}, got[ROWS * HIDDEN] = {0};
        watcher watched = {0};
        if (variant & 2) {
            moe.shared_gate = &w[4];
            moe.shared_up = &w[5];
            moe.shared_down = &w[6];
            moe.shared_scale = &w[7];
        }
        be->ops->moe(be, n, HIDDEN, ROWS, &moe, want, HIDDEN);
        assert_int_equal(qw_profile_create(be, &profile, &err), QW_OK);
        assert_int_equal(qw_profile_watch(profile, &sizes, note_input, &watched, &err), QW_OK);
        profile->ops->moe(profile, n, HIDDEN, ROWS, &moe, got, HIDDEN);
        double size = 0;
        for (size_t i = 0; i < ROWS * HIDDEN; i++) {
            size += fabs((double)want[i]);
            assert_true(fabsf(want[i] - got[i]) < 1e-5f);
        }
        assert_true(size > 1); /* not zeros */
        for (int i = 1; i <= 3; i++) assert_int_equal(find_seen(&watched, w[i].name)->n_rows, ROWS * USED);
        for (int i = 4; i <= 7; i++) assert_int_equal(find_seen(&watched, w[i].name)->n_rows, variant & 2 ? ROWS : 0);
        profile->ops->destroy(profile);
    }
    be->ops->destroy(be);
    qw_pool_destroy(pool);
    for (size_t i = 0; i < sizeof w / sizeof *w; i++) free((void *)(uintptr_t)w[i].data);
}

/* ---- over a backend that does nothing --------------------------------------------------------- */

static size_t n_forwarded;

static void idle_linear(qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                        size_t n_products)
{
    (void)be, (void)x, (void)ld_x, (void)n_rows, (void)products, (void)n_products;
    n_forwarded++;
}

static const qw_backend_ops idle_ops = {.name = "idle", .linear = idle_linear};

static void product(qw_backend *profile, const char *first, const char *second)
{
    qw_weight w[2] = {{.name = first, .rows = 16, .k = 32, .n_stacked = 1, .row_bytes = 100},
                      {.name = second, .rows = 4, .k = 32, .n_stacked = 1, .row_bytes = 50}};
    qw_linear products[2] = {{.w = &w[0]}, {.w = &w[1]}};
    profile->ops->linear(profile, NULL, 32, 3, products, second ? 2 : 1);
}

static void test_names(void **state)
{
    (void)state;
    qw_backend idle = {.ops = &idle_ops}, *profile;
    const qw_profile_row *rows;
    qw_err err;
    n_forwarded = 0;
    assert_int_equal(qw_profile_create(&idle, &profile, &err), QW_OK);
    product(profile, "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight");
    product(profile, "blk.17.ffn_gate.weight", "blk.17.ffn_up.weight");
    product(profile, "output.weight", NULL);
    product(profile, "blk.", NULL);
    product(profile, "a_very_long_name_that_does_not_end_before_the_room_for_names_does", "another");
    assert_int_equal(n_forwarded, 5);
    assert_int_equal(qw_profile_rows(profile, &rows), 4);
    assert_string_equal(rows[0].op, "linear");
    assert_string_equal(rows[0].weights, "ffn_gate+ffn_up");
    assert_int_equal(rows[0].n_calls, 2);
    assert_int_equal(rows[0].n_macs, 2 * 3 * 32 * (16 + 4));
    assert_int_equal(rows[0].n_bytes, 2 * (16 * 100 + 4 * 50 + 3 * 32 * sizeof(float)));
    assert_string_equal(rows[1].weights, "output");
    assert_string_equal(rows[2].weights, "blk.");
    assert_int_equal(strlen(rows[3].weights), sizeof rows[3].weights - 1);
    profile->ops->destroy(profile);
}

static void test_more_kinds_than_rows(void **state)
{
    (void)state;
    qw_backend idle = {.ops = &idle_ops}, *profile;
    const qw_profile_row *rows;
    qw_err err;
    char name[32];
    assert_int_equal(qw_profile_create(&idle, &profile, &err), QW_OK);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < QW_PROFILE_ROWS_MAX + 5; i++) {
            snprintf(name, sizeof name, "matrix_%d", i);
            product(profile, name, NULL);
        }
    }
    assert_int_equal(qw_profile_rows(profile, &rows), QW_PROFILE_ROWS_MAX);
    assert_string_equal(rows[QW_PROFILE_ROWS_MAX - 2].weights, "matrix_62");
    assert_int_equal(rows[QW_PROFILE_ROWS_MAX - 2].n_calls, 2);
    assert_string_equal(rows[QW_PROFILE_ROWS_MAX - 1].op, "others");
    assert_string_equal(rows[QW_PROFILE_ROWS_MAX - 1].weights, "");
    assert_int_equal(rows[QW_PROFILE_ROWS_MAX - 1].n_calls, 2 * 6);
    profile->ops->destroy(profile);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits_and_sums),
        cmocka_unit_test(test_watched_model),
        cmocka_unit_test(test_watched_experts),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_more_kinds_than_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
