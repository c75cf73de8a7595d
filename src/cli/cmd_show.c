/* cmd_show.c: `qw show`: what a model is and the memory it takes; its tensors and metadata on request. Main
 * thread.
 *
 * The description and the plan come through qw.h, as every other program would see them. The lists come from
 * the container alone, so that they also work on a file that qw cannot run.
 */
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "formats/gguf.h"
#include "hub/hub.h"
#include "hub/work.h"

typedef struct show {
    qw_cli_model model;
    char path[QW_CLI_PATH_MAX];
    qw_hub *hub;          /* owns; `stored` borrows from it */
    qw_hub_model *stored; /* owns; NULL: a plain file */
    bool json, tensors, metadata;
} show;

/* ---- lists out of the container ---------------------------------------------------------------- */

static const char *const kv_types[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                       "bool", "string", "array", "u64", "i64", "f64"};

static const char *kv_type_name(qw_gguf_type type)
{
    return (size_t)type < QW_CLI_COUNT(kv_types) ? kv_types[type] : "?";
}

/* "[896, 151936]" */
static void shape_text(const qw_tensor *t, char out[96])
{
    size_t at = (size_t)snprintf(out, 96, "[");
    for (uint32_t d = 0; d < t->n_dims; d++)
        at += (size_t)snprintf(out + at, 96 - at, "%s%llu", d ? ", " : "", (unsigned long long)t->ne[d]);
    snprintf(out + at, 96 - at, "]");
}

static void print_tensors(const qw_gguf *g)
{
    for (size_t i = 0; i < qw_gguf_n_tensors(g); i++) {
        const qw_tensor *t = qw_gguf_tensor(g, i);
        char shape[96];
        shape_text(t, shape);
        printf("%-6s  %12zu  %-18s  ", qw_type_get(t->type)->name, t->bytes, shape);
        qw_cli_put_visible(stdout, qw_text_of(t->name));
        putchar('\n');
    }
}

static void print_metadata(const qw_gguf *g)
{
    for (size_t i = 0; i < qw_gguf_n_kv(g); i++) {
        qw_gguf_type type, elem;
        size_t n;
        char value[512];
        qw_gguf_kv_type(g, i, &type, &elem, &n);
        qw_gguf_kv_text(g, i, value, sizeof(value));
        qw_cli_put_visible(stdout, qw_gguf_kv_key(g, i));
        printf("  (%s)  ", kv_type_name(type));
        for (char *c = value; *c; c++)
            if (*c == '\n') *c = ' '; /* a template: one line a key */
        qw_cli_put_visible(stdout, qw_text_of(value));
        putchar('\n');
    }
}

static json_t *json_tensors(const qw_gguf *g)
{
    json_t *list = json_array();
    for (size_t i = 0; i < qw_gguf_n_tensors(g); i++) {
        const qw_tensor *t = qw_gguf_tensor(g, i);
        json_t *shape = json_array();
        for (uint32_t d = 0; d < t->n_dims; d++)
            json_array_append_new(shape, json_integer((json_int_t)t->ne[d]));
        json_t *o = json_pack("{s:s, s:s, s:o, s:I}", "name", t->name, "type", qw_type_get(t->type)->name,
                              "shape", shape, "bytes", (json_int_t)t->bytes);
        if (o) json_array_append_new(list, o);
    }
    return list;
}

static json_t *json_metadata(const qw_gguf *g)
{
    json_t *list = json_array();
    for (size_t i = 0; i < qw_gguf_n_kv(g); i++) {
        qw_gguf_type type, elem;
        size_t n;
        char value[4096];
        qw_text key = qw_gguf_kv_key(g, i);
        qw_gguf_kv_type(g, i, &type, &elem, &n);
        qw_gguf_kv_text(g, i, value, sizeof(value));
        json_t *o = json_pack("{s:s%, s:s, s:I, s:s}", "key", key.s, key.n, "type", kv_type_name(type),
                              "count", (json_int_t)n, "value", value);
        if (o) json_array_append_new(list, o);
    }
    return list;
}

