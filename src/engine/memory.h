/* memory.h: answers that were given, so that a conversation which comes back as JSON is continued from their tokens.
 *
 * Clients send earlier answers back as text. Tokenised again that often gives other ids than were sampled, and all that was
 * computed behind the first other one is lost. So the tokens of each answer are kept (qw_spoken), and found again by
 *   - the ids of its tool calls, which are made here and cannot be guessed;
 *   - the conversation before it: a hash of all text up to it;
 *   - what it says: content and names of calls.
 * Owners never see each other's. What was used longest ago goes first when the limit is reached. With a store of computed
 * pasts (state_io.h) answers are on disk as well, a small file for each key, and are found there when the memory does not
 * have them: after a restart, or when they had to go. What is found nowhere is tokenised like any text.
 * Any thread; an answer that is being written belongs to one.
 */
#ifndef QW_ENGINE_MEMORY_H
#define QW_ENGINE_MEMORY_H

#include "qw.h"

#include "engine/prefix.h" /* QW_OWNER_BYTES */
#include "engine/state_io.h"
#include "text/chat_recall.h"

enum {
    QW_MEMORY_BYTES_MAX = 64 << 20, /* of all answers; some four million tokens */
    QW_MEMORY_TRIES = 16,           /* answers looked at for one message, newest first */
    QW_MEMORY_DISK_US = 500000,     /* that reading files may take for one conversation, give or take one file */
    QW_CALL_ID_BYTES = 32
};

typedef struct qw_memory qw_memory;
qw_status qw_memory_create(size_t bytes_max, qw_memory **out, qw_err *err) QW_MUST_CHECK;
size_t qw_memory_bytes(size_t bytes_max); /* that it takes when it is full */
void qw_memory_destroy(qw_memory *m); /* NULL is fine; nobody reads it or writes answers any more */
/* From now on answers are saved and looked for there, until it is detached. Only one at a time: with another attached nothing
 * happens, and detaching what is not attached does nothing. n_vocab: token ids are below it. */
void qw_memory_attach(qw_memory *m, qw_state_io *io, size_t n_vocab);
void qw_memory_detach(qw_memory *m, const qw_state_io *io);

/* ---- an answer that is being given --------------------------------------------------------------- */

typedef struct qw_memory_answer qw_memory_answer;
/* place: of qw_memory_place. lead: what the prompt has behind "<|im_start|>assistant\n". */
qw_status qw_memory_begin(qw_memory *m, const uint8_t owner[QW_OWNER_BYTES], uint64_t place, qw_text lead,
                          qw_memory_answer **out, qw_err *err) QW_MUST_CHECK;
qw_spoken *qw_memory_spoken(qw_memory_answer *a); /* to be written */
/* "call_" and 24 hexadecimal digits: of the answer's call of this index. */
void qw_memory_call_id(const qw_memory_answer *a, uint32_t index, char out[QW_CALL_ID_BYTES]);
/* What was said is finished: from now on others find it. Nothing is written to it any more. */
void qw_memory_keep(qw_memory_answer *a);
void qw_memory_release(qw_memory_answer *a); /* whoever began it is done with it, kept or not; NULL is fine */

/* ---- a conversation that is being rendered -------------------------------------------------------- */

typedef struct qw_memory_reader {
    qw_memory *m;
    uint8_t owner[QW_OWNER_BYTES];
    uint64_t place; /* hash of the first n_hashed bytes of the conversation */
    size_t n_hashed;
    qw_memory_answer *held[QW_MEMORY_TRIES];
    size_t n_held;
    int64_t disk_us; /* that reading took so far */
} qw_memory_reader;
void qw_memory_read(qw_memory_reader *r, qw_memory *m, const uint8_t owner[QW_OWNER_BYTES]);
/* The function of a qw_chat_memory whose ctx is the reader. */
bool qw_memory_recall(void *reader, const qw_chat_ask *q, qw_recalled *out);
/* Where in conversations an answer stands that comes after this text, of which all answers were asked for in order. */
uint64_t qw_memory_place(qw_memory_reader *r, qw_text before);
void qw_memory_read_end(qw_memory_reader *r);

typedef struct qw_memory_counts {
    uint64_t n_answers, bytes, kept, loaded, evicted; /* loaded: from disk */
    uint64_t asked, whole, part; /* answers in conversations; those whose turn, or its beginning, was given */
} qw_memory_counts;
void qw_memory_get_counts(qw_memory *m, qw_memory_counts *out);

#endif
