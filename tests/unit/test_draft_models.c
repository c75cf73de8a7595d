/* test_draft_models.c: the two models that draft (draft_small.h, draft_mtp.h) say what a slow reference says, on tiny models;
 * and answers with them equal plain ones, through the public door.
 *
 * Runs from the repository's root; the recurrent model is in build/families (make test puts it there). Asking allocates
 * nothing: the Makefile wraps the allocator for that. Seeds are printed on failure.
 */
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
#include "engine/draft_mtp.h"
#include "engine/draft_small.h"
#include "family_file.h"

#define Q4KM "tests/fixtures/tiny-q4km.gguf"
#define F32 "tests/fixtures/tiny-f32.gguf"
#define RECURRENT "build/families/qwen3next-r3-q8.gguf"

enum { LANES = 3, TEXT_MAX = 520, PIECE = 64, THREADS = 2 };

static void must(qw_status status, const qw_err *err)
{
    if (status != QW_OK) fail_msg("%s", err->text);
}

static qw_model *open_model(const char *path)
{
    const qw_model_options o = {.path = path};
    qw_model *m;
    qw_err err;
    must(qw_model_open(&o, &m, &err), &err);
    return m;
}

/* ---- a model alone: every text from its beginning ------------------------------------------------------ */

typedef struct lone {
    qw_model *m;
    qw_runtime rt;
    qw_seq *seq;
    float *logits, *hidden; /* [n_vocab]; [TEXT_MAX, hidden] */
} lone;

static void open_lone(lone *a, qw_model *m, bool mtp)
{
    const qw_runtime_options o = {.n_threads = THREADS, .n_rows_max = PIECE, .n_seqs = 1, .seq_tokens_max = TEXT_MAX,
                                  .mtp = mtp};
    qw_err err;
    a->m = m;
    must(qw_runtime_create(m->net, &o, &a->rt, &err), &err);
    must(qw_model_prepare(m, a->rt.pool, &err), &err);
    must(qw_seq_create(a->rt.seqs, &a->seq, &err), &err);
    a->logits = calloc(m->net->hp.n_vocab, sizeof *a->logits);
    a->hidden = calloc((size_t)TEXT_MAX * m->net->hp.hidden, sizeof *a->hidden);
}

static void close_lone(lone *a)
{
    qw_seq_release(a->seq);
    qw_runtime_destroy(&a->rt);
    free(a->logits);
    free(a->hidden);
}

static int32_t largest(const float *x, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++) best = x[i] > x[best] ? i : best;
    return (int32_t)best;
}

/* Computes all of a text, with the hidden states of all positions; the most probable of the first n_ids tokens after it. */
static int32_t next_alone(lone *a, const int32_t *text, uint32_t n, uint32_t n_ids)
{
    qw_row rows[PIECE];
    uint32_t numbers[PIECE];
    qw_err err;
    must(qw_seq_truncate(a->seq, 0, NULL, &err), &err);
    must(qw_seq_reserve(a->seq, n, &err), &err);
    for (uint32_t at = 0, piece; at < n; at += piece) {
        piece = n - at < PIECE ? n - at : PIECE;
        for (uint32_t i = 0; i < piece; i++) {
            rows[i] = (qw_row){.seq = a->seq, .pos = at + i, .token = text[at + i]};
            numbers[i] = i;
        }
        qw_forward(a->rt.pass, rows, piece);
        qw_pass_hidden(a->rt.pass, numbers, piece, a->hidden + (size_t)at * a->m->net->hp.hidden);
        if (at + piece == n) qw_pass_logits(a->rt.pass, &numbers[piece - 1], 1, a->logits, a->m->net->hp.n_vocab);
        qw_seq_advance(a->seq, text + at, piece);
    }
    return largest(a->logits, n_ids);
}

/* ---- a small model ---------------------------------------------------------------------------------------- */

typedef struct desk {
    lone alone;
    qw_pool *pool;
    qw_draft_small *small;
    qw_draft_model model;
    uint32_t n_common;
    double sure;
    int32_t text[LANES][TEXT_MAX];
    uint32_t n[LANES];
} desk;

