/* core_lanes.c: what a lane holds, what is kept of it, and who gets one. See core_private.h. */
#include <string.h>

#include "engine/core_private.h"

/* ---- what is kept of a sequence ------------------------------------------------------------------- */

void qw_lane_drop_snaps(qw_core *c, qw_lane *l)
{
    for (size_t i = 0; i < l->n_snaps; i++) qw_prefix_drop_slot(c->prefix, l->snaps[i].slot);
    l->n_snaps = 0;
}

/* Puts the page after the tip into the cache, which ends at n_tokens, with its snapshots. */
static void keep_page(qw_core *c, qw_lane *l, uint32_t n_tokens)
{
    qw_prefix_snap snaps[QW_SNAPS_MAX];
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

void qw_lane_keep_pages(qw_core *c, qw_lane *l)
{
    while (l->n_paged + QW_KV_TILE <= l->seq->n_tokens) keep_page(c, l, l->n_paged + QW_KV_TILE);
}

/* Where it stands now, a conversation goes on. */
static void keep_last_state(qw_core *c, qw_lane *l)
{
    uint32_t n = l->seq->n_tokens;
    bool kept = l->n_snaps > 0 && l->snaps[l->n_snaps - 1].n_tokens == n;
    if (!c->recurrent || n == 0 || kept || l->n_snaps == QW_SNAPS_MAX) return;
    uint32_t slot = qw_prefix_take_slot(c->prefix);
    if (slot == QW_NO_SLOT) return;
    memcpy(qw_slot_at(c->o.pool, slot), l->seq->recurrent, qw_seq_pool_get_options(c->o.pool)->recurrent_bytes);
    if (n == l->n_paged) qw_prefix_add_snapshot(c->prefix, l->tip, slot, c->now_us);
    else l->snaps[l->n_snaps++] = (qw_snap){n, slot};
}

void qw_lane_clear(qw_core *c, qw_lane *l)
{
    qw_lane_drop_snaps(c, l);
    qw_prefix_unpin(c->prefix, l->tip);
    qw_seq_clear(l->seq);
    l->tip = NULL;
    l->user = NULL;
    l->n_paged = l->n_restored = 0;
}

/* Everything computed stays in the cache; the lane is free. */
void qw_lane_leave(qw_core *c, qw_run *r)
{
    qw_lane *l = r->lane;
    if (!l) return;
    keep_last_state(c, l);
    if (l->seq->n_tokens > l->n_paged) keep_page(c, l, l->seq->n_tokens);
    QW_ASSERT(l->n_snaps == 0);
    qw_lane_clear(c, l);
    r->lane = NULL;
    r->n_again = 0;
    r->looking = QW_LOOK; /* should it come back */
}

/* A load may still write to its pages: it is cleared when that is done. */
void qw_lane_abandon(qw_core *c, qw_run *r)
{
    qw_lane *l = r->lane;
    l->user = NULL;
    r->lane = NULL;
    if (!l->op) qw_lane_clear(c, l);
}

/* ---- lanes and memory ------------------------------------------------------------------------------ */

bool qw_run_stands_before(const qw_run *a, const qw_run *b)
{
    if (a->job->priority != b->job->priority) return a->job->priority > b->job->priority;
    if (a->ready_us != b->ready_us) return a->ready_us < b->ready_us;
    return a->job->id < b->job->id;
}

/* Gives its lane up, and comes back when there is room. */
static void step_back(qw_core *c, qw_run *r)
{
    qw_lane_leave(c, r);
    qw_state_op_free(r->found);
    r->found = NULL;
    c->counts.preemptions++;
}

/* Is a the one to step back? Who is paused loses nothing by it. */
static bool gives_way_before(const qw_run *a, const qw_run *b)
{
    if (a->paused != b->paused) return a->paused;
    return qw_run_stands_before(b, a);
}

/* The run with a lane that stands last, if that is paused or behind r, and not in this step's pass already. */
static qw_run *last_behind(qw_core *c, const qw_run *r)
{
    qw_run *worst = NULL;
    for (uint32_t i = 0; i < c->o.n_lanes; i++) {
        qw_run *u = c->lanes[i].user;
        if (!u || u == r || u->n_rows > 0 || c->lanes[i].op || !(u->paused || qw_run_stands_before(r, u))) continue;
        if (!worst || gives_way_before(u, worst)) worst = u;
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
bool qw_lane_make_room(qw_core *c, qw_run *r, uint32_t n_after)
{
    while (qw_seq_reserve(r->lane->seq, n_after, NULL) != QW_OK) {
        if (qw_prefix_free_pages(c->prefix, qw_seq_pool_free_pages(c->o.pool) + 1)) continue;
        if (is_saving(c)) { /* then there will be room */
            c->waits = true;
            return false;
        }
        qw_run *worst = last_behind(c, r);
        if (!worst) return false;
        step_back(c, worst);
    }
    return true;
}

qw_lane *qw_lane_find_free(qw_core *c, const qw_run *r)
{
    for (uint32_t i = 0; i < c->o.n_lanes; i++)
        if (!c->lanes[i].user && !c->lanes[i].op) return &c->lanes[i];
    qw_run *worst = last_behind(c, r);
    if (!worst || (!worst->paused && worst->job->priority >= r->job->priority)) return NULL; /* not among equals */
    qw_lane *l = worst->lane;
    step_back(c, worst);
    return l;
}

void qw_run_find_past(const qw_core *c, const qw_run *r, qw_prefix_match *m)
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

void qw_run_begin_answer(qw_core *c, qw_run *r, const qw_prefix_match *m)
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

void qw_lane_continue(qw_core *c, qw_run *r, const qw_prefix_match *m)
{
    qw_lane *l = r->lane;
    qw_prefix_node *before = l->tip;
    qw_lane_drop_snaps(c, l);
    l->tip = qw_prefix_continue(c->prefix, m, r->job->tokens, l->seq, c->now_us);
    l->n_paged = m->n_tokens / QW_KV_TILE * QW_KV_TILE;
    l->n_restored = 0;
    if (before) qw_prefix_unpin(c->prefix, before);
}

/* Gives r a lane and puts it where its past ends. */
bool qw_lane_enter(qw_core *c, qw_run *r)
{
    qw_prefix_match m;
    qw_lane *l = qw_lane_find_free(c, r);
    if (!l) return false;
    qw_run_find_past(c, r, &m); /* whoever stepped back left something */
    l->user = r;
    r->lane = l;
    qw_run_begin_answer(c, r, &m);
    qw_lane_continue(c, r, &m);
    if (c->o.guesser.begin) c->o.guesser.begin(c->o.guesser.ctx, qw_lane_number(c, l), r->job, r->n_known);
    return true;
}
