/* fake_engine.c: a test double for include/qw.h: no model, no arithmetic, the same answers always.
 *
 * Linked in place of the engine it lets the command and the service be tested in every situation. A token is a
 * word; the prompt counts one token a byte. The answer follows from the last user message:
 *   "slow ..."   2000 words, 20 ms each        "fail ..."    two words, then an error event
 *   "empty ..."  no text at all                "control ..." terminal control bytes
 *   "random ..." 16 words drawn from the seed  "think ..."   reasoning, then text
 *   "count ..."  the words one to fifty        "roles ..."   the roles and lengths of the conversation
 *   "call ..."   text, then two tool calls     "broken ..."  a tool call that breaks off, with a warning
 *   others       "You said: <message>"
 * Any thread may submit; one thread polls. Any file that begins with "GGUF" is a model.
 */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "cli/cli.h"

enum { N_QUEUE = 16, SLOW_WORDS = 2000, SLOW_MS = 20 };

struct qw_model {
    char *path;
};

typedef struct fake_request {
    uint64_t id;
    void *user;
    char *prompt, *answer, *reasoning, *stop; /* own; stop: the one that ends the answer, or NULL */
    size_t n_prompt, n_answer, at;
    int64_t max_tokens;
    uint32_t n_done;
    int32_t top_logprobs;
    const qw_event *calls; /* what follows the text; ended by an event without a type */
    bool has_called, slow, fails, cancelled, ends_by_length, progress_sent;
    qw_usage usage;
    int64_t submitted_us, begin_us, first_us;
} fake_request;

struct qw_engine {
    qw_model *model;
    uint32_t context;
    int n_threads, fd;
    pthread_mutex_t lock;
    uint64_t next_id;
    fake_request queue[N_QUEUE]; /* under lock; [0] is answered now */
    size_t n;
    char *held;                  /* the last prompt, for cached_tokens */
    size_t n_held;
    qw_event_token token;
    qw_top_logprob top[QW_TOP_LOGPROBS_MAX];
    char text[4096];             /* of the last event */
};

static char *copy_of(const char *s, size_t n)
{
    char *copy = NULL;
    if (qw_strndup(&copy, n > 0 ? s : "", n, NULL) != QW_OK) abort();
    return copy;
}

qw_text qw_text_of(const char *s)
{
    return (qw_text){s != NULL ? s : "", s != NULL ? strlen(s) : 0};
}

/* ---- model ------------------------------------------------------------------------------------ */

qw_model_options qw_model_options_default(void)
{
    return (qw_model_options){0};
}

qw_status qw_model_open(const qw_model_options *options, qw_model **out, qw_err *err)
{
    char magic[4] = {0};
    FILE *f = fopen(options->path, "rb");
    if (f == NULL) return qw_fail_errno(err, "%s: cannot be opened", options->path);
    size_t n = fread(magic, 1, 4, f);
    fclose(f);
    if (n != 4 || memcmp(magic, "GGUF", 4) != 0)
        return qw_fail(err, QW_E_FORMAT, "%s: not a GGUF file", options->path);
    QW_TRY(qw_alloc(out, 1, sizeof(**out), "model", err));
    (*out)->path = copy_of(options->path, strlen(options->path));
    return QW_OK;
}

void qw_model_close(qw_model *model)
{
    if (model == NULL) return;
    free(model->path);
    free(model);
}

qw_status qw_model_verify(const qw_model *model, qw_err *err)
{
    (void)model;
    (void)err;
    return QW_OK;
}

void qw_model_get_info(const qw_model *model, qw_model_info *out)
{
    *out = (qw_model_info){
        .path = model->path, .architecture = "fake", .name = "Fake 1B", .quantization = "Q4_K",
        .chat_format = strstr(model->path, "base") != NULL ? "none" : "qwen2.5", .file_bytes = 4, .n_params = 1,
        .n_layers = 1, .hidden = 1, .n_heads = 1, .n_kv_heads = 1, .head_dim = 1, .ffn = 1, .n_vocab = 258,
        .context_length = 32768, .has_tokenizer = true, .has_fim = true,
        .chat_template_known = strstr(model->path, "finetune") == NULL, .thinks = true,
        .thinks_always = strstr(model->path, "always") != NULL,
    };
}

