/* state_io.c: see state_io.h.
 *
 * One lock guards the lists; no disk is touched under it. A load is cut into pieces, its snapshot and its pages, of which
 * threads claim some at a time. What a thread does next: pieces of a load, the next find or load, an answer, a trim that is
 * due, a save.
 */
#include "engine/state_io.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/thread.h"

enum { LOOK_AGAIN_US = 600000000 }; /* whether a trim is due, while nothing else happens */

typedef struct list {
    qw_state_op *first, *last;
} list;

/* One that waits to be saved. */
typedef struct answer {
    struct answer *next;
    qw_buf data;     /* owns */
    size_t n_ids;
    qw_state_id ids[];
} answer;

struct qw_state_io {
    qw_state_io_options o;
    pthread_t threads[QW_STATE_THREADS_MAX];
    int n_threads; /* started */
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t work, finished;
    list front, back;  /* finds and loads; saves and touches: not begun */
    list loading;      /* loads with pieces that nobody has claimed */
    list done;
    answer *answers, *last_answer; /* not begun */
    size_t answers_bytes;
    uint32_t n_front, n_back; /* not polled yet */
    int n_in_back;     /* threads at a save, a touch or a trim */
    bool trimming, stop;
    int64_t stop_us;   /* no save is begun after that */
    qw_err failure;    /* the first; status QW_OK: none */
    bool told;
};

/* ---- operations ----------------------------------------------------------------------------------- */

qw_status qw_state_op_create(qw_state_what what, qw_state_id parent, uint32_t depth, const int32_t *tokens,
                             size_t n_tokens, qw_state_op **out, qw_err *err)
{
    qw_state_op *op = NULL;
    *out = NULL;
    QW_TRY(qw_alloc(&op, 1, sizeof *op, "operation on disk", err));
    *op = (qw_state_op){.what = what, .parent = parent, .depth = depth, .n_tokens = n_tokens};
    qw_status status = qw_alloc(&op->tokens, n_tokens, sizeof *tokens, "operation on disk", err);
    if (status != QW_OK) {
        qw_state_op_free(op);
        return status;
    }
    memcpy(op->tokens, tokens, n_tokens * sizeof *tokens);
    *out = op;
    return QW_OK;
}

uint32_t qw_state_op_pages(const qw_state_op *op)
{
    return op->past.n_full + (op->past.n_last > 0);
}

qw_status qw_state_op_make_load(qw_state_op *op, qw_err *err)
{
    QW_ASSERT(op->what == QW_STATE_FIND && !op->pages && !op->ids);
    QW_TRY(qw_alloc(&op->pages, qw_state_op_pages(op), sizeof *op->pages, "operation on disk", err));
    QW_TRY(qw_alloc(&op->ids, (size_t)op->past.n_full + 1, sizeof *op->ids, "operation on disk", err));
    op->what = QW_STATE_LOAD;
    return QW_OK;
}

void qw_state_op_free(qw_state_op *op)
{
    if (!op) return;
    free(op->tokens);
    free(op->pages);
    free(op->ids);
    free(op);
}

static void push(list *l, qw_state_op *op)
{
    op->next = NULL;
    if (l->last) l->last->next = op;
    else l->first = op;
    l->last = op;
}

static qw_state_op *pop(list *l)
{
    qw_state_op *op = l->first;
    if (!op) return NULL;
    l->first = op->next;
    if (!l->first) l->last = NULL;
    return op;
}

static void free_list(list *l)
{
    for (qw_state_op *op; (op = pop(l));) qw_state_op_free(op);
}

static bool is_front(const qw_state_op *op)
{
    return op->what == QW_STATE_FIND || op->what == QW_STATE_LOAD;
}

/* Called without the lock. */
static void finish(qw_state_io *io, qw_state_op *op)
{
    pthread_mutex_lock(&io->lock);
    push(&io->done, op);
    pthread_cond_signal(&io->finished);
    pthread_mutex_unlock(&io->lock);
    if (io->o.wake) io->o.wake(io->o.wake_ctx);
}

/* ---- loads ---------------------------------------------------------------------------------------- */

static uint32_t n_pieces(const qw_state_op *op)
{
    return qw_state_op_pages(op) + (op->state != NULL);
}

static const int32_t *page_tokens(const qw_state_op *op, uint32_t page)
{
    return page < op->past.n_full ? op->tokens + (size_t)page * QW_KV_TILE : op->past.last;
}