static void open_desk(desk *d, const char *path, uint32_t context, double sure)
{
    qw_err err;
    memset(d, 0, sizeof *d);
    d->sure = sure;
    open_lone(&d->alone, open_model(path), false);
    must(qw_pool_create(THREADS, &d->pool, &err), &err);
    d->n_common = d->alone.m->net->hp.n_vocab - 10; /* the others are never drafted */
    const qw_draft_small_options o = {.small = d->alone.m, .pool = d->pool, .n_common = d->n_common, .n_lanes = LANES,
                                      .context = context, .us_per_row = 10};
    must(qw_draft_small_create(&o, &d->small, &err), &err);
    d->model = qw_draft_small_model(d->small);
}

static void close_desk(desk *d)
{
    qw_draft_small_destroy(d->small);
    qw_pool_destroy(d->pool);
    qw_model *m = d->alone.m;
    close_lone(&d->alone);
    qw_model_close(m);
}

static void grow(desk *d, uint32_t lane, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) d->text[lane][d->n[lane]++] = (int32_t)below(d->n_common);
}

static uint32_t lacks(const desk *d, uint32_t lane)
{
    return d->model.lacks(d->model.ctx, (void *)(uintptr_t)lane, d->text[lane], d->n[lane]);
}

static uint32_t ask(const desk *d, uint32_t lane, uint32_t n, int32_t *out)
{
    return d->model.propose(d->model.ctx, (void *)(uintptr_t)lane, d->text[lane], d->n[lane], n, d->sure, out);
}

/* Until it answers; it says how much is missing, and never does more at once than a piece. */
static uint32_t ask_patiently(const desk *d, uint32_t lane, uint32_t n, int32_t *out)
{
    for (uint32_t n_lacking; (n_lacking = lacks(d, lane)) > 0;) {
        assert_true(n_lacking > 8 && n_lacking <= d->n[lane]);
        assert_int_equal(ask(d, lane, n, out), 0);
        assert_true(lacks(d, lane) < n_lacking && (lacks(d, lane) == 0 || lacks(d, lane) + PIECE >= n_lacking));
    }
    return ask(d, lane, n, out);
}

/* Probability of the largest of x [n] among the eight largest. */
static double share_alone(const float *x, uint32_t n)
{
    double sum = 0, most = (double)x[largest(x, n)];
    bool *taken = calloc(n, sizeof *taken);
    for (int k = 0; k < 8; k++) {
        uint32_t best = n;
        for (uint32_t i = 0; i < n; i++)
            if (!taken[i] && (best == n || x[i] > x[best])) best = i;
        taken[best] = true;
        sum += exp((double)x[best] - most);
    }
    free(taken);
    return 1 / sum;
}

static void compare_with_alone(desk *d, uint32_t lane, const int32_t *out, uint32_t n_out, uint32_t n, const char *what,
                               uint32_t s)
{
    int32_t text[TEXT_MAX];
    double sure = 1;
    memcpy(text, d->text[lane], sizeof text);
    assert_true(n_out > 0);
    for (uint32_t i = 0; i < n_out; i++) {
        if (sure < d->sure - 1e-6) fail_msg("%s, step %u: it goes on at %g after %u tokens", what, s, sure, i);
        int32_t want = next_alone(&d->alone, text, d->n[lane] + i, d->n_common);
        if (out[i] != want) fail_msg("%s, step %u: token %u of the draft is %d, want %d", what, s, i, out[i], want);
        text[d->n[lane] + i] = out[i];
        sure *= share_alone(d->alone.logits, d->n_common);
    }
    const qw_tokenizer *t = d->alone.m->tokenizer;
    assert_true(n_out == n || sure < d->sure + 1e-6 || (t && qw_tokenizer_is_end(t, out[n_out - 1])));
}

