/* drafts.c: how good the drafts are on what a real model says, without an engine and without a clock.
 *
 *     drafts record MODEL.gguf PROMPTS TAPE [TOKENS]    the model answers all prompts; many minutes
 *     drafts replay TAPE [--cost R1,R2,...]             the answers go through src/engine/draft.c as an engine would do it
 *
 * Prints for each source, shape and budget how many tokens a pass gives, by kind of prompt; with --cost (of a pass of 1, 2, ...
 * rows, the last goes on) how much faster than one by one that is when the width is chosen by cost. What a pass would say of
 * guesses that are wrong is not on the tape, so the table of recycled tokens learns from right ones alone.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/draft.h"
#include "tape.h"

enum { VOCAB = 1 << 18, KINDS_MAX = 8, COSTS_MAX = 64, CONTEXT = 4096, ANSWER_TOKENS = 320, COUNTED_ROWS = 8 };

typedef struct score {
    char kind[TAPE_KIND_MAX];
    double tokens, passes, cost;
} score;

typedef struct setting {
    const char *name;
    uint32_t sources, n_rows;
    bool chain, warm;           /* warm: after all the other answers */
    const double *costs;        /* [n_costs]; NULL: all equal, so that every row is used */
    size_t n_costs;
} setting;

static double cost_of(const setting *s, uint32_t n_rows)
{
    if (!s->costs) return 1;
    return s->costs[n_rows <= s->n_costs ? n_rows - 1 : s->n_costs - 1];
}

static void note(qw_drafts *ds, const tape_case *c, uint32_t place)
{
    qw_top top[TAPE_TOP];
    size_t n = 0;
    if (place + 1 - c->n_prompt >= c->n_answer) return;
    const tape_top *of = &c->top[(place + 1 - c->n_prompt) * TAPE_TOP];
    for (; n < TAPE_TOP && of[n].logprob < 0; n++) top[n] = (qw_top){of[n].logprob, of[n].token};
    qw_drafts_note_top(ds, c->tokens[place], top, n);
}

static void replay_case(qw_drafts *ds, qw_draft *d, const tape_case *c, const setting *s, score *sum)
{
    qw_draft_node nodes[QW_DRAFT_NODES_MAX];
    uint32_t end = c->n_prompt + c->n_answer, n = c->n_prompt;
    qw_draft_begin(d, c->tokens, n);
    note(ds, c, n - 1);
    for (qw_draft_advance(d, ++n); n < end;) {
        const qw_draft_ask ask = {.n_max = s->n_rows - 1, .depth_max = end - n - 1, .chain = s->chain};
        uint32_t n_nodes = qw_draft_propose(d, &ask, nodes, NULL), from = n;
        for (int at = QW_DRAFT_ROOT;;) {
            at = qw_draft_child(nodes, n_nodes, at, c->tokens[n++]);
            if (at < 0) break;
        }
        for (uint32_t place = from - 1; place + 1 < n; place++) note(ds, c, place);
        qw_drafts_note_cost(ds, n_nodes + 1, 1000 * cost_of(s, n_nodes + 1));
        qw_draft_advance(d, n);
        sum->tokens += n - from;
        sum->passes++;
        sum->cost += cost_of(s, n_nodes + 1);
    }
}

static score *score_of(score *scores, const char *kind)
{
    size_t i = 0;
    while (i + 1 < KINDS_MAX && scores[i].kind[0] && strcmp(scores[i].kind, kind) != 0) i++;
    strcpy(scores[i].kind, kind);
    return &scores[i];
}

static void add_counts(qw_draft_counts *sum, const qw_drafts *ds, int sign)
{
    qw_draft_counts c;
    qw_drafts_get_counts(ds, &c);
    for (size_t i = 0; i < QW_DRAFT_SOURCES; i++)
        for (size_t k = 0; k <= QW_DRAFT_DEPTH_MAX; k++) {
            sum->checked[i][k] += (uint64_t)sign * c.checked[i][k];
            sum->right[i][k] += (uint64_t)sign * c.right[i][k];
        }
}

/* One answer, after nothing or after all the others. */
static bool replay_one(const tape *t, size_t which, const setting *s, score *sum, qw_draft_counts *counts)
{
    const qw_drafts_options o = {.n_vocab = VOCAB, .us_per_pass = 1000, .sources = s->sources};
    qw_drafts *ds = NULL;
    qw_draft *d = NULL;
    score ignored = {0};
    qw_err err = {0};
    qw_status status;
    QW_TRY_GOTO(qw_drafts_create(&o, &ds, &err));
    QW_TRY_GOTO(qw_draft_create(ds, CONTEXT, NULL, &d, &err));
    for (size_t i = 0; s->warm && i < t->n_cases; i++)
        if (i != which) replay_case(ds, d, &t->cases[i], s, &ignored);
    add_counts(counts, ds, -1);
    replay_case(ds, d, &t->cases[which], s, sum);
    add_counts(counts, ds, 1);
fail:
    if (status != QW_OK) fprintf(stderr, "drafts: %s\n", err.text);
    qw_draft_destroy(d);
    qw_drafts_destroy(ds);
    return status == QW_OK;
}

