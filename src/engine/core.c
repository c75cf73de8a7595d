/* core.c: see core.h. */
#include "engine/core.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum {
    SNAPS_MAX = 64,       /* that wait for their pages; edges beyond that are not kept */
    MASKS_KEPT = 256,     /* of states of forms */
    PASSED_OVER_MAX = 32  /* prompts that are looked at in a step and cannot get on */
};

/* Who shares the machine with whom. Lives while it has requests. */
typedef struct owner {
    struct owner *next;
    uint8_t id[QW_OWNER_BYTES];
    double used; /* rows computed for it, by weight */
    uint32_t n_runs;
} owner;

typedef struct run run;

/* The state after so many tokens. */
typedef struct snap {
    uint32_t n_tokens, slot;
} snap;

/* A sequence and what is known about its state. */
typedef struct lane {
    qw_seq *seq;
    run *user;             /* NULL: free */
    qw_prefix_node *tip;   /* pinned: the deepest full page */
    uint32_t n_paged;      /* tokens up to its end */
    uint32_t spare;        /* slot for the state before guesses, or QW_NO_SLOT */
    snap snaps[SNAPS_MAX]; /* beyond it, ascending */
    size_t n_snaps;
    qw_state_op *op;       /* loads into it; the user may have gone meanwhile */
    uint32_t n_restored;   /* tokens up to which it came from the store */
} lane;

typedef enum looking { LOOK = 0, LOOKING, LOOKED } looking;

/* A request on its way. */
struct run {
    run *prev, *next; /* of all, in order of arrival */
    qw_job *job;      /* owns */
    owner *owner;
    lane *lane;       /* NULL: waiting */
    qw_engine_answer answer;
    bool begun;       /* the answer has */
    bool passed;      /* looked at in this step */
    looking looking;  /* for what the store has */
    qw_state_op *found; /* owns; what it has */
    uint32_t n_known; /* of job->tokens: the prompt, and what was drawn since */
    uint32_t n_told;  /* tokens of the prompt that were reported as computed */
    int64_t ready_us; /* when it would have been done with its prompt, had it begun when it came */
    uint32_t first_row, n_rows; /* in this step's pass; */
    uint32_t n_guesses;         /* of them, the last ones: job->tokens from n_known on */
    uint32_t n_again;           /* right guesses whose state was lost among wrong ones: they are computed again */
};

struct qw_core {
    qw_core_options o;
    qw_prefix *prefix;
    qw_sampler *sampler;
    qw_masker *masker;   /* for answers that are held to a form; NULL before the first */
    uint32_t *mask;      /* [qw_masker_n_words] */
    owner *owners;
    run *first, *last;
    lane *lanes;         /* [n_lanes] */
    qw_row *rows;        /* [n_rows_max] of the pass */
    run **in_pass;       /* [n_lanes]: who has rows in it */
    run **order;         /* [n_lanes]: answers, those that stand first before the others */
    uint32_t *asked;     /* [n_logits_max]: rows whose logits are wanted */
    run *starved;        /* found no room in the last step, first of those */
    float *logits;       /* [n_logits_max, n_vocab] */
    bool waits;          /* somebody waits for the store */
    uint32_t n_rows, n_answer_rows, n_in_pass, n_logits_max;
    bool recurrent;
    double us_per_row;
    int64_t now_us;
    qw_core_counts counts;
};

/* ---- requests ------------------------------------------------------------------------------------ */

static owner *find_owner(qw_core *c, const uint8_t id[QW_OWNER_BYTES])
{
    double least = INFINITY;
    for (owner *o = c->owners; o; o = o->next) {
        if (memcmp(o->id, id, QW_OWNER_BYTES) == 0) return o;
        if (o->used < least) least = o->used;
    }
    owner *o = NULL;
    if (qw_alloc(&o, 1, sizeof *o, "owner", NULL) != QW_OK) return NULL;
    memcpy(o->id, id, QW_OWNER_BYTES);
    o->used = isinf(least) ? 0 : least; /* who comes now has no credit for the time before */
    o->next = c->owners;
    c->owners = o;
    return o;
}

static void leave_owner(qw_core *c, owner *o)
{
    owner **at = &c->owners;
    if (!o || --o->n_runs > 0) return;
    while (*at != o) at = &(*at)->next;
    *at = o->next;
    free(o);
}

static void link_run(qw_core *c, run *r)
{
    r->prev = c->last;
    if (c->last) c->last->next = r;
    else c->first = r;
    c->last = r;
}

static void unlink_run(qw_core *c, run *r)
{
    if (r->prev) r->prev->next = r->next;
    else c->first = r->next;
    if (r->next) r->next->prev = r->prev;
    else c->last = r->prev;
}

/* Makes what masks need, for the first answer that is held to a form. */
static qw_status prepare_masks(qw_core *c, const qw_job *job, qw_err *err)
{
    if (!job->form || c->masker) return QW_OK;
    QW_TRY(qw_masker_create(qw_form_trie(job->form), MASKS_KEPT, &c->masker, err));
    return qw_alloc(&c->mask, qw_masker_n_words(c->masker), sizeof *c->mask, "mask", err);
}

/* A request for which there is no memory: nothing but its terminal event. */
static void refuse(qw_core *c, qw_job *job)
{
    qw_engine_answer a;
    qw_err err;
    qw_fail(&err, QW_E_MEMORY, "out of memory: the request was not begun");
    qw_engine_answer_begin(&a, job, c->o.tokenizer, c->o.events);
    qw_engine_answer_fail(&a, &err);
    qw_engine_answer_free(&a);
    c->o.ended(c->o.ended_ctx, job);
}

