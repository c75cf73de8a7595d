/* draft_mtp.h: the model's own layer for multi-token prediction as what drafts: a qw_draft_model (draft.h).
 *
 * It goes on from hidden states that the model's passes leave behind: who runs the passes tells which rows a sequence goes on
 * with. A row of the layer stands for a position: its hidden state and the token that follows. The layer's keys and values lie
 * in a sequence of their own for each lane, of the positions that were seen since the lane began, numbered anew: it sees less
 * of the past than the model does, and pages, snapshots and saved pasts know nothing of it. Rows wait until somebody asks.
 * Allocates nothing after create. Engine thread only.
 */
#ifndef QW_ENGINE_DRAFT_MTP_H
#define QW_ENGINE_DRAFT_MTP_H

#include "engine/draft.h"
#include "model/runtime.h"

enum { QW_MTP_WAITING = 64 /* rows of a lane that wait; the oldest go first */ };

typedef struct qw_draft_mtp qw_draft_mtp;

uint64_t qw_draft_mtp_bytes(const qw_net *net, bool exact, uint32_t n_lanes); /* that create will take */
/* pass: the model's, borrowed; net->mtp is there. */
qw_status qw_draft_mtp_create(qw_pass *pass, bool exact, uint32_t n_lanes, double us_per_token, qw_draft_mtp **out,
                              qw_err *err) QW_MUST_CHECK;
void qw_draft_mtp_destroy(qw_draft_mtp *m); /* NULL is fine; the pass is still there */
qw_draft_model qw_draft_mtp_model(qw_draft_mtp *m); /* borrows; `user` is the lane's number */

/* Another sequence has the lane; its tokens are and will be in `tokens`, borrowed until the next begin. */
void qw_draft_mtp_begin(qw_draft_mtp *m, uint32_t lane, const int32_t *tokens);
/* Rows [first_row, first_row + n) of the last pass, none of them silent, stand at positions pos, pos + 1, ... of the lane's
 * sequence. The tokens that follow them are known. */
void qw_draft_mtp_computed(qw_draft_mtp *m, uint32_t lane, uint32_t first_row, uint32_t n, uint32_t pos);

#endif