/* ---- text ------------------------------------------------------------------------------------- */

qw_status qw_tokenize(const qw_model *model, qw_text text, bool special, int32_t **ids, size_t *n, qw_err *err)
{
    static const char control[] = "<|im_end|>";
    (void)model;
    *n = 0;
    QW_TRY(qw_alloc(ids, text.n + 1, sizeof(**ids), "token ids", err));
    for (size_t i = 0; i < text.n;) {
        bool is_control = special && text.n - i >= 10 && memcmp(text.s + i, control, 10) == 0;
        (*ids)[(*n)++] = is_control ? 256 : (unsigned char)text.s[i];
        i += is_control ? 10 : 1;
    }
    return QW_OK;
}

qw_text qw_token_text(const qw_model *model, int32_t id)
{
    static char bytes[256];
    (void)model;
    if (id < 0 || id > 255) return qw_text_of("<|im_end|>");
    bytes[id] = (char)id;
    return (qw_text){&bytes[id], 1};
}

/* ---- request ---------------------------------------------------------------------------------- */

qw_request qw_request_default(const qw_model *model)
{
    (void)model;
    return (qw_request){.sampling = {.temperature = 0.7F, .top_k = 20, .top_p = 0.8F, .repetition_penalty = 1.05F,
                                     .seed = (uint64_t)qw_clock_us(), .top_logprobs = -1}};
}

static qw_status prompt_text(const qw_request *r, qw_buf *out, qw_err *err)
{
    if (r->kind == QW_PROMPT_TOKENS) return qw_buf_printf(out, err, "%zu ids", r->n_tokens);
    if (r->kind == QW_PROMPT_RAW) return qw_buf_add(out, r->text.s, r->text.n, err);
    if (r->kind == QW_PROMPT_FIM) {
        QW_TRY(qw_buf_add(out, r->text.s, r->text.n, err));
        QW_TRY(qw_buf_add_str(out, "|", err));
        return qw_buf_add(out, r->suffix.s, r->suffix.n, err);
    }
    for (size_t i = 0; i < r->n_messages; i++) {
        QW_TRY(qw_buf_printf(out, err, "%s\n", r->messages[i].role));
        QW_TRY(qw_buf_add(out, r->messages[i].content.s, r->messages[i].content.n, err));
        QW_TRY(qw_buf_add_str(out, "\n", err));
    }
    return QW_OK;
}

qw_status qw_render(const qw_model *model, const qw_request *request, int32_t **ids, size_t *n, qw_err *err)
{
    qw_buf text;
    qw_buf_init(&text, QW_PROMPT_BYTES_MAX, "prompt");
    qw_status status = prompt_text(request, &text, err);
    if (status == QW_OK) status = qw_tokenize(model, (qw_text){qw_buf_str(&text), text.n}, true, ids, n, err);
    qw_buf_free(&text);
    return status;
}

static qw_status random_words(uint64_t seed, qw_buf *out, qw_err *err)
{
    static const char *const words[] = {"red", "green", "blue", "black", "white", "amber", "violet", "grey"};
    for (uint64_t i = 0; i < 16; i++) { /* keyed by (seed, position), as the engine's draws are */
        uint64_t x = (seed + 1) * 0x9E3779B97F4A7C15U + i * 0xBF58476D1CE4E5B9U;
        x = (x ^ (x >> 31)) * 0x94D049BB133111EBU;
        QW_TRY(qw_buf_printf(out, err, "%s%s", i > 0 ? " " : "", words[(x >> 40) % 8]));
    }
    return QW_OK;
}