void qw_core_add(qw_core *c, qw_job *job)
{
    run *r = NULL;
    owner *o = find_owner(c, job->owner);
    if (!o || prepare_masks(c, job, NULL) != QW_OK || qw_alloc(&r, 1, sizeof *r, "request", NULL) != QW_OK) {
        if (o && o->n_runs == 0) {
            o->n_runs = 1;
            leave_owner(c, o);
        }
        refuse(c, job);
        return;
    }
    o->n_runs++;
    r->job = job;
    r->owner = o;
    r->n_known = (uint32_t)job->n_tokens;
    r->ready_us = job->submitted_us + (int64_t)(c->us_per_row * (double)job->n_tokens);
    link_run(c, r);
}

static uint32_t n_computed(const run *r)
{
    return r->lane ? r->lane->seq->n_tokens : 0;
}

/* ---- what is kept of a sequence ------------------------------------------------------------------- */

static void drop_snaps(qw_core *c, lane *l)
{
    for (size_t i = 0; i < l->n_snaps; i++) qw_prefix_drop_slot(c->prefix, l->snaps[i].slot);
    l->n_snaps = 0;
}

/* Puts the page after the tip into the cache, which ends at n_tokens, with its snapshots. */
static void keep_page(qw_core *c, lane *l, uint32_t n_tokens)
{
    qw_prefix_snap snaps[SNAPS_MAX];
    size_t n = 0;
    for (; n < l->n_snaps && l->snaps[n].n_tokens <= n_tokens; n++)
        snaps[n] = (qw_prefix_snap){l->snaps[n].n_tokens - l->n_paged, l->snaps[n].slot};
    l->n_snaps -= n;
    memmove(l->snaps, l->snaps + n, l->n_snaps * sizeof *l->snaps);
    l->tip = qw_prefix_add(c->prefix, l->tip, l->user->job->tokens + l->n_paged, n_tokens - l->n_paged, l->seq,
                           l->n_paged / QW_KV_TILE, snaps, n, c->now_us);
    if (n_tokens - l->n_paged < QW_KV_TILE) return;
    l->n_paged = n_tokens;
    if (n_tokens <= l->n_restored) qw_prefix_set_saved(c->prefix, l->tip);
}

static void keep_full_pages(qw_core *c, lane *l)
{
    while (l->n_paged + QW_KV_TILE <= l->seq->n_tokens) keep_page(c, l, l->n_paged + QW_KV_TILE);
}

/* Where it stands now, a conversation goes on. */
static void keep_last_state(qw_core *c, lane *l)
{
    uint32_t n = l->seq->n_tokens;
    bool kept = l->n_snaps > 0 && l->snaps[l->n_snaps - 1].n_tokens == n;
    if (!c->recurrent || n == 0 || kept || l->n_snaps == SNAPS_MAX) return;
    uint32_t slot = qw_prefix_take_slot(c->prefix);
    if (slot == QW_NO_SLOT) return;
    memcpy(qw_slot_at(c->o.pool, slot), l->seq->recurrent, qw_seq_pool_get_options(c->o.pool)->recurrent_bytes);
    if (n == l->n_paged) qw_prefix_add_snapshot(c->prefix, l->tip, slot, c->now_us);
    else l->snaps[l->n_snaps++] = (snap){n, slot};
}

static void clear_lane(qw_core *c, lane *l)
{
    drop_snaps(c, l);
    qw_prefix_unpin(c->prefix, l->tip);
    qw_seq_clear(l->seq);
    l->tip = NULL;
    l->user = NULL;
    l->n_paged = l->n_restored = 0;
}

/* Everything computed stays in the cache; the lane is free. */
static void leave_lane(qw_core *c, run *r)
{
    lane *l = r->lane;
    if (!l) return;
    keep_last_state(c, l);
    if (l->seq->n_tokens > l->n_paged) keep_page(c, l, l->seq->n_tokens);
    QW_ASSERT(l->n_snaps == 0);
    clear_lane(c, l);
    r->lane = NULL;
    r->n_again = 0;
    r->looking = LOOK; /* should it come back */
}

/* A load may still write to its pages: it is cleared when that is done. */
static void abandon_lane(qw_core *c, run *r)
{
    lane *l = r->lane;
    l->user = NULL;
    r->lane = NULL;
    if (!l->op) clear_lane(c, l);
}

static void end_run(qw_core *c, run *r, qw_finish finish, const qw_err *failure)
{
    if (!r->begun) qw_engine_answer_begin(&r->answer, r->job, c->o.tokenizer, c->o.events);
    if (c->starved == r) c->starved = NULL;
    if (r->lane && r->lane->op) abandon_lane(c, r);
    else leave_lane(c, r);
    qw_state_op_free(r->found);
    if (failure) qw_engine_answer_fail(&r->answer, failure);
    else qw_engine_answer_end(&r->answer, finish);
    qw_engine_answer_free(&r->answer);
    unlink_run(c, r);
    leave_owner(c, r->owner);
    c->o.ended(c->o.ended_ctx, r->job);
    free(r);
}

/* ---- who goes first -------------------------------------------------------------------------------- */

/* The order in which memory is given and taken: it does not change while they run, so the first of it always gets on. */
static bool stands_before(const run *a, const run *b)
{
    if (a->job->priority != b->job->priority) return a->job->priority > b->job->priority;
    if (a->ready_us != b->ready_us) return a->ready_us < b->ready_us;
    return a->job->id < b->job->id;
}

/* The order in which prompts are computed. */
static bool goes_before(const run *a, const run *b)
{
    if (a->job->priority == b->job->priority && a->owner != b->owner && a->owner->used != b->owner->used)
        return a->owner->used < b->owner->used;
    return stands_before(a, b);
}

/* ---- lanes and memory ------------------------------------------------------------------------------ */

/* Gives its lane up, and comes back when there is room. */
static void step_back(qw_core *c, run *r)
{
    leave_lane(c, r);
    qw_state_op_free(r->found);
    r->found = NULL;
    c->counts.preemptions++;
}

