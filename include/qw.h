/* qw.h: the public door of qw, an engine for the open Qwen language models.
 *
 * Two objects and a request. A qw_model is an immutable, memory-mapped model file with its tokenizer;
 * any thread may use it. A qw_engine owns all mutable state on a thread of its own. qw_submit() renders
 * and tokenises in the caller's thread and queues the tokens; qw_poll() returns typed events; every
 * accepted request ends in exactly one terminal event (QW_EVENT_DONE or QW_EVENT_ERROR).
 *
 *     qw_model *model;  qw_engine *engine;  qw_err err;
 *     qw_model_options mo = qw_model_options_default();       mo.path = "model.gguf";
 *     if (qw_model_open(&mo, &model, &err)) die(err.text);
 *     qw_engine_options eo = qw_engine_options_default();
 *     if (qw_engine_create(model, &eo, &engine, &err)) die(err.text);
 *     qw_message msg = {.role = "user", .content = qw_text_of("Hello!")};
 *     qw_request req = qw_request_default(model);  req.messages = &msg;  req.n_messages = 1;
 *     uint64_t id;  qw_event ev;
 *     if (qw_submit(engine, &req, &id, &err)) die(err.text);
 *     while (qw_poll(engine, -1, &ev) && !qw_event_is_terminal(&ev))
 *         if (ev.type == QW_EVENT_TEXT) fwrite(ev.text.s, 1, ev.text.n, stdout);
 *     qw_engine_destroy(engine);  qw_model_close(model);
 *
 * Text is UTF-8. Sizes carry their unit. No call prints, exits or keeps a pointer it was given.
 */
#ifndef QW_H
#define QW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qw_status.h"
#include "qw_types.h" /* qw_text, qw_message, qw_tool_call, qw_chat_options */

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qw_model qw_model;
typedef struct qw_engine qw_engine;

qw_text qw_text_of(const char *s); /* of a C string; NULL gives an empty text */

/* ---- model ------------------------------------------------------------------------------------ */

typedef struct qw_model_options {
    const char *path;   /* a GGUF file, of a split model the first part; or a Hugging Face folder */
    const char *quantize; /* "q8_0": matrices stored as floats are quantised to this type as they are loaded; NULL: not */
    bool exact;         /* float32 products on dequantised weights, float32 KV: the reference mode */
    bool no_pack_cache; /* do not read or write the side file of packed weights; pack into memory */
} qw_model_options;
qw_model_options qw_model_options_default(void);

/* Maps the file and checks it whole: container, hyper-parameters, every tensor's shape, vocabulary.
 * All faults of the model are in one message. Does not touch the weights' pages. */
qw_status qw_model_open(const qw_model_options *options, qw_model **out, qw_err *err);
void qw_model_close(qw_model *model); /* after every engine on it was destroyed */
/* Reads all weights: QW_E_CORRUPT when one is not a number, or when the side file of packed weights is damaged. */
qw_status qw_model_verify(const qw_model *model, qw_err *err);

typedef struct qw_model_info {
    const char *path, *architecture, *name;      /* borrow from the model */
    const char *quantization;                    /* the type most weights have, "Q4_K" */
    const char *chat_format;                     /* "qwen2.5", or "none": no chat template is known */
    uint64_t file_bytes, n_params;
    uint32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, n_vocab;
    uint32_t context_length;                     /* what the model was trained for, tokens */
    bool has_tokenizer, has_fim;
    bool thinks, thinks_always; /* answers begin with thinking; and qw_chat_options cannot switch it off */
    bool chat_template_known; /* false with a chat_format: recognised by likeness, a warning is due */
} qw_model_info;
void qw_model_get_info(const qw_model *model, qw_model_info *out);

/* ---- text ------------------------------------------------------------------------------------- */

/* Token ids of a text, into *ids (the caller frees it with free()). With special = false control tokens
 * in the text are plain text. QW_E_UNSUPPORTED when the file carries no tokenizer. */
qw_status qw_tokenize(const qw_model *model, qw_text text, bool special, int32_t **ids, size_t *n,
                      qw_err *err);