static qw_status numbered_words(unsigned n, qw_buf *out, qw_err *err)
{
    for (unsigned i = 0; i < n; i++) QW_TRY(qw_buf_printf(out, err, "word%u ", i));
    return QW_OK;
}

static qw_status roles(const qw_request *r, qw_buf *out, qw_err *err)
{
    for (size_t i = 0; i < r->n_messages; i++)
        QW_TRY(qw_buf_printf(out, err, "%s%s:%zu", i > 0 ? " " : "", r->messages[i].role,
                             r->messages[i].content.n));
    return QW_OK;
}

static bool begins(qw_text text, const char *word)
{
    size_t n = strlen(word);
    return text.n >= n && memcmp(text.s, word, n) == 0;
}

#define TEXT(s) {(s), sizeof(s) - 1}
#define CALL_ID(last) "call_00000000000000000000000" last
static const qw_tool_call weather_begins = {.id = CALL_ID("0"), .name = "weather"}, clock_begins = {.id = CALL_ID("1"), .name = "clock"};
static const qw_tool_call rome = {.id = CALL_ID("0"), .name = "weather", .arguments = TEXT("{\"place\": \"Rom\"}")};
static const qw_tool_call clock_call = {.id = CALL_ID("1"), .name = "clock", .arguments = TEXT("{}")};
static const qw_tool_call half = {.id = CALL_ID("0"), .name = "weather", .arguments = TEXT("{\"place\": ")};
static const qw_event two_calls[] = {
    {.type = QW_EVENT_CALL_BEGIN, .call = &weather_begins},
    {.type = QW_EVENT_CALL_ARGUMENTS, .text = TEXT("{\"place\": ")},
    {.type = QW_EVENT_CALL_ARGUMENTS, .text = TEXT("\"Rom\"}")},
    {.type = QW_EVENT_CALL_END, .call = &rome, .complete = true},
    {.type = QW_EVENT_CALL_BEGIN, .call = &clock_begins, .call_index = 1},
    {.type = QW_EVENT_CALL_ARGUMENTS, .text = TEXT("{}"), .call_index = 1},
    {.type = QW_EVENT_CALL_END, .call = &clock_call, .call_index = 1, .complete = true},
    {0},
};
static const qw_event broken_call[] = {
    {.type = QW_EVENT_CALL_BEGIN, .call = &weather_begins},
    {.type = QW_EVENT_CALL_ARGUMENTS, .text = TEXT("{\"place\": ")},
    {.type = QW_EVENT_CALL_END, .call = &half},
    {.type = QW_EVENT_WARNING, .text = TEXT("the call broke off")},
    {0},
};

static qw_status answer_text(const qw_request *r, fake_request *f, qw_buf *out, qw_err *err)
{
    if (r->kind != QW_PROMPT_CHAT) {
        QW_TRY(qw_buf_add_str(out, r->kind == QW_PROMPT_FIM ? "fim:" : "raw:", err));
        return prompt_text(r, out, err);
    }
    if (r->n_messages == 0) return qw_fail(err, QW_E_ARG, "messages: the list is empty");
    qw_text said = r->messages[r->n_messages - 1].content;
    f->slow = begins(said, "slow");
    f->fails = begins(said, "fail");
    if (begins(said, "think") && r->chat.thinking != QW_SWITCH_OFF) f->reasoning = copy_of("let me see", 10);
    if (begins(said, "call")) f->calls = two_calls;
    if (begins(said, "broken")) f->calls = broken_call;
    if (begins(said, "call only") || begins(said, "broken")) return QW_OK;
    if (begins(said, "empty")) return QW_OK;
    if (begins(said, "slow")) return numbered_words(SLOW_WORDS, out, err);
    if (begins(said, "count")) return numbered_words(50, out, err);
    if (begins(said, "fail")) return qw_buf_add_str(out, "two words ", err);
    if (begins(said, "control")) return qw_buf_add_str(out, "a\033[31mred\007 \xC2\x9B" "b\r end", err);
    if (begins(said, "random")) return random_words(r->sampling.seed, out, err);
    if (begins(said, "roles")) return roles(r, out, err);
    QW_TRY(qw_buf_add_str(out, "You said: ", err));
    return qw_buf_add(out, said.s, said.n, err);
}