/* The run with a lane that stands last, if that is behind r and not in this step's pass already. */
static run *last_behind(qw_core *c, const run *r)
{
    run *worst = NULL;
    for (uint32_t i = 0; i < c->o.n_lanes; i++) {
        run *u = c->lanes[i].user;
        if (!u || u == r || u->n_rows > 0 || c->lanes[i].op || !stands_before(r, u)) continue;
        if (!worst || stands_before(worst, u)) worst = u;
    }
    return worst;
}

static bool is_saving(const qw_core *c)
{
    qw_prefix_counts counts;
    qw_prefix_get_counts(c->prefix, &counts);
    return counts.n_saving > 0;
}

/* Pages for the tokens up to n_after, at the cost of what is kept and then of those who stand behind. */
static bool make_room(qw_core *c, run *r, uint32_t n_after)
{
    while (qw_seq_reserve(r->lane->seq, n_after, NULL) != QW_OK) {
        if (qw_prefix_free_pages(c->prefix, qw_seq_pool_free_pages(c->o.pool) + 1)) continue;
        if (is_saving(c)) { /* then there will be room */
            c->waits = true;
            return false;
        }
        run *worst = last_behind(c, r);
        if (!worst) return false;
        step_back(c, worst);
    }
    return true;
}

static lane *free_lane(qw_core *c, const run *r)
{
    for (uint32_t i = 0; i < c->o.n_lanes; i++)
        if (!c->lanes[i].user && !c->lanes[i].op) return &c->lanes[i];
    run *worst = last_behind(c, r);
    if (!worst || worst->job->priority >= r->job->priority) return NULL; /* among equals nobody is sent away for a lane */
    lane *l = worst->lane;
    step_back(c, worst);
    return l;
}

static void find_past(const qw_core *c, const run *r, qw_prefix_match *m)
{
    const qw_prefix_node *root = qw_prefix_root(c->prefix, r->job->owner, c->now_us);
    qw_prefix_find(c->prefix, root, r->job->tokens, r->n_known, m);
}

/* How this prompt was served, and where it is the first to say something new. */
static qw_cache_use cache_use(const qw_core *c, const qw_job *job, const qw_prefix_match *m)
{
    qw_cache_use use = {.miss = m->miss, .known_tokens = m->n_known};
    uint32_t from = 0;
    for (size_t i = 0; i < job->n_edges && job->edges[i].n_tokens <= m->n_known; i++) {
        use.known_messages = job->edges[i].n_messages;
        from = job->edges[i].n_tokens;
    }
    for (; c->o.tokenizer && from < m->n_known; from++)
        use.known_bytes += (uint32_t)qw_tokenizer_bytes(c->o.tokenizer, job->tokens[from]).n;
    return use;
}

static void begin_answer(qw_core *c, run *r, const qw_prefix_match *m)
{
    if (r->begun) return;
    r->begun = true;
    r->n_told = m->n_tokens;
    qw_engine_answer_begin(&r->answer, r->job, c->o.tokenizer, c->o.events);
    qw_engine_answer_reused(&r->answer, m->n_tokens);
    r->answer.cache = cache_use(c, r->job, m);
    c->counts.requests++;
    c->counts.prompt_tokens += r->job->n_tokens;
    c->counts.reused_tokens += m->n_tokens;
    c->counts.missed[m->miss]++;
}

static void continue_past(qw_core *c, run *r, const qw_prefix_match *m)
{
    lane *l = r->lane;
    qw_prefix_node *before = l->tip;
    drop_snaps(c, l);
    l->tip = qw_prefix_continue(c->prefix, m, r->job->tokens, l->seq, c->now_us);
    l->n_paged = m->n_tokens / QW_KV_TILE * QW_KV_TILE;
    l->n_restored = 0;
    if (before) qw_prefix_unpin(c->prefix, before);
}

/* ---- planning a step ------------------------------------------------------------------------------- */

/* Edges worth a snapshot: the first one, which others may share, and as many of the last as half of the snapshots hold. */
static bool is_kept_edge(const qw_core *c, const qw_job *job, size_t edge)
{
    return edge == 0 || job->n_edges - edge <= c->o.n_snapshots / 2;
}

/* Is the state after n_tokens one to come back to? *edge: the first edge that is not before it. */
static bool is_snapshot_point(const qw_core *c, const qw_job *job, uint32_t n_tokens, size_t *edge)
{
    while (*edge < job->n_edges && job->edges[*edge].n_tokens < n_tokens) ++*edge;
    if (*edge < job->n_edges && job->edges[*edge].n_tokens == n_tokens) return is_kept_edge(c, job, *edge);
    return n_tokens % QW_SNAPSHOT_TOKENS == 0 && n_tokens < job->n_tokens;
}

static uint8_t *take_snapshot(qw_core *c, lane *l, uint32_t n_tokens)
{
    uint32_t slot = l->n_snaps < SNAPS_MAX ? qw_prefix_take_slot(c->prefix) : QW_NO_SLOT;
    if (slot == QW_NO_SLOT) return NULL;
    l->snaps[l->n_snaps++] = (snap){n_tokens, slot};
    return qw_slot_at(c->o.pool, slot);
}

static void add_rows(qw_core *c, run *r, uint32_t n)
{
    lane *l = r->lane;
    size_t edge = 0;
    r->first_row = c->n_rows;
    r->n_rows = n;
    c->in_pass[c->n_in_pass++] = r;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t pos = l->seq->n_tokens + i;
        qw_row row = {.seq = l->seq, .pos = pos, .token = r->job->tokens[pos], .silent = pos + 1 < r->n_known};
        if (c->recurrent && is_snapshot_point(c, r->job, pos + 1, &edge)) row.keep = take_snapshot(c, l, pos + 1);
        if (c->recurrent && r->n_guesses > 0 && pos + 1 == r->n_known) row.keep = qw_slot_at(c->o.pool, l->spare);
        c->rows[c->n_rows++] = row;
    }
}

