/* ask.c: answers of the real engine, one user, and what each of them took; for the programs in bench/ that compare settings.
 *
 *     ask MODEL [--threads N] [--context N] [--guess none|all|SOURCE,...] [--draft MODEL]
 *
 * Reads one JSON object a line: "prompt", "max_tokens"; if wanted "temperature" (0: greedy, without penalties; else the model's
 * own sampling but for that), "seed", "schema" (the answer's form), "ignore_eos", "cancel_at" (tokens: then it is cancelled, and
 * what was on its way may still come). Writes one for each: "tokens" of the answer,
 * "finish" (qw_finish), "prompt_tokens", "decode_us" (after the first token), and of its guesses how many were "checked" and
 * "right".
 * A model without a chat format goes on from the text of the prompt.
 *
 * --guess says which sources of src/engine/draft.h take part, none: one token a pass. The program has no such option, and does
 * not need one: the linker leads the one call that chooses them through here (--wrap, in the Makefile). --draft is a small
 * model that guesses, as the program has it.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qw.h"

#include "engine/draft.h"

enum { CACHE_BYTES = 256 << 20, CONTEXT = 4096 };

/* Names of sources: one that is added to the engine is a row here and in bench/speculation.py. */
static const struct {
    const char *name;
    uint32_t sources;
} names[] = {
    {"ngrams", 1 << QW_DRAFT_NGRAM},
    {"recycled", 1 << QW_DRAFT_RECYCLED},
    {"model", 1 << QW_DRAFT_MODEL}, /* the small one, or the model's own layer for it */
};

static uint32_t sources; /* as in qw_drafts_options */

qw_status __real_qw_drafts_create(const qw_drafts_options *o, qw_drafts **out, qw_err *err);
qw_status __wrap_qw_drafts_create(const qw_drafts_options *o, qw_drafts **out, qw_err *err);

qw_status __wrap_qw_drafts_create(const qw_drafts_options *o, qw_drafts **out, qw_err *err)
{
    qw_drafts_options chosen = *o;
    chosen.sources = sources;
    return __real_qw_drafts_create(&chosen, out, err);
}

static void die(const char *why)
{
    fprintf(stderr, "ask: %s\n", why);
    exit(1);
}

/* ---- options ---------------------------------------------------------------------------------- */

/* Sets the sources (0: all), or plain decoding. False: a name is unknown. */
static bool choose(const char *list, qw_engine_options *o)
{
    o->plain_decoding = strcmp(list, "none") == 0;
    if (o->plain_decoding || strcmp(list, "all") == 0) return true;
    while (*list) {
        size_t n = strcspn(list, ","), i = 0;
        while (i < sizeof names / sizeof *names && (strlen(names[i].name) != n || strncmp(names[i].name, list, n) != 0)) i++;
        if (i == sizeof names / sizeof *names) return false;
        sources |= names[i].sources;
        list += n + (list[n] == ',');
    }
    return sources != 0;
}

static bool parse(int argc, char **argv, qw_engine_options *o, const char **draft)
{
    *o = qw_engine_options_default();
    o->context = CONTEXT;
    o->n_parallel = 1;
    bool good = argc >= 2 && argc % 2 == 0;
    for (int i = 2; good && i < argc; i += 2) {
        if (strcmp(argv[i], "--threads") == 0) good = (o->n_threads = atoi(argv[i + 1])) > 0;
        else if (strcmp(argv[i], "--context") == 0) good = (o->context = (uint32_t)atoi(argv[i + 1])) > 0;
        else if (strcmp(argv[i], "--guess") == 0) good = choose(argv[i + 1], o);
        else if (strcmp(argv[i], "--draft") == 0) *draft = argv[i + 1];
        else good = false;
    }
    return good;
}

/* ---- a request -------------------------------------------------------------------------------- */

static void set_sampling(const json_t *in, qw_sampling *s)
{
    double temperature = json_number_value(json_object_get(in, "temperature"));
    if (temperature > 0) s->temperature = (float)temperature;
    else *s = (qw_sampling){.top_p = 1, .repetition_penalty = 1, .top_logprobs = -1};
    s->seed = (uint64_t)json_integer_value(json_object_get(in, "seed"));
}

