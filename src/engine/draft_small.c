/* draft_small.c: see draft_small.h. */
#include "engine/draft_small.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/top.h"
#include "model/runtime.h"

enum {
    FEW_ROWS = 8,       /* cost about what one costs: they are computed on the way */
    PIECE_ROWS_MAX = 64,
    PIECE_US = 50000,   /* a step that waits for a piece waits no longer than this, as far as is known */
    IDLE_ASKS = 256     /* of others; then a lane's pages may go */
};

typedef struct lane {
    qw_seq *seq;
    int32_t *tokens;    /* [n_tokens_max], owns; those that seq stands for */
    uint32_t spare;     /* slot with the state after n_spare tokens, or QW_NO_SLOT */
    uint32_t n_spare;   /* 0: none */
    uint64_t asked;     /* when it was last, in asks of all */
} lane;

struct qw_draft_small {
    qw_draft_small_options o;
    qw_runtime rt;
    lane *lanes;        /* [n_lanes], owns */
    float *logits;      /* [n_vocab], owns */
    uint32_t n_tokens_max;
    uint64_t n_asks;
    double us_per_row;
};

/* ---- vocabulary ----------------------------------------------------------------------------------- */

/* One more than the last id that is not padding. */
static uint32_t n_real(const qw_tokenizer *t)
{
    uint32_t n = (uint32_t)qw_tokenizer_n_vocab(t);
    while (n > 0 && qw_tokenizer_is_unused(t, (int32_t)n - 1)) n--;
    return n;
}

static bool same_token(const qw_tokenizer *a, const qw_tokenizer *b, int32_t id)
{
    qw_text x = qw_tokenizer_bytes(a, id), y = qw_tokenizer_bytes(b, id);
    if (qw_tokenizer_is_unused(a, id) != qw_tokenizer_is_unused(b, id)) return false;
    if (qw_tokenizer_is_unused(a, id)) return true;
    if (qw_tokenizer_is_control(a, id) != qw_tokenizer_is_control(b, id)) return false;
    return x.n == y.n && (x.n == 0 || memcmp(x.s, y.s, x.n) == 0);
}

qw_status qw_draft_small_check(const qw_model *model, const qw_model *small, uint32_t *n_common, qw_err *err)
{
    const qw_tokenizer *a = model->tokenizer, *b = small->tokenizer;
    const qw_model *without = a ? small : model;
    *n_common = 0;
    if (!a || !b) {
        return qw_fail(err, QW_E_ARG, "%s cannot draft for %s: %s carries no tokenizer, so nobody knows whether their "
                                      "vocabularies are the same", small->name, model->name, qw_gguf_path(without->file));
    }
    uint32_t n = n_real(a) < n_real(b) ? n_real(a) : n_real(b);
    for (uint32_t id = 0; id < n; id++) {
        if (same_token(a, b, (int32_t)id)) continue;
        return qw_fail(err, QW_E_ARG, "%s cannot draft for %s: it has another vocabulary, they differ in token %u", small->name,
                       model->name, id);
    }
    *n_common = n;
    return QW_OK;
}

/* ---- sequences ------------------------------------------------------------------------------------ */

static uint32_t n_in_common(const lane *l, const int32_t *tokens, uint32_t n)
{
    uint32_t most = l->seq->n_tokens < n ? l->seq->n_tokens : n, i = 0;
    if (memcmp(l->tokens, tokens, most * sizeof *tokens) == 0) return most;
    while (l->tokens[i] == tokens[i]) i++;
    return i;
}

static bool is_recurrent(const lane *l)
{
    return l->seq->recurrent != NULL;
}

/* Where it goes on when the first n tokens are to stay: recurrent state goes back to the spare one, or to the beginning. */
static uint32_t place_for(const lane *l, uint32_t n)
{
    if (!is_recurrent(l) || n >= l->seq->n_tokens) return n;
    return l->n_spare > 0 && l->n_spare <= n ? l->n_spare : 0;
}

static void cut(lane *l, uint32_t n)
{
    uint32_t at = place_for(l, n);
    int32_t history[QW_SEQ_HISTORY];
    if (at >= l->seq->n_tokens) return;
    if (l->n_spare > at) l->n_spare = 0;
    if (!is_recurrent(l) || at == 0) {
        qw_status cleared = qw_seq_truncate(l->seq, at, l->tokens, NULL);
        QW_ASSERT(cleared == QW_OK);
        return;
    }
    for (uint32_t i = 0; i < QW_SEQ_HISTORY; i++) history[i] = i < at ? l->tokens[at - 1 - i] : -1;
    qw_seq_set(l->seq, l->seq->page_ids, at, l->spare, history);
}