/* Only its newest token is not computed. */
static bool is_answering(const run *r)
{
    return r->lane && !r->lane->op && r->n_known > r->job->n_tokens && n_computed(r) + 1 + r->n_again == r->n_known;
}

static uint32_t number_of(const qw_core *c, const lane *l)
{
    return (uint32_t)(l - c->lanes);
}

/* Puts at most so many guesses behind the known tokens. Returns the tokens that the pass is expected to give this answer. */
static double guess(qw_core *c, run *r, uint32_t most, double n_expected)
{
    const qw_guesser *g = &c->o.guesser;
    uint32_t room = (uint32_t)r->job->n_tokens_max - r->n_known;
    double mine = 1;
    r->n_guesses = 0;
    if (!g->guess || room <= 1) return mine;
    if (most > room - 1) most = room - 1; /* the one that is drawn after them has a place, too */
    if (most > c->o.context - r->n_known) most = c->o.context - r->n_known;
    if (most == 0) return mine;
    const qw_guess_ask ask = {.n_max = most, .n_rows = c->n_rows + r->n_known - n_computed(r) - 1, .n_expected = n_expected};
    r->n_guesses = g->guess(g->ctx, number_of(c, r->lane), &ask, r->job->tokens + r->n_known, &mine);
    QW_ASSERT(r->n_guesses <= most);
    c->counts.guessed += r->n_guesses;
    return mine;
}

/* Its rows have room in the pass and in memory. */
static bool fits(qw_core *c, run *r)
{
    uint32_t n_after = r->n_known + r->n_guesses;
    return c->n_rows + n_after - n_computed(r) <= c->o.n_rows_max && make_room(c, r, n_after);
}

/* Answers under way: each gets its next token. Those that stand first take room first. */
static void plan_answers(qw_core *c)
{
    uint32_t n = 0;
    for (run *r = c->first; r; r = r->next) r->passed = false;
    for (uint32_t k = 0; k < c->o.n_lanes; k++) {
        run *best = NULL;
        for (uint32_t i = 0; i < c->o.n_lanes; i++) {
            run *u = c->lanes[i].user;
            if (u && !u->passed && is_answering(u) && (!best || stands_before(u, best))) best = u;
        }
        if (!best) break;
        best->passed = true;
        c->order[n++] = best;
    }
    /* Guesses share what the newest tokens of all answers leave of the rows that cost about what one costs. */
    uint32_t left = 0, n_needed = 0;
    double n_expected = 0;
    for (uint32_t i = 0; i < n; i++) n_needed += c->order[i]->n_known - n_computed(c->order[i]);
    if (n_needed < QW_ANSWER_ROWS) left = QW_ANSWER_ROWS - n_needed;
    for (uint32_t i = 0; i < n; i++) {
        run *r = c->order[i];
        if (!r->lane) continue; /* had to step back for one before it */
        n_expected += guess(c, r, left / (n - i), n_expected);
        if (r->n_guesses > 0 && !fits(c, r)) r->n_guesses = 0;
        if (!fits(c, r)) continue;
        left -= r->n_guesses;
        add_rows(c, r, r->n_known - n_computed(r) + r->n_guesses);
    }
}

static uint32_t n_common(const run *a, const run *b)
{
    uint32_t n = a->n_known < b->n_known ? a->n_known : b->n_known, i = 0;
    while (i < n && a->job->tokens[i] == b->job->tokens[i]) i++;
    return i;
}

/* How far r could go on from what u will have put into the cache when it has passed what both have in common. */
static uint32_t n_to_share(const qw_core *c, const run *u, const run *r)
{
    uint32_t n = n_common(u, r), best = 0;
    if (!c->recurrent) return n / QW_KV_TILE * QW_KV_TILE;
    for (size_t i = 0; i < u->job->n_edges && u->job->edges[i].n_tokens <= n; i++)
        if (is_kept_edge(c, u->job, i)) best = u->job->edges[i].n_tokens;
    return best;
}

/* Someone in this pass is about to compute what r needs next: it waits, and shares it. */
static bool is_being_computed(const qw_core *c, const run *r, uint32_t from)
{
    for (uint32_t i = 0; i < c->n_in_pass; i++) {
        const run *u = c->in_pass[i];
        if (u->owner != r->owner || is_answering(u)) continue;
        uint32_t n = n_to_share(c, u, r), seen = (n + QW_KV_TILE - 1) / QW_KV_TILE * QW_KV_TILE; /* with its whole page */
        if (n > from && n_computed(u) < seen) return true;
    }
    return false;
}

/* Gives r a lane and puts it where its past ends. */
static bool enter_lane(qw_core *c, run *r)
{
    qw_prefix_match m;
    lane *l = free_lane(c, r);
    if (!l) return false;
    find_past(c, r, &m); /* whoever stepped back left something */
    l->user = r;
    r->lane = l;
    begin_answer(c, r, &m);
    continue_past(c, r, &m);
    if (c->o.guesser.begin) c->o.guesser.begin(c->o.guesser.ctx, number_of(c, l), r->job, r->n_known);
    return true;
}

/* ---- from the store --------------------------------------------------------------------------------- */

/* Asks the store what it has beyond what the cache has. True: the answer has to be waited for. */
static bool look(qw_core *c, run *r, const qw_prefix_match *m)
{
    const qw_state_store *store = c->o.store;
    uint32_t depth;
    qw_state_op *op;
    r->looking = LOOKED;
    if (m->n_tokens + 1 >= r->n_known) return false;
    qw_prefix_node *from = qw_prefix_full_node(m, &depth);
    if (qw_state_op_create(QW_STATE_FIND, qw_prefix_id(from), depth, r->job->tokens + depth, r->n_known - depth, &op, NULL) != QW_OK)
        return false;
    op->user = (void *)(uintptr_t)r->job->id; /* it may be gone when the answer comes */
    if (store->submit(store->ctx, op)) {
        r->looking = LOOKING;
        return true;
    }
    qw_state_op_free(op);
    return false;
}

