/* core.c: see core.h. */
#include "engine/core_private.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum {
    PASSED_OVER_MAX = 32  /* prompts that are looked at in a step and cannot get on */
};

/* ---- requests ------------------------------------------------------------------------------------ */

static qw_owner *find_owner(qw_core *c, const uint8_t id[QW_OWNER_BYTES])
{
    double least = INFINITY;
    for (qw_owner *o = c->owners; o; o = o->next) {
        if (memcmp(o->id, id, QW_OWNER_BYTES) == 0) return o;
        if (o->used < least) least = o->used;
    }
    qw_owner *o = NULL;
    if (qw_alloc(&o, 1, sizeof *o, "owner", NULL) != QW_OK) return NULL;
    memcpy(o->id, id, QW_OWNER_BYTES);
    o->used = isinf(least) ? 0 : least; /* who comes now has no credit for the time before */
    o->next = c->owners;
    c->owners = o;
    return o;
}

static void leave_owner(qw_core *c, qw_owner *o)
{
    qw_owner **at = &c->owners;
    if (!o || --o->n_runs > 0) return;
    while (*at != o) at = &(*at)->next;
    *at = o->next;
    free(o);
}

static void link_run(qw_core *c, qw_run *r)
{
    r->prev = c->last;
    if (c->last) c->last->next = r;
    else c->first = r;
    c->last = r;
}

static void unlink_run(qw_core *c, qw_run *r)
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
    QW_TRY(qw_masker_create(qw_form_trie(job->form), QW_MASKS_KEPT, &c->masker, err));
    qw_status status = qw_alloc(&c->mask, qw_masker_n_words(c->masker), sizeof *c->mask, "mask", err);
    if (status == QW_OK) status = qw_alloc(&c->masked, c->o.n_vocab, sizeof *c->masked, "mask", err);
    if (status == QW_OK) return QW_OK;
    qw_masker_destroy(c->masker);
    free(c->mask);
    c->masker = NULL;
    c->mask = NULL;
    return status;
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
    qw_run *r = NULL;
    qw_owner *o = find_owner(c, job->owner);
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

static void end_run(qw_core *c, qw_run *r, qw_finish finish, const qw_err *failure)
{
    if (!r->begun) qw_engine_answer_begin(&r->answer, r->job, c->o.tokenizer, c->o.events);
    if (c->starved == r) c->starved = NULL;
    if (r->lane && r->lane->op) qw_lane_abandon(c, r);
    else qw_lane_leave(c, r);
    qw_run_touch(c, r);
    qw_state_op_free(r->found);
    if (failure) qw_engine_answer_fail(&r->answer, failure);
    else qw_engine_answer_end(&r->answer, finish);
    qw_engine_answer_free(&r->answer);
    unlink_run(c, r);
    leave_owner(c, r->owner);
    c->o.ended(c->o.ended_ctx, r->job);
    free(r);
}

/* The order in which prompts are computed. */
static bool goes_before(const qw_run *a, const qw_run *b)
{
    if (a->job->priority == b->job->priority && a->owner != b->owner && a->owner->used != b->owner->used)
        return a->owner->used < b->owner->used;
    return qw_run_stands_before(a, b);
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

static uint8_t *take_snapshot(qw_core *c, qw_lane *l, uint32_t n_tokens)
{
    uint32_t slot = l->n_snaps < QW_SNAPS_MAX ? qw_prefix_take_slot(c->prefix) : QW_NO_SLOT;
    if (slot == QW_NO_SLOT) return NULL;
    l->snaps[l->n_snaps++] = (qw_snap){n_tokens, slot};
    return qw_slot_at(c->o.pool, slot);
}

static void add_rows(qw_core *c, qw_run *r, uint32_t n)
{
    qw_lane *l = r->lane;
    size_t edge = 0;
    r->first_row = c->n_rows;
    r->n_rows = n;
    c->counts.guessed += r->n_guesses;
    c->in_pass[c->n_in_pass++] = r;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t pos = l->seq->n_tokens + i;
        qw_row row = {.seq = l->seq, .pos = pos, .token = r->job->tokens[pos]};
        row.silent = pos + 1 + c->o.guesser.n_hidden < r->n_known;
        if (c->recurrent && is_snapshot_point(c, r->job, pos + 1, &edge)) row.keep = take_snapshot(c, l, pos + 1);
        if (c->recurrent && r->n_guesses > 0 && pos + 1 == r->n_known) row.keep = qw_slot_at(c->o.pool, l->spare);
        c->rows[c->n_rows++] = row;
    }
}