/* ---- description and plan ---------------------------------------------------------------------- */

static void row(const char *label, const char *fmt, ...) QW_PRINTF(2, 3);
static void row(const char *label, const char *fmt, ...)
{
    char text[QW_CLI_PATH_MAX + 64];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    printf("%-16s", label);
    qw_cli_put_visible(stdout, qw_text_of(text));
    putchar('\n');
}

static void row_bytes(const char *label, uint64_t bytes, const char *note)
{
    char size[32];
    qw_hub_size_text(bytes, size);
    printf("  %-14s%10s%s%s\n", label, size, note[0] ? "  " : "", note);
}

static void print_stored(const qw_hub_model *m)
{
    char date[32] = "";
    time_t t = (time_t)m->added_s;
    struct tm tm;
    if (localtime_r(&t, &tm)) strftime(date, sizeof(date), "%Y-%m-%d", &tm);
    row("Name", "%s", m->name);
    if (m->description[0]) row("Description", "%s", m->description);
    if (m->licence[0]) row("Licence", "%s", m->licence);
    row("Came from", "%s, %s",
        strcmp(m->source, m->name) == 0 ? "the catalogue"
        : m->source[0]                  ? m->source
                                        : "-",
        date);
    row("Original file", "%s", m->file);
    row("SHA-256", "%s", m->sha256);
}

/* Path of the model's side file of packed weights, "" when there is none, and its size. */
static uint64_t find_packed(const show *s, char path[QW_HUB_PATH_MAX])
{
    uint64_t bytes;
    qw_hub_packed_find(s->path, path, &bytes);
    if (!bytes) path[0] = 0;
    return bytes;
}

static void print_info(const show *s, const qw_model_info *i, const qw_plan *p)
{
    char size[32], label[64], packed[QW_HUB_PATH_MAX];
    uint64_t packed_bytes = find_packed(s, packed);
    qw_hub_size_text(i->file_bytes, size);
    if (s->stored) print_stored(s->stored);
    row("File", "%s (%s)", i->path, size);
    qw_hub_size_text(packed_bytes, size);
    if (packed[0]) row("Packed weights", "%s (%s)", packed, size);
    else row("Packed weights", "no side file");
    if (i->name && i->name[0]) row("Called", "%s", i->name);
    row("Architecture", "%s, %.2f billion parameters", i->architecture, (double)i->n_params / 1e9);
    row("Quantisation", "%s%s%s", i->quantization,
        s->stored && s->stored->quantization[0] ? " mostly, file type " : "",
        s->stored ? s->stored->quantization : "");
    row("Layers", "%u, hidden size %u, feed-forward %u", i->n_layers, i->hidden, i->ffn);
    row("Attention", "%u heads of %u, %u for keys and values", i->n_heads, i->head_dim, i->n_kv_heads);
    row("Vocabulary", "%u tokens%s", i->n_vocab, i->has_tokenizer ? "" : ", the file has no tokenizer");
    row("Context", "%u tokens", i->context_length);
    row("Chat format", "%s%s%s", i->chat_format,
        strcmp(i->chat_format, "none") != 0 && !i->chat_template_known ? " (recognised by likeness)" : "",
        i->has_fim ? "; fills in the middle" : "");
    if (i->thinks) row("Thinking", "%s", i->thinks_always ? "always" : "unless switched off (--no-think)");
    snprintf(label, sizeof(label), "Memory for a context of %u tokens:", p->context);
    puts(label);
    row_bytes("weights", p->weights_bytes, "mapped");
    if (p->packed_bytes) row_bytes("packed", p->packed_bytes, "weights in the kernels' order");
    row_bytes("keys, values", p->kv_bytes, "");
    row_bytes("working space", p->scratch_bytes, "");
    row_bytes("other", p->fixed_bytes, "at most: remembered answers, requests, masks, the index of the cache");
    if (p->draft_bytes) row_bytes("draft model", p->draft_bytes, "weights, keys, values and working space");
    row_bytes("total", p->total_bytes, "");
    row_bytes("available", p->available_bytes, p->total_bytes > p->available_bytes ? "it does not fit" : "");
    if (p->cache_bytes) {
        if (p->n_snapshots) snprintf(label, sizeof(label), "for %llu more tokens and %u states of conversations",
                                     (unsigned long long)p->cache_tokens, p->n_snapshots);
        else snprintf(label, sizeof(label), "for %llu more tokens of conversations", (unsigned long long)p->cache_tokens);
        row_bytes("cache", p->cache_bytes, label);
    }
}

