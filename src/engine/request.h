/* request.h: checking requests and turning them into tokens, in the caller's thread. */
#ifndef QW_ENGINE_REQUEST_H
#define QW_ENGINE_REQUEST_H

#include "engine/sampler.h"
#include "text/parse.h"
#include "text/tokenizer.h"

/* The request's sampling, with the model's own values where it leaves them open. */
qw_sampling qw_request_sampling(const qw_model *m, const qw_request *r);
/* Everything but the prompt: that sampling, limits, stop strings. QW_E_ARG names the field. */
qw_status qw_request_check(const qw_model *m, const qw_request *r, const qw_sampling *sampling,
                           qw_err *err) QW_MUST_CHECK;
/* A request's prompt as tokens. */
typedef struct qw_prompt {
    qw_tokens tokens;  /* at least one */
    qw_edges edges;    /* CHAT: where its messages end */
    bool in_thinking;  /* it ends inside a thinking block */
} qw_prompt;
void qw_prompt_free(qw_prompt *p); /* a zeroed one is fine */

/* Into *out, which is zeroed and freed by the caller, also on failure. */
qw_status qw_request_prompt(const qw_model *m, const qw_request *r, qw_prompt *out, qw_err *err) QW_MUST_CHECK;
/* What takes the answer apart; NULL where it can hold neither thinking nor calls. */
qw_status qw_request_parser(const qw_model *m, const qw_request *r, bool in_thinking, qw_parser **out,
                            qw_err *err) QW_MUST_CHECK;

#endif