/* The bytes of one token as the vocabulary stores them; control tokens give their name. */
qw_text qw_token_text(const qw_model *model, int32_t id);

/* ---- request ---------------------------------------------------------------------------------- */

typedef struct qw_logit_bias {
    int32_t token;
    float bias; /* added to the logit, at most 1e6 either way; -100 or less bans the token */
} qw_logit_bias;

/* Order of work on the logits: bias, penalties, temperature, top-k, top-p, min-p, draw. A float that is NAN, and a top_k
 * of QW_TOP_K_MODEL, stand for what the makers of the model recommend; qw_submit puts it in, as it depends on whether the
 * answer begins with thinking (docs/chat.md). */
typedef struct qw_sampling {
    float temperature;        /* 0: greedy */
    int32_t top_k;            /* 0: off */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off; relative to the most probable token */
    float repetition_penalty; /* 1: off; over prompt and answer */
    float presence_penalty;   /* 0: off; over generated tokens */
    float frequency_penalty;  /* 0: off; over generated tokens */
    uint64_t seed;            /* the draw at a position depends on (seed, position) alone */
    const qw_logit_bias *bias;
    size_t n_bias;            /* at most QW_LOGIT_BIAS_MAX */
    int32_t top_logprobs;     /* -1: none; 0..QW_TOP_LOGPROBS_MAX alternatives beside the chosen token */
} qw_sampling;

enum {
    QW_TOP_K_MODEL = -1,
    QW_LOGIT_BIAS_MAX = 300,
    QW_TOP_LOGPROBS_MAX = 20,
    QW_STOP_MAX = 16,           /* stop strings of a request */
    QW_STOP_BYTES_MAX = 256,    /* bytes of one */
    QW_MESSAGES_MAX = 4096,
    QW_PROMPT_BYTES_MAX = 64 << 20,
    QW_DEADLINE_MS_MAX = 7 * 86400 * 1000,
    QW_OWNER_WEIGHT_MAX = 1000,
    QW_PAGE_TOKENS = 64         /* what the cache keeps in one piece */
};

typedef enum qw_prompt_kind {
    QW_PROMPT_CHAT = 0, /* messages and tools through the model's chat format */
    QW_PROMPT_RAW,      /* text, control tokens in it honoured only when raw_special */
    QW_PROMPT_FIM,      /* fill in the middle between text and suffix (Coder models) */
    QW_PROMPT_TOKENS    /* ids as they are */
} qw_prompt_kind;

/* What an answer is held to, token by token: docs/constrained.md. */
typedef enum qw_form_kind {
    QW_FORM_NONE = 0,
    QW_FORM_JSON,     /* any JSON object */
    QW_FORM_SCHEMA,   /* JSON that satisfies the schema in source */
    QW_FORM_REGEX,    /* text that the expression in source matches as a whole */
    QW_FORM_CHOICE,   /* one of choices */
    QW_FORM_GRAMMAR,  /* text of the grammar in source */
    QW_FORM_CALLS     /* CHAT: tool calls are whole and satisfy the tools' schemas; source: the only function, or empty */
} qw_form_kind;

typedef struct qw_form_request {
    qw_form_kind kind;
    qw_text source;
    const qw_text *choices;
    size_t n_choices;
    bool call_required;         /* CALLS: begins with a call; else text may come first, or alone */
} qw_form_request;