/* Only its newest token is not computed. */
static bool is_answering(const qw_run *r)
{
    return r->lane && !r->lane->op && r->n_known > r->job->n_tokens && qw_run_n_computed(r) + 1 + r->n_again == r->n_known;
}

/* Puts at most so many guesses behind the known tokens. n_rows: of the pass, all newest tokens and the guesses so far;
 * n_expected: tokens that the other answers get from it. Returns those that this one is expected to get. */
static double guess(qw_core *c, qw_run *r, uint32_t most, uint32_t n_rows, double n_expected)
{
    const qw_guesser *g = &c->o.guesser;
    uint32_t room = (uint32_t)r->job->n_tokens_max - r->n_known;
    double mine = 1;
    r->n_guesses = 0;
    if (!g->guess || room <= 1) return mine;
    if (most > room - 1) most = room - 1; /* the one that is drawn after them has a place, too */
    if (most > c->o.context - r->n_known) most = c->o.context - r->n_known;
    if (most == 0) return mine;
    const qw_guess_ask ask = {.n_max = most, .n_rows = n_rows - 1, .n_expected = n_expected};
    r->n_guesses = g->guess(g->ctx, qw_lane_number(c, r->lane), &ask, r->job->tokens + r->n_known, &mine);
    QW_ASSERT(r->n_guesses <= most);
    return mine;
}

/* Room for the newest tokens, at whose cost it may be, and for guesses, if that costs nobody anything. */
static bool find_room(qw_core *c, qw_run *r)
{
    uint32_t n_rows = r->n_known - qw_run_n_computed(r);
    if (c->n_rows + n_rows > c->o.n_rows_max || !qw_lane_make_room(c, r, r->n_known)) {
        r->n_guesses = 0;
        return false;
    }
    bool fits = c->n_rows + n_rows + r->n_guesses <= c->o.n_rows_max;
    if (!fits || qw_seq_reserve(r->lane->seq, r->n_known + r->n_guesses, NULL) != QW_OK) r->n_guesses = 0;
    return true;
}

/* Is there a prompt whose rows could be in this pass? Guesses would keep it waiting. */
static bool is_prompt_waiting(const qw_core *c)
{
    bool free_lane = false;
    for (uint32_t i = 0; i < c->o.n_lanes; i++) free_lane |= !c->lanes[i].user && !c->lanes[i].op;
    for (const qw_run *r = c->first; r; r = r->next)
        if (!r->paused && !is_answering(r) && (r->lane ? !r->lane->op : free_lane)) return true;
    return false;
}

/* Answers under way: each gets its next token. Those that stand first take room first. */
static void plan_answers(qw_core *c)
{
    uint32_t n = 0;
    for (qw_run *r = c->first; r; r = r->next) r->passed = false;
    for (uint32_t k = 0; k < c->o.n_lanes; k++) {
        qw_run *best = NULL;
        for (uint32_t i = 0; i < c->o.n_lanes; i++) {
            qw_run *u = c->lanes[i].user;
            if (u && !u->passed && !u->paused && is_answering(u) && (!best || qw_run_stands_before(u, best))) best = u;
        }
        if (!best) break;
        best->passed = true;
        c->order[n++] = best;
    }
    /* Guesses share what the newest tokens of all answers leave of the rows that cost about what one costs. */
    uint32_t left = 0, n_rows = 0;
    double n_expected = 0;
    for (uint32_t i = 0; i < n; i++) n_rows += c->order[i]->n_known - qw_run_n_computed(c->order[i]);
    if (n_rows < QW_ANSWER_ROWS && !is_prompt_waiting(c)) left = QW_ANSWER_ROWS - n_rows;
    for (uint32_t i = 0; i < n; i++) {
        qw_run *r = c->order[i];
        if (!r->lane) continue; /* had to step back for one before it */
        n_expected += guess(c, r, left / (n - i), n_rows, n_expected + (n - i - 1));
        if (!find_room(c, r)) continue;
        left -= r->n_guesses;
        n_rows += r->n_guesses;
        add_rows(c, r, r->n_known - qw_run_n_computed(r) + r->n_guesses);
    }
}