static bool replay(const tape *t, const setting *s, score *scores, qw_draft_counts *counts)
{
    memset(scores, 0, KINDS_MAX * sizeof *scores);
    *counts = (qw_draft_counts){0};
    for (size_t i = 0; i < t->n_cases; i++)
        if (!replay_one(t, i, s, score_of(scores, t->cases[i].kind), counts)) return false;
    return true;
}

static void print_scores(const setting *s, const score *scores)
{
    double tokens = 0, per = 0;
    printf("| %-14s | %-5s | %2u |", s->name, s->chain ? "chain" : "tree", s->n_rows);
    for (size_t i = 0; i < KINDS_MAX && scores[i].kind[0]; i++) {
        double cost = s->costs ? scores[i].cost : scores[i].passes;
        printf(" %7.2f |", scores[i].tokens / cost);
        tokens += scores[i].tokens;
        per += cost;
    }
    printf(" %5.2f |\n", tokens / per);
}

static void print_counts(const qw_draft_counts *c)
{
    static const char *const names[QW_DRAFT_SOURCES] = {"n-grams", "recycled", "model"};
    printf("\nboth, warm, tree, %d rows: of the nodes whose way was right, how many were:\n\n| source | depth 1 | 2 | 3 | 4 | 5 to 8 | 9 on |\n", COUNTED_ROWS);
    for (size_t i = 0; i < QW_DRAFT_MODEL; i++) {
        static const uint8_t to[] = {1, 2, 3, 4, 8, QW_DRAFT_DEPTH_MAX};
        printf("| %s |", names[i]);
        for (size_t k = 0, depth = 1; k < sizeof to; k++) {
            uint64_t right = 0, checked = 0;
            for (; depth <= to[k]; depth++) {
                right += c->right[i][depth];
                checked += c->checked[i][depth];
            }
            printf(" %llu of %llu |", (unsigned long long)right, (unsigned long long)checked);
        }
        printf("\n");
    }
}

static bool run(const tape *t, const double *costs, size_t n_costs)
{
    static const uint32_t budgets[] = {4, 8, 12, 16};
    static const struct {
        const char *name;
        uint32_t sources;
        bool warm;
    } mixes[] = {
        {"n-grams", 1 << QW_DRAFT_NGRAM, false},
        {"recycled", 1 << QW_DRAFT_RECYCLED, false},
        {"recycled, warm", 1 << QW_DRAFT_RECYCLED, true},
        {"both", 0, false},
        {"both, warm", 0, true},
    };
    score scores[KINDS_MAX];
    qw_draft_counts counts, counted = {0};
    printf("| sources        | shape | rows |");
    for (size_t i = 0; i < t->n_cases; i++)
        if (i == 0 || strcmp(t->cases[i].kind, t->cases[i - 1].kind) != 0) printf(" %7s |", t->cases[i].kind);
    printf(" total |\n");
    for (size_t m = 0; m < sizeof mixes / sizeof *mixes; m++)
        for (size_t b = 0; b < sizeof budgets / sizeof *budgets; b++)
            for (int chain = 0; chain < 2; chain++) {
                const setting s = {mixes[m].name, mixes[m].sources, budgets[b], chain, mixes[m].warm, costs, n_costs};
                if (!replay(t, &s, scores, &counts)) return false;
                print_scores(&s, scores);
                if (budgets[b] == COUNTED_ROWS && !chain) counted = counts; /* in the end those of the last mix */
            }
    print_counts(&counted);
    return true;
}

static size_t parse_costs(const char *text, double *costs)
{
    size_t n = 0;
    for (char *end; n < COSTS_MAX; text = end + 1) {
        costs[n] = strtod(text, &end);
        if (end == text || !(costs[n] > 0)) return 0;
        n++;
        if (*end != ',') return *end ? 0 : n;
    }
    return 0;
}

int main(int argc, char **argv)
{
    double costs[COSTS_MAX];
    size_t n_costs = 0;
    tape t = {0};
    bool ok = true;
    if ((argc == 5 || argc == 6) && strcmp(argv[1], "record") == 0) {
        int n = argc == 6 ? atoi(argv[5]) : ANSWER_TOKENS;
        ok = n > 0 && tape_record(argv[2], argv[3], n, &t) && tape_write(&t, argv[4]);
    } else if ((argc == 3 || (argc == 5 && strcmp(argv[3], "--cost") == 0)) && strcmp(argv[1], "replay") == 0) {
        ok = argc == 3 || (n_costs = parse_costs(argv[4], costs)) > 0;
        ok = ok && tape_read(argv[2], &t) && run(&t, argc == 5 ? costs : NULL, n_costs);
    } else {
        ok = false;
    }
    if (!ok) fprintf(stderr, "drafts: want record MODEL.gguf PROMPTS TAPE [TOKENS], or replay TAPE [--cost 1,1,1.1,...]\n");
    tape_free(&t);
    return ok ? 0 : 1;
}