static const char *text_or_empty(const char *s)
{
    return s ? s : "";
}

static json_t *json_info(const show *s, const qw_model_info *i, const qw_plan *p, const char *refusal)
{
    json_t *plan =
        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s}", "context", (json_int_t)p->context,
                  "n_parallel", (json_int_t)p->n_parallel, "cache_bytes", (json_int_t)p->cache_bytes, "cache_tokens",
                  (json_int_t)p->cache_tokens, "n_snapshots", (json_int_t)p->n_snapshots,
                  "weights_bytes", (json_int_t)p->weights_bytes, "packed_bytes", (json_int_t)p->packed_bytes,
                  "kv_bytes", (json_int_t)p->kv_bytes, "scratch_bytes", (json_int_t)p->scratch_bytes,
                  "fixed_bytes", (json_int_t)p->fixed_bytes, "draft_bytes", (json_int_t)p->draft_bytes,
                  "total_bytes", (json_int_t)p->total_bytes, "available_bytes",
                  (json_int_t)p->available_bytes, "fits", refusal[0] == 0, "refusal", refusal);
    json_t *o = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:b, s:o}",
        "path", i->path, "architecture", i->architecture, "title", text_or_empty(i->name), "quantization",
        i->quantization, "chat_format", i->chat_format, "file_bytes", (json_int_t)i->file_bytes, "n_params",
        (json_int_t)i->n_params, "n_layers", (json_int_t)i->n_layers, "hidden", (json_int_t)i->hidden,
        "n_heads", (json_int_t)i->n_heads, "n_kv_heads", (json_int_t)i->n_kv_heads, "head_dim",
        (json_int_t)i->head_dim, "ffn", (json_int_t)i->ffn, "n_vocab", (json_int_t)i->n_vocab,
        "context_length", (json_int_t)i->context_length, "has_tokenizer", i->has_tokenizer, "has_fim",
        i->has_fim, "chat_template_known", i->chat_template_known, "plan", plan);
    const qw_hub_model *m = s->stored;
    if (!o) return o;
    char packed[QW_HUB_PATH_MAX];
    json_object_set_new(o, "packed", json_integer((json_int_t)find_packed(s, packed)));
    json_object_set_new(o, "packed_path", json_string(packed));
    json_object_set_new(o, "thinks", json_boolean(i->thinks));
    json_object_set_new(o, "thinks_always", json_boolean(i->thinks_always));
    if (!m) return o;
    json_object_set_new(o, "name", json_string(m->name));
    json_object_set_new(o, "source", json_string(m->source));
    json_object_set_new(o, "sha256", json_string(m->sha256));
    json_object_set_new(o, "licence", json_string(m->licence));
    json_object_set_new(o, "file_type", json_string(m->quantization));
    json_object_set_new(o, "added", json_integer((json_int_t)m->added_s));
    return o;
}

static int print_json(json_t *o)
{
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    json_decref(o);
    if (!text) return qw_cli_fail("the description cannot be written as JSON");
    puts(text);
    free(text);
    return qw_cli_finish();
}