static uint32_t n_common(const qw_run *a, const qw_run *b)
{
    uint32_t n = a->n_known < b->n_known ? a->n_known : b->n_known, i = 0;
    while (i < n && a->job->tokens[i] == b->job->tokens[i]) i++;
    return i;
}

/* How far r could go on from what u will have put into the cache when it has passed what both have in common. */
static uint32_t n_to_share(const qw_core *c, const qw_run *u, const qw_run *r)
{
    uint32_t n = n_common(u, r), best = 0;
    if (!c->recurrent) return n / QW_KV_TILE * QW_KV_TILE;
    for (size_t i = 0; i < u->job->n_edges && u->job->edges[i].n_tokens <= n; i++)
        if (is_kept_edge(c, u->job, i)) best = u->job->edges[i].n_tokens;
    return best;
}

/* Someone in this pass is about to compute what r needs next: it waits, and shares it. */
static bool is_being_computed(const qw_core *c, const qw_run *r, uint32_t from)
{
    for (uint32_t i = 0; i < c->n_in_pass; i++) {
        const qw_run *u = c->in_pass[i];
        if (u->owner != r->owner || is_answering(u)) continue;
        uint32_t n = n_to_share(c, u, r), seen = (n + QW_KV_TILE - 1) / QW_KV_TILE * QW_KV_TILE; /* with its whole page */
        if (n > from && qw_run_n_computed(u) < seen) return true;
    }
    return false;
}

/* Up to `most` rows of what r lacks into the pass; 0 when it has to wait. */
static uint32_t plan_piece(qw_core *c, qw_run *r, uint32_t most)
{
    qw_prefix_match m;
    qw_run_find_past(c, r, &m);
    if (qw_run_restore(c, r, &m)) return 0;
    bool further = m.n_tokens > qw_run_n_computed(r);
    if (is_being_computed(c, r, further ? m.n_tokens : qw_run_n_computed(r))) return 0;
    if (!r->lane) {
        if (!qw_lane_enter(c, r)) return 0;
    } else if (further && r->lane->n_snaps == 0) { /* else they would be lost before their page is there */
        qw_lane_continue(c, r, &m); /* another request got further on the same way */
    }
    uint32_t left = r->n_known - qw_run_n_computed(r), n = left < most ? left : most;
    if (!qw_lane_make_room(c, r, qw_run_n_computed(r) + n)) {
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
        qw_run *best = NULL;
        for (qw_run *r = c->first; r; r = r->next)
            if (!r->passed && !r->paused && r->n_rows == 0 && !is_answering(r) && (!best || goes_before(r, best))) best = r;
        if (!best) return;
        best->passed = true;
        uint32_t n = plan_piece(c, best, left);
        left -= n;
        n_passed_over += n == 0;
    }
}

static void plan(qw_core *c)
{
    qw_run *r = c->starved;
    c->n_rows = c->n_in_pass = 0;
    c->starved = NULL;
    if (r && r->lane && !r->paused) { /* now that nobody is in the pass, it can take room from all who stand behind */
        uint32_t left = r->n_known - qw_run_n_computed(r), most = piece_rows(c);
        if (!qw_lane_make_room(c, r, qw_run_n_computed(r) + (left < most ? left : most))) c->starved = r;
    }
    plan_answers(c);
    c->n_answer_rows = c->n_rows;
    plan_prompts(c);
}

/* ---- after a pass ----------------------------------------------------------------------------------- */