/* Texts grow, mostly by what was drafted, are cut and change lanes. */
static void follow_texts(const char *path, double sure)
{
    static desk d;
    enum { MOST = 230 };
    open_desk(&d, path, TEXT_MAX - QW_DRAFT_MODEL_DEPTH, sure);
    seed(3);
    for (uint32_t lane = 0; lane < LANES; lane++) grow(&d, lane, 1 + below(100));
    for (uint32_t s = 0; s < 300; s++) {
        uint32_t lane = below(LANES), n = 1 + below(QW_DRAFT_MODEL_DEPTH), what = below(20);
        int32_t out[QW_DRAFT_MODEL_DEPTH];
        if (what == 0) d.n[lane] = 1 + below(d.n[lane]); /* edited */
        if (what <= 1) grow(&d, lane, below(80));
        if (what == 2) { /* its text becomes another lane's */
            uint32_t other = (lane + 1) % LANES;
            memcpy(d.text[lane], d.text[other], sizeof d.text[lane]);
            d.n[lane] = d.n[other];
        }
        if (what == 3) { /* another text, of which it has read a part when it is edited within that part */
            d.n[lane] = 0;
            grow(&d, lane, MOST - 10);
            for (int i = 0; i < 3; i++) ask(&d, lane, n, out);
            d.n[lane] = 20 + below(160);
            grow(&d, lane, 3);
        }
        if (d.n[lane] > MOST) d.n[lane] = 1;
        size_t before = n_allocations;
        uint32_t n_out = ask_patiently(&d, lane, n, out);
        assert_int_equal(n_allocations, before);
        compare_with_alone(&d, lane, out, n_out, n, path, s);
        uint32_t right = below(n_out + 1);
        memcpy(d.text[lane] + d.n[lane], out, right * sizeof *out);
        d.n[lane] += right;
        grow(&d, lane, 1);
    }
    close_desk(&d);
}

static void test_small(void **state)
{
    (void)state;
    follow_texts(Q4KM, 0);
    follow_texts(Q4KM, 0.3);
    follow_texts(RECURRENT, 0);
}

/* Its pages hold one long text: the second one waits until the first was idle for long. */
static void test_small_pages(void **state)
{
    static desk d;
    int32_t out[2];
    uint32_t n_asks = 0;
    (void)state;
    open_desk(&d, Q4KM, TEXT_MAX - QW_DRAFT_MODEL_DEPTH, 0);
    seed(5);
    grow(&d, 0, 400);
    grow(&d, 1, 400);
    assert_int_equal(ask_patiently(&d, 0, 2, out), 2);
    while (lacks(&d, 1) > 0) {
        assert_int_equal(ask(&d, 1, 2, out), 0);
        assert_true(++n_asks < 400);
    }
    assert_true(n_asks > 200);
    assert_int_equal(ask(&d, 1, 2, out), 2);
    compare_with_alone(&d, 1, out, 2, 2, "the second text", 0);
    assert_int_equal(lacks(&d, 0), 400); /* what the first had is gone */
    close_desk(&d);
}

/* Tokens that only the large model knows end its drafts, and texts longer than its context. */
static void test_small_bounds(void **state)
{
    static desk d;
    int32_t out[4];
    (void)state;
    open_desk(&d, Q4KM, 100, 0);
    seed(6);
    grow(&d, 0, 60);
    assert_int_equal(ask_patiently(&d, 0, 4, out), 4);
    d.text[0][d.n[0]++] = (int32_t)d.n_common;
    assert_int_equal(ask(&d, 0, 4, out), 0);
    d.text[0][60] = 5;
    assert_int_equal(ask(&d, 0, 4, out), 4);
    grow(&d, 0, 60);
    assert_int_equal(ask(&d, 0, 4, out), 0);
    d.n[0] = 100;
    assert_int_equal(ask_patiently(&d, 0, 4, out), 4);
    close_desk(&d);
}

/* ---- vocabularies ------------------------------------------------------------------------------------------- */

static const char *save_vocab(const small_vocab *v, size_t n, const char *name)
{
    file_plan f;
    qwen35(&f);
    f.seed = 1;
    f.vocab = v;
    f.n_vocab = v ? n : 0;
    tensor(&f, "token_embd.weight")->ne[1] = n;
    const char *made = save(&f), *path = temp_path(name);
    assert_int_equal(rename(made, path), 0);
    return path;
}

static void assert_refused_pair(qw_model *m, qw_engine_options o, const char *want)
{
    qw_plan plan;
    qw_engine *e;
    qw_err err;
    assert_int_equal(qw_engine_plan(m, &o, &plan, &err), QW_E_ARG);
    if (!strstr(err.text, want) || strchr(err.text, '\n')) fail_msg("'%s', want '%s'", err.text, want);
    assert_int_equal(qw_engine_create(m, &o, &e, &err), QW_E_ARG);
}

