/* parse.c: the output parser outside of calls, and its events. See parse.h and parse_private.h. */
#include "text/parse.h"

#include <stdlib.h>

#include "base/mem.h"
#include "text/json_text.h"
#include "text/parse_private.h"

enum { JOINED_MAX = 64 << 10, TOOLS_BYTES_MAX = 64 << 20 };

/* ---- life ------------------------------------------------------------------------------------- */

qw_status qw_parser_create(const qw_parse_options *options, qw_parser **out, qw_err *err)
{
    qw_parser *p;
    qw_status status;
    size_t n_tools = 0;
    *out = NULL;
    QW_TRY(qw_alloc(&p, 1, sizeof *p, "output parser", err));
    qw_buf_init(&p->tools, TOOLS_BYTES_MAX, "tool definitions");
    qw_buf_init(&p->held, QW_PARSE_HELD_MAX + PARSE_TAG_BYTES_MAX, "the head of a call");
    qw_buf_init(&p->value, QW_PARSE_HELD_MAX, "a parameter's value");
    qw_buf_init(&p->function, TOOLS_BYTES_MAX, "a tool definition");
    qw_buf_init(&p->text, 16 * QW_PARSE_HELD_MAX, "an event");
    qw_buf_init(&p->raw, 16 * QW_PARSE_HELD_MAX, "an event");
    if (options->tools.n > 0) QW_TRY_GOTO(qw_json_rewrite_list(options->tools, "\n", &p->tools, &n_tools, err));
    p->has_tools = n_tools > 0;
    p->thinks = options->thinks;
    p->xml_calls = options->xml_calls;
    p->state = options->in_thinking ? PARSE_THINK_HEAD : PARSE_START;
    *out = p;
    return QW_OK;
fail:
    qw_parser_destroy(p);
    return status;
}

void qw_parser_destroy(qw_parser *p)
{
    if (!p) return;
    qw_buf_free(&p->tools);
    qw_buf_free(&p->held);
    qw_buf_free(&p->value);
    qw_buf_free(&p->function);
    qw_buf_free(&p->text);
    qw_buf_free(&p->raw);
    free(p);
}

/* ---- events ----------------------------------------------------------------------------------- */

static qw_status flush(qw_parser *p)
{
    if (!p->kind) return QW_OK;
    qw_parse_event ev = {.kind = p->kind, .text = {qw_buf_str(&p->text), p->text.n},
                         .raw = {qw_buf_str(&p->raw), p->raw.n}};
    QW_TRY(p->fn(p->ctx, &ev, p->err));
    p->kind = 0;
    qw_buf_clear(&p->text);
    qw_buf_clear(&p->raw);
    return QW_OK;
}

qw_status qw_parse_emit(qw_parser *p, qw_parse_kind kind, qw_text text, qw_text raw)
{
    if (p->kind != kind || p->text.n > JOINED_MAX || p->raw.n > JOINED_MAX) QW_TRY(flush(p));
    p->kind = kind;
    QW_TRY(qw_buf_add(&p->text, text.s, text.n, p->err));
    return qw_buf_add(&p->raw, raw.s, raw.n, p->err);
}

qw_status qw_parse_send(qw_parser *p, qw_parse_event ev)
{
    QW_TRY(flush(p));
    return p->fn(p->ctx, &ev, p->err);
}

qw_status qw_parse_warn(qw_parser *p, const char *sentence)
{
    return qw_parse_send(p, (qw_parse_event){.kind = QW_PARSE_WARNING, .text = {sentence, strlen(sentence)}});
}

/* ---- text ------------------------------------------------------------------------------------- */

static qw_status markup(qw_parser *p, qw_text raw)
{
    return qw_parse_emit(p, QW_PARSE_MARKUP, (qw_text){0}, raw);
}

bool qw_parse_thinking(const qw_parser *p)
{
    return p->state == PARSE_THINK || p->state == PARSE_THINK_HEAD;
}

bool qw_parser_in_thinking(const qw_parser *p)
{
    parse_state state = p->state < PARSE_OPEN ? p->state : p->back;
    return state == PARSE_THINK || state == PARSE_THINK_HEAD;
}

/* All line breaks that were counted, as an event of a kind. */
static qw_status emit_lines(qw_parser *p, qw_parse_kind kind)
{
    static const char lines[] = "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n";
    while (p->lines > 0) {
        size_t n = p->lines < sizeof lines - 1 ? p->lines : sizeof lines - 1;
        qw_text s = {lines, n};
        QW_TRY(qw_parse_emit(p, kind, kind == QW_PARSE_MARKUP ? (qw_text){0} : s, s));
        p->lines -= n;
    }
    return QW_OK;
}

qw_status qw_parse_drop_lines(qw_parser *p)
{
    return emit_lines(p, QW_PARSE_MARKUP);
}

qw_status qw_parse_text(qw_parser *p, qw_text s)
{
    if (s.n == 0) return QW_OK;
    qw_parse_kind kind = qw_parse_thinking(p) ? QW_PARSE_THINKING : QW_PARSE_CONTENT;
    p->state = qw_parse_thinking(p) ? PARSE_THINK : PARSE_TEXT;
    QW_TRY(emit_lines(p, kind));
    return qw_parse_emit(p, kind, s, s);
}

qw_status qw_parse_hold(qw_parser *p, char c)
{
    return qw_buf_add(&p->held, &c, 1, p->err);
}