/* n of the rows hold what the sequence goes on with; the others were wrong guesses. */
static void note_computed(qw_core *c, qw_run *r, uint32_t n)
{
    qw_lane *l = r->lane;
    r->n_again = 0;
    if (c->recurrent && n < r->n_rows) { /* its state went astray: back to where the guesses began */
        r->n_again = n - (r->n_rows - r->n_guesses);
        n -= r->n_again;
        qw_seq_swap_slot(l->seq, &l->spare);
    }
    qw_seq_advance(l->seq, r->job->tokens + qw_run_n_computed(r), n);
    qw_lane_keep_pages(c, l);
    r->answer.usage.computed_tokens += r->n_rows;
    r->owner->used += (double)r->n_rows / (r->job->weight ? r->job->weight : 1);
    c->counts.rows += r->n_rows;
}

static qw_status tell_progress(qw_run *r, qw_err *err)
{
    uint32_t n = qw_run_n_computed(r) < r->job->n_tokens ? qw_run_n_computed(r) : (uint32_t)r->job->n_tokens, new = n - r->n_told;
    if (n <= r->n_told) return QW_OK;
    r->n_told = n;
    return qw_engine_answer_prefilled(&r->answer, new, err);
}

/* A token that keeps to the answer's form, and leaves enough tokens to end it. */
static void draw_held(qw_core *c, qw_run *r, float *logits, qw_sample *out)
{
    qw_form *form = r->job->form;
    uint32_t n_left = (uint32_t)r->job->n_tokens_max - r->n_known;
    qw_form_mask(form, c->masker, c->mask, logits, c->o.n_vocab);
    memcpy(c->masked, logits, c->o.n_vocab * sizeof *logits); /* a draw overwrites them */
    qw_sampler_draw(c->sampler, r->job->draws, logits, r->n_known, out);
    if (!qw_form_overruns(form, out->token, n_left)) return;
    int32_t drawn = out->token;
    qw_form_close(form, c->masker, c->mask, c->masked, c->o.n_vocab, n_left);
    qw_sampler_draw(c->sampler, r->job->draws, c->masked, r->n_known, out);
    if (out->token != drawn) qw_engine_answer_closes(&r->answer);
}

static qw_status draw(qw_core *c, qw_run *r, float *logits, qw_err *err)
{
    qw_sample sample;
    for (size_t i = 0; i < c->o.n_banned; i++) logits[c->o.banned[i]] = -INFINITY;
    if (r->job->form) draw_held(c, r, logits, &sample);
    else qw_sampler_draw(c->sampler, r->job->draws, logits, r->n_known, &sample);
    qw_engine_answer_choose(&r->answer, &sample);
    if (r->job->form) qw_form_take(r->job->form, sample.token);
    qw_sampling_run_accept(r->job->draws, sample.token);
    QW_ASSERT(r->n_known < r->job->n_tokens_max);
    r->job->tokens[r->n_known++] = sample.token;
    return qw_engine_answer_push(&r->answer, &sample, err);
}

static bool is_over(const qw_core *c, const qw_run *r)
{
    return r->answer.finish != QW_FINISH_NONE || r->n_known > c->o.context;
}

/* Draws a token for each row of logits while the guesses were right. *n_right: how many were. */
static qw_status draw_all(qw_core *c, qw_run *r, float *logits, uint32_t *n_right, qw_err *err)
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

/* The first n rows of r hold what its sequence goes on with. */
static void tell_computed(qw_core *c, const qw_run *r, uint32_t n)
{
    const qw_guesser *g = &c->o.guesser;
    uint32_t i = 0;
    if (!g->computed) return;
    while (i < n && c->rows[r->first_row + i].silent) i++;
    if (i < n) g->computed(g->ctx, qw_lane_number(c, r->lane), r->first_row + i, n - i, c->rows[r->first_row + i].pos);
}

