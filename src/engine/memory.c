/* memory.c: see memory.h. One lock guards the table; an answer is immutable once it is in it and is counted by its readers,
 * so that comparing texts holds nobody up. */
#include "engine/memory.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/mem.h"
#include "base/siphash.h"
#include "text/py_text.h"

enum {
    BUCKETS = 1 << 14,
    ID_DIGITS = 24 /* the end of a call's id; wire formats may put other words before it */
};

/* Kinds of keys; each hashes in a world of its own. */
enum { KEY_PLACE = 1, KEY_ID, KEY_WORDS };

/* An answer in the chain of one of its keys. */
typedef struct key {
    struct key *prev, *next; /* of the bucket, newest first */
    uint64_t hash;
    qw_memory_answer *answer;
} key;

struct qw_memory_answer {
    qw_memory_answer *prev, *next; /* latest use first */
    qw_memory *m;                  /* borrows */
    uint8_t owner[QW_OWNER_BYTES];
    uint64_t place, id;            /* id: random, its calls are named after it */
    qw_spoken *spoken;             /* owns */
    key *keys;                     /* [n_keys], owns */
    size_t n_keys, bytes;
    uint32_t n_readers;            /* and the one who writes */
    bool kept;                     /* in the table; else freed by its last reader */
};

struct qw_memory {
    pthread_mutex_t lock;
    qw_sip_key secret;
    size_t bytes_max;
    key *buckets[BUCKETS];
    qw_memory_answer *first, *last;
    qw_memory_counts counts;
};

/* ---- life ---------------------------------------------------------------------------------------- */

static void free_answer(qw_memory_answer *a)
{
    qw_spoken_destroy(a->spoken);
    free(a->keys);
    free(a);
}

qw_status qw_memory_create(size_t bytes_max, qw_memory **out, qw_err *err)
{
    qw_memory *m;
    *out = NULL;
    QW_TRY(qw_alloc(&m, 1, sizeof *m, "memory of answers", err));
    pthread_mutex_init(&m->lock, NULL);
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
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* ---- keys ---------------------------------------------------------------------------------------- */

static uint64_t hash_of(const qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], uint64_t kind, const void *s, size_t n)
{
    return qw_siphash(&m->secret, qw_siphash(&m->secret, kind, owner, QW_OWNER_BYTES), s, n);
}

static uint64_t hash_words(const qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], qw_text content, const char *first_call)
{
    content = qw_py_strip(content);
    uint64_t hash = hash_of(m, owner, KEY_WORDS, content.n ? content.s : "", content.n);
    return first_call ? qw_siphash(&m->secret, hash, first_call, strlen(first_call)) : hash;
}

static uint64_t hash_id(const qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], const char *id)
{
    size_t n = strlen(id);
    return n < ID_DIGITS ? 0 : hash_of(m, owner, KEY_ID, id + n - ID_DIGITS, ID_DIGITS);
}

static key **bucket_of(qw_memory *m, uint64_t hash)
{
    return &m->buckets[hash % BUCKETS];
}

static void link_key(qw_memory *m, key *k)
{
    key **bucket = bucket_of(m, k->hash);
    k->prev = NULL;
    k->next = *bucket;
    if (k->next) k->next->prev = k;
    *bucket = k;
}

static void unlink_key(qw_memory *m, key *k)
{
    if (k->prev) k->prev->next = k->next;
    else *bucket_of(m, k->hash) = k->next;
    if (k->next) k->next->prev = k->prev;
}

static qw_status make_keys(qw_memory_answer *a)
{
    const qw_spoken *s = a->spoken;
    char id[QW_CALL_ID_BYTES];
    QW_TRY(qw_alloc(&a->keys, 2 + s->n_calls, sizeof *a->keys, "answer", NULL));
    a->keys[a->n_keys++].hash = hash_of(a->m, a->owner, KEY_PLACE, &a->place, sizeof a->place);
    a->keys[a->n_keys++].hash =
        hash_words(a->m, a->owner, qw_spoken_slice(&s->content), s->n_calls ? s->calls[0].name : NULL);
    for (uint32_t i = 0; i < s->n_calls; i++) {
        qw_memory_call_id(a, i, id);
        a->keys[a->n_keys++].hash = hash_id(a->m, a->owner, id);
    }
    for (size_t i = 0; i < a->n_keys; i++) a->keys[i].answer = a;
    a->bytes = sizeof *a + a->n_keys * sizeof *a->keys + qw_spoken_bytes(s);
    return QW_OK;
}

/* ---- an answer that is being given --------------------------------------------------------------- */