/* Names its pages, then lets all threads have its pieces. */
static void begin_load(qw_state_io *io, qw_state_op *op)
{
    op->ids[0] = op->parent;
    for (uint32_t i = 0; i < op->past.n_full; i++)
        op->ids[i + 1] = qw_state_child_id(io->o.files, op->ids[i], page_tokens(op, i), QW_KV_TILE);
    op->n_good = qw_state_op_pages(op);
    op->n_begun = op->n_ended = 0;
    op->state_good = false;
    if (n_pieces(op) == 0) {
        finish(io, op);
        return;
    }
    pthread_mutex_lock(&io->lock);
    push(&io->loading, op);
    pthread_cond_broadcast(&io->work);
    pthread_mutex_unlock(&io->lock);
}

static bool load_state(qw_state_io *io, const qw_state_op *op)
{
    uint32_t page = (op->past.snapshot_at - 1) / QW_KV_TILE, depth = page * QW_KV_TILE;
    return qw_state_load(io->o.files,
                         &(qw_state_piece){.parent = op->ids[page], .snapshot = true, .depth = op->depth + depth,
                                           .n_tokens = op->past.snapshot_at - depth, .tokens = op->tokens + depth},
                         op->state);
}

static bool load_page(qw_state_io *io, const qw_state_op *op, uint32_t page)
{
    return qw_state_load(io->o.files,
                         &(qw_state_piece){.parent = op->ids[page], .depth = op->depth + page * QW_KV_TILE,
                                           .n_tokens = page < op->past.n_full ? QW_KV_TILE : op->past.n_last,
                                           .tokens = page_tokens(op, page)},
                         op->pages[page]);
}

/* How many of the pieces from n_begun on a thread claims. Neighbours, because they are neighbours in memory, too: threads that
 * touch the same fresh 2 MiB at once both fill them with zeros. Fewer towards the end, so that all threads end together. */
static uint32_t n_to_claim(const qw_state_io *io, const qw_state_op *op)
{
    uint32_t left = n_pieces(op) - op->n_begun, n = left / (2 * (uint32_t)io->o.n_threads);
    if (op->state && op->n_begun == 0) return 1; /* it is the largest */
    return n > 0 ? n : 1;
}

/* The lock is held before and after. */
static void do_piece(qw_state_io *io, qw_state_op *op, uint32_t piece)
{
    bool is_state = op->state && piece == 0;
    uint32_t page = piece - (op->state != NULL);
    bool wanted = !io->stop && (is_state || page < op->n_good); /* nothing can follow a page that is not there */
    pthread_mutex_unlock(&io->lock);
    bool good = wanted && (is_state ? load_state(io, op) : load_page(io, op, page));
    pthread_mutex_lock(&io->lock);
    if (is_state) op->state_good = good;
    else if (!good && page < op->n_good) op->n_good = page;
}

/* The lock is held before and after. */
static void do_pieces(qw_state_io *io)
{
    qw_state_op *op = io->loading.first;
    uint32_t first = op->n_begun, n = n_to_claim(io, op);
    op->n_begun += n;
    if (op->n_begun == n_pieces(op)) pop(&io->loading);
    for (uint32_t i = 0; i < n; i++) do_piece(io, op, first + i);
    op->n_ended += n;
    if (op->n_ended < n_pieces(op)) return;
    pthread_mutex_unlock(&io->lock);
    finish(io, op);
    pthread_mutex_lock(&io->lock);
}

/* The lock is held before and after. */
static void do_front(qw_state_io *io)
{
    qw_state_op *op = pop(&io->front);
    pthread_mutex_unlock(&io->lock);
    if (op->what == QW_STATE_LOAD) {
        begin_load(io, op);
    } else {
        op->status = qw_state_find(io->o.files, op->parent, op->tokens, op->n_tokens, &op->past, NULL);
        finish(io, op);
    }
    pthread_mutex_lock(&io->lock);
}

/* ---- saves ---------------------------------------------------------------------------------------- */

static void note_failure(qw_state_io *io, const qw_err *err)
{
    pthread_mutex_lock(&io->lock);
    if (io->failure.status == QW_OK) io->failure = *err;
    pthread_mutex_unlock(&io->lock);
}

static void save(qw_state_io *io, qw_state_op *op)
{
    qw_err err;
    op->status = qw_state_save(io->o.files,
                               &(qw_state_piece){.parent = op->parent, .snapshot = op->snapshot, .depth = op->depth,
                                                 .n_tokens = (uint32_t)op->n_tokens, .tokens = op->tokens},
                               op->source, &err);
    if (op->status != QW_OK) note_failure(io, &err);
}

static void touch(qw_state_io *io, const qw_state_op *op)
{
    qw_state_piece p = {.parent = op->parent, .depth = op->depth};
    for (size_t at = 0; at < op->n_tokens; at += p.n_tokens, p.depth += p.n_tokens) {
        size_t left = op->n_tokens - at;
        p.tokens = op->tokens + at;
        p.n_tokens = left < QW_KV_TILE ? (uint32_t)left : QW_KV_TILE;
        qw_state_touch(io->o.files, &p);
        p.snapshot = op->snapshot && left == p.n_tokens;
        if (p.snapshot) qw_state_touch(io->o.files, &p);
        p.parent = qw_state_child_id(io->o.files, p.parent, p.tokens, p.n_tokens);
    }
}