/* The lane that was not asked for the longest time, if that is long. */
static lane *idle_lane(qw_draft_small *s, const lane *but)
{
    lane *idle = NULL;
    for (uint32_t i = 0; i < s->o.n_lanes; i++) {
        lane *l = &s->lanes[i];
        if (l == but || l->seq->n_pages == 0 || l->asked + IDLE_ASKS > s->n_asks) continue;
        if (!idle || l->asked < idle->asked) idle = l;
    }
    return idle;
}

static bool make_room(qw_draft_small *s, lane *l, uint32_t n_after)
{
    while (qw_seq_reserve(l->seq, n_after, NULL) != QW_OK) {
        lane *idle = idle_lane(s, l);
        if (!idle) return false;
        cut(idle, 0);
    }
    return true;
}

/* Computes tokens [n <= PIECE_ROWS_MAX] behind the sequence; the logits after the last one are there if asked for. The state
 * before the last one is what the sequence can come back to. */
static void compute(qw_draft_small *s, lane *l, const int32_t *tokens, uint32_t n, bool logits)
{
    qw_row rows[PIECE_ROWS_MAX];
    uint32_t from = l->seq->n_tokens, last = n - 1;
    for (uint32_t i = 0; i < n; i++)
        rows[i] = (qw_row){.seq = l->seq, .pos = from + i, .token = tokens[i], .silent = i < last || !logits};
    if (is_recurrent(l) && logits && from + last > 0) {
        uint8_t *spare = qw_slot_at(s->rt.seqs, l->spare);
        if (n > 1) rows[n - 2].keep = spare;
        else memcpy(spare, l->seq->recurrent, qw_seq_pool_get_options(s->rt.seqs)->recurrent_bytes);
        l->n_spare = from + last;
    }
    qw_forward(s->rt.pass, rows, n);
    if (logits) qw_pass_logits(s->rt.pass, &last, 1, s->logits, s->o.small->net->hp.n_vocab);
    memmove(l->tokens + from, tokens, n * sizeof *tokens);
    qw_seq_advance(l->seq, tokens, n);
}

/* A draft's own token: the state that the sequence can come back to stays. */
static void compute_guess(qw_draft_small *s, lane *l, int32_t token)
{
    const qw_row row = {.seq = l->seq, .pos = l->seq->n_tokens, .token = token};
    uint32_t first = 0;
    qw_forward(s->rt.pass, &row, 1);
    qw_pass_logits(s->rt.pass, &first, 1, s->logits, s->o.small->net->hp.n_vocab);
    l->tokens[l->seq->n_tokens] = token;
    qw_seq_advance(l->seq, &token, 1);
}

/* ---- what drafts ask ------------------------------------------------------------------------------- */

/* Do both models know all of them? */
static bool all_common(const qw_draft_small *s, const int32_t *tokens, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= s->o.n_common) return false;
    return true;
}

static void compute_piece(qw_draft_small *s, lane *l, const int32_t *tokens, uint32_t n_lacking)
{
    double fits = PIECE_US / s->us_per_row;
    uint32_t n = fits < FEW_ROWS ? FEW_ROWS : fits > PIECE_ROWS_MAX ? PIECE_ROWS_MAX : (uint32_t)fits;
    int64_t begun_us = qw_clock_us();
    if (n > n_lacking - 1) n = n_lacking - 1; /* the last one's logits will be wanted */
    if (!all_common(s, tokens, n) || !make_room(s, l, l->seq->n_tokens + n)) return;
    compute(s, l, tokens, n, false);
    s->us_per_row += 0.25 * ((double)(qw_clock_us() - begun_us) / n - s->us_per_row);
    if (s->us_per_row < 1) s->us_per_row = 1;
}

static uint32_t lacks(void *ctx, void *user, const int32_t *tokens, uint32_t n_tokens)
{
    const qw_draft_small *s = ctx;
    const lane *l = &s->lanes[(uintptr_t)user];
    uint32_t n = n_tokens - place_for(l, n_in_common(l, tokens, n_tokens - 1));
    return n > FEW_ROWS ? n : 0;
}

static uint32_t propose(void *ctx, void *user, const int32_t *tokens, uint32_t n_tokens, uint32_t n, double sure,
                        int32_t *out)
{
    qw_draft_small *s = ctx;
    lane *l = &s->lanes[(uintptr_t)user];
    const qw_tokenizer *t = s->o.small->tokenizer;
    l->asked = ++s->n_asks;
    if (qw_model_failed(s->o.small) || n_tokens + n > s->n_tokens_max) return 0;
    cut(l, n_in_common(l, tokens, n_tokens - 1));
    uint32_t from = l->seq->n_tokens, n_lacking = n_tokens - from;
    if (n_lacking > FEW_ROWS) {
        compute_piece(s, l, tokens + from, n_lacking);
        return 0;
    }
    if (!all_common(s, tokens + from, n_lacking) || !make_room(s, l, n_tokens + n)) return 0;
    compute(s, l, tokens + from, n_lacking, true);
    double p = 1;
    for (uint32_t i = 0;;) {
        qw_top top[QW_TOP_MAX];
        size_t n_top = qw_top_of(s->logits, s->o.n_common, QW_TOP_MAX, top);
        if (n_top == 0) return i;
        out[i++] = top[0].token;
        p *= qw_top_share(top, n_top);
        if (i == n || p < sure || (t && qw_tokenizer_is_end(t, top[0].token))) return i;
        compute_guess(s, l, top[0].token);
    }
}

