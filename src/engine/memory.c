/* memory.c: see memory.h. One lock guards the table; an answer is immutable once it is in it and is counted by its readers,
 * so that comparing texts and reading files hold nobody up. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/siphash.h"
#include "engine/memory_private.h"
#include "text/py_text.h"

enum {
    BUCKETS = 1 << 14,
    ID_DIGITS = 24 /* the end of a call's id; wire formats may put other words before it */
};

/* Kinds of keys; each hashes in a world of its own. They are on disk. */
enum { KEY_PLACE = 1, KEY_ID, KEY_WORDS };

struct qw_memory {
    pthread_mutex_t lock;
    qw_sip_key secret;
    size_t bytes_max;
    memory_link *buckets[BUCKETS];
    qw_memory_answer *first, *last;
    qw_memory_counts counts;
    memory_disk disk;
};

/* ---- life ---------------------------------------------------------------------------------------- */

static void free_answer(qw_memory_answer *a)
{
    qw_spoken_destroy(a->spoken);
    free(a->links);
    free(a);
}

qw_status qw_memory_create(size_t bytes_max, qw_memory **out, qw_err *err)
{
    qw_memory *m;
    *out = NULL;
    QW_TRY(qw_alloc(&m, 1, sizeof *m, "memory of answers", err));
    pthread_mutex_init(&m->lock, NULL);
    pthread_rwlock_init(&m->disk.lock, NULL);
    m->bytes_max = bytes_max;
    if (getrandom(&m->secret, sizeof m->secret, 0) != sizeof m->secret) {
        qw_memory_destroy(m);
        return qw_fail_errno(err, "cannot draw a random key");
    }
    *out = m;
    return QW_OK;
}

size_t qw_memory_bytes(size_t bytes_max)
{
    return sizeof(qw_memory) + bytes_max;
}

void qw_memory_destroy(qw_memory *m)
{
    if (!m) return;
    for (qw_memory_answer *a = m->first, *next; a; a = next) {
        next = a->next;
        free_answer(a);
    }
    QW_ASSERT(!m->disk.io);
    pthread_rwlock_destroy(&m->disk.lock);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

void qw_memory_attach(qw_memory *m, qw_state_io *io, size_t n_vocab)
{
    pthread_rwlock_wrlock(&m->disk.lock);
    if (!m->disk.io) {
        m->disk.io = io;
        m->disk.n_vocab = n_vocab;
    }
    pthread_rwlock_unlock(&m->disk.lock);
}

void qw_memory_detach(qw_memory *m, const qw_state_io *io)
{
    pthread_rwlock_wrlock(&m->disk.lock);
    if (m->disk.io == io) m->disk.io = NULL;
    pthread_rwlock_unlock(&m->disk.lock);
}

/* ---- keys ---------------------------------------------------------------------------------------- */

static qw_state_answer_key key_of_place(const uint64_t *place)
{
    return (qw_state_answer_key){.kind = KEY_PLACE, .a = {(const char *)place, sizeof *place}, .b = {"", 0}};
}

static qw_state_answer_key key_of_words(qw_text content, const char *first_call)
{
    content = qw_py_strip(content);
    return (qw_state_answer_key){.kind = KEY_WORDS, .a = content.n ? content : qw_text_of(""), .b = qw_text_of(first_call)};
}

/* Of kind 0 when it is none of ours. */
static qw_state_answer_key key_of_id(const char *id)
{
    size_t n = strlen(id);
    if (n < ID_DIGITS) return (qw_state_answer_key){0};
    return (qw_state_answer_key){.kind = KEY_ID, .a = {id + n - ID_DIGITS, ID_DIGITS}, .b = {"", 0}};
}

size_t memory_n_keys(const qw_memory_answer *a)
{
    return 2 + a->spoken->n_calls;
}

qw_state_answer_key memory_key(const qw_memory_answer *a, size_t i, char id[QW_CALL_ID_BYTES])
{
    const qw_spoken *s = a->spoken;
    if (i == 0) return key_of_place(&a->place);
    if (i == 1) return key_of_words(qw_spoken_slice(&s->content), s->n_calls ? s->calls[0].name : NULL);
    qw_memory_call_id(a, (uint32_t)(i - 2), id);
    return key_of_id(id);
}

static uint64_t hash_of(const qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], const qw_state_answer_key *key)
{
    uint64_t hash = qw_siphash(&m->secret, key->kind, owner, QW_OWNER_BYTES);
    return qw_siphash(&m->secret, qw_siphash(&m->secret, hash, key->a.s, key->a.n), key->b.s, key->b.n);
}