/* Submits it, and returns its number; what it borrows from `in` and `schema` is copied there. */
static uint64_t submit(qw_model *model, qw_engine *engine, const json_t *in, bool chat)
{
    const json_t *prompt = json_object_get(in, "prompt"), *form = json_object_get(in, "schema");
    qw_request r = qw_request_default(model);
    char *schema = form ? json_dumps(form, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    uint64_t id;
    qw_err err;
    if (!json_is_string(prompt) || (form && !schema)) die("want a prompt that is a string");
    const qw_text text = {json_string_value(prompt), json_string_length(prompt)};
    const qw_message message = {.role = "user", .content = text};
    r.kind = chat ? QW_PROMPT_CHAT : QW_PROMPT_RAW;
    r.messages = &message;
    r.n_messages = chat;
    r.text = text;
    r.chat.thinking = QW_SWITCH_OFF;
    r.max_tokens = json_integer_value(json_object_get(in, "max_tokens"));
    r.ignore_eos = json_is_true(json_object_get(in, "ignore_eos"));
    if (schema) r.form = (qw_form_request){.kind = QW_FORM_SCHEMA, .source = qw_text_of(schema)};
    set_sampling(in, &r.sampling);
    if (qw_submit(engine, &r, &id, &err) != QW_OK) die(err.text);
    free(schema);
    return id;
}

/* Until the counters know of the end of the n requests so far: they are as of the last step. */
static qw_engine_stats settled(qw_engine *engine, uint64_t n)
{
    qw_engine_stats s;
    for (;;) {
        qw_engine_get_stats(engine, &s);
        if (s.requests >= n && s.n_running == 0) return s;
        usleep(200);
    }
}

/* The tokens of request `id`; with so many of them it is cancelled (0: never). */
static json_t *listen(qw_engine *engine, uint64_t id, size_t cancel_at, qw_event *done)
{
    json_t *tokens = json_array();
    for (;;) {
        if (!qw_poll(engine, -1, done)) continue;
        if (cancel_at && json_array_size(tokens) < cancel_at && json_array_size(tokens) + done->n_tokens >= cancel_at)
            qw_cancel(engine, id);
        for (size_t i = 0; i < done->n_tokens; i++) json_array_append_new(tokens, json_integer(done->tokens[i].token));
        if (done->type == QW_EVENT_ERROR) die(done->error.text);
        if (done->type == QW_EVENT_DONE) return tokens;
    }
}

static void answer(qw_model *model, qw_engine *engine, const char *line, size_t n, bool chat)
{
    static uint64_t n_requests;
    static qw_engine_stats before;
    qw_event done;
    json_t *in = json_loadb(line, n, 0, NULL);
    if (!in) die("a line is no JSON");
    uint64_t id = submit(model, engine, in, chat);
    json_t *tokens = listen(engine, id, (size_t)json_integer_value(json_object_get(in, "cancel_at")), &done);
    qw_engine_stats s = settled(engine, ++n_requests);
    json_t *out = json_pack("{so si si sI sI sI}", "tokens", tokens, "finish", (int)done.finish, "prompt_tokens",
                            (int)done.usage.prompt_tokens, "decode_us", (json_int_t)done.timings.decode_us, "checked",
                            (json_int_t)(s.guessed - before.guessed), "right",
                            (json_int_t)(s.guessed_right - before.guessed_right));
    if (!out || json_dumpf(out, stdout, JSON_COMPACT) != 0) die("cannot write");
    putchar('\n');
    fflush(stdout);
    before = s;
    json_decref(out);
    json_decref(in);
}

static qw_model *open_model(const char *path)
{
    qw_model_options o = qw_model_options_default();
    qw_model *model = NULL;
    qw_err err;
    o.path = path;
    if (qw_model_open(&o, &model, &err) != QW_OK) die(err.text);
    return model;
}

int main(int argc, char **argv)
{
    qw_model_info info;
    qw_engine_options eo;
    qw_engine *engine = NULL;
    qw_plan plan;
    qw_err err;
    const char *draft = NULL;
    char *line = NULL;
    size_t cap = 0;
    if (!parse(argc, argv, &eo, &draft)) {
        fprintf(stderr, "use: ask MODEL [--threads N] [--context N] [--guess none|all|ngrams|recycled|model,...] [--draft MODEL]\n");
        return 2;
    }
    qw_model *model = open_model(argv[1]);
    if (draft) eo.draft = open_model(draft);
    if (qw_engine_plan(model, &eo, &plan, &err) != QW_OK) die(err.text);
    eo.memory_bytes_max = plan.total_bytes + CACHE_BYTES; /* several of these run side by side */
    if (qw_engine_create(model, &eo, &engine, &err) != QW_OK) die(err.text);
    qw_model_get_info(model, &info);
    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0;)
        answer(model, engine, line, (size_t)n, strcmp(info.chat_format, "none") != 0);
    free(line);
    qw_engine_destroy(engine);
    qw_model_close(eo.draft);
    qw_model_close(model);
    return 0;
}
