/* model.h: what is behind the public qw_model: file, network, tokenizer, chat format, packed weights.
 *
 * Immutable after open, apart from `weights` and `trie`, which the first who needs them makes under `lock`, and the memory of
 * answers, which has a lock of its own. It is the model's and no engine's, since answers are text and qw_render looks into it, too.
 */
#ifndef QW_ENGINE_MODEL_H
#define QW_ENGINE_MODEL_H

#include <pthread.h>

#include "qw.h"

#include "engine/defaults.h"
#include "engine/memory.h"
#include "engine/think.h"
#include "formats/gguf.h"
#include "model/net.h"
#include "model/weights.h"
#include "text/chat.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

struct qw_model {
    qw_gguf *file;           /* owns */
    qw_net *net;             /* owns */
    qw_tokenizer *tokenizer; /* owns; NULL when the file carries none */
    qw_chat_format chat;
    bool chat_known; /* the template is one we compared byte for byte, not a likeness */
    qw_sampling sampling; /* what the file recommends; the rest open */
    qw_think_words think_words; /* none when it does not think */
    qw_memory *memory;    /* owns; NULL without a chat format */
    bool exact, no_pack_cache;
    char name[256];
    pthread_mutex_t lock;
    qw_weights *weights;     /* owns; NULL before the first engine and in exact mode */
    qw_token_trie *trie;     /* owns; NULL before the first answer that is held to a form */
};

/* Packs or maps the weights once for all engines; nothing to do in exact mode. */
qw_status qw_model_prepare(qw_model *model, qw_pool *pool, qw_err *err) QW_MUST_CHECK;
/* Bytes of weights that a pass reads, and how many of them will be held in anonymous memory. */
void qw_model_weight_bytes(const qw_model *model, uint64_t *mapped, uint64_t *in_memory);
/* True when a mapped file of the model shrank: what was computed since cannot be trusted. */
bool qw_model_failed(const qw_model *model);
/* Folder of side files, or false when they are off or there is no such place. */
bool qw_model_cache_dir(const qw_model *model, char *out, size_t cap);

#endif