static void end_back(qw_state_io *io)
{
    io->n_in_back--;
    pthread_cond_signal(&io->work); /* another thread may begin one now */
}

/* The lock is held before and after. */
static void do_back(qw_state_io *io)
{
    qw_state_op *op = pop(&io->back);
    io->n_in_back++;
    pthread_mutex_unlock(&io->lock);
    if (op->what == QW_STATE_SAVE) save(io, op);
    else touch(io, op);
    finish(io, op);
    pthread_mutex_lock(&io->lock);
    end_back(io);
}

/* The lock is held before and after. */
static void do_trim(qw_state_io *io)
{
    qw_err err;
    io->n_in_back++;
    io->trimming = true;
    pthread_mutex_unlock(&io->lock);
    if (qw_state_trim(io->o.files, &err) != QW_OK) note_failure(io, &err);
    pthread_mutex_lock(&io->lock);
    io->trimming = false;
    end_back(io);
}

/* ---- answers -------------------------------------------------------------------------------------- */

static answer *pop_answer(qw_state_io *io)
{
    answer *a = io->answers;
    io->answers = a->next;
    if (!io->answers) io->last_answer = NULL;
    io->answers_bytes -= a->data.n;
    return a;
}

static void push_answer(qw_state_io *io, answer *a)
{
    if (io->last_answer) io->last_answer->next = a;
    else io->answers = a;
    io->last_answer = a;
    io->answers_bytes += a->data.n;
}

static void free_answer(answer *a)
{
    qw_buf_free(&a->data);
    free(a);
}

static void save_answer(qw_state_io *io, const answer *a)
{
    qw_err err;
    const qw_text data = {qw_buf_str(&a->data), a->data.n};
    for (size_t i = 0; i < a->n_ids; i++) {
        if (qw_state_save_answer(io->o.files, a->ids[i], data, &err) != QW_OK) note_failure(io, &err);
    }
}

/* The lock is held before and after. */
static void do_answer(qw_state_io *io)
{
    answer *a = pop_answer(io);
    io->n_in_back++;
    pthread_mutex_unlock(&io->lock);
    save_answer(io, a);
    free_answer(a);
    pthread_mutex_lock(&io->lock);
    end_back(io);
}

/* False: so many wait that this one is not saved. */
static bool queue_answer(qw_state_io *io, answer *a)
{
    pthread_mutex_lock(&io->lock);
    bool room = !io->answers || io->answers_bytes + a->data.n <= QW_STATE_ANSWERS_BYTES_MAX;
    if (room) push_answer(io, a);
    pthread_cond_broadcast(&io->work);
    pthread_mutex_unlock(&io->lock);
    return room;
}

void qw_state_io_save_answer(qw_state_io *io, const qw_state_id *ids, size_t n_ids, qw_buf *data)
{
    qw_err err;
    answer *a = NULL;
    qw_status status = qw_alloc(&a, 1, sizeof *a + n_ids * sizeof *ids, "answer", &err);
    if (status != QW_OK) {
        qw_buf_free(data);
        note_failure(io, &err);
        return;
    }
    a->data = *data;
    a->n_ids = n_ids;
    memcpy(a->ids, ids, n_ids * sizeof *ids);
    *data = (qw_buf){0};
    if (queue_answer(io, a)) return;
    free_answer(a);
    qw_fail(&err, QW_E_LIMIT, "the disk is too slow for the answers that are given: some are not saved");
    note_failure(io, &err);
}

qw_state_files *qw_state_io_files(qw_state_io *io)
{
    return io->o.files;
}

/* ---- threads -------------------------------------------------------------------------------------- */

/* One thread of several stays for loads. */
static bool has_thread_for_back(const qw_state_io *io)
{
    return io->o.n_threads == 1 || io->n_in_back < io->o.n_threads - 1;
}

static bool may_begin_back(const qw_state_io *io)
{
    return io->stop ? qw_clock_us() < io->stop_us : has_thread_for_back(io);
}

static bool may_begin_answer(const qw_state_io *io)
{
    return io->answers && has_thread_for_back(io); /* at the end, too: whoever is at one comes back for the rest */
}

static void wait_for_work(qw_state_io *io)
{
    qw_cond_wait_until(&io->work, &io->lock, qw_clock_us() + LOOK_AGAIN_US);
}

