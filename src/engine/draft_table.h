/* draft_table.h: what the model lately thought could follow each token.
 *
 * Every pass says for each of its rows which tokens may follow, and all but one are thrown away. Kept here they are drafts
 * for the next time. The newest wins. Idea: "Turning Trash into Treasure: Accelerating Inference of Large Language Models
 * with Token Recycling", arXiv 2408.08696; here with how sure the model was. 40 bytes for each token of the vocabulary,
 * nothing allocates after create. Engine thread only.
 */
#ifndef QW_ENGINE_DRAFT_TABLE_H
#define QW_ENGINE_DRAFT_TABLE_H

#include "base/status.h"
#include "engine/top.h"

enum { QW_SUCCESSORS = QW_TOP_MAX };

/* [QW_SUCCESSORS] most probable first; share: of these, in 255ths. 0 ends the list. */
typedef struct qw_successors {
    int32_t token[QW_SUCCESSORS];
    uint8_t share[QW_SUCCESSORS];
} qw_successors;

typedef struct qw_recycled qw_recycled;

qw_status qw_recycled_create(uint32_t n_vocab, qw_recycled **out, qw_err *err) QW_MUST_CHECK;
void qw_recycled_destroy(qw_recycled *r);
/* After `token` the model thought of top [n], largest first. */
void qw_recycled_note(qw_recycled *r, int32_t token, const qw_top *top, size_t n);
/* Borrowed until the next note; NULL when nothing is known. */
const qw_successors *qw_recycled_after(const qw_recycled *r, int32_t token);

#endif