static void test_vocabulary(void **state)
{
    static small_vocab v, other;
    uint32_t n_common;
    qw_err err;
    (void)state;
    small_vocab_fill(&v);
    other = v;
    other.tokens[ID_TOOL_CALL] = qw_text_of("<tool_talk>");
    qw_model *whole = open_model(save_vocab(&v, N_SMALL, "whole.gguf"));
    qw_model *part = open_model(save_vocab(&v, ID_TOOL_CALL_END, "part.gguf"));
    qw_model *bad = open_model(save_vocab(&other, N_SMALL, "bad.gguf"));
    qw_model *none = open_model(save_vocab(NULL, N_SMALL, "none.gguf"));
    assert_int_equal(qw_draft_small_check(whole, whole, &n_common, &err), QW_OK);
    assert_true(n_common <= N_SMALL && qw_tokenizer_is_unused(whole->tokenizer, N_SMALL - 1));
    assert_true(n_common < N_SMALL && !qw_tokenizer_is_unused(whole->tokenizer, (int32_t)n_common - 1));
    assert_int_equal(qw_draft_small_check(whole, part, &n_common, &err), QW_OK);
    assert_int_equal(n_common, ID_TOOL_CALL_END);
    assert_int_equal(qw_draft_small_check(part, whole, &n_common, &err), QW_OK);
    assert_int_equal(n_common, ID_TOOL_CALL_END);
    char text[64];
    snprintf(text, sizeof text, "another vocabulary, they differ in token %d", ID_TOOL_CALL);
    assert_refused_pair(whole, (qw_engine_options){.n_threads = 1, .draft = bad}, text);
    assert_refused_pair(bad, (qw_engine_options){.n_threads = 1, .draft = whole}, text);
    assert_refused_pair(whole, (qw_engine_options){.n_threads = 1, .draft = none}, "no tokenizer");
    assert_refused_pair(none, (qw_engine_options){.n_threads = 1, .draft = whole}, "no tokenizer");
    assert_refused_pair(whole, (qw_engine_options){.n_threads = 1, .draft = whole, .plain_decoding = true}, "plain decoding");
    qw_model_close(whole);
    qw_model_close(part);
    qw_model_close(bad);
    qw_model_close(none);
}

/* ---- multi-token prediction --------------------------------------------------------------------------------- */

enum { MTP_CONTEXT = 4096 };

static const char *save_mtp(void)
{
    file_plan f;
    qwen35(&f);
    f.seed = 7;
    key(&f, "qwen35.context_length")->number = MTP_CONTEXT;
    return save(&f);
}

/* What a lane has seen: positions of its text. */
typedef struct seen {
    uint32_t pos[TEXT_MAX], n, n_waiting;
} seen;

/* The layer on all that was seen, from its beginning, and then on its own guesses: as src/tools/drafts.c has it. */
static void draft_alone(lone *a, const int32_t *text, const seen *s, uint32_t n, int32_t *out)
{
    size_t h = a->m->net->hp.hidden;
    float state[HIDDEN];
    uint32_t row = 0;
    qw_err err;
    must(qw_seq_reserve(a->seq, s->n + n, &err), &err);
    for (uint32_t i = 0; i < s->n; i++) {
        const qw_row one = {.seq = a->seq, .pos = i, .token = text[s->pos[i] + 1]};
        qw_forward_mtp(a->rt.pass, &one, 1, a->hidden + s->pos[i] * h, h);
    }
    for (uint32_t i = 0;;) {
        qw_pass_hidden(a->rt.pass, &row, 1, state);
        qw_pass_logits(a->rt.pass, &row, 1, a->logits, a->m->net->hp.n_vocab);
        out[i] = largest(a->logits, a->m->net->hp.n_vocab);
        if (++i == n) return;
        const qw_row one = {.seq = a->seq, .pos = s->n + i - 1, .token = out[i - 1]};
        qw_forward_mtp(a->rt.pass, &one, 1, state, h);
    }
}

/* A lane's text goes on by n tokens, and the rows of those before are computed, with wrong guesses behind them. */
typedef struct mtp_desk {
    lone alone;
    qw_runtime rt;
    qw_seq *seq;
    qw_draft_mtp *mtp;
    qw_draft_model model;
    int32_t text[TEXT_MAX];
    uint32_t n; /* known; all but the newest are computed */
    seen seen;
} mtp_desk;

