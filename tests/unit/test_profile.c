/* test_profile.c: the backend that measures passes everything on and counts it.
 *
 * Runs from the repository's root. On a tiny model a pass through it must give the same bits as one without, and its
 * rows must add up to the products and the weights of the whole network. Names, and more kinds of operations than it
 * has rows for, are tried over a backend that does nothing.
 */
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
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_more_kinds_than_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
