/* test_forward.c: a row's logits are the same bits whatever shares its batch and however its prompt was cut.
 *
 * Runs from the repository's root on the committed tiny models and on those of every family that tests/run.py converts into
 * build/families, in default and in exact mode, on 1, 2 and 3 threads: one pass over the whole prompt is the reference; every
 * cut into two pieces, token by token, random pieces, and batches shared with other sequences must agree bit for bit; models with
 * delta-nets also over 1000 tokens. The state of sequences (fork, copy on write, truncate, page limits) is tested with the same
 * yardstick. --isa LEVEL: as a processor of that level.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "isa_cap.h"
#include "model/runtime.h"
#include "model/weights.h"

enum { N = 150, LONG = 1000, SEQS = 4, SEED = 20240711 }; /* N crosses two attention tiles */

typedef struct fixture {
    qw_gguf *file;
    qw_net *net;
    qw_weights *weights;
    qw_runtime rt;
    uint32_t n; /* tokens of the prompt: N or LONG */
    int32_t tokens[LONG];
    size_t n_vocab;
    float *reference; /* [n, n_vocab] */
    float *logits;    /* [n, n_vocab] */
} fixture;

/* Every cut is tried at the machine's own level, some at a lower one beside it. The reference kernels take some twenty times as
 * long: they see fewer rounds, too. */
static int n_rounds = 20;
static uint32_t cut_step = 1;

static uint32_t rng_state;
static uint32_t rng(uint32_t below)
{
    rng_state = rng_state * 1664525u + 1013904223u;
    return (rng_state >> 8) % below;
}

static void open_fixture(fixture *f, const char *path, bool exact, int n_threads, uint32_t n)
{
    qw_err err = {0};
    uint32_t n_max = n > 256 ? n : 256;
    qw_runtime_options o = {.n_threads = n_threads, .exact = exact, .n_rows_max = n_max, .n_seqs = SEQS,
                            .seq_tokens_max = n_max};
    memset(f, 0, sizeof *f);
    f->n = n;
    if (qw_gguf_open(path, &f->file, &err)) fail_msg("%s (tests/run.py makes build/families)", err.text);
    if (qw_net_open(f->file, &f->net, &err) || qw_runtime_create(f->net, &o, &f->rt, &err)) {
        fail_msg("%s", err.text);
    }
    if (!exact && qw_weights_create(f->net, NULL, f->rt.pool, &f->weights, &err)) fail_msg("%s", err.text);
    f->n_vocab = f->net->hp.n_vocab;
    f->reference = calloc(n * f->n_vocab, sizeof(float));
    f->logits = calloc(n * f->n_vocab, sizeof(float));
    rng_state = SEED;
    for (uint32_t i = 0; i < n; i++) f->tokens[i] = (int32_t)rng((uint32_t)f->n_vocab);
}

static void close_fixture(fixture *f)
{
    qw_runtime_destroy(&f->rt);
    qw_weights_destroy(f->weights);
    qw_net_close(f->net);
    qw_gguf_close(f->file);
    free(f->reference);
    free(f->logits);
}

static qw_seq *new_seq(fixture *f)
{
    qw_seq *seq;
    assert_int_equal(qw_seq_create(f->rt.seqs, &seq, NULL), QW_OK);
    return seq;
}

/* Appends tokens [seq->n_tokens, +n) of `tokens` in one pass and stores their logits by position. */
static void append(fixture *f, qw_seq *seq, const int32_t *tokens, uint32_t n, float *logits)
{
    static qw_row rows[LONG];
    static uint32_t all[LONG];
    uint32_t first = seq->n_tokens;
    assert_int_equal(qw_seq_reserve(seq, first + n, NULL), QW_OK);
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = (qw_row){.seq = seq, .pos = first + i, .token = tokens[first + i], .silent = !logits};
        all[i] = i;
    }
    qw_forward(f->rt.pass, rows, n);
    qw_seq_advance(seq, tokens + first, n);
    if (logits) qw_pass_logits(f->rt.pass, all, n, logits + first * f->n_vocab, f->n_vocab);
}