static void step_mtp(mtp_desk *d, uint32_t n_new, uint32_t n_wrong)
{
    qw_row rows[PIECE + 8];
    uint32_t from = d->n - 1, n_told = n_new < PIECE ? n_new : PIECE, skip = n_new - n_told;
    qw_err err;
    for (uint32_t i = 0; i < n_new; i++) d->text[d->n++] = (int32_t)below(VOCAB);
    must(qw_seq_reserve(d->seq, from + n_new + n_wrong, &err), &err);
    for (uint32_t at = 0; at < skip; at++) {
        const qw_row one = {.seq = d->seq, .pos = from + at, .token = d->text[from + at], .silent = true};
        qw_forward(d->rt.pass, &one, 1);
        qw_seq_advance(d->seq, d->text + from + at, 1);
    }
    from += skip;
    uint8_t *kept = malloc(d->alone.m->net->recurrent_bytes);
    for (uint32_t i = 0; i < n_told + n_wrong; i++) {
        rows[i] = (qw_row){.seq = d->seq, .pos = from + i, .token = i < n_told ? d->text[from + i] : (int32_t)below(VOCAB)};
        if (i + 1 == n_told) rows[i].keep = kept;
    }
    qw_forward(d->rt.pass, rows, n_told + n_wrong);
    memcpy(d->seq->recurrent, kept, d->alone.m->net->recurrent_bytes);
    free(kept);
    size_t before = n_allocations;
    qw_draft_mtp_computed(d->mtp, 0, 0, n_told, from);
    if (n_told > 2) qw_draft_mtp_computed(d->mtp, 0, 1, 2, from + 1); /* computed once more: it was seen */
    assert_int_equal(n_allocations, before);
    qw_seq_advance(d->seq, d->text + from, n_told);
    for (uint32_t i = 0; i < n_told; i++) {
        if (d->seen.n_waiting == QW_MTP_WAITING) { /* the oldest of those that wait goes */
            uint32_t first = d->seen.n - d->seen.n_waiting;
            memmove(d->seen.pos + first, d->seen.pos + first + 1, (--d->seen.n - first) * sizeof *d->seen.pos);
        } else {
            d->seen.n_waiting++;
        }
        d->seen.pos[d->seen.n++] = from + i;
    }
}

static void begin_mtp(mtp_desk *d)
{
    qw_err err;
    d->seen.n = d->seen.n_waiting = 0;
    d->text[0] = 3;
    d->n = 1;
    must(qw_seq_truncate(d->seq, 0, NULL, &err), &err);
    qw_draft_mtp_begin(d->mtp, 0, d->text);
}

static void ask_mtp(mtp_desk *d, uint32_t s)
{
    int32_t out[QW_DRAFT_MODEL_DEPTH], want[QW_DRAFT_MODEL_DEPTH];
    uint32_t n = 1 + below(QW_DRAFT_MODEL_DEPTH);
    double sure = below(4) ? 0 : 1; /* or it is never sure enough to go on */
    size_t before = n_allocations;
    assert_int_equal(d->model.propose(d->model.ctx, NULL, d->text, d->n, n, sure, out), sure > 0 ? 1 : n);
    assert_int_equal(d->model.propose(d->model.ctx, NULL, d->text, d->n, n, sure, want), 0); /* nothing new was told */
    if (sure > 0) n = 1;
    assert_int_equal(n_allocations, before);
    d->seen.n_waiting = 0;
    next_alone(&d->alone, d->text, d->n, VOCAB);
    draft_alone(&d->alone, d->text, &d->seen, n, want);
    for (uint32_t i = 0; i < n; i++)
        if (out[i] != want[i])
            fail_msg("step %u, %u tokens: token %u of the draft is %d, want %d", s, d->n, i, out[i], want[i]);
}