parse_tag qw_parse_match(const qw_parser *p, int set)
{
    static const struct {
        const char *text;
        parse_tag tag;
    } tags[] = {{"<think>", TAG_THINK},       {"</think>", TAG_THINK_END},       {"<tool_call>", TAG_CALL},
                {"</tool_call>", TAG_CALL_END}, {"<function=", TAG_FUNCTION},    {"</function>", TAG_FUNCTION_END},
                {"<parameter=", TAG_PARAMETER}, {"</parameter>", TAG_PARAMETER_END}};
    const char *s = qw_buf_str(&p->held) + p->tag;
    size_t n = p->held.n - p->tag;
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        if (!(set & (int)tags[i].tag) || strncmp(tags[i].text, s, n) != 0) continue;
        return tags[i].text[n] ? TAG_PART : tags[i].tag;
    }
    return TAG_NONE;
}

/* Tags that mean something where the parser stands. */
static int text_tags(const qw_parser *p)
{
    int calls = !p->has_tools ? 0 : p->xml_calls ? TAG_CALL | TAG_FUNCTION : TAG_CALL;
    if (qw_parse_thinking(p)) return TAG_THINK_END | calls;
    return p->state == PARSE_START && p->thinks ? TAG_THINK | calls : calls;
}

static qw_status take_tag(qw_parser *p, parse_tag tag)
{
    p->in_tag = false;
    if (tag == TAG_THINK || tag == TAG_THINK_END) {
        QW_TRY(qw_parse_drop_lines(p));
        QW_TRY(markup(p, qw_parse_held(p)));
        qw_buf_clear(&p->held);
        p->state = tag == TAG_THINK ? PARSE_THINK_HEAD : PARSE_TEXT_HEAD;
        return QW_OK;
    }
    p->back = p->state;
    p->wrapped = tag == TAG_CALL;
    p->mark = p->held.n;
    p->state = tag == TAG_CALL ? PARSE_OPEN : PARSE_NAME;
    return QW_OK;
}

/* Nothing but thinking and calls so far: an object may be a call without its tags. */
static bool may_begin_bare(const qw_parser *p)
{
    return p->has_tools && !p->xml_calls &&
           (p->state == PARSE_START || p->state == PARSE_TEXT_HEAD || p->state == PARSE_AFTER_CALL);
}

static qw_status text_step(qw_parser *p, char c)
{
    if (p->in_tag) {
        QW_TRY(qw_parse_hold(p, c));
        parse_tag tag = qw_parse_match(p, text_tags(p));
        if (tag == TAG_PART) return QW_OK;
        if (tag != TAG_NONE) return take_tag(p, tag);
        p->in_tag = false;
        QW_TRY(qw_parse_text(p, (qw_text){qw_buf_str(&p->held), p->held.n - 1}));
        qw_buf_clear(&p->held);
    }
    if (c == '<') {
        p->in_tag = true;
        p->tag = 0;
        return qw_parse_hold(p, c);
    }
    if (c == '{' && may_begin_bare(p)) return qw_parse_begin_bare(p, c);
    if (c != '\n') return qw_parse_text(p, (qw_text){&c, 1});
    if (p->state == PARSE_THINK_HEAD || p->state == PARSE_TEXT_HEAD) return markup(p, (qw_text){&c, 1});
    p->lines++;
    return QW_OK;
}

qw_status qw_parse_give_back(qw_parser *p, size_t n, bool all)
{
    char bytes[PARSE_SPACE_MAX + 2 * PARSE_TAG_BYTES_MAX];
    if (all) n = p->held.n;
    QW_ASSERT(n <= sizeof bytes && n <= p->held.n);
    memcpy(bytes, qw_buf_str(&p->held) + p->held.n - n, n);
    p->in_tag = false;
    QW_TRY(qw_parse_text(p, (qw_text){qw_buf_str(&p->held), p->held.n - n}));
    qw_buf_clear(&p->held);
    for (size_t i = 0; i < n; i++) QW_TRY(qw_parse_step(p, bytes[i]));
    return QW_OK;
}

/* ---- the whole -------------------------------------------------------------------------------- */

qw_status qw_parse_step(qw_parser *p, char c)
{
    if (p->state < PARSE_OPEN) return text_step(p, c);
    return p->state < PARSE_NAME ? qw_parse_call_step(p, c) : qw_parse_xml_step(p, c);
}

static void begin(qw_parser *p, qw_parse_fn fn, void *ctx, qw_err *err)
{
    p->fn = fn;
    p->ctx = ctx;
    p->err = err;
}

qw_status qw_parser_push(qw_parser *p, qw_text text, qw_parse_fn fn, void *ctx, qw_err *err)
{
    begin(p, fn, ctx, err);
    for (size_t i = 0; i < text.n; i++) QW_TRY(qw_parse_step(p, text.s[i]));
    return flush(p);
}

qw_status qw_parser_finish(qw_parser *p, qw_parse_fn fn, void *ctx, qw_err *err)
{
    begin(p, fn, ctx, err);
    if (p->state >= PARSE_NAME) QW_TRY(qw_parse_xml_finish(p));
    else if (p->state >= PARSE_OPEN) QW_TRY(qw_parse_call_finish(p));
    QW_TRY(qw_parse_text(p, qw_parse_held(p))); /* the beginning of a tag */
    qw_buf_clear(&p->held);
    /* After a call, line breaks are the format's. */
    if (p->state == PARSE_AFTER_CALL) QW_TRY(qw_parse_drop_lines(p));
    else QW_TRY(emit_lines(p, qw_parse_thinking(p) ? QW_PARSE_THINKING : QW_PARSE_CONTENT));
    return flush(p);
}