static void check_bits(fixture *f, const char *what)
{
    for (size_t i = 0; i < f->n; i++) {
        if (memcmp(f->logits + i * f->n_vocab, f->reference + i * f->n_vocab, f->n_vocab * sizeof(float)) != 0) {
            fail_msg("%s: logits at position %zu differ from one pass over the whole prompt", what, i);
        }
    }
    memset(f->logits, 0, f->n * f->n_vocab * sizeof(float));
}

static void whole(fixture *f)
{
    qw_seq *seq = new_seq(f);
    append(f, seq, f->tokens, f->n, f->reference);
    qw_seq_release(seq);
}

static void cut_in_two(fixture *f, uint32_t cut)
{
    qw_seq *seq = new_seq(f);
    append(f, seq, f->tokens, cut, f->logits);
    append(f, seq, f->tokens, f->n - cut, f->logits);
    qw_seq_release(seq);
    check_bits(f, "cut in two");
}

static void every_cut_in_two(fixture *f)
{
    for (uint32_t cut = 1; cut < f->n; cut += cut_step) cut_in_two(f, cut);
}

static void token_by_token(fixture *f)
{
    qw_seq *seq = new_seq(f);
    for (uint32_t i = 0; i < f->n; i++) append(f, seq, f->tokens, 1, f->logits);
    qw_seq_release(seq);
    check_bits(f, "token by token");
}

static void random_pieces(fixture *f)
{
    for (int round = 0; round < n_rounds; round++) {
        qw_seq *seq = new_seq(f);
        while (seq->n_tokens < N) {
            uint32_t n = 1 + rng(40);
            append(f, seq, f->tokens, n < N - seq->n_tokens ? n : N - seq->n_tokens, f->logits);
        }
        qw_seq_release(seq);
        check_bits(f, "random pieces");
    }
}

/* Our prompt rides in passes with rows of other sequences, in front, between and behind. */
static void beside_others(fixture *f)
{
    for (int round = 0; round < n_rounds; round++) {
        qw_seq *seqs[SEQS];
        uint32_t mine = 0;
        for (int s = 0; s < SEQS; s++) seqs[s] = new_seq(f);
        while (mine < N) {
            qw_row rows[256];
            uint32_t n_rows = 0, own[N], first = mine, n_own = 0, at[SEQS];
            for (int s = 0; s < SEQS; s++) at[s] = seqs[s]->n_tokens;
            for (int s = 1; s < SEQS; s++) assert_int_equal(qw_seq_reserve(seqs[s], at[s] + 12, NULL), QW_OK);
            assert_int_equal(qw_seq_reserve(seqs[0], N, NULL), QW_OK);
            while (n_rows < 30 && mine < N) {
                int s = (int)rng(SEQS);
                if (s == 0) {
                    own[n_own++] = n_rows;
                    rows[n_rows++] = (qw_row){.seq = seqs[0], .pos = mine, .token = f->tokens[mine]};
                    mine++;
                } else if (at[s] < seqs[s]->n_tokens + 12 && at[s] < 250) {
                    rows[n_rows++] = (qw_row){.seq = seqs[s], .pos = at[s]++, .token = (int32_t)rng((uint32_t)f->n_vocab),
                                              .silent = rng(2) == 0};
                }
            }
            qw_forward(f->rt.pass, rows, n_rows);
            qw_pass_logits(f->rt.pass, own, n_own, f->logits + first * f->n_vocab, f->n_vocab);
            for (uint32_t r = 0; r < n_rows; r++) qw_seq_advance(rows[r].seq, &rows[r].token, 1);
        }
        for (int s = 0; s < SEQS; s++) qw_seq_release(seqs[s]);
        check_bits(f, "beside other sequences");
    }
}

/* Rows that nobody asks are dropped in the last layer; the others, in any pattern, get the same bits. */
static void some_silent(fixture *f)
{
    for (int round = 0; round < 10; round++) {
        qw_seq *seq = new_seq(f);
        qw_row rows[N];
        uint32_t asked[N], n_asked = 0;
        float *logits = f->logits + (size_t)(N - 1) * f->n_vocab; /* of one row at a time */
        assert_int_equal(qw_seq_reserve(seq, N, NULL), QW_OK);
        for (uint32_t i = 0; i < N; i++) {
            rows[i] = (qw_row){.seq = seq, .pos = i, .token = f->tokens[i], .silent = rng(4) > 0};
            if (!rows[i].silent) asked[n_asked++] = i;
        }
        qw_forward(f->rt.pass, rows, N);
        for (uint32_t i = 0; i < n_asked; i++) {
            qw_pass_logits(f->rt.pass, &asked[i], 1, logits, f->n_vocab);
            assert_memory_equal(logits, f->reference + asked[i] * f->n_vocab, f->n_vocab * sizeof(float));
        }
        qw_seq_release(seq);
    }
    memset(f->logits, 0, N * f->n_vocab * sizeof(float));
}