static void test_mtp(void **state)
{
    static mtp_desk d;
    const qw_runtime_options o = {.n_threads = THREADS, .n_rows_max = PIECE + 8, .n_seqs = 1, .seq_tokens_max = TEXT_MAX};
    qw_err err;
    (void)state;
    open_lone(&d.alone, open_model(save_mtp()), true);
    must(qw_runtime_create(d.alone.m->net, &o, &d.rt, &err), &err);
    must(qw_seq_create(d.rt.seqs, &d.seq, &err), &err);
    must(qw_draft_mtp_create(d.rt.pass, false, 2, 100, &d.mtp, &err), &err);
    d.model = qw_draft_mtp_model(d.mtp);
    for (uint32_t text = 0; text < 6; text++) {
        seed(text);
        begin_mtp(&d);
        step_mtp(&d, 1 + below(150), 0);
        for (uint32_t s = 0; d.n < TEXT_MAX - 180; s++) {
            if (below(4)) ask_mtp(&d, s);
            for (uint32_t i = below(20) ? 0 : 90; i > 0; i--) step_mtp(&d, 1, 0); /* nobody asks for a while */
            step_mtp(&d, 1 + below(4), below(4));
        }
    }
    begin_mtp(&d); /* another text has the lane: nothing of the first is left, and nothing is known of it */
    assert_int_equal(d.model.propose(d.model.ctx, NULL, d.text, 1, 1, 0, d.text + 1), 0);
    step_mtp(&d, 30, 0);
    ask_mtp(&d, 0);
    qw_draft_mtp_destroy(d.mtp);
    qw_seq_release(d.seq);
    qw_runtime_destroy(&d.rt);
    qw_model *m = d.alone.m;
    close_lone(&d.alone);
    qw_model_close(m);
}

/* ---- answers ------------------------------------------------------------------------------------------------- */

enum { TALKS = 3, TURNS = 14, ANSWER_MAX = 48 };

typedef struct talk {
    int32_t text[TEXT_MAX], answer[ANSWER_MAX];
    uint32_t n, n_answer, n_max;
    uint64_t id;
    bool cancels, done;
} talk;

static uint64_t send(qw_engine *e, talk *t, uint32_t kind)
{
    qw_request r = {.kind = QW_PROMPT_TOKENS, .tokens = t->text, .n_tokens = t->n, .max_tokens = t->n_max, .ignore_eos = true,
                    .sampling = {.temperature = kind % 3 ? 0 : 0.8f, .top_p = 1, .repetition_penalty = 1, .seed = kind,
                                 .top_logprobs = -1}};
    qw_err err;
    t->n_answer = 0;
    t->done = false;
    must(qw_submit(e, &r, &t->id, &err), &err);
    return t->id;
}

static void take(qw_engine *e, talk *talks, size_t n_talks, const qw_event *ev)
{
    for (size_t i = 0; i < n_talks; i++) {
        talk *t = &talks[i];
        if (t->id != ev->request) continue;
        assert_true(ev->type != QW_EVENT_ERROR);
        for (size_t k = 0; k < ev->n_tokens; k++) t->answer[t->n_answer++] = ev->tokens[k].token;
        if (t->cancels && t->n_answer > 3) qw_cancel(e, t->id);
        t->done = qw_event_is_terminal(ev);
    }
}

static void finish_all(qw_engine *e, talk *talks, size_t n_talks)
{
    for (size_t left = n_talks; left > 0;) {
        qw_event ev;
        assert_true(qw_poll(e, -1, &ev));
        take(e, talks, n_talks, &ev);
        left -= qw_event_is_terminal(&ev);
    }
}

/* What is said next: more, something else from some place on, or the same again. */
static void say(talk *t, uint32_t n_vocab)
{
    uint32_t what = below(10), n_more = 1 + below(what == 0 ? 120 : 20);
    if (what == 1) t->n = below(t->n + 1);
    if (t->n + n_more + ANSWER_MAX >= TEXT_MAX) t->n = 0;
    for (uint32_t i = 0; (what != 2 || t->n == 0) && i < n_more; i++) t->text[t->n++] = (int32_t)below(n_vocab);
    t->n_max = 1 + below(ANSWER_MAX);
    t->cancels = below(5) == 0;
}