typedef struct qw_request {
    qw_prompt_kind kind;
    const qw_message *messages; /* CHAT */
    size_t n_messages;
    qw_text tools;              /* CHAT: JSON text of an array of tool definitions, or empty */
    qw_chat_options chat;       /* CHAT: thinking and effort */
    qw_text text;               /* RAW: the prompt; FIM: what stands before */
    qw_text suffix;             /* FIM: what stands after */
    bool raw_special;
    const int32_t *tokens;      /* TOKENS */
    size_t n_tokens;

    qw_sampling sampling;
    int64_t max_tokens;         /* of the answer; 0: as many as the context still holds */
    const char *const *stop;    /* the answer ends before one of these texts */
    size_t n_stop;
    int64_t thinking_tokens_max; /* CHAT: then the thinking is closed for the model; 0: no limit (docs/engine-thinking.md) */
    qw_switch stop_loops;       /* end an answer that says the same for ever; by default in CHAT without ignore_eos */
    bool ignore_eos;            /* go on after the end token, for measurements */
    bool one_call;              /* CHAT: the answer ends after its first tool call */
    qw_form_request form;       /* holds from the end of the thinking on */
    void *user;                 /* comes back in every event */
    qw_text owner;              /* whose request it is: what was computed is never shared with another owner's; "" is one, too */
    uint32_t owner_weight;      /* its share beside other owners', at most QW_OWNER_WEIGHT_MAX; 0: 1 */
    int32_t priority;           /* the higher goes first */
    int64_t deadline_ms;        /* after qw_submit the answer ends with QW_FINISH_DEADLINE, begun or not; 0: never */
} qw_request;
/* Sampling as the model's makers recommend, no log-probabilities, a random seed. */
qw_request qw_request_default(const qw_model *model);

/* Token ids of a request's prompt as qw_submit would queue them; free() *ids. Answers in it that the model gave have the
 * tokens that were sampled. */
qw_status qw_render(const qw_model *model, const qw_request *request, int32_t **ids, size_t *n, qw_err *err);

/* ---- engine ----------------------------------------------------------------------------------- */

typedef struct qw_engine_options {
    int n_threads;          /* 0: the cores this process may use */
    uint32_t context;       /* tokens a conversation may hold; 0: the model's own, at most 32768 */
    uint32_t n_parallel;    /* requests that are answered at the same time; 0: 8, or what memory allows */
    uint32_t n_queue_max;   /* requests waiting; more are refused with QW_E_BUSY; 0: 256 */
    uint64_t queue_tokens_max; /* of all prompts that wait, likewise; one that waits alone may be longer. 0: 16 contexts */
    const char *state_dir;  /* folder where what was computed is saved, so that it outlives the process; NULL: it is not */
    uint64_t state_bytes_max; /* of all files there; 0: 20 GiB */
    bool plain_decoding;    /* one token a pass: no guesses that a pass checks beside it. The answers are the same */
    bool no_mtp;            /* the model's layer for multi-token prediction, where it has one, does not guess */
    qw_model *draft;        /* a small model with the same vocabulary that guesses, in place of such a layer; borrows as long
                               as the engine lives. QW_E_ARG with another vocabulary. NULL: none. The answers are the same */
    uint64_t memory_bytes_max; /* for everything; 0: what the machine has free, less a quarter for others */
} qw_engine_options;
qw_engine_options qw_engine_options_default(void);

/* Where the memory goes, computed before the first allocation. */
typedef struct qw_plan {
    uint32_t context, n_parallel;
    uint64_t weights_bytes; /* mapped: the model file, or the packed side file */
    uint64_t packed_bytes;  /* of packed weights held in memory (0 when they are mapped) */
    uint64_t kv_bytes;      /* keys and values of `context` tokens */
    uint64_t scratch_bytes; /* activations, logits, per-thread space, recurrent states of n_parallel sequences */
    uint64_t fixed_bytes;   /* remembered answers, the cache's index, masks of forms, requests and their events: at most */
    uint64_t draft_bytes;   /* all that the draft model takes (0 without one) */
    uint64_t total_bytes;   /* of these six: what is needed */
    uint64_t cache_bytes;   /* beyond that, for what others have computed: */
    uint64_t cache_tokens;  /* keys and values of so many tokens, */
    uint32_t n_snapshots;   /* and so many recurrent states */
    uint64_t available_bytes;
} qw_plan;
/* QW_E_MEMORY with a sentence that says what would fit; *out is filled either way. */
qw_status qw_engine_plan(const qw_model *model, const qw_engine_options *options, qw_plan *out, qw_err *err);