/* Sequences of these lengths in one pass, their rows dealt out in turn. */
static void dealt_out(fixture *f)
{
    static const uint32_t lengths[][SEQS] = {{1, 63, 64, 65}, {64, 128, 63, 1}};
    for (size_t batch = 0; batch < 2; batch++) {
        qw_seq *seqs[SEQS];
        qw_row rows[256];
        uint32_t n_rows = 0;
        for (int s = 0; s < SEQS; s++) {
            seqs[s] = new_seq(f);
            assert_int_equal(qw_seq_reserve(seqs[s], lengths[batch][s], NULL), QW_OK);
        }
        for (uint32_t pos = 0; pos < 128; pos++) {
            for (int s = 0; s < SEQS; s++) {
                if (pos < lengths[batch][s])
                    rows[n_rows++] = (qw_row){.seq = seqs[s], .pos = pos, .token = f->tokens[pos]};
            }
        }
        qw_forward(f->rt.pass, rows, n_rows);
        for (uint32_t r = 0; r < n_rows; r++) {
            qw_pass_logits(f->rt.pass, &r, 1, f->logits, f->n_vocab);
            assert_memory_equal(f->logits, f->reference + rows[r].pos * f->n_vocab, f->n_vocab * sizeof(float));
        }
        for (int s = 0; s < SEQS; s++) qw_seq_release(seqs[s]);
    }
    memset(f->logits, 0, N * f->n_vocab * sizeof(float));
}

/* A fork goes its own way and the original is not disturbed; truncating and computing again gives the same. A recurrent state
 * can only go back to its beginning. */
static void fork_and_truncate(fixture *f)
{
    int32_t other[N];
    qw_seq *seq = new_seq(f), *copy = new_seq(f);
    for (int i = 0; i < N; i++) other[i] = i < 70 ? f->tokens[i] : (int32_t)rng((uint32_t)f->n_vocab);
    append(f, seq, f->tokens, 70, f->logits);
    qw_seq_set(copy, seq->page_ids, 70, seq->slot, seq->history);
    append(f, copy, other, 50, NULL);
    append(f, seq, f->tokens, N - 70, f->logits);
    check_bits(f, "forked sequence");
    qw_seq_release(seq);
    /* the copy returns to the common part and then follows the original's tokens */
    uint32_t common = f->net->recurrent_bytes ? 0 : 70;
    if (common == 0) assert_int_equal(qw_seq_truncate(copy, 70, other, NULL), QW_E_UNSUPPORTED);
    assert_int_equal(qw_seq_truncate(copy, common, other, NULL), QW_OK);
    append(f, copy, f->tokens, N - common, f->logits);
    memcpy(f->logits, f->reference, common * f->n_vocab * sizeof(float));
    check_bits(f, "truncated fork");
    qw_seq_release(copy);
    assert_int_equal(qw_seq_pool_free_pages(f->rt.seqs), SEQS * 4);
}