static run *run_of(const qw_core *c, const qw_state_op *op)
{
    for (run *r = c->first; r; r = r->next)
        if (r->job->id == (uint64_t)(uintptr_t)op->user) return r;
    return NULL;
}

static void take_found(qw_core *c, qw_state_op *op)
{
    run *r = run_of(c, op);
    if (r && r->looking == LOOKING) {
        r->looking = LOOKED;
        r->found = op->status == QW_OK && op->past.n_tokens > 0 ? op : NULL;
        if (r->found) return;
    }
    qw_state_op_free(op);
}

/* The full node at that depth on the way of a match, or NULL. */
static qw_prefix_node *node_at(const qw_core *c, const run *r, const qw_state_op *op)
{
    qw_prefix_match part;
    const qw_prefix_node *root = qw_prefix_root(c->prefix, r->job->owner, c->now_us);
    return qw_prefix_find_full(c->prefix, root, r->job->tokens, op->depth, &part) ? part.node : NULL;
}

/* Makes the load of what was found: into the lane's pages from the parent on, which have room. */
static bool prepare_load(const lane *l, qw_state_op *op)
{
    uint32_t first = op->depth / QW_KV_TILE;
    if (qw_state_op_make_load(op, NULL) != QW_OK) return false;
    QW_ASSERT(first + qw_state_op_pages(op) <= l->seq->n_pages);
    for (uint32_t i = 0; i < qw_state_op_pages(op); i++) op->pages[i] = l->seq->pages[first + i];
    op->state = l->seq->recurrent;
    op->user = (void *)(uintptr_t)l;
    return true;
}

/* Puts a lane at the node where what was found goes on, with room for it. False: not now. */
static bool enter_lane_at(qw_core *c, run *r, qw_prefix_node *from, uint32_t n_after)
{
    lane *l = free_lane(c, r);
    if (!l || node_at(c, r, r->found) != from) return false; /* whoever stepped back may have changed it */
    l->user = r;
    r->lane = l;
    l->tip = from;
    l->n_paged = r->found->depth;
    qw_prefix_continue_at(c->prefix, from, r->job->tokens, l->seq, c->now_us);
    if (make_room(c, r, n_after)) return true;
    abandon_lane(c, r);
    return false;
}

static void drop_found(run *r)
{
    qw_state_op_free(r->found);
    r->found = NULL;
}

/* Loads what was found. False: it is not worth it any more, or not to be had. True: under way, or there is no room yet. */
static bool load(qw_core *c, run *r, const qw_prefix_match *m)
{
    qw_state_op *op = r->found;
    uint32_t n_after = op->depth + op->past.n_tokens;
    qw_prefix_node *from = n_after > m->n_tokens && n_after <= c->o.context ? node_at(c, r, op) : NULL;
    if (!from) {
        drop_found(r);
        return false;
    }
    if (!enter_lane_at(c, r, from, n_after)) return true;
    if (prepare_load(r->lane, op) && c->o.store->submit(c->o.store->ctx, op)) {
        r->lane->op = op;
        r->found = NULL;
        return true;
    }
    abandon_lane(c, r);
    drop_found(r);
    return false;
}

/* How many tokens of a load can be gone on from. */
static uint32_t n_loaded(const qw_core *c, const qw_state_op *op)
{
    bool whole = op->n_good == qw_state_op_pages(op);
    if (c->recurrent) return whole && op->state_good ? op->past.n_tokens : 0;
    if (whole) return op->past.n_tokens;
    return op->n_good * QW_KV_TILE < op->past.n_tokens ? op->n_good * QW_KV_TILE : op->past.n_tokens;
}

static void begin_restored(qw_core *c, run *r, uint32_t n)
{
    qw_prefix_match m;
    find_past(c, r, &m);
    m.n_known = m.n_known > n ? m.n_known : n;
    m.n_tokens = n;
    m.miss = QW_MISS_NONE;
    bool first = !r->begun;
    begin_answer(c, r, &m);
    if (!first) return; /* it stepped back before: what it was told stays */
    r->answer.cache.restored_tokens = n - r->lane->n_paged;
    c->counts.restored_tokens += n - r->lane->n_paged;
}

static void take_loaded(qw_core *c, qw_state_op *op)
{
    lane *l = op->user;
    run *r = l->user;
    uint32_t n = n_loaded(c, op);
    l->op = NULL;
    if (!r) {
        clear_lane(c, l);
    } else if (n == 0) {
        abandon_lane(c, r);
    } else {
        qw_seq_advance(l->seq, r->job->tokens + op->depth, n);
        l->n_restored = op->depth + n;
        begin_restored(c, r, l->n_restored);
        keep_full_pages(c, l);
        if (c->o.guesser.begin) c->o.guesser.begin(c->o.guesser.ctx, number_of(c, l), r->job, r->n_known);
    }
    qw_state_op_free(op);
}

static void take_from_store(qw_core *c)
{
    qw_state_op *op;
    while (c->o.store && (op = c->o.store->poll(c->o.store->ctx))) {
        switch (op->what) {
        case QW_STATE_FIND: take_found(c, op); break;
        case QW_STATE_LOAD: take_loaded(c, op); break;
        case QW_STATE_SAVE: qw_prefix_take_saved(c->prefix, op); break;
        case QW_STATE_TOUCH: qw_state_op_free(op); break;
        }
    }
}