static memory_link **bucket_of(qw_memory *m, uint64_t hash)
{
    return &m->buckets[hash % BUCKETS];
}

static void link_key(qw_memory *m, memory_link *k)
{
    memory_link **bucket = bucket_of(m, k->hash);
    k->prev = NULL;
    k->next = *bucket;
    if (k->next) k->next->prev = k;
    *bucket = k;
}

static void unlink_key(qw_memory *m, memory_link *k)
{
    if (k->prev) k->prev->next = k->next;
    else *bucket_of(m, k->hash) = k->next;
    if (k->next) k->next->prev = k->prev;
}

static qw_status make_links(qw_memory_answer *a)
{
    char id[QW_CALL_ID_BYTES];
    QW_TRY(qw_alloc(&a->links, memory_n_keys(a), sizeof *a->links, "answer", NULL));
    for (; a->n_links < memory_n_keys(a); a->n_links++) {
        const qw_state_answer_key key = memory_key(a, a->n_links, id);
        a->links[a->n_links] = (memory_link){.hash = hash_of(a->m, a->owner, &key), .answer = a};
    }
    a->bytes = sizeof *a + a->n_links * sizeof *a->links + qw_spoken_bytes(a->spoken);
    return QW_OK;
}

/* ---- an answer that is being given --------------------------------------------------------------- */

qw_status memory_new_answer(qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], qw_spoken *takes, qw_memory_answer **out,
                            qw_err *err)
{
    qw_memory_answer *a;
    qw_status status = qw_alloc(&a, 1, sizeof *a, "answer", err);
    if (status != QW_OK) {
        qw_spoken_destroy(takes);
        return status;
    }
    a->m = m;
    a->spoken = takes;
    a->n_readers = 1;
    memcpy(a->owner, owner, sizeof a->owner);
    *out = a;
    return QW_OK;
}

qw_status qw_memory_begin(qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], uint64_t place, qw_text lead,
                          qw_memory_answer **out, qw_err *err)
{
    qw_spoken *spoken;
    uint64_t id;
    *out = NULL;
    if (getrandom(&id, sizeof id, 0) != sizeof id) return qw_fail_errno(err, "cannot draw a random id");
    QW_TRY(qw_spoken_create(lead, &spoken, err));
    QW_TRY(memory_new_answer(m, owner, spoken, out, err));
    (*out)->id = id;
    (*out)->place = place;
    return QW_OK;
}

qw_spoken *qw_memory_spoken(qw_memory_answer *a)
{
    return a->spoken;
}

void qw_memory_call_id(const qw_memory_answer *a, uint32_t index, char out[QW_CALL_ID_BYTES])
{
    snprintf(out, QW_CALL_ID_BYTES, "call_%016llx%08x", (unsigned long long)a->id, index);
}

/* ---- the table; under the lock --------------------------------------------------------------------- */

static void link_first(qw_memory *m, qw_memory_answer *a)
{
    a->prev = NULL;
    a->next = m->first;
    if (m->first) m->first->prev = a;
    else m->last = a;
    m->first = a;
}

static void unlink_answer(qw_memory *m, qw_memory_answer *a)
{
    if (a->prev) a->prev->next = a->next;
    else m->first = a->next;
    if (a->next) a->next->prev = a->prev;
    else m->last = a->prev;
}

static void keep_answer(qw_memory *m, qw_memory_answer *a)
{
    for (size_t i = 0; i < a->n_links; i++) link_key(m, &a->links[i]);
    link_first(m, a);
    a->kept = true;
    m->counts.bytes += a->bytes;
    m->counts.n_answers++;
}

