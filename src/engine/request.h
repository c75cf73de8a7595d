/* request.h: checking requests and turning them into tokens, in the caller's thread. */
#ifndef QW_ENGINE_REQUEST_H
#define QW_ENGINE_REQUEST_H

#include "engine/loops.h"
#include "engine/memory.h"
#include "engine/sampler.h"
#include "engine/think.h"
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
    uint64_t place;    /* CHAT: of its answer, in the model's memory */
    char *lead;        /* CHAT: owns; what it ends with, behind "<|im_start|>assistant\n" */
} qw_prompt;
void qw_prompt_free(qw_prompt *p); /* a zeroed one is fine */

/* Into *out, which is zeroed and freed by the caller, also on failure. */
qw_status qw_request_prompt(const qw_model *m, const qw_request *r, qw_prompt *out, qw_err *err) QW_MUST_CHECK;
/* What takes the answer apart; NULL where it can hold neither thinking nor calls. */
qw_status qw_request_parser(const qw_model *m, const qw_request *r, bool in_thinking, qw_parser **out,
                            qw_err *err) QW_MUST_CHECK;
/* How the thinking of the answer is bounded. */
qw_think qw_request_think(const qw_model *m, const qw_request *r);
/* What notices that the answer repeats itself; NULL where it may. */
qw_status qw_request_loops(const qw_request *r, qw_loops **out, qw_err *err) QW_MUST_CHECK;
/* Where the answer is written down, to be known when a client sends it back; NULL where none will. */
qw_status qw_request_said(const qw_model *m, const qw_request *r, const qw_prompt *prompt, qw_memory_answer **out,
                          qw_err *err) QW_MUST_CHECK;
/* Whose request it is, as a hash of the name. */
void qw_request_owner(const qw_request *r, uint8_t out[QW_OWNER_BYTES]);

#endif