static int show_lists(const show *s)
{
    qw_gguf *g = NULL;
    qw_err err;
    if (qw_gguf_open(s->path, &g, &err) != QW_OK) return qw_cli_error(&err);
    int rc;
    if (s->json) {
        json_t *o = json_object();
        if (s->metadata) json_object_set_new(o, "metadata", json_metadata(g));
        if (s->tensors) json_object_set_new(o, "tensors", json_tensors(g));
        rc = print_json(o);
    } else {
        if (s->metadata) print_metadata(g);
        if (s->tensors) print_tensors(g);
        rc = qw_cli_finish();
    }
    qw_gguf_close(g);
    return rc;
}

static int show_model(const show *s)
{
    qw_model_options options = qw_model_options_default();
    qw_engine_options engine = qw_cli_engine_options(&s->model);
    qw_model *model = NULL, *draft = NULL;
    qw_model_info info;
    qw_plan plan = {0};
    qw_err err = {0};
    options.path = s->path;
    options.exact = s->model.exact;
    options.quantize = s->model.quantize;
    options.no_pack_cache = s->model.no_pack_cache;
    if (qw_model_open(&options, &model, &err) != QW_OK) return qw_cli_error(&err);
    qw_model_get_info(model, &info);
    int rc = qw_cli_open_draft(&s->model, &draft);
    engine.draft = draft;
    qw_status status = rc == 0 ? qw_engine_plan(model, &engine, &plan, &err) : QW_OK;
    if (rc != 0) {
        /* said already */
    } else if (status != QW_OK && status != QW_E_MEMORY) {
        rc = qw_cli_error(&err);
    } else if (s->json) {
        rc = print_json(json_info(s, &info, &plan, status == QW_OK ? "" : err.text));
    } else {
        print_info(s, &info, &plan);
        rc = qw_cli_finish();
        if (status != QW_OK) fprintf(stderr, "qw: %s\n", err.text);
    }
    qw_model_close(draft);
    qw_model_close(model);
    return rc;
}

/* The record of a stored model, when a name was given (or nothing, and the default is meant). */
static void find_stored(show *s)
{
    const char *name = s->model.name ? s->model.name : qw_hub_default_model();
    qw_hub_model *m = NULL;
    if (qw_hub_is_path(name) || qw_hub_open(NULL, &s->hub, NULL) != QW_OK) return;
    if (qw_alloc(&m, 1, sizeof(*m), "a model's description", NULL) != QW_OK) return;
    if (qw_hub_find(s->hub, name, m, NULL) == QW_OK && strcmp(m->path, s->path) == 0) s->stored = m;
    else free(m);
}

int qw_cmd_show(int argc, char **argv)
{
    show s = {0};
    const qw_cli_opt opts[] = {
        QW_CLI_MODEL_OPTS(&s.model),
        QW_CLI_DRAFT_OPT(&s.model),
        {0, "json", QW_CLI_FLAG, &s.json, NULL, "one JSON object", 0, 0},
        {0, "tensors", QW_CLI_FLAG, &s.tensors, NULL, "list the tensors: type, bytes, shape, name", 0, 0},
        {0, "metadata", QW_CLI_FLAG, &s.metadata, NULL, "list the metadata of the file", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "show",
        .usage = "[options] [NAME | FILE.gguf | FOLDER]",
        .summary = "Describes a model and the memory it takes, before anything is loaded.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .n_args_max = 1,
        .details = "--tensors and --metadata also work on files that qw cannot run.\n",
        .examples =
            "qw show qwen2.5-coder:0.5b\nqw show ./model.gguf -c 8192\nqw show ./model.gguf --tensors\n",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    if (argc > 1 && s.model.name) return qw_cli_usage("show", "the model is given twice");
    if (argc > 1) s.model.name = argv[1];
    rc = qw_cli_resolve(&s.model, s.path, sizeof(s.path));
    if (rc != 0) return rc;
    find_stored(&s);
    rc = s.tensors || s.metadata ? show_lists(&s) : show_model(&s);
    free(s.stored);
    qw_hub_close(s.hub);
    return rc;
}