/* Several conversations at once, cancelled now and then, beside the same one by one and without guesses. */
static void compare_answers(qw_model *m, qw_engine_options o, uint32_t s)
{
    static talk talks[TALKS];
    qw_engine *e, *plain;
    qw_engine_stats stats;
    qw_err err;
    uint32_t n_vocab = m->net->hp.n_vocab - 12;
    memset(talks, 0, sizeof talks);
    seed(s);
    o.n_threads = THREADS;
    o.context = TEXT_MAX;
    o.n_parallel = TALKS;
    must(qw_engine_create(m, &o, &e, &err), &err);
    const qw_engine_options one_by_one = {.n_threads = THREADS, .context = TEXT_MAX, .plain_decoding = true};
    must(qw_engine_create(m, &one_by_one, &plain, &err), &err);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        for (int i = 0; i < TALKS; i++) {
            say(&talks[i], n_vocab);
            send(e, &talks[i], turn + (uint32_t)i);
        }
        finish_all(e, talks, TALKS);
        for (int i = 0; i < TALKS; i++) {
            talk alone = talks[i];
            alone.cancels = false;
            send(plain, &alone, turn + (uint32_t)i);
            finish_all(plain, &alone, 1);
            assert_true(talks[i].n_answer <= alone.n_answer && (talks[i].cancels || talks[i].n_answer == alone.n_answer));
            assert_memory_equal(talks[i].answer, alone.answer, talks[i].n_answer * sizeof *alone.answer);
            memcpy(talks[i].text + talks[i].n, talks[i].answer, talks[i].n_answer * sizeof *talks[i].answer);
            talks[i].n += talks[i].n_answer;
        }
    }
    qw_engine_get_stats(e, &stats);
    assert_true(stats.guessed > 0 && stats.guessed_right <= stats.guessed);
    qw_engine_destroy(e);
    qw_engine_destroy(plain);
}

static void test_answers_small(void **state)
{
    (void)state;
    qw_model *large = open_model(Q4KM), *small = open_model(F32);
    for (uint32_t s = 0; s < 4; s++) {
        compare_answers(large, (qw_engine_options){.draft = s % 2 ? small : large}, s);
        compare_answers(small, (qw_engine_options){.draft = large}, s);
    }
    qw_model_close(large);
    qw_model_close(small);
}

static void test_answers_mtp(void **state)
{
    (void)state;
    qw_model *m = open_model(save_mtp());
    assert_non_null(m->net->mtp);
    for (uint32_t s = 0; s < 6; s++) compare_answers(m, (qw_engine_options){.no_mtp = s == 5}, s);
    qw_model_close(m);
}

/* Who drafts is in the plan. */
static void test_plan(void **state)
{
    qw_plan without, with, off;
    qw_err err;
    (void)state;
    qw_model *large = open_model(Q4KM), *small = open_model(F32), *mtp = open_model(save_mtp());
    qw_engine_options o = {.n_threads = 2, .context = 256, .n_parallel = 2};
    must(qw_engine_plan(large, &o, &without, &err), &err);
    o.draft = small;
    must(qw_engine_plan(large, &o, &with, &err), &err);
    qw_model_info info;
    qw_model_get_info(small, &info);
    assert_true(without.draft_bytes == 0 && with.draft_bytes > info.n_params && with.scratch_bytes == without.scratch_bytes);
    assert_true(with.total_bytes == without.total_bytes + with.draft_bytes);
    o.memory_bytes_max = with.total_bytes;
    must(qw_engine_plan(large, &o, &with, &err), &err);
    o.memory_bytes_max--;
    assert_int_equal(qw_engine_plan(large, &o, &with, &err), QW_E_MEMORY);
    o = (qw_engine_options){.n_threads = 2, .context = 256, .n_parallel = 2};
    must(qw_engine_plan(mtp, &o, &with, &err), &err);
    o.no_mtp = true;
    must(qw_engine_plan(mtp, &o, &off, &err), &err);
    assert_int_equal(with.scratch_bytes - off.scratch_bytes, qw_draft_mtp_bytes(mtp->net, false, 2));
    qw_model_close(large);
    qw_model_close(small);
    qw_model_close(mtp);
}

static int setup(void **state)
{
    if (temp_dir_setup(state) != 0) return -1;
    return setenv("QW_HOME", temp_path("home"), 1); /* packed weights go there */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),         cmocka_unit_test(test_small_pages),
        cmocka_unit_test(test_small_bounds),  cmocka_unit_test(test_vocabulary),
        cmocka_unit_test(test_mtp),           cmocka_unit_test(test_answers_small),
        cmocka_unit_test(test_answers_mtp),   cmocka_unit_test(test_plan),
    };
    return cmocka_run_group_tests(tests, setup, temp_dir_teardown);
}
