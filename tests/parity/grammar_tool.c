/* grammar_tool.c: constrained output with random tokens in place of a model's, for tests/parity/grammar.py.
 *
 * Use: grammar_tool MODEL.gguf
 * Requests on standard input, one JSON object a line; answers on standard output, likewise.
 *   kind            schema, json_object, regex, ebnf, choice (a list), tools (xml, required, one, only)
 *   source          its text, or the list
 *   after_thinking, cpu_ms
 *   n, seed, soft, max   how many outputs, the first seed; after `soft` tokens the walk ends as soon as it can, after
 *                        `max` it is cut
 * Answer: status (0: compiled) and error, or states, outputs (texts; null when cut), tokens and fill times in us.
 * Every step checks that the mask is not empty and that the matcher takes what the mask allows.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "formats/gguf.h"
#include "text/grammar_private.h"

enum { LINE_MAX_BYTES = 8 << 20, TIMES_MAX = 1 << 20, N_KEPT = 256 };

struct tool {
    qw_tokenizer *tokenizer;
    qw_token_trie *trie;
    qw_masker *masker;
    uint32_t *bits;
    int32_t bytes[256]; /* token of a single byte, -1: none */
    int32_t *allowed;
    uint64_t random;
    double *times;
    size_t n_times;
};

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "grammar_tool: %s\n", what);
    exit(2);
}

/* Processor time of this thread in us: other programs on the machine do not count. */
static double cpu_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static uint64_t next_random(struct tool *t)
{
    t->random ^= t->random << 13;
    t->random ^= t->random >> 7;
    t->random ^= t->random << 17;
    return t->random >> 16;
}

static bool is_set(const struct tool *t, int32_t id)
{
    return id >= 0 && t->bits[id / 32] >> id % 32 & 1;
}

/* A random token of all that are allowed. */
static int32_t any_token(struct tool *t)
{
    size_t n = 0;
    for (size_t w = 0; w < qw_masker_n_words(t->masker); w++)
        for (uint32_t bits = t->bits[w]; bits; bits &= bits - 1) t->allowed[n++] = (int32_t)(w * 32) + __builtin_ctz(bits);
    if (n == 0) die("the mask is empty");
    return t->allowed[next_random(t) % n];
}

/* A random token of one byte; -1: there is none. */
static int32_t any_byte(struct tool *t)
{
    size_t n = 0;
    for (int b = 0; b < 256; b++)
        if (is_set(t, t->bytes[b])) t->allowed[n++] = t->bytes[b];
    return n ? t->allowed[next_random(t) % n] : -1;
}

/* One of the tokens that bring the end nearest. */
static int32_t toward_end(struct tool *t, const qw_matcher *m)
{
    qw_masker_close(t->masker, m, 0, t->bits);
    return any_token(t);
}

static int32_t choose(struct tool *t, const qw_matcher *m, bool ending)
{
    if (ending) return toward_end(t, m);
    int32_t id = next_random(t) % 2 ? any_byte(t) : -1;
    return id < 0 ? any_token(t) : id;
}

static void take(struct tool *t, qw_matcher *m, int32_t id, qw_buf *out)
{
    qw_err err;
    if (qw_matcher_advance(m, id, &err) != QW_OK) {
        fprintf(stderr, "grammar_tool: token %d behind %s: %s\n", (int)id, qw_buf_str(out), err.text);
        exit(2);
    }
    if (qw_tokenizer_is_end(t->tokenizer, id)) return;
    qw_text bytes = qw_tokenizer_bytes(t->tokenizer, id);
    if (qw_buf_add(out, bytes.s, bytes.n, NULL) != QW_OK) die("out of memory");
}

/* One output; null when it was cut. */
static json_t *walk(struct tool *t, const qw_grammar *g, size_t soft, size_t max, size_t *tokens)
{
    qw_matcher *m;
    qw_buf out;
    bool ended = false;
    if (qw_matcher_create(g, t->tokenizer, &m, NULL) != QW_OK) die("out of memory");
    qw_buf_init(&out, 1 << 24, "an output");
    for (size_t i = 0; i < max && !ended; i++, ++*tokens) {
        double begin = cpu_us();
        qw_masker_fill(t->masker, m, t->bits);
        if (t->n_times < TIMES_MAX) t->times[t->n_times++] = cpu_us() - begin;
        int32_t id = choose(t, m, i >= soft);
        take(t, m, id, &out);
        ended = qw_tokenizer_is_end(t->tokenizer, id);
    }
    qw_matcher_destroy(m);
    json_t *text = ended ? json_stringn(qw_buf_str(&out), out.n) : json_null();
    if (!text) die("an output is not UTF-8");
    qw_buf_free(&out);
    return text;
}

static qw_text text_of(const json_t *request, const char *key)
{
    const json_t *value = json_object_get(request, key);
    return (qw_text){json_string_value(value) ? json_string_value(value) : "", json_string_length(value)};
}

static qw_status compile_choice(const json_t *list, const qw_grammar_options *options, qw_grammar **g, qw_err *err)
{
    size_t n = json_array_size(list);
    qw_text *texts = calloc(n + 1, sizeof *texts);
    if (!texts) die("out of memory");
    for (size_t i = 0; i < n; i++) {
        const json_t *text = json_array_get(list, i);
        texts[i] = (qw_text){json_string_value(text), json_string_length(text)};
    }
    qw_status status = qw_grammar_choice(texts, n, options, g, err);
    free(texts);
    return status;
}

