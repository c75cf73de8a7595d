/* draft.c: see draft.h: the tree of guesses, how probable they are, and how many of them pay.
 *
 * What a source says is put into a *kind*: so many tokens agree; so large a share of what the model thought of. For each
 * kind there is a count of how often it was right *when nothing before it in the list was*. So the guesses after one token
 * share one probability between them, and a token is worth the product of those on its way. Taken in this order, the first
 * n nodes are the best n, and how many to take is a question of what n rows cost.
 */
#include "engine/draft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/draft_cost.h"
#include "engine/draft_ngram.h"
#include "engine/draft_table.h"

enum {
    LENGTH_KINDS = 8,
    SHARE_KINDS = 8,
    KIND_FIRST = 0,                               /* n-grams, the first of them: by length */
    KIND_LATER = KIND_FIRST + LENGTH_KINDS,       /* n-grams, another one was before */
    KIND_RECYCLED = KIND_LATER + LENGTH_KINDS,    /* by share */
    KIND_MODEL = KIND_RECYCLED + SHARE_KINDS,     /* by depth */
    KINDS = KIND_MODEL + QW_DRAFT_MODEL_DEPTH,
    NGRAMS_MAX = 3,                               /* guesses after one token */
    GUESSES_MAX = (QW_DRAFT_NODES_MAX + 1) * (NGRAMS_MAX + QW_SUCCESSORS) + QW_DRAFT_MODEL_DEPTH,
    WEIGHT_BEGIN = 16,       /* what others have learned counts as so many trials of a new sequence */
    WEIGHT_MAX = 32,        /* older trials of a sequence fade */
    WEIGHT_ALL_MAX = 1000,  /* of all sequences together */
    PLAIN_EVERY = 64,       /* steps, one without a draft: what it costs stays known */
    MODEL_EVERY = 64,       /* steps, the time of one for the other model where it does not pay: how good it is stays known */
    MODEL_TRIES = 8,        /* in a row, since it had to read first; */
    TRIES_EVERY = 256,      /* steps, at most once in so many */
    GAIN_STEPS = 16,        /* what another model could gain is known of so many last ones; */
    ANSWER_STEPS = 96,      /* so many more are expected of an answer */
    CREDIT_BEGIN = 12,      /* passes: for so long the other model may compute in advance, */
    CREDIT_MAX = 128,       /* and with all that it has brought, for so long */
    ACCIDENT = 3            /* times what was expected */
};

static const double gain_min = 0.02; /* tokens that a draft must promise beyond what it costs, which is not known better */
static const double credit_share = 0.01; /* of all passes' time goes to the other model's credit */

typedef struct estimate {
    float p, weight; /* of so many trials */
} estimate;

/* What may follow a node. All that follow the same one lie together, in the order of their stick-breaking. */
typedef struct guess {
    int32_t token;
    int16_t parent, first; /* of guesses; the first of those after it, -1: it has none yet */
    uint16_t n;            /* so many after it */
    uint8_t depth, kind;
    float p;               /* of the whole way */
    int8_t node;           /* its place in what was proposed, or -1 */
} guess;

struct qw_drafts {
    qw_drafts_options o;
    qw_recycled *recycled;
    qw_draft_cost cost;
    estimate kinds[KINDS];
    double model_us, lacking_us; /* of the other model, per token that it drafts, and that it lacks: */
    uint32_t n_model_us, n_lacking_us; /* so often measured */
    double credit_us;    /* what the other model has brought, less what it took */
    uint32_t n_idle;     /* steps of all since it was asked */
    qw_draft_counts counts;
};

/* A step with the other model: so many tokens of others and this sequence's, which would have come at that rate without it. */
typedef struct bet {
    bool open;
    double n_others, rate, pass_us;
} bet;

struct qw_draft {
    qw_drafts *all;
    void *user;
    qw_ngrams *ngrams;
    const int32_t *tokens; /* [n], borrows */
    uint32_t n;
    estimate kinds[KINDS];
    uint32_t n_drafted;  /* steps since the last plain one */
    uint32_t n_tries;    /* left of the other model, though it does not seem to pay */
    double gain_us;      /* what the other model would save in a step, of late, if it lacked nothing */
    int32_t model[QW_DRAFT_MODEL_DEPTH]; /* [n_model]: what it said */
    uint32_t n_model;
    bet bet;
    /* The last proposal. guesses[0] is the newest token. */
    guess guesses[1 + GUESSES_MAX];
    uint16_t n_guesses, n_heap;
    uint16_t heap[GUESSES_MAX]; /* guesses that are not in the tree, the most probable at the root */
    int16_t taken[QW_DRAFT_NODES_MAX]; /* guess of each node of the tree */
    uint32_t n_taken, n_proposed;
};