qw_status qw_memory_begin(qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], uint64_t place, qw_text lead,
                          qw_memory_answer **out, qw_err *err)
{
    qw_memory_answer *a;
    *out = NULL;
    QW_TRY(qw_alloc(&a, 1, sizeof *a, "answer", err));
    qw_status status = qw_spoken_create(lead, &a->spoken, err);
    if (status == QW_OK && getrandom(&a->id, sizeof a->id, 0) != sizeof a->id)
        status = qw_fail_errno(err, "cannot draw a random id");
    if (status != QW_OK) {
        free_answer(a);
        return status;
    }
    a->m = m;
    a->place = place;
    a->n_readers = 1;
    memcpy(a->owner, owner, sizeof a->owner);
    *out = a;
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

static void evict_last(qw_memory *m)
{
    qw_memory_answer *a = m->last;
    unlink_answer(m, a);
    for (size_t i = 0; i < a->n_keys; i++) unlink_key(m, &a->keys[i]);
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

void qw_memory_keep(qw_memory_answer *a)
{
    qw_memory *m = a->m;
    if (a->spoken->lost || a->spoken->n_tokens == 0 || make_keys(a) != QW_OK || a->bytes > m->bytes_max) return;
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i < a->n_keys; i++) link_key(m, &a->keys[i]);
    link_first(m, a);
    a->kept = true;
    m->counts.bytes += a->bytes;
    m->counts.n_answers++;
    m->counts.kept++;
    while (m->counts.bytes > m->bytes_max) evict_last(m);
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
    r->place = qw_siphash(&r->m->secret, r->place, before.s + r->n_hashed, before.n - r->n_hashed);
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
    for (key *k = *bucket_of(m, hash); k && r->n_held < QW_MEMORY_TRIES; k = k->next) {
        if (k->hash != hash || memcmp(k->answer->owner, r->owner, sizeof r->owner) != 0) continue;
        k->answer->n_readers++;
        r->held[r->n_held++] = k->answer;
    }
    pthread_mutex_unlock(&m->lock);
}

/* The best of the answers with this key, when it is better than what was found before. */
static qw_match best_of(qw_memory_reader *r, uint64_t hash, const qw_chat_ask *q, bool sure, qw_match found,
                        qw_recalled *out, qw_memory_answer **from)
{
    size_t first = r->n_held;
    hold(r, hash);
    for (size_t i = first; i < r->n_held && found < QW_MATCH_WHOLE; i++) {
        qw_recalled one;
        qw_match match = qw_spoken_match(r->held[i]->spoken, q, sure, &one);
        if (match < found || match == QW_MATCH_NONE) continue;
        if (match == found && one.n_tokens <= out->n_tokens) continue;
        found = match;
        *out = one;
        *from = r->held[i];
    }
    return found;
}

static void note_use(qw_memory *m, qw_match found, qw_memory_answer *a)
{
    pthread_mutex_lock(&m->lock);
    m->counts.asked++;
    m->counts.whole += found == QW_MATCH_WHOLE;
    m->counts.part += found == QW_MATCH_PART;
    if (a && a->kept) {
        unlink_answer(m, a);
        link_first(m, a);
    }
    pthread_mutex_unlock(&m->lock);
}

bool qw_memory_recall(void *reader, const qw_chat_ask *q, qw_recalled *out)
{
    qw_memory_reader *r = reader;
    qw_memory_answer *from = NULL;
    const qw_message *said = q->message;
    const char *call = said->n_tool_calls > 0 ? said->tool_calls[0].name : NULL;
    qw_match found = QW_MATCH_NONE;
    uint64_t place = qw_memory_place(r, q->before);
    qw_memory_read_end(r); /* of the question before */
    for (size_t i = 0; i < said->n_tool_calls && i < QW_MEMORY_TRIES / 2 && found < QW_MATCH_WHOLE; i++)
        if (said->tool_calls[i].id)
            found = best_of(r, hash_id(r->m, r->owner, said->tool_calls[i].id), q, true, found, out, &from);
    if (found < QW_MATCH_WHOLE)
        found = best_of(r, hash_of(r->m, r->owner, KEY_PLACE, &place, sizeof place), q, true, found, out, &from);
    if (found < QW_MATCH_WHOLE)
        found = best_of(r, hash_words(r->m, r->owner, q->content, call), q, false, found, out, &from);
    note_use(r->m, found, from);
    return found != QW_MATCH_NONE;
}

void qw_memory_get_counts(qw_memory *m, qw_memory_counts *out)
{
    pthread_mutex_lock(&m->lock);
    *out = m->counts;
    pthread_mutex_unlock(&m->lock);
}
