/* draft_mtp.c: see draft_mtp.h. */
#include "engine/draft_mtp.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/top.h"

enum { WINDOW = 2048 /* positions of a lane; when they are used up it begins anew */ };

/* Rows wait in a ring: the newest n_waiting of n_seen. */
typedef struct lane {
    qw_seq *seq;           /* of the layer's keys and values; n_tokens: rows that were computed on the model's own states */
    const int32_t *text;   /* borrows */
    int32_t token[QW_MTP_WAITING];
    float *hidden;         /* [QW_MTP_WAITING, hidden], owns */
    uint32_t n_seen, n_waiting;
    uint32_t next_pos;     /* of the text: all before are seen, or never will be */
} lane;

struct qw_draft_mtp {
    qw_pass *model, *pass; /* the model's, borrowed; the layer's, owned */
    qw_seq_pool *pool;
    lane *lanes;           /* [n_lanes], owns */
    uint32_t n_lanes;
    size_t hidden;
    float *logits, *state; /* [n_vocab], [hidden]; owns */
    double us_per_token;
};

/* ---- what the model's passes leave ----------------------------------------------------------------- */

void qw_draft_mtp_begin(qw_draft_mtp *m, uint32_t at, const int32_t *tokens)
{
    lane *l = &m->lanes[at];
    qw_seq_clear(l->seq);
    l->text = tokens;
    l->n_seen = l->n_waiting = l->next_pos = 0;
}

static void take_row(qw_draft_mtp *m, lane *l, uint32_t row)
{
    uint32_t place = l->n_seen++ % QW_MTP_WAITING;
    qw_pass_hidden(m->model, &row, 1, l->hidden + place * m->hidden);
    l->token[place] = l->text[++l->next_pos];
    if (l->n_waiting < QW_MTP_WAITING) l->n_waiting++;
}

void qw_draft_mtp_computed(qw_draft_mtp *m, uint32_t at, uint32_t first_row, uint32_t n, uint32_t pos)
{
    lane *l = &m->lanes[at];
    if (pos > l->next_pos) l->next_pos = pos;
    for (uint32_t i = 0; i < n; i++)
        if (pos + i == l->next_pos) take_row(m, l, first_row + i); /* else it was seen before, and is computed once more */
}

/* ---- drafting --------------------------------------------------------------------------------------- */

/* Computes the rows that wait, in two passes where the ring ends. Returns which row of the pass is the newest, whose logits can
 * be asked for. */
static uint32_t compute_waiting(qw_draft_mtp *m, lane *l)
{
    uint32_t newest = 0;
    while (l->n_waiting > 0) {
        uint32_t from = (l->n_seen - l->n_waiting) % QW_MTP_WAITING, n = QW_MTP_WAITING - from;
        qw_row rows[QW_MTP_WAITING];
        if (n > l->n_waiting) n = l->n_waiting;
        for (uint32_t i = 0; i < n; i++)
            rows[i] = (qw_row){.seq = l->seq, .pos = l->seq->n_tokens + i, .token = l->token[from + i],
                               .silent = i + 1 < l->n_waiting};
        qw_forward_mtp(m->pass, rows, n, l->hidden + from * m->hidden, m->hidden);
        qw_seq_advance(l->seq, l->token + from, n);
        l->n_waiting -= n;
        newest = n - 1;
    }
    return newest;
}

/* Room for what waits and n guesses. */
static bool make_room(lane *l, uint32_t n)
{
    if (l->seq->n_tokens + l->n_waiting + n > WINDOW) qw_seq_clear(l->seq);
    return qw_seq_reserve(l->seq, l->seq->n_tokens + l->n_waiting + n, NULL) == QW_OK;
}

static uint32_t propose(void *ctx, void *user, const int32_t *tokens, uint32_t n_tokens, uint32_t n, double sure,
                        int32_t *out)
{
    qw_draft_mtp *m = ctx;
    lane *l = &m->lanes[(uintptr_t)user];
    uint32_t n_vocab = m->pass->net->hp.n_vocab, i = 0;
    if (tokens != l->text || l->n_waiting == 0 || l->next_pos + 1 != n_tokens || !make_room(l, n)) return 0;
    uint32_t row = compute_waiting(m, l);
    double p = 1;
    for (;;) {
        qw_top top[QW_TOP_MAX];
        qw_pass_logits(m->pass, &row, 1, m->logits, n_vocab);
        size_t n_top = qw_top_of(m->logits, n_vocab, QW_TOP_MAX, top);
        if (n_top == 0) return i;
        out[i++] = top[0].token;
        p *= qw_top_share(top, n_top);
        if (i == n || p < sure) return i;
        /* A guess on a guess: its keys and values are written over when the model's own state is there. */
        const qw_row guess = {.seq = l->seq, .pos = l->seq->n_tokens + i - 1, .token = top[0].token};
        qw_pass_hidden(m->pass, &row, 1, m->state);
        qw_forward_mtp(m->pass, &guess, 1, m->state, m->hidden);
        row = 0;
    }
}