/* The answer is known beforehand, so a stop string just cuts it. */
static void apply_stops(const qw_request *r, fake_request *f)
{
    for (size_t i = 0; i < r->n_stop; i++) {
        const char *found = strstr(f->answer, r->stop[i]);
        if (found == NULL) continue;
        f->n_answer = (size_t)(found - f->answer);
        f->answer[f->n_answer] = 0;
        free(f->stop);
        f->stop = copy_of(r->stop[i], strlen(r->stop[i]));
    }
}

static void request_free(fake_request *f)
{
    free(f->prompt);
    free(f->answer);
    free(f->reasoning);
    free(f->stop);
}

/* ---- engine ----------------------------------------------------------------------------------- */

qw_engine_options qw_engine_options_default(void)
{
    return (qw_engine_options){.n_queue_max = N_QUEUE};
}

qw_status qw_engine_plan(const qw_model *model, const qw_engine_options *options, qw_plan *out, qw_err *err)
{
    (void)model;
    (void)err;
    *out = (qw_plan){.context = options->context ? options->context : 32768, .available_bytes = 1 << 30};
    return QW_OK;
}

qw_status qw_engine_create(qw_model *model, const qw_engine_options *options, qw_engine **out, qw_err *err)
{
    qw_engine *e = NULL;
    QW_TRY(qw_alloc(&e, 1, sizeof(*e), "engine", err));
    e->model = model;
    e->context = options->context ? options->context : 32768;
    e->n_threads = options->n_threads ? options->n_threads : 1;
    e->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&e->lock, NULL);
    *out = e;
    return QW_OK;
}

void qw_engine_destroy(qw_engine *engine)
{
    if (engine == NULL) return;
    for (size_t i = 0; i < engine->n; i++) request_free(&engine->queue[i]);
    free(engine->held);
    close(engine->fd);
    pthread_mutex_destroy(&engine->lock);
    free(engine);
}

uint32_t qw_engine_context(const qw_engine *engine)
{
    return engine->context;
}

void qw_engine_get_stats(qw_engine *engine, qw_engine_stats *out)
{
    (void)engine;
    *out = (qw_engine_stats){0};
}

int qw_engine_threads(const qw_engine *engine)
{
    return engine->n_threads;
}

const char *qw_engine_note(const qw_engine *engine)
{
    (void)engine;
    return "";
}

int qw_engine_fd(const qw_engine *engine)
{
    return engine->fd;
}

static qw_status request_make(const qw_engine *e, const qw_request *r, fake_request *f, qw_err *err)
{
    qw_buf prompt, answer;
    qw_buf_init(&prompt, QW_PROMPT_BYTES_MAX, "prompt");
    qw_buf_init(&answer, QW_PROMPT_BYTES_MAX, "answer");
    qw_status status = prompt_text(r, &prompt, err);
    if (status == QW_OK && prompt.n >= e->context)
        status = qw_fail(err, QW_E_LIMIT, "the prompt has %zu tokens and the context holds %u", prompt.n, e->context);
    if (status == QW_OK) status = answer_text(r, f, &answer, err);
    if (status == QW_OK) {
        f->prompt = copy_of(prompt.data, prompt.n);
        f->n_prompt = prompt.n;
        f->answer = copy_of(answer.data, answer.n);
        f->n_answer = answer.n;
        f->user = r->user;
        f->max_tokens = r->max_tokens;
        f->top_logprobs = r->sampling.top_logprobs;
        f->submitted_us = qw_clock_us();
        apply_stops(r, f);
    }
    qw_buf_free(&prompt);
    qw_buf_free(&answer);
    return status;
}

