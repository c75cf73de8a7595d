/* test_plan.c: what the memory plan says beside what is really allocated: the heap is counted.
 *
 * malloc and its kin are wrapped (Makefile); what a block really takes is asked of the allocator, so sums agree but for its
 * rounding.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/core.h"

#define Q4KM "tests/fixtures/tiny-q4km.gguf"

/* ---- the heap --------------------------------------------------------------------------------- */

static atomic_llong live, most;
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
int __real_posix_memalign(void **p, size_t align, size_t n);
void __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
int __wrap_posix_memalign(void **p, size_t align, size_t n);
void __wrap_free(void *p);

static void *count(void *p)
{
    long long now = atomic_fetch_add(&live, (long long)malloc_usable_size(p)) + (long long)malloc_usable_size(p);
    if (now > atomic_load(&most)) atomic_store(&most, now);
    return p;
}

void *__wrap_malloc(size_t n)
{
    return count(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return count(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t n)
{
    atomic_fetch_sub(&live, (long long)malloc_usable_size(p));
    return count(__real_realloc(p, n));
}

int __wrap_posix_memalign(void **p, size_t align, size_t n)
{
    int failed = __real_posix_memalign(p, align, n);
    if (!failed) count(*p);
    return failed;
}

void __wrap_free(void *p)
{
    atomic_fetch_sub(&live, (long long)malloc_usable_size(p));
    __real_free(p);
}

/* Of so many bytes that were promised these were taken; rounding of some blocks aside. */
static void assert_taken(const char *what, long long taken, size_t promised, double least)
{
    enum { ROUNDING = 64 << 10 };
    if (taken <= (long long)promised + ROUNDING && (double)taken >= least * (double)promised - ROUNDING) return;
    fail_msg("%s: %lld bytes were taken, %zu were promised", what, taken, promised);
}

/* ---- parts ------------------------------------------------------------------------------------ */

static qw_model *open_model(void)
{
    const qw_model_options o = {.path = Q4KM};
    qw_model *m;
    qw_err err;
    if (qw_model_open(&o, &m, &err) != QW_OK) fail_msg("%s", err.text);
    return m;
}

static void test_masks(void **state)
{
    (void)state;
    qw_model *m = open_model();
    qw_token_trie *trie;
    qw_masker *w;
    qw_grammar *g;
    qw_matcher *matcher;
    long long before = atomic_load(&live);
    assert_int_equal(qw_token_trie_create(m->tokenizer, &trie, NULL), QW_OK);
    long long taken = atomic_load(&live) - before;
    size_t promised = qw_token_trie_bytes(m->tokenizer);
    if (taken > (long long)promised + 1024 || taken < (long long)promised - 1024)
        fail_msg("the tree of tokens: %lld bytes were taken, %zu were promised", taken, promised);
    before = atomic_load(&live);
    assert_int_equal(qw_masker_create(trie, QW_MASKS_KEPT, &w, NULL), QW_OK);
    assert_taken("masks", atomic_load(&live) - before, qw_masker_bytes(m->net->hp.n_vocab, QW_MASKS_KEPT), 1);
    assert_int_equal(qw_grammar_json_object(NULL, &g, NULL), QW_OK);
    before = atomic_load(&live);
    assert_int_equal(qw_matcher_create(g, m->tokenizer, &matcher, NULL), QW_OK);
    assert_taken("a matcher", atomic_load(&live) - before, qw_matcher_bytes(), 1);
    qw_matcher_destroy(matcher);
    qw_grammar_destroy(g);
    qw_masker_destroy(w);
    qw_token_trie_destroy(trie);
    qw_model_close(m);
}

static void test_index(void **state)
{
    (void)state;
    for (uint32_t n_pages = 10; n_pages <= 10000; n_pages *= 10) {
        const qw_seq_pool_options po = {.shape = {.n_layers = 1, .n_kv_heads = 1, .head_dim = 64, .type = QW_KV_F32},
                                        .n_pages = n_pages, .seq_tokens_max = QW_KV_TILE * n_pages, .recurrent_bytes = 64,
                                        .n_slots = 600};
        qw_prefix_options o = {.n_remembered_max = 5000, .n_pinned_max = 16, .n_snapshots_max = 500};
        qw_prefix *cache;
        assert_int_equal(qw_seq_pool_create(&po, &o.pool, NULL), QW_OK);
        long long before = atomic_load(&live);
        assert_int_equal(qw_prefix_create(&o, &cache, NULL), QW_OK);
        assert_taken("the cache's index", atomic_load(&live) - before, qw_prefix_bytes(&o, n_pages), 0.9);
        qw_prefix_destroy(cache);
        qw_seq_pool_destroy(o.pool);
    }
}

static void test_draws(void **state)
{
    (void)state;
    for (size_t n = 10; n <= 100000; n *= 10) {
        const qw_sampling p = {.top_p = 1, .repetition_penalty = 1.1f, .top_logprobs = -1};
        const int32_t prompt[4] = {1, 2, 3, 4};
        qw_sampling_run *run;
        long long before = atomic_load(&live);
        assert_int_equal(qw_sampling_run_create(&p, 50000, prompt, 4, n - 4, &run, NULL), QW_OK);
        assert_taken("draws", atomic_load(&live) - before, qw_sampling_run_bytes(50000, n), 1);
        qw_sampling_run_destroy(run);
    }
}

/* However many answers are remembered, their memory takes what it says. */
static void test_answers(void **state)
{
    (void)state;
    enum { BYTES_MAX = 1 << 20 };
    qw_model *m = open_model();
    qw_memory *memory;
    const uint8_t owner[QW_OWNER_BYTES] = {1};
    long long before = atomic_load(&live);
    assert_int_equal(qw_memory_create(BYTES_MAX, &memory, NULL), QW_OK);
    for (uint64_t i = 0; i < 3000; i++) {
        qw_memory_answer *a;
        assert_int_equal(qw_memory_begin(memory, owner, i, (qw_text){"", 0}, &a, NULL), QW_OK);
        qw_spoken *s = qw_memory_spoken(a);
        for (size_t k = 0; k < 20 + i % 100; k++) {
            int32_t id = (int32_t)((i * 7 + k) % 200);
            qw_text text = qw_tokenizer_bytes(m->tokenizer, id);
            qw_spoken_token_add(s, m->tokenizer, id, (k + 1) * text.n, false);
            qw_spoken_event(s, &(qw_parse_event){.kind = QW_PARSE_CONTENT, .text = text, .raw = text}, false);
        }
        qw_spoken_finish(s, false);
        qw_memory_keep(a);
        qw_memory_release(a);
        assert_taken("remembered answers", atomic_load(&live) - before, qw_memory_bytes(BYTES_MAX), 0);
    }
    qw_memory_counts counts;
    qw_memory_get_counts(memory, &counts);
    assert_true(counts.evicted > 100 && counts.n_answers > 100);
    assert_taken("remembered answers", atomic_load(&live) - before, qw_memory_bytes(BYTES_MAX), 0.5);
    qw_memory_destroy(memory);
    qw_model_close(m);
}

/* ---- the whole -------------------------------------------------------------------------------- */

/* An engine with all its lanes in use, forms and penalties, whose answers nobody reads, takes no more than its plan. */
static void test_engine(void **state)
{
    (void)state;
    enum { LANES = 4, N = 12 };
    qw_model *m = open_model();
    const qw_engine_options o = {.n_parallel = LANES, .n_threads = 1, .context = 2048, .memory_bytes_max = (uint64_t)256 << 20};
    qw_plan plan;
    qw_engine *e;
    qw_err err;
    qw_event ev;
    uint64_t ids[N];
    if (qw_engine_plan(m, &o, &plan, &err) != QW_OK) fail_msg("%s", err.text);
    long long before = atomic_load(&live);
    atomic_store(&most, before);
    if (qw_engine_create(m, &o, &e, &err) != QW_OK) fail_msg("%s", err.text);
    const qw_message message = {.role = "user", .content = qw_text_of("Go on.")};
    qw_request r = qw_request_default(m);
    r.kind = QW_PROMPT_RAW;
    r.text = message.content;
    r.sampling.repetition_penalty = 1.2f;
    r.sampling.top_logprobs = 20;
    r.form = (qw_form_request){.kind = QW_FORM_REGEX, .source = qw_text_of("[a-z ]{500}")};
    for (int i = 0; i < N; i++)
        if (qw_submit(e, &r, &ids[i], &err) != QW_OK) fail_msg("%s", err.text);
    for (int i = N; i-- > 0;)
        while (qw_poll_request(e, ids[i], -1, &ev)) assert_int_not_equal(ev.type, QW_EVENT_ERROR);
    qw_engine_destroy(e);
    /* Not in the plan: compiled forms, and requests that are not in a lane. Of what is in it, keys and values are no heap, and
     * nothing was remembered, as nobody sends such an answer back. */
    uint64_t waits = (N - LANES) * (qw_matcher_bytes() + qw_sampling_run_bytes(m->net->hp.n_vocab, 2049) + 2049 * sizeof(int32_t) +
                                    (QW_BACKLOG_MAX + QW_ANSWER_ROWS) * sizeof(qw_event_node));
    uint64_t index = plan.cache_tokens / QW_PAGE_TOKENS * qw_prefix_page_bytes(), forms = N * (256 << 10);
    uint64_t promised = plan.scratch_bytes + plan.fixed_bytes + index - qw_memory_bytes(QW_MEMORY_BYTES_MAX);
    long long taken = atomic_load(&most) - before;
    print_message("%lld bytes were taken, %llu were promised, %llu more for what waits, %llu for forms\n", taken,
                  (unsigned long long)promised, (unsigned long long)waits, (unsigned long long)forms);
    assert_true(taken <= (long long)(promised + waits + forms));
    assert_true(2 * taken > (long long)promised);
    qw_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_masks),   cmocka_unit_test(test_index),  cmocka_unit_test(test_draws),
        cmocka_unit_test(test_answers), cmocka_unit_test(test_engine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