static void evict_last(qw_memory *m)
{
    qw_memory_answer *a = m->last;
    unlink_answer(m, a);
    for (size_t i = 0; i < a->n_links; i++) unlink_key(m, &a->links[i]);
    m->counts.bytes -= a->bytes;
    m->counts.n_answers--;
    m->counts.evicted++;
    a->kept = false;
    if (a->n_readers == 0) free_answer(a);
}

/* Under the lock. */
static void leave(qw_memory_answer *a)
{
    if (--a->n_readers == 0 && !a->kept) free_answer(a);
}

static void evict_surplus(qw_memory *m)
{
    while (m->counts.bytes > m->bytes_max) evict_last(m);
}

void qw_memory_keep(qw_memory_answer *a)
{
    qw_memory *m = a->m;
    if (a->spoken->lost || a->spoken->n_tokens == 0 || make_links(a) != QW_OK || a->bytes > m->bytes_max) return;
    a->saved_s = qw_wall_s();
    memory_save(&m->disk, a);
    pthread_mutex_lock(&m->lock);
    keep_answer(m, a);
    m->counts.kept++;
    evict_surplus(m);
    pthread_mutex_unlock(&m->lock);
}

void qw_memory_release(qw_memory_answer *a)
{
    if (!a) return;
    qw_memory *m = a->m;
    pthread_mutex_lock(&m->lock);
    leave(a);
    pthread_mutex_unlock(&m->lock);
}

/* ---- a conversation that is being rendered -------------------------------------------------------- */

void qw_memory_read(qw_memory_reader *r, qw_memory *m, const uint8_t owner[QW_OWNER_BYTES])
{
    *r = (qw_memory_reader){.m = m};
    memcpy(r->owner, owner, sizeof r->owner);
}

uint64_t qw_memory_place(qw_memory_reader *r, qw_text before)
{
    /* Always the same, since a place is one after a restart, too. Two conversations with one hash, which somebody may well
     * look for, would be that somebody's own: owners are told apart with keys that nobody knows. */
    static const qw_sip_key fixed = {{0x616e737765727320u, 0x696e20706c616365u}};
    r->place = qw_siphash(&fixed, r->place, before.s + r->n_hashed, before.n - r->n_hashed);
    r->n_hashed = before.n;
    return r->place;
}

void qw_memory_read_end(qw_memory_reader *r)
{
    pthread_mutex_lock(&r->m->lock);
    for (size_t i = 0; i < r->n_held; i++) leave(r->held[i]);
    r->n_held = 0;
    pthread_mutex_unlock(&r->m->lock);
}

/* Holds the newest answers with this key. */
static void hold(qw_memory_reader *r, uint64_t hash)
{
    qw_memory *m = r->m;
    pthread_mutex_lock(&m->lock);
    for (memory_link *k = *bucket_of(m, hash); k && r->n_held < QW_MEMORY_TRIES; k = k->next) {
        if (k->hash != hash || memcmp(k->answer->owner, r->owner, sizeof r->owner) != 0) continue;
        k->answer->n_readers++;
        r->held[r->n_held++] = k->answer;
    }
    pthread_mutex_unlock(&m->lock);
}

/* Under the lock. */
static bool knows(qw_memory *m, const qw_memory_answer *a, uint64_t hash)
{
    for (memory_link *k = *bucket_of(m, hash); k; k = k->next) {
        bool same_key = k->hash == hash && memcmp(k->answer->owner, a->owner, sizeof a->owner) == 0;
        if (same_key && k->answer->id == a->id) return true;
    }
    return false;
}

static bool has_key(const qw_memory_answer *a, uint64_t hash)
{
    for (size_t i = 0; i < a->n_links; i++)
        if (a->links[i].hash == hash) return true;
    return false;
}

/* Puts an answer from disk into the table, unless it is there. */
static bool take_in(qw_memory *m, qw_memory_answer *a, uint64_t hash)
{
    pthread_mutex_lock(&m->lock);
    bool is_new = !knows(m, a, hash);
    if (is_new && a->bytes <= m->bytes_max) keep_answer(m, a); /* else it is held, and goes with its reader */
    m->counts.loaded += is_new;
    evict_surplus(m);
    pthread_mutex_unlock(&m->lock);
    return is_new;
}

