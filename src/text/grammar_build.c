/* grammar_build.c: what a compilation holds: limits, growing arrays, expressions and rules. See grammar_private.h.
 *
 * Everything that a source can make large grows through grammar_room, which knows its limit. Owner: the thread that
 * compiles.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/mem.h"
#include "text/grammar_private.h"

enum { WORK_STEP = 1 << 14, CAP_MIN = 32, CP_MAX = 0x10FFFF };

/* ---- errors and limits ------------------------------------------------------------------------ */

static int64_t cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void grammar_fail(grammar_build *b, qw_status status, const char *fmt, ...)
{
    char text[QW_ERR_TEXT_MAX];
    va_list ap;
    if (!grammar_ok(b)) return;
    va_start(ap, fmt);
    if (vsnprintf(text, sizeof text, fmt, ap) < 0) text[0] = '\0';
    va_end(ap);
    b->status = qw_fail(b->err, status, "%s", text);
}

bool grammar_work(grammar_build *b, uint64_t units)
{
    uint64_t before = b->work;
    if (!grammar_ok(b)) return false;
    b->work += units + 1;
    if (before / WORK_STEP != b->work / WORK_STEP && cpu_us() - b->cpu_begin > b->cpu_max)
        grammar_fail(b, QW_E_LIMIT, "compiling the grammar takes more than %lld ms: make it smaller",
                     (long long)(b->cpu_max / 1000));
    return grammar_ok(b);
}

bool grammar_room(grammar_build *b, void *ptr_ptr, uint32_t n, uint32_t add, uint32_t *cap, size_t size, uint32_t max,
                  const char *what)
{
    if (!grammar_ok(b)) return false;
    if (add > max || n > max - add) {
        grammar_fail(b, QW_E_LIMIT, "the grammar has more than %u %s", max, what);
        return false;
    }
    if (n + add <= *cap) return true;
    uint32_t grown = *cap ? *cap : CAP_MIN;
    while (grown < n + add) grown *= 2;
    b->status = qw_grow(ptr_ptr, *cap, grown, size, what, b->err);
    if (grammar_ok(b)) *cap = grown;
    return grammar_ok(b);
}

/* ---- the whole -------------------------------------------------------------------------------- */

void grammar_build_begin(grammar_build *b, const qw_grammar_options *options, qw_err *err)
{
    *b = (grammar_build){.err = err, .cpu_begin = cpu_us(), .cpu_max = QW_GRAMMAR_CPU_US_MAX};
    if (options && options->cpu_us_max > 0) b->cpu_max = options->cpu_us_max;
    b->n_ast = b->n_rules = b->n_dfas = 1; /* 0 means none */
    if (grammar_room(b, &b->ast, 0, 1, &b->ast_cap, sizeof *b->ast, GRAMMAR_AST_MAX, "expressions") &&
        grammar_room(b, &b->rules, 0, 1, &b->rules_cap, sizeof *b->rules, QW_GRAMMAR_RULES_MAX, "rules"))
        grammar_room(b, &b->dfas, 0, 1, &b->dfas_cap, sizeof *b->dfas, QW_GRAMMAR_RULES_MAX, "automata");
}

void grammar_build_free(grammar_build *b)
{
    for (uint32_t i = 0; b->dfas && i < b->n_dfas; i++) {
        free(b->dfas[i].states);
        free(b->dfas[i].edges);
        free(b->dfas[i].links);
    }
    free(b->dfas);
    free(b->ast);
    free(b->bytes);
    free(b->ranges);
    free(b->rules);
    free(b->list);
    free(b->parts);
}

/* ---- expressions ------------------------------------------------------------------------------ */

uint32_t ast_new(grammar_build *b, ast_op op, uint32_t a, uint32_t v)
{
    if (!grammar_room(b, &b->ast, b->n_ast, 1, &b->ast_cap, sizeof *b->ast, GRAMMAR_AST_MAX, "expressions")) return 0;
    b->ast[b->n_ast] = (ast_node){.op = op, .a = a, .b = v};
    return b->n_ast++;
}

void ast_add(grammar_build *b, uint32_t parent, uint32_t child)
{
    if (parent == 0 || child == 0) return;
    ast_node *p = &b->ast[parent];
    if (p->last) b->ast[p->last].next = child;
    else p->first = child;
    p->last = child;
}

