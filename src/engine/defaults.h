/* defaults.h: how a model's makers recommend to sample from it.
 *
 * What a request leaves open comes from the model's file where it says something, else from the table of model cards.
 * Pure functions; any thread.
 */
#ifndef QW_ENGINE_DEFAULTS_H
#define QW_ENGINE_DEFAULTS_H

#include "qw.h"

#include "formats/gguf.h"
#include "text/chat.h"

/* Nothing is said: every float NAN, top_k QW_TOP_K_MODEL, no log-probabilities. */
extern const qw_sampling qw_sampling_open;
/* Puts into `to` what is open in it and not in `from`. */
void qw_sampling_fill(qw_sampling *to, const qw_sampling *from);
/* What the model cards say, nothing left open. experts: the model has some. */
const qw_sampling *qw_sampling_recommended(qw_chat_format format, bool thinks, bool experts);
/* What the file itself says (general.sampling.*), the rest left open. QW_E_FORMAT names a key that is out of range. */
qw_status qw_sampling_read(const qw_gguf *file, qw_sampling *out, qw_err *err) QW_MUST_CHECK;

#endif