static int64_t clock_us(void *ctx)
{
    (void)ctx;
    return qw_clock_us();
}

qw_draft_model qw_draft_small_model(qw_draft_small *s)
{
    return (qw_draft_model){.ctx = s, .propose = propose, .lacks = lacks, .clock_us = clock_us,
                            .us_per_token = FEW_ROWS * s->us_per_row, .us_per_lacking = s->us_per_row};
}

/* ---- life ------------------------------------------------------------------------------------------ */

static uint32_t most_tokens(const qw_model *small, uint32_t context)
{
    uint32_t trained = small->net->hp.context_length;
    return (context < trained ? context : trained) + QW_DRAFT_MODEL_DEPTH;
}

/* One conversation of full length, and a page for each lane. */
static qw_runtime_options runtime_options(const qw_model *small, int n_threads, uint32_t n_lanes, uint32_t context)
{
    uint32_t n_tokens = most_tokens(small, context);
    return (qw_runtime_options){.n_threads = n_threads, .exact = small->exact, .n_rows_max = PIECE_ROWS_MAX, .n_seqs = n_lanes,
                                .seq_tokens_max = n_tokens, .n_pages = (n_tokens + QW_KV_TILE - 1) / QW_KV_TILE + n_lanes,
                                .n_slots = 2 * n_lanes};
}

uint64_t qw_draft_small_bytes(const qw_model *small, int n_threads, uint32_t n_lanes, uint32_t context)
{
    qw_runtime_options ro = runtime_options(small, n_threads, n_lanes, context);
    uint64_t kv, scratch;
    qw_runtime_bytes(small->net, &ro, &kv, &scratch);
    return kv + scratch + (uint64_t)n_lanes * most_tokens(small, context) * sizeof(int32_t) +
           (uint64_t)small->net->hp.n_vocab * sizeof(float);
}

static qw_status create_lane(qw_draft_small *s, lane *l, qw_err *err)
{
    l->spare = QW_NO_SLOT;
    QW_TRY(qw_alloc(&l->tokens, s->n_tokens_max, sizeof *l->tokens, "draft tokens", err));
    QW_TRY(qw_seq_create(s->rt.seqs, &l->seq, err));
    if (!is_recurrent(l)) return QW_OK;
    l->spare = qw_slot_take(s->rt.seqs);
    return l->spare != QW_NO_SLOT ? QW_OK : qw_fail(err, QW_E_MEMORY, "no recurrent state is left for drafts");
}

qw_status qw_draft_small_create(const qw_draft_small_options *o, qw_draft_small **out, qw_err *err)
{
    qw_runtime_options ro = runtime_options(o->small, 0, o->n_lanes, o->context);
    qw_draft_small *s = NULL;
    qw_status status;
    *out = NULL;
    ro.pool = o->pool;
    QW_TRY(qw_alloc(&s, 1, sizeof *s, "draft model", err));
    s->o = *o;
    s->us_per_row = o->us_per_row;
    s->n_tokens_max = most_tokens(o->small, o->context);
    QW_TRY_GOTO(qw_runtime_create(o->small->net, &ro, &s->rt, err));
    QW_TRY_GOTO(qw_model_prepare(o->small, o->pool, err));
    QW_TRY_GOTO(qw_alloc(&s->logits, o->small->net->hp.n_vocab, sizeof *s->logits, "draft logits", err));
    QW_TRY_GOTO(qw_alloc(&s->lanes, o->n_lanes, sizeof *s->lanes, "draft lanes", err));
    for (uint32_t i = 0; i < o->n_lanes; i++) QW_TRY_GOTO(create_lane(s, &s->lanes[i], err));
    *out = s;
    return QW_OK;
fail:
    qw_draft_small_destroy(s);
    return status;
}

void qw_draft_small_destroy(qw_draft_small *s)
{
    if (!s) return;
    for (uint32_t i = 0; s->lanes && i < s->o.n_lanes; i++) {
        lane *l = &s->lanes[i];
        if (l->seq && is_recurrent(l) && l->spare != QW_NO_SLOT) qw_slot_drop(s->rt.seqs, l->spare);
        qw_seq_release(l->seq);
        free(l->tokens);
    }
    free(s->lanes);
    free(s->logits);
    qw_runtime_destroy(&s->rt);
    free(s);
}