/* ---- kinds ---------------------------------------------------------------------------------------- */

static qw_draft_source source_of(uint8_t kind)
{
    return kind < KIND_RECYCLED ? QW_DRAFT_NGRAM : kind < KIND_MODEL ? QW_DRAFT_RECYCLED : QW_DRAFT_MODEL;
}

static uint8_t length_kind(uint32_t length)
{
    static const uint8_t from[LENGTH_KINDS] = {0, 2, 3, 4, 5, 8, 12, 20};
    uint8_t k = LENGTH_KINDS - 1;
    while (length < from[k]) k--;
    return k;
}

static uint8_t share_kind(float share)
{
    static const float from[SHARE_KINDS] = {0, 0.03f, 0.08f, 0.2f, 0.4f, 0.6f, 0.8f, 0.95f};
    uint8_t k = SHARE_KINDS - 1;
    while (share < from[k]) k--;
    return k;
}

/* Before anything was learned: rough, and soon outweighed. */
static float p_begin(uint8_t kind)
{
    static const float first[LENGTH_KINDS] = {0.2f, 0.3f, 0.5f, 0.6f, 0.7f, 0.8f, 0.85f, 0.9f};
    static const float share[SHARE_KINDS] = {0.01f, 0.03f, 0.06f, 0.15f, 0.25f, 0.4f, 0.5f, 0.6f};
    if (kind < KIND_LATER) return first[kind - KIND_FIRST];
    if (kind < KIND_RECYCLED) return first[kind - KIND_LATER] / 3;
    if (kind < KIND_MODEL) return share[kind - KIND_RECYCLED];
    return 0.6f;
}

static void learn(estimate *e, bool right, float weight_max)
{
    e->weight = e->weight + 1 < weight_max ? e->weight + 1 : weight_max;
    e->p += ((float)right - e->p) / e->weight;
}

static void learn_kind(qw_draft *d, uint8_t kind, bool right)
{
    learn(&d->kinds[kind], right, WEIGHT_MAX);
    learn(&d->all->kinds[kind], right, WEIGHT_ALL_MAX);
}

/* ---- what may follow ------------------------------------------------------------------------------ */

/* The guesses after one node while they are listed. */
typedef struct list {
    qw_draft *d;
    int16_t parent;
    float left; /* of the parent's probability: nothing listed was right */
} list;

static bool is_listed(const list *l, int32_t token)
{
    const guess *parent = &l->d->guesses[l->parent];
    for (int i = 0; i < parent->n; i++)
        if (l->d->guesses[parent->first + i].token == token) return true;
    return false;
}

static void add_guess(list *l, int32_t token, uint8_t kind)
{
    qw_draft *d = l->d;
    guess *parent = &d->guesses[l->parent];
    float p = l->left * d->kinds[kind].p;
    QW_ASSERT(d->n_guesses < 1 + GUESSES_MAX && parent->first + parent->n == d->n_guesses);
    d->guesses[d->n_guesses++] = (guess){.token = token, .parent = l->parent, .first = -1, .kind = kind, .p = p,
                                         .depth = (uint8_t)(parent->depth + 1), .node = -1};
    parent->n++;
    l->left -= p;
}

/* The tokens on the way to a guess, which is among the last of them. */
static size_t path_to(const qw_draft *d, int16_t at, int32_t *path)
{
    size_t n = d->guesses[at].depth;
    for (size_t i = n; i > 0; i--, at = d->guesses[at].parent) path[i - 1] = d->guesses[at].token;
    return n;
}

static bool uses(const qw_draft *d, qw_draft_source source)
{
    return d->all->o.sources >> source & 1;
}

static void list_ngrams(list *l, const int32_t *path, size_t n_path)
{
    qw_ngram_guess found[NGRAMS_MAX];
    if (!uses(l->d, QW_DRAFT_NGRAM)) return;
    size_t n = qw_ngrams_find(l->d->ngrams, path, n_path, found, NGRAMS_MAX);
    for (size_t i = 0; i < n; i++)
        if (!is_listed(l, found[i].token))
            add_guess(l, found[i].token, (uint8_t)((i ? KIND_LATER : KIND_FIRST) + length_kind(found[i].length)));
}