/* True: r is waiting for the store, or goes on from there. */
static bool restore(qw_core *c, run *r, const qw_prefix_match *m)
{
    if (!c->o.store || (r->lane && !r->lane->op)) return false;
    if (r->looking == LOOK) look(c, r, m);
    bool stays = r->looking == LOOKING || (r->lane && r->lane->op) || (r->found && load(c, r, m));
    c->waits = c->waits || r->looking == LOOKING || (r->lane && r->lane->op);
    return stays;
}

/* Up to `most` rows of what r lacks into the pass; 0 when it has to wait. */
static uint32_t plan_piece(qw_core *c, run *r, uint32_t most)
{
    qw_prefix_match m;
    find_past(c, r, &m);
    if (restore(c, r, &m)) return 0;
    bool further = m.n_tokens > n_computed(r);
    if (is_being_computed(c, r, further ? m.n_tokens : n_computed(r))) return 0;
    if (!r->lane) {
        if (!enter_lane(c, r)) return 0;
    } else if (further && r->lane->n_snaps == 0) { /* else they would be lost before their page is there */
        continue_past(c, r, &m); /* another request got further on the same way */
    }
    uint32_t left = r->n_known - n_computed(r), n = left < most ? left : most;
    if (!make_room(c, r, n_computed(r) + n)) {
        if (!c->starved) c->starved = r;
        return 0;
    }
    add_rows(c, r, n);
    return n;
}

static uint32_t piece_rows(const qw_core *c)
{
    double n = (c->n_rows > 0 ? QW_PIECE_US : QW_PIECE_ALONE_US) / c->us_per_row;
    uint32_t most = c->o.n_rows_max - c->n_rows, rows = n < (double)most ? (uint32_t)n : most;
    return rows > QW_PIECE_ROWS_MIN ? rows : QW_PIECE_ROWS_MIN < most ? QW_PIECE_ROWS_MIN : most;
}

/* Prompts, first things first. Who cannot get on is passed over, others may. */
static void plan_prompts(qw_core *c)
{
    uint32_t left = piece_rows(c), n_passed_over = 0;
    while (left > 0 && c->n_in_pass < c->o.n_lanes && n_passed_over < PASSED_OVER_MAX) {
        run *best = NULL;
        for (run *r = c->first; r; r = r->next)
            if (!r->passed && r->n_rows == 0 && !is_answering(r) && (!best || goes_before(r, best))) best = r;
        if (!best) return;
        best->passed = true;
        uint32_t n = plan_piece(c, best, left);
        left -= n;
        n_passed_over += n == 0;
    }
}

static void plan(qw_core *c)
{
    run *r = c->starved;
    c->n_rows = c->n_in_pass = 0;
    c->starved = NULL;
    if (r && r->lane) { /* now that nobody is in the pass, it can take room from all who stand behind */
        uint32_t left = r->n_known - n_computed(r), most = piece_rows(c);
        if (!make_room(c, r, n_computed(r) + (left < most ? left : most))) c->starved = r;
    }
    plan_answers(c);
    c->n_answer_rows = c->n_rows;
    plan_prompts(c);
}

/* ---- after a pass ----------------------------------------------------------------------------------- */

/* n of the rows hold what the sequence goes on with; the others were wrong guesses. */
static void note_computed(qw_core *c, run *r, uint32_t n)
{
    lane *l = r->lane;
    r->n_again = 0;
    if (c->recurrent && n < r->n_rows) { /* its state went astray: back to where the guesses began */
        r->n_again = n - (r->n_rows - r->n_guesses);
        n -= r->n_again;
        qw_seq_swap_slot(l->seq, &l->spare);
    }
    qw_seq_advance(l->seq, r->job->tokens + n_computed(r), n);
    keep_full_pages(c, l);
    r->answer.usage.computed_tokens += r->n_rows;
    r->owner->used += r->n_rows;
    c->counts.rows += r->n_rows;
}

static qw_status tell_progress(run *r, qw_err *err)
{
    uint32_t n = n_computed(r) < r->job->n_tokens ? n_computed(r) : (uint32_t)r->job->n_tokens, new = n - r->n_told;
    if (n <= r->n_told) return QW_OK;
    r->n_told = n;
    return qw_engine_answer_prefilled(&r->answer, new, err);
}

static qw_status draw(qw_core *c, run *r, float *logits, qw_err *err)
{
    qw_sample sample;
    for (size_t i = 0; i < c->o.n_banned; i++) logits[c->o.banned[i]] = -INFINITY;
    if (r->job->form) qw_form_mask(r->job->form, c->masker, c->mask, logits, c->o.n_vocab);
    qw_sampler_draw(c->sampler, r->job->draws, logits, r->n_known, &sample);
    qw_engine_answer_choose(&r->answer, &sample);
    if (r->job->form) qw_form_take(r->job->form, sample.token);
    qw_sampling_run_accept(r->job->draws, sample.token);
    QW_ASSERT(r->n_known < r->job->n_tokens_max);
    r->job->tokens[r->n_known++] = sample.token;
    return qw_engine_answer_push(&r->answer, &sample, err);
}

static bool is_over(const qw_core *c, const run *r)
{
    return r->answer.finish != QW_FINISH_NONE || r->n_known > c->o.context;
}

/* Draws a token for each row of logits while the guesses were right. *n_right: how many were. */
static qw_status draw_all(qw_core *c, run *r, float *logits, uint32_t *n_right, qw_err *err)
{
    *n_right = 0;
    for (;;) {
        int32_t guessed = *n_right < r->n_guesses ? r->job->tokens[r->n_known] : -1;
        float *row = logits + (size_t)*n_right * c->o.n_vocab;
        if (c->o.guesser.note_logits) c->o.guesser.note_logits(c->o.guesser.ctx, r->job->tokens[r->n_known - 1], row);
        QW_TRY(draw(c, r, row, err));
        if (*n_right == r->n_guesses || is_over(c, r) || r->job->tokens[r->n_known - 1] != guessed) return QW_OK;
        ++*n_right;
    }
}