qw_status qw_engine_create(qw_model *model, const qw_engine_options *options, qw_engine **out, qw_err *err);
/* Ends what runs and frees; events not polled yet are lost. */
void qw_engine_destroy(qw_engine *engine);
uint32_t qw_engine_context(const qw_engine *engine);
int qw_engine_threads(const qw_engine *engine);
/* What a user should know about how this engine runs ("packed weights are kept in memory: ..."), or "". */
const char *qw_engine_note(const qw_engine *engine);

/* Everything in the request is copied. Any thread. Errors: QW_E_ARG (a parameter), QW_E_LIMIT (the prompt
 * does not fit the context: says both numbers), QW_E_BUSY (the queue is full, or too many answers that ended were not
 * polled). */
qw_status qw_submit(qw_engine *engine, const qw_request *request, uint64_t *id, qw_err *err);
/* Asks for the end of a request; its terminal event still comes (QW_FINISH_CANCELLED). Any thread. */
void qw_cancel(qw_engine *engine, uint64_t id);

/* Answers of CHAT requests are taken apart (docs/chat.md); those of other kinds are TEXT. Before DONE every BEGIN has
 * had its END, with nothing but ARGUMENTS and warnings between. A client that wants calls whole looks at END alone. */
typedef enum qw_event_type {
    QW_EVENT_PROGRESS = 1,   /* prefill: usage.prompt_tokens of them, usage.prefilled done */
    QW_EVENT_TEXT,           /* a piece of the answer: whole characters */
    QW_EVENT_REASONING,      /* a piece of the thinking before it */
    QW_EVENT_CALL_BEGIN,     /* a tool call begins: call has its name */
    QW_EVENT_CALL_ARGUMENTS, /* text: a piece of its arguments, which together are JSON text */
    QW_EVENT_CALL_END,       /* call is whole; complete: its arguments are, else it broke off within them */
    QW_EVENT_WARNING,        /* text: one sentence about what was not understood, or is not the model's own */
    QW_EVENT_DONE,           /* terminal: finish, usage and timings are set */
    QW_EVENT_ERROR           /* terminal: error is set; usage as far as it went */
} qw_event_type;

typedef enum qw_finish {
    QW_FINISH_NONE = 0,
    QW_FINISH_STOP,       /* end token or stop string */
    QW_FINISH_TOOL_CALLS, /* the same, after tool calls of which none broke off */
    QW_FINISH_LENGTH,     /* max_tokens reached */
    QW_FINISH_CONTEXT,    /* the context is full */
    QW_FINISH_CANCELLED,
    QW_FINISH_DEADLINE,
    QW_FINISH_REPETITION  /* it went on saying the same */
} qw_finish;

typedef struct qw_top_logprob {
    int32_t token;
    float logprob;
} qw_top_logprob;

typedef struct qw_event_token {
    int32_t token;
    float logprob;             /* natural log, of the model's distribution before sampling changed it */
    const qw_top_logprob *top; /* most probable first */
    size_t n_top;
} qw_event_token;

typedef struct qw_usage {
    uint32_t prompt_tokens;
    uint32_t cached_tokens;     /* of the prompt, reused from what the engine still held */
    uint32_t prefilled;         /* of the prompt, reused or computed so far */
    uint32_t computed_tokens;   /* rows that really were computed for this request, its answer's included */
    uint32_t completion_tokens; /* the end token is counted */
    uint32_t reasoning_tokens;  /* of these, in the thinking; its tags are counted */
} qw_usage;

/* Why less of a prompt was reused than it has in common with something that was computed before. */
typedef enum qw_cache_miss {
    QW_MISS_NONE = 0, /* nothing to be had was missed */
    QW_MISS_UNKNOWN,  /* nothing in common was ever computed for this owner (or it was forgotten long ago) */
    QW_MISS_EVICTED,  /* it was given up for want of memory */
    QW_MISS_SNAPSHOT  /* there is no snapshot of the recurrent state where the two part */
} qw_cache_miss;