qw_status qw_submit(qw_engine *engine, const qw_request *request, uint64_t *id, qw_err *err)
{
    fake_request f = {0};
    qw_status status = request_make(engine, request, &f, err);
    pthread_mutex_lock(&engine->lock);
    if (status == QW_OK && engine->n == N_QUEUE) status = qw_fail(err, QW_E_BUSY, "%d requests wait already", N_QUEUE);
    if (status == QW_OK) {
        *id = f.id = ++engine->next_id;
        engine->queue[engine->n++] = f;
        if (engine->n == 1) eventfd_write(engine->fd, 1);
    }
    pthread_mutex_unlock(&engine->lock);
    if (status != QW_OK) request_free(&f);
    return status;
}

void qw_cancel(qw_engine *engine, uint64_t id)
{
    pthread_mutex_lock(&engine->lock);
    for (size_t i = 0; i < engine->n; i++)
        if (engine->queue[i].id == id) engine->queue[i].cancelled = true;
    pthread_mutex_unlock(&engine->lock);
}

static void fill(const fake_request *f, qw_event *ev, qw_event_type type)
{
    *ev = (qw_event){.request = f->id, .user = f->user, .type = type, .usage = f->usage};
}

static bool start(qw_engine *e, fake_request *f, qw_event *ev)
{
    size_t same = 0;
    while (same < f->n_prompt - 1 && same < e->n_held && f->prompt[same] == e->held[same]) same++;
    free(e->held);
    e->held = copy_of(f->prompt, f->n_prompt);
    e->n_held = f->n_prompt;
    f->usage = (qw_usage){.prompt_tokens = (uint32_t)f->n_prompt, .cached_tokens = (uint32_t)same,
                          .prefilled = (uint32_t)f->n_prompt};
    f->begin_us = qw_clock_us();
    f->progress_sent = true;
    fill(f, ev, QW_EVENT_PROGRESS);
    return true;
}

static bool end(qw_engine *e, fake_request *f, qw_event *ev, qw_finish finish)
{
    int64_t now = qw_clock_us();
    if (finish == QW_FINISH_STOP) f->usage.completion_tokens++;
    fill(f, ev, f->fails && finish == QW_FINISH_STOP ? QW_EVENT_ERROR : QW_EVENT_DONE);
    if (ev->type == QW_EVENT_ERROR) qw_fail(&ev->error, QW_E_CORRUPT, "the fake engine was told to fail");
    if (ev->type == QW_EVENT_DONE) ev->finish = finish;
    if (f->stop != NULL && finish == QW_FINISH_STOP) snprintf(ev->stop, sizeof(ev->stop), "%s", f->stop);
    int64_t begin = f->begin_us ? f->begin_us : now, first = f->first_us ? f->first_us : now;
    ev->timings = (qw_timings){begin - f->submitted_us, first - begin, now - first};
    request_free(f);
    memmove(&e->queue[0], &e->queue[1], --e->n * sizeof(e->queue[0]));
    eventfd_t left;
    if (e->n == 0) eventfd_read(e->fd, &left);
    return true;
}

static bool word(qw_engine *e, fake_request *f, qw_event *ev)
{
    size_t n = strcspn(f->answer + f->at, " ");
    n += f->answer[f->at + n] == ' ';
    if (n > f->n_answer - f->at) n = f->n_answer - f->at;
    if (n == 0) n = f->n_answer - f->at; /* a NUL in the text */
    if (n > sizeof(e->text)) n = sizeof(e->text);
    memcpy(e->text, f->answer + f->at, n);
    f->at += n;
    f->usage.completion_tokens++;
    if (f->first_us == 0) f->first_us = qw_clock_us();
    fill(f, ev, QW_EVENT_TEXT);
    ev->text = (qw_text){e->text, n};
    for (int32_t i = 0; i < f->top_logprobs; i++) e->top[i] = (qw_top_logprob){'a' + i, -0.5F - (float)i};
    e->token = (qw_event_token){(unsigned char)e->text[0], -0.5F, e->top,
                                f->top_logprobs > 0 ? (size_t)f->top_logprobs : 0};
    if (f->top_logprobs >= 0) {
        ev->tokens = &e->token;
        ev->n_tokens = 1;
    }
    return true;
}