static qw_status compile(const struct tool *t, const json_t *request, qw_grammar **g, qw_err *err)
{
    qw_text kind = text_of(request, "kind"), source = text_of(request, "source");
    qw_grammar_options options = {
        .after_thinking = json_is_true(json_object_get(request, "after_thinking")),
        .cpu_us_max = json_integer_value(json_object_get(request, "cpu_ms")) * 1000,
    };
    qw_grammar_calls calls = {
        .tools = source, .only = text_of(request, "only"), .xml_calls = json_is_true(json_object_get(request, "xml")),
        .required = json_is_true(json_object_get(request, "required")),
        .one = json_is_true(json_object_get(request, "one")), .tokenizer = t->tokenizer,
    };
    if (strcmp(kind.s, "schema") == 0) return qw_grammar_schema(source, &options, g, err);
    if (strcmp(kind.s, "json_object") == 0) return qw_grammar_json_object(&options, g, err);
    if (strcmp(kind.s, "regex") == 0) return qw_grammar_regex(source, &options, g, err);
    if (strcmp(kind.s, "ebnf") == 0) return qw_grammar_ebnf(source, &options, g, err);
    if (strcmp(kind.s, "choice") == 0) return compile_choice(json_object_get(request, "source"), &options, g, err);
    if (strcmp(kind.s, "tools") == 0) return qw_grammar_tools(&calls, &options, g, err);
    die("no such kind");
}

static int compare_times(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static json_t *times_of(struct tool *t)
{
    double sum = 0;
    if (t->n_times == 0) return json_null();
    qsort(t->times, t->n_times, sizeof *t->times, compare_times);
    for (size_t i = 0; i < t->n_times; i++) sum += t->times[i];
    return json_pack("{s:f,s:f,s:f,s:f}", "mean", sum / (double)t->n_times, "p50", t->times[t->n_times / 2], "p99",
                     t->times[t->n_times * 99 / 100], "max", t->times[t->n_times - 1]);
}

static json_t *answer(struct tool *t, const json_t *request)
{
    qw_grammar *g = NULL;
    qw_err err = {0};
    double begin = cpu_us();
    qw_status status = compile(t, request, &g, &err);
    double compile_us = cpu_us() - begin;
    if (status != QW_OK) return json_pack("{s:i,s:s}", "status", (int)status, "error", err.text);
    json_t *outputs = json_array();
    size_t tokens = 0, n = (size_t)json_integer_value(json_object_get(request, "n"));
    t->n_times = 0;
    for (size_t i = 0; i < n; i++) {
        t->random = (uint64_t)json_integer_value(json_object_get(request, "seed")) * 0x9E3779B97F4A7C15u + i + 1;
        for (int k = 0; k < 8; k++) next_random(t);
        json_array_append_new(outputs, walk(t, g, (size_t)json_integer_value(json_object_get(request, "soft")),
                                            (size_t)json_integer_value(json_object_get(request, "max")), &tokens));
    }
    json_t *reply = json_pack("{s:i,s:I,s:f,s:I,s:o,s:o}", "status", 0, "states", (json_int_t)qw_grammar_n_states(g),
                              "compile_us", compile_us, "tokens", (json_int_t)tokens, "outputs", outputs,
                              "fill_us", times_of(t));
    qw_grammar_destroy(g);
    return reply;
}

static void open_tool(struct tool *t, const char *path)
{
    qw_gguf *gguf;
    qw_err err;
    if (qw_gguf_open(path, &gguf, &err) != QW_OK || qw_tokenizer_open_gguf(gguf, &t->tokenizer, &err) != QW_OK ||
        qw_token_trie_create(t->tokenizer, &t->trie, &err) != QW_OK ||
        qw_masker_create(t->trie, N_KEPT, &t->masker, &err) != QW_OK)
        die(err.text);
    qw_gguf_close(gguf);
    size_t n = qw_tokenizer_n_vocab(t->tokenizer);
    t->bits = calloc(qw_masker_n_words(t->masker), sizeof *t->bits);
    t->allowed = calloc(n, sizeof *t->allowed);
    t->times = calloc(TIMES_MAX, sizeof *t->times);
    if (!t->bits || !t->allowed || !t->times) die("out of memory");
    memset(t->bytes, -1, sizeof t->bytes);
    for (size_t i = 0; i < n; i++) {
        qw_text bytes = qw_tokenizer_bytes(t->tokenizer, (int32_t)i);
        if (bytes.n == 1 && !qw_tokenizer_is_added(t->tokenizer, (int32_t)i)) t->bytes[(unsigned char)bytes.s[0]] = (int32_t)i;
    }
}

int main(int argc, char **argv)
{
    struct tool t = {0};
    char *line = NULL;
    size_t cap = 0;
    if (argc != 2) die("use: grammar_tool MODEL.gguf");
    open_tool(&t, argv[1]);
    while (getline(&line, &cap, stdin) > 0) {
        json_error_t bad;
        json_t *request = json_loads(line, JSON_ALLOW_NUL, &bad);
        if (!request) die("a request is not JSON");
        json_t *reply = answer(&t, request);
        if (json_dumpf(reply, stdout, JSON_COMPACT | JSON_ENSURE_ASCII)) die("an answer could not be written");
        putchar('\n');
        fflush(stdout);
        json_decref(reply);
        json_decref(request);
    }
    free(line);
    free(t.bits);
    free(t.allowed);
    free(t.times);
    qw_masker_destroy(t.masker);
    qw_token_trie_destroy(t.trie);
    qw_tokenizer_close(t.tokenizer);
    return 0;
}
