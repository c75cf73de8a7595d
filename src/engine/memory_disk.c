/* memory_disk.c: answers that outlive the process, through the store of computed pasts. See memory.h.
 *
 * What is saved, once under each key: the answer's place and id, 8 bytes each, and the answer itself (text/spoken_packed.c).
 * Which key it was found by does not matter then; it has all of them again.
 */
#include <string.h>

#include "engine/memory_private.h"

typedef struct saved_head {
    uint64_t place, id;
} saved_head;

/* ---- saving --------------------------------------------------------------------------------------- */

static qw_status pack(const qw_memory_answer *a, qw_buf *out)
{
    const saved_head head = {.place = a->place, .id = a->id};
    QW_TRY(qw_buf_add(out, &head, sizeof head, NULL));
    return qw_spoken_pack(a->spoken, out, NULL);
}

static void save_to(qw_state_io *io, const qw_memory_answer *a)
{
    qw_state_id ids[2 + QW_SPOKEN_CALLS_MAX];
    char id[QW_CALL_ID_BYTES];
    const size_t n = memory_n_keys(a);
    qw_buf data;
    for (size_t i = 0; i < n; i++) {
        const qw_state_answer_key key = memory_key(a, i, id);
        ids[i] = qw_state_answer_id(qw_state_io_files(io), a->owner, &key);
    }
    qw_buf_init(&data, QW_STATE_ANSWER_BYTES_MAX, "answer");
    if (pack(a, &data) == QW_OK) qw_state_io_save_answer(io, ids, n, &data);
    else qw_buf_free(&data); /* no memory: as if it had been given without a disk */
}

void memory_save(memory_disk *d, const qw_memory_answer *a)
{
    pthread_rwlock_rdlock(&d->lock);
    if (d->io) save_to(d->io, a);
    pthread_rwlock_unlock(&d->lock);
}

/* ---- loading -------------------------------------------------------------------------------------- */

static qw_memory_answer *unpack(qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], size_t n_vocab, const qw_buf *data)
{
    saved_head head;
    qw_spoken *spoken;
    qw_memory_answer *a;
    if (data->n < sizeof head) return NULL;
    memcpy(&head, data->data, sizeof head);
    const qw_text rest = {data->data + sizeof head, data->n - sizeof head};
    if (qw_spoken_unpack(rest, n_vocab, &spoken, NULL) != QW_OK) return NULL;
    if (memory_new_answer(m, owner, spoken, &a, NULL) != QW_OK) return NULL;
    a->place = head.place;
    a->id = head.id;
    return a;
}

static qw_memory_answer *load_from(const memory_disk *d, qw_memory *m, const uint8_t owner[QW_OWNER_BYTES],
                                   const qw_state_answer_key *key)
{
    qw_state_files *files = qw_state_io_files(d->io);
    qw_memory_answer *a = NULL;
    int64_t saved_s;
    qw_buf data;
    qw_buf_init(&data, QW_STATE_ANSWER_BYTES_MAX, "answer");
    if (qw_state_load_answer(files, qw_state_answer_id(files, owner, key), &data, &saved_s))
        a = unpack(m, owner, d->n_vocab, &data);
    if (a) a->saved_s = saved_s;
    qw_buf_free(&data);
    return a;
}

qw_memory_answer *memory_load(memory_disk *d, qw_memory *m, const uint8_t owner[QW_OWNER_BYTES],
                              const qw_state_answer_key *key)
{
    pthread_rwlock_rdlock(&d->lock);
    qw_memory_answer *a = d->io ? load_from(d, m, owner, key) : NULL;
    pthread_rwlock_unlock(&d->lock);
    return a;
}
