/* tape.c: see tape.h. */
#include "tape.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qw.h"

#include "base/file.h"

enum { PROMPTS_BYTES_MAX = 1 << 20, CASES_MAX = 64, TOKENS_MAX = 1 << 20 };

static bool complain(const char *format, ...) QW_PRINTF(1, 2);

static bool complain(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("drafts: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return false;
}

static void *must(void *p)
{
    if (p) return p;
    complain("out of memory");
    exit(1);
}

void tape_free(tape *t)
{
    for (size_t i = 0; i < t->n_cases; i++) {
        free(t->cases[i].tokens);
        free(t->cases[i].top);
    }
    free(t->cases);
    *t = (tape){0};
}

static tape_case *add_case(tape *t, const char *kind, size_t n_kind)
{
    if (!t->cases) t->cases = must(calloc(CASES_MAX, sizeof *t->cases));
    if (t->n_cases == CASES_MAX || n_kind >= TAPE_KIND_MAX) return NULL;
    tape_case *c = &t->cases[t->n_cases++];
    memcpy(c->kind, kind, n_kind);
    return c;
}

/* ---- recording ------------------------------------------------------------------------------------ */

static bool submit(qw_model *model, qw_engine *engine, tape_case *c, qw_text prompt, int32_t n_answer_max)
{
    const qw_message message = {.role = "user", .content = prompt};
    qw_request r = qw_request_default(model);
    int32_t *ids;
    size_t n;
    uint64_t id;
    qw_err err;
    r.messages = &message;
    r.n_messages = 1;
    r.sampling = (qw_sampling){.top_p = 1, .repetition_penalty = 1, .top_logprobs = TAPE_TOP};
    r.max_tokens = n_answer_max;
    r.user = c;
    if (qw_render(model, &r, &ids, &n, &err) != QW_OK) return complain("%s", err.text);
    c->n_prompt = (uint32_t)n;
    c->tokens = must(realloc(ids, (n + (size_t)n_answer_max) * sizeof *ids));
    c->top = must(calloc((size_t)n_answer_max * TAPE_TOP, sizeof *c->top));
    return qw_submit(engine, &r, &id, &err) == QW_OK || complain("%s", err.text);
}

static bool submit_all(qw_model *model, qw_engine *engine, tape *t, const char *text, int32_t n_answer_max)
{
    for (const char *at = strstr(text, "\n@ "); at;) {
        const char *kind = at + 3, *body = strchr(kind, '\n'), *next = strstr(kind, "\n@ ");
        if (!body) return complain("the last prompt has no text");
        tape_case *c = add_case(t, kind, (size_t)(body - kind));
        if (!c) return complain("more than %d prompts, or a long name", CASES_MAX);
        const qw_text prompt = {body + 1, next ? (size_t)(next - body - 1) : strlen(body + 1)};
        if (!submit(model, engine, c, prompt, n_answer_max)) return false;
        at = next;
    }
    return t->n_cases > 0 || complain("no prompts");
}

static void take_tokens(const qw_event *ev)
{
    tape_case *c = ev->user;
    for (size_t i = 0; i < ev->n_tokens; i++) {
        const qw_event_token *token = &ev->tokens[i];
        c->tokens[c->n_prompt + c->n_answer] = token->token;
        for (size_t k = 0; k < TAPE_TOP && k < token->n_top; k++)
            c->top[c->n_answer * TAPE_TOP + k] = (tape_top){token->top[k].token, token->top[k].logprob};
        c->n_answer++;
    }
}

static bool listen(qw_engine *engine, size_t n_cases)
{
    for (qw_event ev; n_cases > 0;) {
        if (!qw_poll(engine, -1, &ev)) continue;
        if (ev.type == QW_EVENT_ERROR) return complain("%s", ev.error.text);
        take_tokens(&ev);
        n_cases -= ev.type == QW_EVENT_DONE;
    }
    return true;
}

bool tape_record(const char *path, const char *prompts, int32_t n_answer_max, tape *out)
{
    qw_model_options mo = qw_model_options_default();
    qw_engine_options eo = qw_engine_options_default();
    qw_model *model = NULL;
    qw_engine *engine = NULL;
    char *text = NULL;
    size_t n;
    qw_err err;
    *out = (tape){0};
    mo.path = path;
    eo.context = 2048;
    eo.n_parallel = 32;
    bool ok = qw_file_read(prompts, PROMPTS_BYTES_MAX, &text, &n, &err) == QW_OK &&
              qw_model_open(&mo, &model, &err) == QW_OK && qw_engine_create(model, &eo, &engine, &err) == QW_OK;
    if (!ok) complain("%s", err.text);
    ok = ok && submit_all(model, engine, out, text, n_answer_max) && listen(engine, out->n_cases);
    qw_engine_destroy(engine);
    qw_model_close(model);
    free(text);
    return ok;
}

/* ---- files ------------------------------------------------------------------------------------------ */

bool tape_write(const tape *t, const char *path)
{
    FILE *f = fopen(path, "w");
    if (!f) return complain("%s: cannot create", path);
    for (size_t i = 0; i < t->n_cases; i++) {
        const tape_case *c = &t->cases[i];
        fprintf(f, "%s %u %u\n", c->kind, c->n_prompt, c->n_answer);
        for (uint32_t k = 0; k < c->n_prompt + c->n_answer; k++) fprintf(f, "%d ", c->tokens[k]);
        for (uint32_t k = 0; k < c->n_answer * TAPE_TOP; k++)
            fprintf(f, "%c%d %.4f", k % TAPE_TOP ? ' ' : '\n', c->top[k].token, (double)c->top[k].logprob);
        fputc('\n', f);
    }
    bool ok = !ferror(f);
    return (fclose(f) == 0 && ok) || complain("%s: cannot write", path);
}

static bool read_case(FILE *f, tape_case *c)
{
    if (fscanf(f, "%u %u", &c->n_prompt, &c->n_answer) != 2 || c->n_prompt > TOKENS_MAX || c->n_answer > TOKENS_MAX)
        return false;
    c->tokens = must(calloc(c->n_prompt + c->n_answer + 1, sizeof *c->tokens));
    c->top = must(calloc(c->n_answer * TAPE_TOP + 1, sizeof *c->top));
    for (uint32_t k = 0; k < c->n_prompt + c->n_answer; k++)
        if (fscanf(f, "%d", &c->tokens[k]) != 1) return false;
    for (uint32_t k = 0; k < c->n_answer * TAPE_TOP; k++)
        if (fscanf(f, "%d %f", &c->top[k].token, &c->top[k].logprob) != 2) return false;
    return true;
}

bool tape_read(const char *path, tape *out)
{
    char kind[TAPE_KIND_MAX];
    FILE *f = fopen(path, "r");
    bool ok = true;
    *out = (tape){0};
    if (!f) return complain("%s: cannot open", path);
    while (ok && fscanf(f, "%15s", kind) == 1) {
        tape_case *c = add_case(out, kind, strlen(kind));
        ok = c && read_case(f, c);
    }
    fclose(f);
    return (ok && out->n_cases > 0) || complain("%s: not a whole tape", path);
}