/* Shares count among those that are not listed yet. */
static void list_recycled(list *l, int32_t token)
{
    const qw_successors *s = uses(l->d, QW_DRAFT_RECYCLED) ? qw_recycled_after(l->d->all->recycled, token) : NULL;
    float left = 255;
    for (int i = 0; s && i < QW_SUCCESSORS && s->share[i]; i++) {
        float share = (float)s->share[i];
        if (!is_listed(l, s->token[i])) add_guess(l, s->token[i], (uint8_t)(KIND_RECYCLED + share_kind(share / left)));
        left = left > share + 1 ? left - share : 1;
    }
}

/* Where the path is the way that the other model went. */
static void list_model(list *l, const int32_t *path, size_t n_path)
{
    const qw_draft *d = l->d;
    if (n_path < d->n_model && memcmp(path, d->model, n_path * sizeof *path) == 0)
        add_guess(l, d->model[n_path], (uint8_t)(KIND_MODEL + n_path));
}

/* Lists what may follow guesses[at]. */
static void expand(qw_draft *d, int16_t at)
{
    int32_t path[QW_DRAFT_DEPTH_MAX];
    size_t n_path = path_to(d, at, path);
    list l = {d, at, d->guesses[at].p};
    d->guesses[at].first = (int16_t)d->n_guesses;
    list_model(&l, path, n_path);
    list_ngrams(&l, path, n_path);
    list_recycled(&l, n_path ? path[n_path - 1] : d->tokens[d->n - 1]);
}

/* ---- the tree ------------------------------------------------------------------------------------- */

static bool goes_before(const qw_draft *d, uint16_t a, uint16_t b)
{
    return d->guesses[a].p > d->guesses[b].p || (d->guesses[a].p == d->guesses[b].p && a < b);
}

static void push(qw_draft *d, uint16_t at)
{
    uint16_t i = d->n_heap++;
    for (; i > 0 && goes_before(d, at, d->heap[(i - 1) / 2]); i = (uint16_t)((i - 1) / 2)) d->heap[i] = d->heap[(i - 1) / 2];
    d->heap[i] = at;
}

static uint16_t pop(qw_draft *d)
{
    uint16_t best = d->heap[0], last = d->heap[--d->n_heap];
    size_t i = 0;
    for (size_t next; (next = 2 * i + 1) < d->n_heap; i = next) {
        if (next + 1 < d->n_heap && goes_before(d, d->heap[next + 1], d->heap[next])) next++;
        if (!goes_before(d, d->heap[next], last)) break;
        d->heap[i] = d->heap[next];
    }
    d->heap[i] = last;
    return best;
}

static void expand_and_push(qw_draft *d, int16_t at)
{
    expand(d, at);
    for (uint16_t i = 0; i < d->guesses[at].n; i++) push(d, (uint16_t)(d->guesses[at].first + i));
}

/* The n_max most probable guesses that hang together, best first. What may follow the newest token is listed even when there
 * is room for none: it will be known what was right. */
static void build(qw_draft *d, uint32_t n_max, uint32_t depth_max, bool chain)
{
    d->guesses[0] = (guess){.parent = -1, .first = -1, .p = 1, .node = QW_DRAFT_ROOT};
    d->n_guesses = 1;
    d->n_heap = 0;
    d->n_taken = 0;
    expand_and_push(d, 0);
    while (d->n_heap > 0 && d->n_taken < n_max) {
        int16_t at = (int16_t)pop(d);
        guess *g = &d->guesses[at];
        if (chain && d->guesses[g->parent].node != (int)d->n_taken - 1) continue;
        g->node = (int8_t)d->n_taken;
        d->taken[d->n_taken++] = at;
        if (g->depth < depth_max) expand_and_push(d, at);
    }
}

/* ---- how much pays -------------------------------------------------------------------------------- */

typedef struct choice {
    uint32_t n;        /* nodes */
    double n_expected; /* tokens of this sequence */
    double rate;       /* tokens of all in a microsecond */
} choice;

