/* memory_private.h: what memory.c, the table of answers, and memory_disk.c, answers that outlive the process, share. */
#ifndef QW_ENGINE_MEMORY_PRIVATE_H
#define QW_ENGINE_MEMORY_PRIVATE_H

#include <pthread.h>

#include "engine/memory.h"

/* An answer in the chain of one of its keys. */
typedef struct memory_link {
    struct memory_link *prev, *next; /* of the bucket, newest first */
    uint64_t hash;
    qw_memory_answer *answer;
} memory_link;

struct qw_memory_answer {
    qw_memory_answer *prev, *next; /* latest use first */
    qw_memory *m;                  /* borrows */
    uint8_t owner[QW_OWNER_BYTES];
    uint64_t place, id;            /* id: random, its calls are named after it */
    qw_spoken *spoken;             /* owns */
    memory_link *links;            /* [n_links], owns; one for each key */
    size_t n_links, bytes;
    uint32_t n_readers;            /* and the one who writes */
    bool kept;                     /* in the table; else freed by its last reader */
    int64_t saved_s;               /* when it was given to the disk; guarded by the table's lock once it is kept */
};

/* Where answers are saved. Its lock is held while it is used, by any number, so that it stays until they are done. */
typedef struct memory_disk {
    pthread_rwlock_t lock;
    qw_state_io *io; /* borrows; NULL: nowhere */
    size_t n_vocab;
} memory_disk;

/* What an answer is found by: i is below memory_n_keys. Borrows from the answer and from id, which is filled. */
qw_state_answer_key memory_key(const qw_memory_answer *a, size_t i, char id[QW_CALL_ID_BYTES]);
size_t memory_n_keys(const qw_memory_answer *a);

/* An answer without keys and with one reader. */
qw_status memory_new_answer(qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], qw_spoken *takes, qw_memory_answer **out,
                            qw_err *err) QW_MUST_CHECK;

/* Gives the answer, which is finished, to the disk, if there is one; it is not waited for. */
void memory_save(memory_disk *d, const qw_memory_answer *a);
/* The one on disk with this key; NULL: there is none that can be trusted. Reads a small file. */
qw_memory_answer *memory_load(memory_disk *d, qw_memory *m, const uint8_t owner[QW_OWNER_BYTES],
                              const qw_state_answer_key *key);

#endif