/* The state after any position of a pass can be kept, and another sequence goes on from there. */
static void kept_midway(fixture *f)
{
    for (int round = 0; round < n_rounds; round++) {
        qw_seq *seq = new_seq(f), *kept = new_seq(f), *next = new_seq(f);
        qw_row rows[N];
        uint32_t first = rng(N - 1), end = first + 1 + rng((uint32_t)(N - first - 1)), at = first + rng(end - first);
        int32_t history[QW_SEQ_HISTORY];
        if (first > 0) append(f, seq, f->tokens, first, NULL);
        assert_int_equal(qw_seq_reserve(seq, end, NULL), QW_OK);
        for (uint32_t i = first; i < end; i++)
            rows[i - first] = (qw_row){.seq = seq, .pos = i, .token = f->tokens[i], .silent = true,
                                       .keep = i == at ? kept->recurrent : NULL};
        qw_forward(f->rt.pass, rows, end - first);
        qw_seq_advance(seq, f->tokens + first, end - first);
        for (uint32_t i = 0; i < QW_SEQ_HISTORY; i++) history[i] = i <= at ? f->tokens[at - i] : -1;
        qw_seq_set(next, seq->page_ids, at + 1, kept->slot, history);
        memcpy(f->logits, f->reference, (at + 1) * f->n_vocab * sizeof(float));
        append(f, next, f->tokens, N - at - 1, f->logits);
        check_bits(f, "continued from a state kept midway");
        append(f, seq, f->tokens, N - end, f->logits); /* and who was kept goes on as well */
        memcpy(f->logits, f->reference, end * f->n_vocab * sizeof(float));
        check_bits(f, "went on after a state was kept");
        qw_seq_release(seq);
        qw_seq_release(kept);
        qw_seq_release(next);
    }
}

static void run_model(const char *path, bool exact, int n_threads)
{
    fixture f;
    open_fixture(&f, path, exact, n_threads, N);
    whole(&f);
    token_by_token(&f);
    random_pieces(&f);
    beside_others(&f);
    some_silent(&f);
    dealt_out(&f);
    fork_and_truncate(&f);
    kept_midway(&f);
    if (n_threads == 2) every_cut_in_two(&f);
    close_fixture(&f);
}

static void all_threads(const char *path, bool exact)
{
    print_message("%s, %s, seed %d\n", path, exact ? "exact" : "default", SEED);
    for (int n_threads = 1; n_threads <= 3; n_threads++) run_model(path, exact, n_threads);
}

static void test_float_model(void **state)
{
    (void)state;
    all_threads("tests/fixtures/tiny-f32.gguf", false);
}
static void test_half_model(void **state)
{
    (void)state;
    all_threads("tests/fixtures/tiny-tied-f16.gguf", false);
}
static void test_quantised_model(void **state)
{
    (void)state;
    all_threads("tests/fixtures/tiny-q4km.gguf", false);
}
static void test_mixed_model(void **state)
{
    (void)state;
    all_threads("tests/fixtures/tiny-mix.gguf", false);
}
static void test_exact_mode(void **state)
{
    (void)state;
    all_threads("tests/fixtures/tiny-q4km.gguf", true);
}

/* Of other families, on two threads: test_threads_agree has the rest. */
static void two_threads(const char *path, bool exact)
{
    print_message("%s, %s, seed %d\n", path, exact ? "exact" : "default", SEED);
    run_model(path, exact, 2);
}
static void test_experts(void **state)
{
    (void)state;
    two_threads("build/families/qwen2moe-sparse-q8.gguf", false);
    two_threads("build/families/qwen3moe-plain-q8.gguf", false);
    two_threads("build/families/qwen3moe-plain.gguf", true);
}
static void test_normed_heads(void **state)
{
    (void)state;
    two_threads("build/families/qwen3-yarn.gguf", false);
}
static void test_hybrid_next(void **state)
{
    (void)state;
    two_threads("build/families/qwen3next-r3-q8.gguf", false);
}
static void test_hybrid(void **state)
{
    (void)state;
    two_threads("build/families/qwen35-r3.gguf", false); /* its last layer has no attention */
}
static void test_hybrid_experts(void **state)
{
    (void)state;
    two_threads("build/families/qwen35moe-r3-q8.gguf", false);
    two_threads("build/families/qwen35moe-r2.gguf", true);
}
static void test_streams(void **state)
{
    (void)state;
    two_threads("build/families/qwen4exp-r3-q8.gguf", false);
    two_threads("build/families/qwen4exp-r2.gguf", true);
}

/* What a delta-net carries on: cuts around its chunks' and the tiles' length, at both ends and in the middle. */
static void long_prompt(const char *path, bool exact)
{
    static const uint32_t cuts[] = {1, 63, 64, 65, 128, 500, 936, 999};
    fixture f;
    print_message("%s, %s, %d tokens, seed %d\n", path, exact ? "exact" : "default", LONG, SEED);
    open_fixture(&f, path, exact, 2, LONG);
    whole(&f);
    token_by_token(&f);
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) cut_in_two(&f, cuts[i]);
    close_fixture(&f);
}
static void test_long_prompts(void **state)
{
    (void)state;
    long_prompt("build/families/qwen3next-r3-q8.gguf", false);
    long_prompt("build/families/qwen35-r3.gguf", false);
    long_prompt("build/families/qwen35-r2.gguf", true);
    long_prompt("build/families/qwen35moe-r3-q8.gguf", false);
    long_prompt("build/families/qwen4exp-r3-q8.gguf", false);
}