static choice choose(const qw_draft *d, const qw_draft_ask *ask)
{
    const qw_draft_cost *cost = &d->all->cost;
    double plain = (ask->n_expected + 1 + gain_min) / qw_draft_cost_us(cost, ask->n_rows + 1), sum = 1;
    choice best = {.n_expected = 1, .rate = plain};
    for (uint32_t n = 1; n <= d->n_taken; n++) {
        sum += (double)d->guesses[d->taken[n - 1]].p;
        double rate = (ask->n_expected + sum) / qw_draft_cost_us(cost, ask->n_rows + 1 + n);
        if (rate > best.rate) best = (choice){n, sum, rate};
    }
    return best;
}

/* For how many tokens to ask the other model, n_max at most, and the time that this saves at the rate of all else; 0: none. */
static double model_gain_us(const qw_draft *d, const qw_draft_ask *ask, uint32_t n_max, double rate, uint32_t *best)
{
    double p = 1, sum = 1, gain_us = 0, best_rate = rate;
    *best = 0;
    for (uint32_t n = 1; n <= n_max; n++) {
        p *= (double)d->kinds[KIND_MODEL + n - 1].p;
        sum += p;
        double took_us = n * d->all->model_us + qw_draft_cost_us(&d->all->cost, ask->n_rows + 1 + n);
        double with = (ask->n_expected + sum) / took_us;
        if (with <= best_rate) continue;
        best_rate = with;
        gain_us = (ask->n_expected + sum) / rate - took_us;
        *best = n;
    }
    return gain_us;
}

/* What n tokens of the other model took, beside what one was thought to take. The first measurement takes the place of the
 * guess, later ones weigh less. Much more than was thought is an accident, weights that came from the disk for example: it
 * counts as at most so much, here and for the credit, or one would switch the model off for good. */
static double measure_model(double *us, uint32_t *n_seen, double took_us, uint32_t n)
{
    double most = ACCIDENT * n * *us, weight = ++*n_seen < 10 ? 1.0 / *n_seen : 0.1;
    if (took_us > most) took_us = most;
    *us += weight * (took_us / n - *us);
    return took_us;
}

/* The other model's time has to come back: what it brings goes to its credit, what it takes goes from it. */
static void add_credit(qw_drafts *all, double us)
{
    double most = CREDIT_MAX * qw_draft_cost_us(&all->cost, 1);
    all->credit_us = all->credit_us + us < most ? all->credit_us + us : most;
}

/* How many tokens to ask the other model for, when that pays, or once in a while, and never on debt. What it lacks is computed
 * in advance when it comes back within some more steps like the last ones: how long the answer will be, nobody knows. Where it
 * does not pay the steps of all conversations count until it is tried: within one, what it lacks grows with every step. At first
 * it is tried at once: what it takes is not known, the first times least of all, when its weights are not in memory yet. */
static uint32_t tokens_to_ask(qw_draft *d, const qw_draft_ask *ask, uint32_t n_max, double rate, uint32_t n_lacking)
{
    qw_drafts *all = d->all;
    uint32_t n;
    double price = n_lacking * all->lacking_us, gain_us = model_gain_us(d, ask, n_max, rate, &n);
    d->gain_us += (gain_us - d->gain_us) / GAIN_STEPS;
    if (gain_us > 0) return price <= ANSWER_STEPS * d->gain_us && price <= all->credit_us ? n : 0;
    all->n_idle++;
    price += (d->n_tries ? d->n_tries : MODEL_TRIES) * all->model_us;
    bool due = all->n_idle >= TRIES_EVERY && all->n_idle * qw_draft_cost_us(&all->cost, 1) >= MODEL_EVERY * price;
    if (d->n_tries == 0 && (due || all->n_model_us < MODEL_TRIES)) d->n_tries = MODEL_TRIES;
    if (price > all->credit_us) d->n_tries = 0;
    return d->n_tries > 0 ? 1 : 0;
}