/* How a prompt was served: docs/engine.md. */
typedef struct qw_cache_use {
    qw_cache_miss miss;
    uint32_t known_tokens;   /* of the prompt, in common with the nearest known conversation: */
    uint32_t known_messages; /* so many messages are the same, */
    uint32_t known_bytes;    /* and so many bytes of what follows them, as it is rendered */
    uint32_t restored_tokens; /* of those reused, from the folder of saved states */
} qw_cache_use;

/* How much the answer was allowed to think, whatever the request said it with: docs/engine-thinking.md. */
typedef struct qw_thinking_use {
    bool on;            /* it may begin with thinking */
    int64_t tokens_max; /* then it is closed; 0: no limit */
    qw_effort effort;   /* that the model was told; DEFAULT: its format has no words for one */
} qw_thinking_use;

typedef struct qw_timings {
    int64_t queue_us, prefill_us, decode_us; /* waiting; prompt; answer after its first token */
} qw_timings;

typedef struct qw_event {
    uint64_t request;
    void *user;
    qw_event_type type;
    qw_text text;                  /* TEXT, REASONING, CALL_ARGUMENTS, WARNING; valid until the next poll, as all pointers */
    const qw_event_token *tokens;  /* tokens sampled since the last event; text may lag behind them */
    size_t n_tokens;               /* every token but the end token comes once, if need be with an empty text */
    const qw_tool_call *call;      /* CALL_BEGIN, CALL_END; id: unguessable, found again when it comes back */
    uint32_t call_index;           /* CALL_*: 0 for the first call of the answer */
    bool complete;                 /* CALL_END */
    qw_finish finish;              /* DONE */
    bool closed;                   /* DONE: it kept its form to the end, but would have gone on with more tokens */
    char stop[QW_STOP_BYTES_MAX + 1]; /* DONE: the stop string that ended it, or "" */
    qw_usage usage;
    qw_cache_use cache;            /* DONE */
    qw_thinking_use thinking;      /* DONE */
    qw_timings timings;            /* DONE, ERROR */
    qw_err error;                  /* ERROR */
} qw_event;

static inline bool qw_event_is_terminal(const qw_event *ev)
{
    return ev->type == QW_EVENT_DONE || ev->type == QW_EVENT_ERROR;
}

/* Counted since the engine was made. */
typedef struct qw_engine_stats {
    uint32_t n_waiting, n_running;
    uint64_t requests, prompt_tokens, reused_tokens, computed_tokens; /* of requests that began; rows really computed */
    uint64_t missed[QW_MISS_SNAPSHOT + 1];                           /* requests, by qw_cache_miss */
    uint64_t restored_tokens;                                        /* of the reused ones, from the folder of saved states */
    uint64_t guessed, guessed_right;                                 /* tokens that a pass checked beside the next one */
    uint64_t preemptions;                                            /* requests that had to step back for want of memory */
    uint64_t cached_pages, cached_snapshots, evicted_pages, evicted_snapshots; /* of QW_PAGE_TOKENS tokens each */
    uint64_t save_failures;                                          /* pages and snapshots that could not be saved, */
    char save_fault[QW_ERR_TEXT_MAX];                                /* and why the first of them could not; or "" */
} qw_engine_stats;
void qw_engine_get_stats(qw_engine *engine, qw_engine_stats *out); /* any thread */

/* Takes the next event of any request. timeout_ms: 0 returns at once, -1 waits. False: none came. Called by
 * one thread at a time. The engine waits for no reader: a request of which 256 events wait pauses until half of them were
 * taken, and others go on. */
bool qw_poll(qw_engine *engine, int timeout_ms, qw_event *out);
/* The same of one request, for threads that look after one each; what an event points to is valid until the next poll of
 * that request. False: none came, or the last one was taken. An event is given once, to whoever asks first. */
bool qw_poll_request(qw_engine *engine, uint64_t id, int timeout_ms, qw_event *out);
/* A file descriptor that is readable while events wait, for event loops. Owned by the engine. */
int qw_engine_fd(const qw_engine *engine);

#ifdef __cplusplus
}
#endif
#endif