uint32_t ast_bytes(grammar_build *b, const char *s, size_t n)
{
    uint32_t at = b->n_bytes;
    if (n > 4 * QW_SCHEMA_BYTES_MAX) n = 4 * QW_SCHEMA_BYTES_MAX + 1; /* too many: the next line says so */
    if (!grammar_room(b, &b->bytes, at, (uint32_t)n, &b->bytes_cap, 1, 4 * QW_SCHEMA_BYTES_MAX, "bytes of text"))
        return 0;
    if (n > 0) memcpy(b->bytes + at, s, n);
    b->n_bytes += (uint32_t)n;
    return ast_new(b, AST_BYTES, at, (uint32_t)n);
}

uint32_t ast_text(grammar_build *b, const char *s)
{
    return ast_bytes(b, s, strlen(s));
}

static int compare_ranges(const void *x, const void *y)
{
    const cp_range *a = x, *c = y;
    return a->lo < c->lo ? -1 : a->lo > c->lo;
}

/* Sorts and joins ranges[0, n); returns how many are left. */
static uint32_t join_ranges(cp_range *ranges, uint32_t n)
{
    uint32_t kept = 0;
    if (n == 0) return 0;
    qsort(ranges, n, sizeof *ranges, compare_ranges);
    for (uint32_t i = 1; i < n; i++) {
        if (ranges[i].lo <= ranges[kept].hi + 1) {
            if (ranges[i].hi > ranges[kept].hi) ranges[kept].hi = ranges[i].hi;
        } else {
            ranges[++kept] = ranges[i];
        }
    }
    return kept + 1;
}

/* ranges[0, n), joined, become all others, in place; there is room for one more. */
static uint32_t negate_ranges(cp_range *ranges, uint32_t n)
{
    uint32_t from = 0, kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        cp_range r = ranges[i];
        if (r.lo > from) ranges[kept++] = (cp_range){from, r.lo - 1};
        from = r.hi + 1;
    }
    if (from <= CP_MAX) ranges[kept++] = (cp_range){from, CP_MAX};
    return kept;
}

uint32_t ast_set(grammar_build *b, const cp_range *ranges, uint32_t n, bool negated)
{
    uint32_t at = b->n_ranges;
    if (!grammar_room(b, &b->ranges, at, n + 1, &b->ranges_cap, sizeof *ranges, GRAMMAR_AST_MAX, "ranges of characters"))
        return 0;
    cp_range *own = b->ranges + at;
    if (n > 0) memcpy(own, ranges, n * sizeof *ranges);
    n = join_ranges(own, n);
    if (negated) n = negate_ranges(own, n);
    b->n_ranges += n;
    return ast_new(b, n > 0 ? AST_SET : AST_NEVER, at, n);
}

uint32_t ast_range(grammar_build *b, uint32_t lo, uint32_t hi)
{
    return ast_set(b, &(cp_range){lo, hi}, 1, false);
}

uint32_t ast_any(grammar_build *b)
{
    return ast_range(b, 0, CP_MAX);
}

uint32_t ast_cat(grammar_build *b, uint32_t x, uint32_t y)
{
    uint32_t cat = ast_new(b, AST_CAT, 0, 0);
    ast_add(b, cat, x);
    ast_add(b, cat, y);
    return cat;
}

uint32_t ast_repeat(grammar_build *b, uint32_t x, uint32_t min, uint32_t max)
{
    uint32_t repeat = ast_new(b, AST_REPEAT, min, max);
    ast_add(b, repeat, x);
    return repeat;
}

/* ---- rules ------------------------------------------------------------------------------------ */

uint32_t grammar_rule_new(grammar_build *b, rule_kind kind)
{
    if (!grammar_room(b, &b->rules, b->n_rules, 1, &b->rules_cap, sizeof *b->rules, QW_GRAMMAR_RULES_MAX, "rules"))
        return 0;
    b->rules[b->n_rules] = (grammar_rule){.kind = kind, .max = GRAMMAR_UNLIMITED};
    return b->n_rules++;
}

uint32_t grammar_gap(grammar_build *b)
{
    if (b->gap == 0) b->gap = grammar_rule_new(b, RULE_GAP);
    return b->gap;
}

uint32_t grammar_dfa_new(grammar_build *b)
{
    if (!grammar_room(b, &b->dfas, b->n_dfas, 1, &b->dfas_cap, sizeof *b->dfas, QW_GRAMMAR_RULES_MAX, "automata"))
        return 0;
    b->dfas[b->n_dfas] = (grammar_dfa){0};
    return b->n_dfas++;
}