/* logits: of its last row and of the guesses' rows, or NULL while it has more to compute. */
static void take_result(qw_core *c, qw_run *r, float *logits)
{
    qw_err err;
    uint32_t n_right = 0, n_rows = r->n_rows;
    qw_status status = QW_OK;
    if (logits) status = draw_all(c, r, logits, &n_right, &err);
    if (status == QW_OK) tell_computed(c, r, n_rows - r->n_guesses + n_right);
    note_computed(c, r, n_rows - r->n_guesses + n_right);
    if (status == QW_OK) status = tell_progress(r, &err);
    c->counts.guessed_right += n_right;
    if (logits && c->o.guesser.advance) c->o.guesser.advance(c->o.guesser.ctx, qw_lane_number(c, r->lane), r->n_known);
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
static bool is_whole(const qw_run *r)
{
    return qw_run_n_computed(r) + r->n_rows == r->n_known + r->n_guesses;
}

static void compute(qw_core *c)
{
    int64_t begun_us = c->o.compute.clock_us(c->o.compute.ctx); /* guessing may have taken time, too */
    uint32_t n_asked = 0;
    qw_err err;
    c->o.compute.forward(c->o.compute.ctx, c->rows, c->n_rows);
    for (uint32_t i = 0; i < c->n_in_pass; i++) {
        const qw_run *r = c->in_pass[i];
        if (!is_whole(r)) continue;
        for (uint32_t k = 0; k <= r->n_guesses; k++) c->asked[n_asked++] = r->first_row + r->n_rows - 1 - r->n_guesses + k;
    }
    if (n_asked > 0) c->o.compute.logits(c->o.compute.ctx, c->asked, n_asked, c->logits, c->o.n_vocab);
    c->now_us = c->o.compute.clock_us(c->o.compute.ctx);
    measure(c, c->now_us - begun_us);
    if (c->o.guesser.note_cost && c->n_answer_rows == c->n_rows)
        c->o.guesser.note_cost(c->o.guesser.ctx, c->n_rows, (double)(c->now_us - begun_us));
    c->counts.steps++;
    if (c->o.compute.failed(c->o.compute.ctx, &err)) {
        qw_core_fail(c, &err);
        return;
    }
    float *logits = c->logits;
    for (uint32_t i = 0; i < c->n_in_pass; i++) {
        qw_run *r = c->in_pass[i];
        size_t n_logits = is_whole(r) ? 1 + r->n_guesses : 0;
        take_result(c, r, n_logits ? logits : NULL);
        logits += n_logits * c->o.n_vocab;
    }
}

/* ---- the step --------------------------------------------------------------------------------------- */

static void end_the_overdue(qw_core *c)
{
    for (qw_run *r = c->first, *next; r; r = next) {
        next = r->next;
        if (atomic_load(&r->job->cancelled)) end_run(c, r, QW_FINISH_CANCELLED, NULL);
        else if (r->job->deadline_us && c->now_us >= r->job->deadline_us) end_run(c, r, QW_FINISH_DEADLINE, NULL);
    }
}

/* Whoever has a reader that does not keep up pauses. False: somebody does not. */
static bool pause_the_unread(qw_core *c)
{
    bool all = true;
    for (qw_run *r = c->first; r; r = r->next) {
        r->paused = qw_feed_is_full(c->o.events, r->job->feed, r->paused);
        all = all && r->paused;
    }
    return all;
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
    qw_core_take_from_store(c);
    end_the_overdue(c);
    bool unread = pause_the_unread(c);
    plan(c);
    if (c->n_rows > 0) compute(c);
    if (c->o.store) qw_prefix_save(c->prefix, c->now_us, QW_SAVE_AFTER_US);
    if (c->n_rows == 0 && c->first && (c->waits || unread || is_loading(c))) return QW_STEP_WAITS;
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
        qw_prefix_save(c->prefix, c->now_us, 0);
        c->o.store->wait(c->o.store->ctx, WAIT_US);
        qw_core_take_from_store(c);
    }
}