/* logits: of its last row and of the guesses' rows, or NULL while it has more to compute. */
static void take_result(qw_core *c, run *r, float *logits)
{
    qw_err err;
    uint32_t n_right = 0, n_rows = r->n_rows;
    qw_status status = QW_OK;
    if (logits) status = draw_all(c, r, logits, &n_right, &err);
    note_computed(c, r, n_rows - r->n_guesses + n_right);
    if (status == QW_OK) status = tell_progress(r, &err);
    c->counts.guessed_right += n_right;
    if (logits && c->o.guesser.advance) c->o.guesser.advance(c->o.guesser.ctx, number_of(c, r->lane), r->n_known);
    r->n_rows = r->n_guesses = 0;
    if (status != QW_OK) end_run(c, r, QW_FINISH_NONE, &err);
    else if (r->answer.finish != QW_FINISH_NONE) end_run(c, r, r->answer.finish, NULL);
    else if (r->n_known > c->o.context) end_run(c, r, QW_FINISH_CONTEXT, NULL);
}

/* Prompts are what is worth measuring: an answer's token costs about as much alone as beside some others. */
static void measure(qw_core *c, int64_t us)
{
    if (c->n_rows < 2 * QW_PIECE_ROWS_MIN) return;
    c->us_per_row += 0.25 * ((double)us / c->n_rows - c->us_per_row);
    if (c->us_per_row < 1) c->us_per_row = 1;
}

/* Nothing of it is left to compute after this pass. */
static bool is_whole(const run *r)
{
    return n_computed(r) + r->n_rows == r->n_known + r->n_guesses;
}

static void compute(qw_core *c)
{
    int64_t begun_us = c->now_us;
    uint32_t n_asked = 0;
    qw_err err;
    c->o.compute.forward(c->o.compute.ctx, c->rows, c->n_rows);
    for (uint32_t i = 0; i < c->n_in_pass; i++) {
        const run *r = c->in_pass[i];
        if (!is_whole(r)) continue;
        for (uint32_t k = 0; k <= r->n_guesses; k++) c->asked[n_asked++] = r->first_row + r->n_rows - 1 - r->n_guesses + k;
    }
    if (n_asked > 0) c->o.compute.logits(c->o.compute.ctx, c->asked, n_asked, c->logits, c->o.n_vocab);
    c->now_us = c->o.compute.clock_us(c->o.compute.ctx);
    measure(c, c->now_us - begun_us);
    if (c->o.guesser.note_cost && c->n_answer_rows == c->n_rows)
        c->o.guesser.note_cost(c->o.guesser.ctx, c->n_rows, (double)(c->now_us - begun_us));
    c->counts.steps++;
    if (c->o.compute.failed(c->o.compute.ctx)) {
        qw_fail(&err, QW_E_CORRUPT, "the model's file changed or could not be read while it was in use; load it again");
        qw_core_fail(c, &err);
        return;
    }
    float *logits = c->logits;
    for (uint32_t i = 0; i < c->n_in_pass; i++) {
        run *r = c->in_pass[i];
        size_t n_logits = is_whole(r) ? 1 + r->n_guesses : 0;
        take_result(c, r, n_logits ? logits : NULL);
        logits += n_logits * c->o.n_vocab;
    }
}

/* ---- the step --------------------------------------------------------------------------------------- */

static void end_the_overdue(qw_core *c)
{
    for (run *r = c->first, *next; r; r = next) {
        next = r->next;
        if (atomic_load(&r->job->cancelled)) end_run(c, r, QW_FINISH_CANCELLED, NULL);
        else if (r->job->deadline_us && c->now_us >= r->job->deadline_us) end_run(c, r, QW_FINISH_DEADLINE, NULL);
    }
}

/* Some lane is being filled, if only for one who has gone. */
static bool is_loading(const qw_core *c)
{
    for (uint32_t i = 0; i < c->o.n_lanes; i++)
        if (c->lanes[i].op) return true;
    return false;
}

qw_step qw_core_step(qw_core *c)
{
    bool any = c->first != NULL;
    c->now_us = c->o.compute.clock_us(c->o.compute.ctx);
    c->waits = false;
    take_from_store(c);
    end_the_overdue(c);
    plan(c);
    if (c->n_rows > 0) compute(c);
    if (c->o.store) qw_prefix_save(c->prefix, c->now_us, QW_SAVE_AFTER_US);
    if (c->n_rows == 0 && c->first && (c->waits || is_loading(c))) return QW_STEP_WAITS;
    return any ? QW_STEP_DONE : QW_STEP_IDLE;
}

bool qw_core_has_unsaved(const qw_core *c)
{
    return c->o.store && qw_prefix_has_unsaved(c->prefix);
}

void qw_core_finish(qw_core *c, int64_t us_max)
{
    enum { WAIT_US = 20000 };
    int64_t begun_us = c->o.compute.clock_us(c->o.compute.ctx);
    while (c->first) end_run(c, c->first, QW_FINISH_CANCELLED, NULL);
    while (qw_core_has_unsaved(c) && c->o.compute.clock_us(c->o.compute.ctx) - begun_us < us_max) {
        qw_prefix_save(c->prefix, INT64_MAX / 2, 0);
        c->o.store->wait(c->o.store->ctx, WAIT_US);
        take_from_store(c);
    }
}

void qw_core_fail(qw_core *c, const qw_err *err)
{
    for (run *r = c->first, *next; r; r = next) {
        next = r->next;
        r->n_rows = r->n_guesses = 0;
        if (r->lane) drop_snaps(c, r->lane); /* states that may be wrong */
        end_run(c, r, QW_FINISH_NONE, err);
    }
}

bool qw_core_idle(const qw_core *c)
{
    return c->first == NULL;
}

/* ---- life ------------------------------------------------------------------------------------------- */