static int64_t clock_us(void *ctx)
{
    (void)ctx;
    return qw_clock_us();
}

qw_draft_model qw_draft_mtp_model(qw_draft_mtp *m)
{
    return (qw_draft_model){.ctx = m, .propose = propose, .us_per_token = m->us_per_token, .clock_us = clock_us};
}

/* ---- life -------------------------------------------------------------------------------------------- */

static qw_kv_shape shape_of(const qw_net *net, bool exact)
{
    qw_kv_shape shape = qw_net_kv_shape(net, qw_runtime_kv_type(exact), false);
    shape.n_layers = 1;
    return shape;
}

static uint32_t n_pages(uint32_t n_lanes)
{
    return n_lanes * (WINDOW / QW_KV_TILE);
}

uint64_t qw_draft_mtp_bytes(const qw_net *net, bool exact, uint32_t n_lanes)
{
    qw_kv_shape shape = shape_of(net, exact);
    uint64_t floats = (uint64_t)n_lanes * QW_MTP_WAITING * net->hp.hidden + net->hp.hidden + net->hp.n_vocab;
    return n_pages(n_lanes) * (uint64_t)qw_kv_page_bytes(&shape) + qw_pass_bytes(net, QW_MTP_WAITING) + floats * sizeof(float);
}

static qw_status create_pass(qw_draft_mtp *m, bool exact, qw_err *err)
{
    const qw_net *net = m->model->net;
    qw_kv_shape shape = shape_of(net, exact);
    const qw_seq_pool_options po = {.shape = shape, .n_pages = n_pages(m->n_lanes), .seq_tokens_max = WINDOW};
    QW_TRY(qw_seq_pool_create(&po, &m->pool, err));
    QW_TRY(qw_pass_create(net, m->model->be, &shape, QW_MTP_WAITING, &m->pass, err));
    m->pass->kv_first = net->n_kv_layers;
    return QW_OK;
}

qw_status qw_draft_mtp_create(qw_pass *pass, bool exact, uint32_t n_lanes, double us_per_token, qw_draft_mtp **out, qw_err *err)
{
    const qw_hparams *hp = &pass->net->hp;
    qw_draft_mtp *m = NULL;
    qw_status status;
    *out = NULL;
    QW_ASSERT(pass->net->mtp);
    QW_TRY(qw_alloc(&m, 1, sizeof *m, "multi-token prediction", err));
    m->model = pass;
    m->n_lanes = n_lanes;
    m->hidden = hp->hidden;
    m->us_per_token = us_per_token;
    QW_TRY_GOTO(create_pass(m, exact, err));
    QW_TRY_GOTO(qw_alloc(&m->logits, hp->n_vocab, sizeof *m->logits, "draft logits", err));
    QW_TRY_GOTO(qw_alloc(&m->state, hp->hidden, sizeof *m->state, "draft states", err));
    QW_TRY_GOTO(qw_alloc(&m->lanes, n_lanes, sizeof *m->lanes, "draft lanes", err));
    for (uint32_t i = 0; i < n_lanes; i++) {
        lane *l = &m->lanes[i];
        QW_TRY_GOTO(qw_alloc(&l->hidden, QW_MTP_WAITING * m->hidden, sizeof *l->hidden, "draft states", err));
        QW_TRY_GOTO(qw_seq_create(m->pool, &l->seq, err));
    }
    *out = m;
    return QW_OK;
fail:
    qw_draft_mtp_destroy(m);
    return status;
}

void qw_draft_mtp_destroy(qw_draft_mtp *m)
{
    if (!m) return;
    for (uint32_t i = 0; m->lanes && i < m->n_lanes; i++) {
        qw_seq_release(m->lanes[i].seq);
        free(m->lanes[i].hidden);
    }
    free(m->lanes);
    free(m->logits);
    free(m->state);
    qw_pass_destroy(m->pass);
    qw_seq_pool_destroy(m->pool);
    free(m);
}