/* Holds what is on disk under this key and not in the table. A slow disk is asked for so long, then not for this
 * conversation any more. */
static void hold_saved(qw_memory_reader *r, const qw_state_answer_key *key, uint64_t hash)
{
    int64_t begun_us = qw_clock_us();
    if (r->n_held == QW_MEMORY_TRIES || r->disk_us > QW_MEMORY_DISK_US) return;
    qw_memory_answer *a = memory_load(&r->m->disk, r->m, r->owner, key);
    r->disk_us += qw_clock_us() - begun_us;
    if (!a) return;
    if (make_links(a) == QW_OK && has_key(a, hash) && take_in(r->m, a, hash)) r->held[r->n_held++] = a;
    else free_answer(a);
}

/* A question, and the best that was found for it so far. */
typedef struct search {
    qw_memory_reader *r;
    const qw_chat_ask *q;
    qw_match found;
    qw_recalled *out;
    qw_memory_answer *from;
} search;

/* Compares what is held, from number `first` on. */
static void compare(search *f, size_t first, bool sure)
{
    for (size_t i = first; i < f->r->n_held && f->found < QW_MATCH_WHOLE; i++) {
        qw_recalled one;
        qw_match match = qw_spoken_match(f->r->held[i]->spoken, f->q, sure, &one);
        if (match < f->found || match == QW_MATCH_NONE) continue;
        if (match == f->found && one.n_tokens <= f->out->n_tokens) continue;
        f->found = match;
        *f->out = one;
        f->from = f->r->held[i];
    }
}

/* Looks at all with this key, in memory and then on disk. */
static void look(search *f, qw_state_answer_key key, bool sure)
{
    qw_memory_reader *r = f->r;
    size_t first = r->n_held;
    if (key.kind == 0 || f->found == QW_MATCH_WHOLE) return;
    uint64_t hash = hash_of(r->m, r->owner, &key);
    hold(r, hash);
    compare(f, first, sure);
    first = r->n_held;
    if (f->found < QW_MATCH_WHOLE) hold_saved(r, &key, hash);
    compare(f, first, sure);
}

/* Counts what came of a question. True: the answer was saved long ago, and is in use. */
static bool note_use(qw_memory *m, qw_match found, qw_memory_answer *a)
{
    int64_t now_s = qw_wall_s();
    pthread_mutex_lock(&m->lock);
    m->counts.asked++;
    m->counts.whole += found == QW_MATCH_WHOLE;
    m->counts.part += found == QW_MATCH_PART;
    if (a && a->kept) {
        unlink_answer(m, a);
        link_first(m, a);
    }
    bool old = a && (now_s - a->saved_s >= QW_STATE_TOUCH_S || now_s < a->saved_s);
    if (old) a->saved_s = now_s;
    pthread_mutex_unlock(&m->lock);
    return old;
}

bool qw_memory_recall(void *reader, const qw_chat_ask *q, qw_recalled *out)
{
    qw_memory_reader *r = reader;
    search f = {.r = r, .q = q, .out = out};
    const qw_message *said = q->message;
    uint64_t place = qw_memory_place(r, q->before);
    qw_memory_read_end(r); /* of the question before */
    for (size_t i = 0; i < said->n_tool_calls && i < QW_MEMORY_TRIES / 2; i++)
        if (said->tool_calls[i].id) look(&f, key_of_id(said->tool_calls[i].id), true);
    look(&f, key_of_place(&place), true);
    look(&f, key_of_words(q->content, said->n_tool_calls > 0 ? said->tool_calls[0].name : NULL), false);
    if (note_use(r->m, f.found, f.from)) memory_save(&r->m->disk, f.from); /* as if it were new: it stays another while */
    return f.found != QW_MATCH_NONE;
}

void qw_memory_get_counts(qw_memory *m, qw_memory_counts *out)
{
    pthread_mutex_lock(&m->lock);
    *out = m->counts;
    pthread_mutex_unlock(&m->lock);
}