/* Asks the other model if that pays. *us: what it took, as far as that counts. */
static void ask_model(qw_draft *d, const qw_draft_ask *ask, uint32_t n_max, double rate, double *us)
{
    qw_drafts *all = d->all;
    const qw_draft_model *m = &all->o.model;
    if (n_max > QW_DRAFT_MODEL_DEPTH) n_max = QW_DRAFT_MODEL_DEPTH;
    *us = 0;
    if (!m->propose || n_max == 0) return;
    uint32_t n_lacking = m->lacks ? m->lacks(m->ctx, d->user, d->tokens, d->n) : 0;
    uint32_t n = tokens_to_ask(d, ask, n_max, rate, n_lacking);
    if (n == 0) return;
    int64_t begun_us = m->clock_us(m->ctx);
    double sure = rate * all->model_us; /* the tokens that come elsewhere in the time of one more: else it does not pay */
    d->n_model = m->propose(m->ctx, d->user, d->tokens, d->n, n, sure, d->model);
    QW_ASSERT(d->n_model <= n);
    *us = (double)(m->clock_us(m->ctx) - begun_us);
    if (d->n_model > 0) {
        all->n_idle = 0;
        d->n_tries -= d->n_tries > 0;
        *us = measure_model(&all->model_us, &all->n_model_us, *us, d->n_model);
    } else if (n_lacking > 0) {
        uint32_t n_left = m->lacks(m->ctx, d->user, d->tokens, d->n);
        if (n_left < n_lacking) *us = measure_model(&all->lacking_us, &all->n_lacking_us, *us, n_lacking - n_left);
    }
}

static uint32_t give(qw_draft *d, const choice *c, qw_draft_node *out)
{
    qw_draft_counts *counts = &d->all->counts;
    for (uint32_t i = 0; i < c->n; i++) {
        const guess *g = &d->guesses[d->taken[i]];
        out[i] = (qw_draft_node){g->token, d->guesses[g->parent].node, g->depth, (uint8_t)source_of(g->kind), g->p};
        counts->proposed[out[i].source]++;
    }
    counts->steps++;
    counts->drafted_steps += c->n > 0;
    return c->n;
}

uint32_t qw_draft_propose(qw_draft *d, const qw_draft_ask *ask, qw_draft_node *out, double *n_expected)
{
    uint32_t depth_max = ask->depth_max < QW_DRAFT_DEPTH_MAX ? ask->depth_max : QW_DRAFT_DEPTH_MAX;
    uint32_t n_max = depth_max == 0 ? 0 : ask->n_max < QW_DRAFT_NODES_MAX ? ask->n_max : QW_DRAFT_NODES_MAX;
    QW_ASSERT(d->n > 0);
    d->n_model = 0;
    build(d, n_max, depth_max, ask->chain);
    choice c = choose(d, ask);
    double rate = c.rate, asked_us;
    bool plain = d->n_drafted + 1 >= PLAIN_EVERY; /* this step, whatever is guessed */
    ask_model(d, ask, plain ? 0 : n_max < depth_max ? n_max : depth_max, rate, &asked_us);
    if (d->n_model > 0) {
        build(d, n_max, depth_max, ask->chain);
        c = choose(d, ask);
    }
    add_credit(d->all, -asked_us);
    d->bet = (bet){d->n_model > 0, ask->n_expected, rate, qw_draft_cost_us(&d->all->cost, ask->n_rows + 1 + c.n)};
    if (c.n > 0 && ++d->n_drafted >= PLAIN_EVERY) c = (choice){.n_expected = 1};
    if (c.n == 0) d->n_drafted = 0;
    d->n_proposed = c.n;
    if (n_expected) *n_expected = c.n_expected;
    return give(d, &c, out);
}

int qw_draft_child(const qw_draft_node *nodes, uint32_t n, int parent, int32_t token)
{
    for (uint32_t i = 0; i < n; i++)
        if (nodes[i].parent == parent && nodes[i].token == token) return (int)i;
    return -1;
}

/* ---- what was right ------------------------------------------------------------------------------- */

static void count(qw_draft *d, const guess *g, bool right)
{
    qw_draft_counts *counts = &d->all->counts;
    qw_draft_source source = source_of(g->kind);
    if (g->node < 0 || (uint32_t)g->node >= d->n_proposed) return;
    counts->checked[source][g->depth]++;
    counts->right[source][g->depth] += right;
}

/* The token came after guesses[at]. Returns the guess that was right, or -1. */
static int16_t learn_after(qw_draft *d, int16_t at, int32_t token)
{
    const guess *parent = &d->guesses[at];
    int16_t found = -1;
    for (uint16_t i = 0; parent->first >= 0 && i < parent->n; i++) {
        const guess *g = &d->guesses[parent->first + i];
        bool right = g->token == token;
        if (found < 0) learn_kind(d, g->kind, right); /* when none before it was right */
        if (right) found = (int16_t)(parent->first + i);
        count(d, g, right);
    }
    return found;
}