/* The next event of the first request; false when there is no request. Under the lock. */
static bool next_event(qw_engine *e, qw_event *ev)
{
    if (e->n == 0) return false;
    fake_request *f = &e->queue[0];
    if (f->cancelled) return end(e, f, ev, QW_FINISH_CANCELLED);
    if (!f->progress_sent) return start(e, f, ev);
    if (f->reasoning != NULL) {
        fill(f, ev, QW_EVENT_REASONING);
        int n = snprintf(e->text, sizeof(e->text), "%s", f->reasoning);
        ev->text = (qw_text){e->text, (size_t)n};
        free(f->reasoning);
        f->reasoning = NULL;
        f->usage.reasoning_tokens = 3;
        return true;
    }
    if (f->at >= f->n_answer && f->calls != NULL && f->calls->type != 0) {
        fill(f, ev, f->calls->type);
        ev->text = f->calls->text;
        ev->call = f->calls->call;
        ev->call_index = f->calls->call_index;
        ev->complete = f->calls->complete;
        f->has_called = f->has_called || ev->complete;
        f->calls++;
        return true;
    }
    if (f->at >= f->n_answer) return end(e, f, ev, f->has_called ? QW_FINISH_TOOL_CALLS : QW_FINISH_STOP);
    if (f->max_tokens > 0 && f->usage.completion_tokens >= f->max_tokens) return end(e, f, ev, QW_FINISH_LENGTH);
    if (f->n_prompt + f->usage.completion_tokens >= e->context) return end(e, f, ev, QW_FINISH_CONTEXT);
    return word(e, f, ev);
}

bool qw_poll(qw_engine *engine, int timeout_ms, qw_event *out)
{
    struct pollfd fd = {.fd = engine->fd, .events = POLLIN};
    pthread_mutex_lock(&engine->lock);
    bool slow = engine->n > 0 && engine->queue[0].slow && engine->queue[0].at > 0;
    pthread_mutex_unlock(&engine->lock);
    if (slow) {
        struct timespec pause = {0, SLOW_MS * 1000000L};
        nanosleep(&pause, NULL);
    }
    poll(&fd, 1, timeout_ms);
    pthread_mutex_lock(&engine->lock);
    bool found = next_event(engine, out);
    pthread_mutex_unlock(&engine->lock);
    return found;
}

/* ---- commands that look inside a model: not with this double ---------------------------------- */

static int no_model_inside(const char *command)
{
    return qw_cli_fail("%s needs a real engine", command);
}
__attribute__((weak)) int qw_cmd_logits(int argc, char **argv)
{
    return no_model_inside(argc > 0 ? argv[0] : "logits");
}
__attribute__((weak)) int qw_cmd_convert(int argc, char **argv)
{
    return no_model_inside(argc > 0 ? argv[0] : "convert");
}
__attribute__((weak)) int qw_cmd_embed(int argc, char **argv)
{
    return no_model_inside(argc > 0 ? argv[0] : "embed");
}
__attribute__((weak)) int qw_cmd_rerank(int argc, char **argv)
{
    return no_model_inside(argc > 0 ? argv[0] : "rerank");
}
__attribute__((weak)) int qw_cmd_bench(int argc, char **argv)
{
    return no_model_inside(argc > 0 ? argv[0] : "bench");
}
__attribute__((weak)) int qw_cmd_eval(int argc, char **argv)
{
    return no_model_inside(argc > 0 ? argv[0] : "eval");
}
__attribute__((weak)) int qw_cmd_imatrix(int argc, char **argv)
{
    return no_model_inside(argc > 0 ? argv[0] : "imatrix");
}
__attribute__((weak)) int qw_cmd_quantize(int argc, char **argv)
{
    return no_model_inside(argc > 0 ? argv[0] : "quantize");
}