/* The same bits on every number of threads, not only within one. */
static void threads_agree(const char *path)
{
    fixture f[3];
    for (int t = 0; t < 3; t++) {
        open_fixture(&f[t], path, false, t + 1, N);
        whole(&f[t]);
    }
    for (int t = 1; t < 3; t++) {
        assert_memory_equal(f[0].reference, f[t].reference, N * f[0].n_vocab * sizeof(float));
    }
    for (int t = 0; t < 3; t++) close_fixture(&f[t]);
}
static void test_threads_agree(void **state)
{
    (void)state;
    threads_agree("tests/fixtures/tiny-q4km.gguf");
    threads_agree("build/families/qwen2moe-sparse-q8.gguf");
    threads_agree("build/families/qwen3-yarn.gguf");
    threads_agree("build/families/qwen3moe-plain-q8.gguf");
    threads_agree("build/families/qwen3next-r3-q8.gguf");
    threads_agree("build/families/qwen35-r3.gguf");
    threads_agree("build/families/qwen35moe-r3-q8.gguf");
    threads_agree("build/families/qwen4exp-r3-q8.gguf");
}

static void test_pages_run_out(void **state)
{
    (void)state;
    fixture f;
    qw_err err;
    open_fixture(&f, "tests/fixtures/tiny-f32.gguf", false, 1, N);
    qw_seq *seqs[SEQS + 1];
    for (int s = 0; s < SEQS; s++) {
        seqs[s] = new_seq(&f);
        assert_int_equal(qw_seq_reserve(seqs[s], 256, &err), QW_OK);
    }
    assert_int_equal(qw_seq_reserve(seqs[0], 257, &err), QW_E_LIMIT);
    seqs[SEQS] = new_seq(&f);
    assert_int_equal(qw_seq_reserve(seqs[SEQS], 1, &err), QW_E_MEMORY);
    assert_int_equal(seqs[SEQS]->n_pages, 0);
    qw_seq_release(seqs[0]);
    assert_int_equal(qw_seq_reserve(seqs[SEQS], 1, &err), QW_OK);
    for (int s = 1; s <= SEQS; s++) qw_seq_release(seqs[s]);
    close_fixture(&f);
}

/* A page that was given back reads as zeros for its next owner. */
static void test_pages_are_clean(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, "tests/fixtures/tiny-f32.gguf", false, 1, N);
    qw_seq *seq = new_seq(&f);
    append(&f, seq, f.tokens, 64, f.logits);
    qw_seq_release(seq);
    seq = new_seq(&f);
    assert_int_equal(qw_seq_reserve(seq, 64, NULL), QW_OK);
    size_t bytes = qw_page_bytes(f.rt.seqs);
    for (size_t i = 0; i < bytes; i++) assert_int_equal(seq->pages[0][i], 0);
    qw_seq_release(seq);
    close_fixture(&f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float_model),     cmocka_unit_test(test_half_model),
        cmocka_unit_test(test_quantised_model), cmocka_unit_test(test_mixed_model),
        cmocka_unit_test(test_exact_mode),      cmocka_unit_test(test_experts),
        cmocka_unit_test(test_normed_heads),    cmocka_unit_test(test_hybrid_next),
        cmocka_unit_test(test_hybrid),          cmocka_unit_test(test_hybrid_experts),
        cmocka_unit_test(test_streams),         cmocka_unit_test(test_long_prompts),
        cmocka_unit_test(test_threads_agree),   cmocka_unit_test(test_pages_run_out),
        cmocka_unit_test(test_pages_are_clean),
    };
    if (!isa_cap_options(argc, argv)) return 2;
    if (argc > 1) cut_step = 7; /* 1, 8, ..., 64, ... */
    if (qw_cpu_isa() == QW_ISA_REF) {
        n_rounds = 2;
        cut_step = 21; /* odd: 1, 22, 43, 64, ... */
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