static qw_status create_lanes(qw_core *c, qw_err *err)
{
    QW_TRY(qw_alloc(&c->lanes, c->o.n_lanes, sizeof *c->lanes, "lanes", err));
    for (uint32_t i = 0; i < c->o.n_lanes; i++) c->lanes[i].spare = QW_NO_SLOT;
    for (uint32_t i = 0; i < c->o.n_lanes; i++) {
        QW_TRY(qw_seq_create(c->o.pool, &c->lanes[i].seq, err));
        if (!c->recurrent || !c->o.guesser.guess) continue;
        c->lanes[i].spare = qw_slot_take(c->o.pool);
        if (c->lanes[i].spare == QW_NO_SLOT) return qw_fail(err, QW_E_MEMORY, "no recurrent state is left for guesses");
    }
    return QW_OK;
}

uint32_t qw_core_logits_max(uint32_t n_lanes, bool guesses)
{
    return n_lanes + (guesses ? QW_ANSWER_ROWS : 0);
}

qw_status qw_core_create(const qw_core_options *o, qw_core **out, qw_err *err)
{
    const qw_prefix_options po = {.pool = o->pool, .key = o->key, .n_pinned_max = 2 * o->n_lanes,
                                  .n_remembered_max = QW_REMEMBERED_MAX, .n_snapshots_max = o->n_snapshots,
                                  .us_per_token = o->us_per_row, .store = o->store};
    qw_core *c = NULL;
    qw_status status;
    *out = NULL;
    QW_ASSERT(o->n_lanes >= 1 && o->n_rows_max >= qw_core_logits_max(o->n_lanes, o->guesser.guess != NULL) + QW_ANSWER_ROWS);
    QW_TRY(qw_alloc(&c, 1, sizeof *c, "engine", err));
    c->o = *o;
    c->recurrent = qw_seq_pool_get_options(o->pool)->recurrent_bytes > 0;
    c->us_per_row = o->us_per_row;
    c->n_logits_max = qw_core_logits_max(o->n_lanes, o->guesser.guess != NULL);
    QW_TRY_GOTO(create_lanes(c, err));
    QW_TRY_GOTO(qw_prefix_create(&po, &c->prefix, err));
    QW_TRY_GOTO(qw_sampler_create(o->n_vocab, &c->sampler, err));
    QW_TRY_GOTO(qw_alloc(&c->rows, o->n_rows_max, sizeof *c->rows, "rows", err));
    QW_TRY_GOTO(qw_alloc(&c->in_pass, o->n_lanes, sizeof *c->in_pass, "rows", err));
    QW_TRY_GOTO(qw_alloc(&c->order, o->n_lanes, sizeof *c->order, "rows", err));
    QW_TRY_GOTO(qw_alloc(&c->asked, c->n_logits_max, sizeof *c->asked, "rows", err));
    QW_TRY_GOTO(qw_alloc(&c->logits, (size_t)c->n_logits_max * o->n_vocab, sizeof *c->logits, "logits", err));
    *out = c;
    return QW_OK;
fail:
    qw_core_destroy(c);
    return status;
}

void qw_core_destroy(qw_core *c)
{
    if (!c) return;
    while (c->first) end_run(c, c->first, QW_FINISH_CANCELLED, NULL);
    for (uint32_t i = 0; c->lanes && i < c->o.n_lanes; i++) {
        if (!c->lanes[i].op) continue;
        c->lanes[i].op = NULL; /* the store that had it is closed */
        clear_lane(c, &c->lanes[i]);
    }
    qw_prefix_destroy(c->prefix);
    for (uint32_t i = 0; c->lanes && i < c->o.n_lanes; i++) {
        if (c->lanes[i].seq) qw_seq_release(c->lanes[i].seq);
        if (c->lanes[i].seq && c->lanes[i].spare != QW_NO_SLOT) qw_slot_drop(c->o.pool, c->lanes[i].spare);
    }
    qw_sampler_destroy(c->sampler);
    qw_masker_destroy(c->masker);
    free(c->mask);
    free(c->lanes);
    free(c->rows);
    free(c->in_pass);
    free(c->order);
    free(c->asked);
    free(c->logits);
    free(c);
}

void qw_core_get_counts(const qw_core *c, qw_core_counts *out)
{
    *out = c->counts;
    out->n_waiting = out->n_running = 0;
    for (const run *r = c->first; r; r = r->next) {
        if (r->lane) out->n_running++;
        else out->n_waiting++;
    }
    qw_prefix_get_counts(c->prefix, &out->prefix);
}

void qw_core_check(const qw_core *c)
{
    uint32_t n_lanes = 0, n_runs = 0;
    for (const owner *o = c->owners; o; o = o->next) {
        QW_ASSERT(o->n_runs > 0);
        n_runs += o->n_runs;
    }
    for (const run *r = c->first; r; r = r->next) {
        QW_ASSERT((!r->next || r->next->prev == r) && r->n_rows == 0 && n_runs-- > 0);
        QW_ASSERT(!r->lane || (r->lane->user == r && r->lane->tip));
        QW_ASSERT(n_computed(r) < r->n_known && r->n_known <= r->job->n_tokens_max);
        n_lanes += r->lane != NULL;
    }
    QW_ASSERT(n_runs == 0);
    for (uint32_t i = 0; i < c->o.n_lanes; i++) {
        const lane *l = &c->lanes[i];
        n_lanes -= l->user != NULL;
        QW_ASSERT(l->user || l->op || (l->seq->n_pages == 0 && l->n_snaps == 0 && !l->tip));
        QW_ASSERT(!l->user || l->op || l->n_paged == l->seq->n_tokens / QW_KV_TILE * QW_KV_TILE);
    }
    QW_ASSERT(n_lanes == 0);
    qw_prefix_check(c->prefix);
}