void qw_core_fail(qw_core *c, const qw_err *err)
{
    for (qw_run *r = c->first, *next; r; r = next) {
        next = r->next;
        r->n_rows = r->n_guesses = 0;
        if (r->lane) qw_lane_drop_snaps(c, r->lane); /* states that may be wrong */
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

static qw_prefix_options prefix_options(const qw_core_options *o)
{
    return (qw_prefix_options){.pool = o->pool, .key = o->key, .n_pinned_max = 2 * o->n_lanes,
                               .n_remembered_max = QW_REMEMBERED_MAX, .n_snapshots_max = o->n_snapshots,
                               .us_per_token = o->us_per_row, .store = o->store};
}

/* Of a request with its events: one that fills the context, is held to a form, and is not read. */
static uint64_t request_bytes(const qw_core_options *o)
{
    uint64_t n_tokens = (uint64_t)o->context + 1;
    uint64_t bytes = sizeof(qw_job) + sizeof(qw_run) + n_tokens * sizeof(int32_t) + qw_sampling_run_bytes(o->n_vocab, n_tokens) +
                     qw_loops_bytes() + (QW_BACKLOG_MAX + QW_ANSWER_ROWS) * sizeof(qw_event_node);
    return o->tokenizer ? bytes + qw_matcher_bytes() : bytes;
}

uint64_t qw_core_bytes(const qw_core_options *o, uint32_t n_pages)
{
    const qw_prefix_options po = prefix_options(o);
    uint64_t n_words = ((uint64_t)o->n_vocab + 31) / 32, bytes = sizeof(qw_core) + qw_prefix_bytes(&po, n_pages);
    bytes += o->n_rows_max * sizeof(qw_row) + o->n_lanes * (sizeof(qw_lane) + request_bytes(o));
    if (!o->tokenizer) return bytes; /* without one nothing is held to a form */
    return bytes + qw_masker_bytes(o->n_vocab, QW_MASKS_KEPT) + n_words * sizeof(uint32_t) + o->n_vocab * sizeof(float);
}

qw_status qw_core_create(const qw_core_options *o, qw_core **out, qw_err *err)
{
    const qw_prefix_options po = prefix_options(o);
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
        qw_lane_clear(c, &c->lanes[i]);
    }
    qw_prefix_destroy(c->prefix);
    for (uint32_t i = 0; c->lanes && i < c->o.n_lanes; i++) {
        if (c->lanes[i].seq) qw_seq_release(c->lanes[i].seq);
        if (c->lanes[i].seq && c->lanes[i].spare != QW_NO_SLOT) qw_slot_drop(c->o.pool, c->lanes[i].spare);
    }
    qw_sampler_destroy(c->sampler);
    qw_masker_destroy(c->masker);
    free(c->mask);
    free(c->masked);
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
    for (const qw_run *r = c->first; r; r = r->next) {
        if (r->lane) out->n_running++;
        else {
            out->n_waiting++;
            out->waiting_tokens += r->job->n_tokens;
        }
    }
    qw_prefix_get_counts(c->prefix, &out->prefix);
}

void qw_core_check(const qw_core *c)
{
    uint32_t n_lanes = 0, n_runs = 0;
    for (const qw_owner *o = c->owners; o; o = o->next) {
        QW_ASSERT(o->n_runs > 0);
        n_runs += o->n_runs;
    }
    for (const qw_run *r = c->first; r; r = r->next) {
        QW_ASSERT((!r->next || r->next->prev == r) && r->n_rows == 0 && n_runs-- > 0);
        QW_ASSERT(!r->lane || (r->lane->user == r && r->lane->tip));
        QW_ASSERT(qw_run_n_computed(r) < r->n_known && r->n_known <= r->job->n_tokens_max);
        n_lanes += r->lane != NULL;
    }
    QW_ASSERT(n_runs == 0);
    for (uint32_t i = 0; i < c->o.n_lanes; i++) {
        const qw_lane *l = &c->lanes[i];
        n_lanes -= l->user != NULL;
        QW_ASSERT(l->user || l->op || (l->seq->n_pages == 0 && l->n_snaps == 0 && !l->tip));
        QW_ASSERT(!l->user || l->op || l->n_paged == l->seq->n_tokens / QW_KV_TILE * QW_KV_TILE);
    }
    QW_ASSERT(n_lanes == 0);
    qw_prefix_check(c->prefix);
}