static void *thread_main(void *arg)
{
    qw_state_io *io = arg;
    pthread_mutex_lock(&io->lock);
    for (;;) {
        bool back = may_begin_back(io);
        if (!io->stop && io->loading.first) do_pieces(io);
        else if (!io->stop && io->front.first) do_front(io);
        else if (may_begin_answer(io)) do_answer(io);
        else if (!io->stop && back && !io->trimming && qw_state_trim_due(io->o.files)) do_trim(io);
        else if (back && io->back.first) do_back(io);
        else if (io->stop) break;
        else wait_for_work(io);
    }
    pthread_mutex_unlock(&io->lock);
    return NULL;
}

static int start_threads(qw_state_io *io)
{
    int rc = 0;
    for (; io->n_threads < io->o.n_threads && rc == 0; io->n_threads += rc == 0)
        rc = qw_thread_create(&io->threads[io->n_threads], thread_main, io);
    return rc;
}

/* ---- the door ------------------------------------------------------------------------------------- */

qw_status qw_state_io_open(const qw_state_io_options *o, qw_state_io **out, qw_err *err)
{
    qw_state_io *io = NULL;
    *out = NULL;
    QW_ASSERT(o->n_threads >= 1 && o->n_threads <= QW_STATE_THREADS_MAX);
    QW_TRY(qw_alloc(&io, 1, sizeof *io, "disk threads", err));
    io->o = *o;
    pthread_mutex_init(&io->lock, NULL);
    qw_cond_init(&io->work);
    qw_cond_init(&io->finished);
    int rc = start_threads(io);
    if (rc != 0) {
        errno = rc;
        qw_status status = qw_fail_errno(err, "cannot start a thread for the disk");
        qw_state_io_close(io, 0);
        return status;
    }
    *out = io;
    return QW_OK;
}

void qw_state_io_close(qw_state_io *io, int64_t flush_us)
{
    if (!io) return;
    pthread_mutex_lock(&io->lock);
    io->stop = true;
    io->stop_us = qw_clock_us() + flush_us;
    pthread_cond_broadcast(&io->work);
    pthread_mutex_unlock(&io->lock);
    for (int i = 0; i < io->n_threads; i++) pthread_join(io->threads[i], NULL);
    while (io->answers) free_answer(pop_answer(io)); /* no thread came to be */
    free_list(&io->front);
    free_list(&io->back);
    free_list(&io->loading);
    free_list(&io->done);
    pthread_cond_destroy(&io->work);
    pthread_cond_destroy(&io->finished);
    pthread_mutex_destroy(&io->lock);
    free(io);
}

static bool submit(void *ctx, qw_state_op *op)
{
    qw_state_io *io = ctx;
    QW_ASSERT(op->what != QW_STATE_LOAD || !op->state == !op->past.snapshot_at);
    pthread_mutex_lock(&io->lock);
    uint32_t *n = is_front(op) ? &io->n_front : &io->n_back;
    bool room = *n < (is_front(op) ? QW_STATE_FRONT_MAX : QW_STATE_BACK_MAX);
    if (room) {
        ++*n;
        push(is_front(op) ? &io->front : &io->back, op);
        pthread_cond_broadcast(&io->work); /* not any thread may begin it */
    }
    pthread_mutex_unlock(&io->lock);
    return room;
}

static qw_state_op *poll_done(void *ctx)
{
    qw_state_io *io = ctx;
    pthread_mutex_lock(&io->lock);
    qw_state_op *op = pop(&io->done);
    if (op) --*(is_front(op) ? &io->n_front : &io->n_back);
    pthread_mutex_unlock(&io->lock);
    return op;
}

static bool wait_done(void *ctx, int64_t timeout_us)
{
    qw_state_io *io = ctx;
    int64_t until_us = qw_clock_us() + timeout_us;
    pthread_mutex_lock(&io->lock);
    while (!io->done.first && qw_cond_wait_until(&io->finished, &io->lock, until_us)) {}
    bool any = io->done.first != NULL;
    pthread_mutex_unlock(&io->lock);
    return any;
}

static qw_state_id root_id(void *ctx, const uint8_t owner[QW_STATE_OWNER_BYTES])
{
    return qw_state_root_id(((qw_state_io *)ctx)->o.files, owner);
}

static qw_state_id child_id(void *ctx, qw_state_id parent, const int32_t *tokens, uint32_t n)
{
    return qw_state_child_id(((qw_state_io *)ctx)->o.files, parent, tokens, n);
}

qw_state_store qw_state_io_store(qw_state_io *io)
{
    return (qw_state_store){.ctx = io, .root_id = root_id, .child_id = child_id, .submit = submit, .poll = poll_done,
                            .wait = wait_done};
}

bool qw_state_io_report(qw_state_io *io, qw_err *out)
{
    pthread_mutex_lock(&io->lock);
    bool tell = io->failure.status != QW_OK && !io->told;
    if (tell) *out = io->failure;
    io->told |= tell;
    pthread_mutex_unlock(&io->lock);
    return tell;
}
