/* request.h: checking requests and turning them into tokens, in the caller's thread. */
#ifndef QW_ENGINE_REQUEST_H
#define QW_ENGINE_REQUEST_H

#include "engine/sampler.h"
#include "text/tokenizer.h"

/* Everything but the prompt: sampling, limits, stop strings. QW_E_ARG names the field. */
qw_status qw_request_check(const qw_model *m, const qw_request *r, qw_err *err) QW_MUST_CHECK;
/* Appends the prompt's ids to out: at least one. */
qw_status qw_request_tokens(const qw_model *m, const qw_request *r, qw_tokens *out, qw_err *err) QW_MUST_CHECK;

#endif