void qw_draft_advance(qw_draft *d, uint32_t n)
{
    int16_t at = d->n_guesses > 0 ? 0 : -1;
    if (d->bet.open && n > d->n) add_credit(d->all, (d->bet.n_others + (n - d->n)) / d->bet.rate - d->bet.pass_us);
    d->bet.open = false;
    for (uint32_t i = d->n; i < n && at >= 0; i++) at = learn_after(d, at, d->tokens[i]);
    d->n_guesses = 0;
    qw_ngrams_set_length(d->ngrams, n);
    d->n = n;
}

/* ---- life ----------------------------------------------------------------------------------------- */

qw_status qw_drafts_create(const qw_drafts_options *o, qw_drafts **out, qw_err *err)
{
    qw_drafts *ds = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&ds, 1, sizeof *ds, "drafts", err));
    ds->o = *o;
    if (o->sources == 0) ds->o.sources = (1u << QW_DRAFT_SOURCES) - 1;
    ds->cost.us_guess = o->us_per_pass;
    ds->model_us = o->model.us_per_token;
    ds->lacking_us = o->model.us_per_lacking;
    for (size_t i = 0; i < KINDS; i++) ds->kinds[i] = (estimate){p_begin((uint8_t)i), WEIGHT_BEGIN};
    QW_TRY_GOTO(qw_recycled_create(o->n_vocab, &ds->recycled, err));
    *out = ds;
    return QW_OK;
fail:
    qw_drafts_destroy(ds);
    return status;
}

void qw_drafts_destroy(qw_drafts *ds)
{
    if (!ds) return;
    qw_recycled_destroy(ds->recycled);
    free(ds);
}

void qw_drafts_note_logits(qw_drafts *ds, int32_t token, const float *logits)
{
    qw_top top[QW_SUCCESSORS];
    qw_recycled_note(ds->recycled, token, top, qw_top_of(logits, ds->o.n_vocab, QW_SUCCESSORS, top));
}

void qw_drafts_note_top(qw_drafts *ds, int32_t token, const qw_top *top, size_t n)
{
    qw_recycled_note(ds->recycled, token, top, n);
}

/* The first pass tells how fast the machine is: what was guessed of the other model is off by as much. */
static void scale_guesses(qw_drafts *ds)
{
    double by = qw_draft_cost_us(&ds->cost, 1) / ds->o.us_per_pass;
    if (ds->n_model_us == 0) ds->model_us *= by;
    if (ds->n_lacking_us == 0) ds->lacking_us *= by;
}

void qw_drafts_note_cost(qw_drafts *ds, uint32_t n_rows, double us)
{
    bool first = ds->cost.n_notes == 0;
    qw_draft_cost_note(&ds->cost, n_rows, us);
    first = first && ds->cost.n_notes > 0;
    if (first && ds->o.us_per_pass > 0) scale_guesses(ds);
    add_credit(ds, (first ? CREDIT_BEGIN : credit_share) * qw_draft_cost_us(&ds->cost, n_rows));
}

double qw_drafts_cost_us(const qw_drafts *ds, uint32_t n_rows)
{
    return qw_draft_cost_us(&ds->cost, n_rows);
}

void qw_drafts_get_counts(const qw_drafts *ds, qw_draft_counts *out)
{
    *out = ds->counts;
}

qw_status qw_draft_create(qw_drafts *ds, uint32_t n_tokens_max, void *user, qw_draft **out, qw_err *err)
{
    qw_draft *d = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&d, 1, sizeof *d, "drafts", err));
    d->all = ds;
    d->user = user;
    QW_TRY_GOTO(qw_ngrams_create(n_tokens_max, &d->ngrams, err));
    *out = d;
    return QW_OK;
fail:
    qw_draft_destroy(d);
    return status;
}

void qw_draft_destroy(qw_draft *d)
{
    if (!d) return;
    qw_ngrams_destroy(d->ngrams);
    free(d);
}

void qw_draft_begin(qw_draft *d, const int32_t *tokens, uint32_t n)
{
    qw_ngrams_begin(d->ngrams, tokens);
    qw_ngrams_set_length(d->ngrams, n);
    d->tokens = tokens;
    d->n = n;
    d->n_guesses = 0;
    d->n_drafted = 0;
    d->bet.open = false;
    d->gain_us = 0;
    d->n_tries = 0;
    for (size_t i = 0; i < KINDS; i++) d->kinds[i] = (estimate){d->all->kinds[i].p, WEIGHT_BEGIN};
}
