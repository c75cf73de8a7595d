/* grammar_private.h: what the files of the grammar compiler share.
 *
 * Source text becomes expressions (ast_node), expressions become nondeterministic automata, those become deterministic
 * ones (grammar_dfa), rule by rule, and the rules are linked into one array of states (grammar_link.c). Strings with
 * lengths, arrays and objects are rules of their own kind: they count in the frame of the matcher instead of having a
 * state for each number.
 *
 * Errors stick: the first one stays in grammar_build.status, functions that make things return 0 from then on, and who
 * began the work asks once. Owner: the thread that compiles.
 */
#ifndef QW_TEXT_GRAMMAR_PRIVATE_H
#define QW_TEXT_GRAMMAR_PRIVATE_H

#include <string.h>

#include "base/buf.h"
#include "text/grammar.h"

enum {
    GRAMMAR_NEST_MAX = 64,           /* brackets inside each other, in all notations */
    GRAMMAR_REPEAT_MAX = 4096,       /* numbers in {m,n} */
    GRAMMAR_NFA_STATES_MAX = 128 << 10,
    GRAMMAR_AST_MAX = 256 << 10,
    GRAMMAR_COUNT_MAX = 65534,       /* counted items of a frame */
    GRAMMAR_UNLIMITED = 65535,
    GRAMMAR_INDENT_MAX = 64,         /* spaces after a line break between tokens of JSON */
    GRAMMAR_NEED_NEVER = 60000,      /* no depth is enough */
    GRAMMAR_FAR = 1 << 28,           /* bytes to the end: this many, or more */
    GRAMMAR_ROOM_MAX = QW_MASKED_TOKEN_BYTES_MAX,
    GRAMMAR_ROOM_MIN = 16            /* less than this is not worth a way of its own */
};

/* ---- expressions ------------------------------------------------------------------------------ */

typedef enum ast_op {
    AST_NEVER = 0, AST_EMPTY, AST_BYTES, AST_SET, AST_CAT, AST_ALT, AST_REPEAT, AST_CALL, AST_TOKEN, AST_DFA,
    AST_BEGIN, AST_END
} ast_op;

/* A node has one parent. a, b: BYTES offset and length; SET first range and their number; REPEAT least and most
 * (UINT32_MAX: any); CALL rule; TOKEN id; DFA index. */
typedef struct ast_node {
    ast_op op;
    uint32_t first, last, next; /* children, and the sibling after this one; 0: none */
    uint32_t a, b;
} ast_node;

typedef struct cp_range {
    uint32_t lo, hi;
} cp_range;

/* How a code point is written. */
typedef enum grammar_form {
    FORM_RAW = 0, /* UTF-8 */
    FORM_JSON,    /* inside a JSON string: what must be escaped is, and nothing else */
    FORM_KEY      /* the same without what must be escaped */
} grammar_form;

/* ---- automata --------------------------------------------------------------------------------- */

typedef struct dfa_edge {
    uint8_t lo, hi;
    uint32_t to;
} dfa_edge;

/* A rule that is called, or a token that is taken. */
typedef struct dfa_link {
    bool token;
    uint32_t what, to;
} dfa_link;

typedef struct dfa_state {
    uint32_t edges, n_edges; /* sorted by byte, no two overlap */
    uint32_t links, n_links;
    uint32_t label;          /* 0: not accepting */
} dfa_state;

/* State 0 is the beginning. One without any state accepts nothing. */
typedef struct grammar_dfa {
    dfa_state *states;  /* owns */
    dfa_edge *edges;    /* owns */
    dfa_link *links;    /* owns */
    uint32_t n, n_edges, n_links;
    uint32_t cap, edges_cap, links_cap;
} grammar_dfa;

/* Labels of accepting states. A string that several of them accept gets, of the strong ones the first, else the weak
 * one if it is alone, else the weakest. */
enum { LABEL_ACCEPT = 1, LABEL_WEAK = 1 << 20, LABEL_WEAKEST = 1 << 24, LABEL_NONE = 0 };

/* ---- rules ------------------------------------------------------------------------------------ */

typedef enum rule_kind { RULE_AST = 0, RULE_GAP, RULE_STRING, RULE_ARRAY, RULE_OBJECT } rule_kind;

typedef struct grammar_rule {
    rule_kind kind;
    bool defined;
    uint32_t ast;      /* AST */
    uint32_t min, max; /* STRING, ARRAY, OBJECT; max: GRAMMAR_UNLIMITED */
    uint32_t parts;    /* ARRAY: rules of the first items, in build.list; OBJECT: its entries */
    uint32_t n_parts;
    uint32_t rest;     /* ARRAY: rule of the other items, 0: none */
    uint32_t n_open;   /* OBJECT: of n_parts, the last ones are kinds of keys that may come again and again */
    uint32_t dfa;      /* OBJECT: of the keys, labelled 1 + entry */
    uint32_t start;    /* first state, when linked */
    bool leaf;         /* small and calls no other: it is put where it is called */
    char name[32];     /* EBNF: for messages */
} grammar_rule;

/* An entry of an object. */
typedef struct object_part {
    uint32_t rule; /* of the value */
    bool required;
} object_part;

typedef struct grammar_build {
    qw_err *err;
    qw_status status;
    int64_t cpu_begin, cpu_max; /* us of this thread */
    uint64_t work;

    ast_node *ast;
    uint32_t n_ast, ast_cap;
    char *bytes;
    uint32_t n_bytes, bytes_cap;
    cp_range *ranges;
    uint32_t n_ranges, ranges_cap;
    grammar_dfa *dfas;
    uint32_t n_dfas, dfas_cap;
    grammar_rule *rules; /* from 1 */
    uint32_t n_rules, rules_cap;
    uint32_t *list;
    uint32_t n_list, list_cap;
    object_part *parts;
    uint32_t n_parts, parts_cap;
    uint32_t gap;        /* a rule that is made when it is first asked for; 0: not yet */
} grammar_build;

void grammar_build_begin(grammar_build *b, const qw_grammar_options *options, qw_err *err);
void grammar_build_free(grammar_build *b);
/* Sets the error, unless there is one. */
void grammar_fail(grammar_build *b, qw_status status, const char *fmt, ...) QW_PRINTF(3, 4);
static inline bool grammar_ok(const grammar_build *b)
{
    return b->status == QW_OK;
}
/* Counts work, and looks at the clock now and then. False: an error is set. */
bool grammar_work(grammar_build *b, uint64_t units);
/* Room for `add` more of n elements at *ptr; new ones are zero. False: an error is set, naming `what`. */
bool grammar_room(grammar_build *b, void *ptr_ptr, uint32_t n, uint32_t add, uint32_t *cap, size_t size, uint32_t max,
                  const char *what);

/* Expressions; 0 on failure. Children are added in order; a child that is 0 is left out. */
uint32_t ast_new(grammar_build *b, ast_op op, uint32_t a, uint32_t v);
void ast_add(grammar_build *b, uint32_t parent, uint32_t child);
uint32_t ast_bytes(grammar_build *b, const char *s, size_t n);
uint32_t ast_text(grammar_build *b, const char *s);
/* Ranges in any order; they are sorted and joined. */
uint32_t ast_set(grammar_build *b, const cp_range *ranges, uint32_t n, bool negated);
uint32_t ast_range(grammar_build *b, uint32_t lo, uint32_t hi);
uint32_t ast_any(grammar_build *b); /* any code point */
uint32_t ast_cat(grammar_build *b, uint32_t x, uint32_t y);
uint32_t ast_repeat(grammar_build *b, uint32_t x, uint32_t min, uint32_t max);
static inline uint32_t ast_call(grammar_build *b, uint32_t rule)
{
    return ast_new(b, AST_CALL, rule, 0);
}

/* A rule without a body yet; its number, 0 on failure. */
uint32_t grammar_rule_new(grammar_build *b, rule_kind kind);
uint32_t grammar_gap(grammar_build *b); /* white space between the tokens of JSON, at least one character */

/* ---- automata --------------------------------------------------------------------------------- */

/* One expression with the label of what it accepts. */
typedef struct labelled_ast {
    uint32_t ast, label;
    grammar_form form;
} labelled_ast;
/* The deterministic automaton of several; an index into build.dfas, 0 on failure. Trimmed: from each state something
 * is accepted. */
uint32_t grammar_dfa_of(grammar_build *b, const labelled_ast *parts, size_t n);
static inline uint32_t grammar_dfa_one(grammar_build *b, uint32_t ast, grammar_form form)
{
    return grammar_dfa_of(b, &(labelled_ast){ast, LABEL_ACCEPT, form}, 1);
}
/* What both accept, or x and not y. Neither has links. */
uint32_t grammar_dfa_both(grammar_build *b, uint32_t x, uint32_t y);
uint32_t grammar_dfa_without(grammar_build *b, uint32_t x, uint32_t y);
/* What x accepts and has min to max characters (UINT32_MAX: any number), written in the form. */
uint32_t grammar_dfa_of_length(grammar_build *b, uint32_t x, uint32_t min, uint32_t max, grammar_form form);
bool grammar_dfa_accepts(const grammar_build *b, uint32_t dfa, const char *s, size_t n);
static inline bool grammar_dfa_empty(const grammar_build *b, uint32_t dfa)
{
    return b->dfas[dfa].n == 0;
}
/* Appends a state, an edge to state `to` of the last state, ...; for automata made by hand. */
uint32_t grammar_dfa_new(grammar_build *b);
uint32_t dfa_add_state(grammar_build *b, grammar_dfa *d, uint32_t label);
bool dfa_add_edge(grammar_build *b, grammar_dfa *d, uint8_t lo, uint8_t hi, uint32_t to);

/* ---- notations -------------------------------------------------------------------------------- */

/* Expression of an ECMA-262 pattern. whole: all of the text matches, else some part of it. what: for messages. */
uint32_t grammar_regex_ast(grammar_build *b, qw_text pattern, bool whole, const char *what);
/* Rule of a grammar's text. */
uint32_t grammar_ebnf_rules(grammar_build *b, qw_text source);
/* Rule of a schema's JSON text; what: names the schema in messages ("" or "tools[2].parameters"). */
uint32_t grammar_schema_rule(grammar_build *b, qw_text schema, const char *what);
/* Expression of the parameters of a call in the XML form, for the schema of its arguments. */
uint32_t grammar_schema_parameters(grammar_build *b, qw_text schema, const char *what);
/* Expression of a format's strings, 0 and no error when the name is not known. */
uint32_t grammar_format_ast(grammar_build *b, qw_text name);

/* A bound of a number: text of a JSON number. */
typedef struct number_bounds {
    qw_text min, max;               /* .s NULL: none */
    bool min_exclusive, max_exclusive;
    bool integer;
    uint32_t multiple;              /* 0: any */
} number_bounds;
uint32_t grammar_number_ast(grammar_build *b, const number_bounds *bounds);
/* Sign of x - y of two JSON numbers, exactly. */
int grammar_number_compare(qw_text x, qw_text y);
bool grammar_number_is_integer(qw_text x);

/* ---- the linked grammar ----------------------------------------------------------------------- */

/* What must be so for an edge to be taken; objects and counted states decide it by their frame. */
typedef enum grammar_guard {
    GUARD_NONE = 0,
    GUARD_MORE,  /* one more fits: count < hi */
    GUARD_DONE,  /* enough: count >= lo */
    GUARD_KEY,   /* the object can take another key */
    GUARD_CLOSE, /* the object can end */
    GUARD_PATH,  /* towards a key that can be taken */
    GUARD_TAKE   /* the key ends here and can be taken */
} grammar_guard;

typedef struct grammar_edge {
    uint8_t lo, hi, guard;
    uint32_t to;
} grammar_edge;

typedef struct grammar_call {
    bool token;     /* what: a token's id, else the first state of a rule */
    uint8_t guard;
    uint32_t what, to;
} grammar_call;

enum {
    STATE_ACCEPT = 1,
    STATE_COUNT = 2,   /* entering it counts */
    STATE_TAIL = 4,    /* accepts, and nothing follows: a frame for it is not needed */
    STATE_ABSORBS = 8, /* takes ordinary characters, whatever they are: as many as fit into its count, or `room` */
    STATE_KEY = 16,    /* inside the quotes of a key */
    STATE_OPENED = 32, /* behind the { of an object */
    STATE_OPEN_KEY = 64, /* behind a key that the schema does not name */
    STATE_KEY_BEGIN = 128,
    STATE_CALLS = 256  /* calls a rule */
};

typedef struct grammar_state {
    uint32_t edges, calls; /* first of each */
    uint16_t n_edges, n_calls;
    uint16_t lo, hi;       /* counted states; KEY: lo is 1 + entry of the key that ends here, 0: none; hi its bytes so far */
    uint16_t need;         /* frames that it takes, at least, to get to the end of the rule */
    uint16_t flags;
    uint16_t room;         /* ABSORBS, not counted: of characters; GRAMMAR_ROOM_MAX: any number */
    uint32_t object;       /* 1 + index, states of objects */
    uint32_t item;         /* counted: first state of what is counted; 0: a character */
    uint32_t far;          /* bytes to the end of the rule, as grammar_end.c says */
} grammar_state;

typedef struct grammar_object {
    uint32_t n;            /* entries; the last n_open come again and again */
    uint32_t n_open;
    uint32_t min, max;
    uint32_t opened;       /* the state behind its { */
    uint32_t parts;        /* first of grammar.parts */
    uint32_t keys, n_keys; /* first state of the automaton of keys, and their number */
    uint32_t reach;        /* bits of the entries that a key state can come to: [n_keys][words], in grammar.reach */
    uint32_t words;
} grammar_object;

typedef struct grammar_part {
    uint32_t state;        /* behind the key */
    bool required, usable; /* usable: some value satisfies it */
    bool cheap;            /* fits whenever the object fits */
    uint16_t need;
    uint16_t required_after, cheap_after; /* among the entries from here on, the repeated ones not counted */
    uint32_t next_required; /* the first from here on; object.n - n_open when there is none */
    uint16_t key_bytes;    /* of its shortest key */
    uint32_t behind;       /* bytes of the required ones from here on */
} grammar_part;

struct qw_grammar {
    uint64_t serial;       /* no two grammars have the same */
    grammar_state *states; /* owns, as all below; state 0 is no state */
    uint32_t n_states, states_cap;
    grammar_edge *edges;
    uint32_t n_edges, edges_cap;
    grammar_call *calls;
    uint32_t n_calls, calls_cap;
    grammar_object *objects;
    uint32_t n_objects, objects_cap;
    grammar_part *parts;
    uint32_t n_parts, parts_cap;
    uint64_t *reach;
    uint32_t n_reach, reach_cap;
    uint64_t (*first)[4];  /* bytes that a state can take, itself or through calls and returns */
    uint8_t *nullable;     /* a rule that begins in the state may take nothing */
    uint32_t start;
};

/* Turns the rules into *out. root: the rule that is the whole text. Sets the error when no text satisfies it. */
qw_grammar *grammar_link(grammar_build *b, uint32_t root, const qw_grammar_options *options);

/* Least bytes from a state to the end of its rule, with its frame's counters. returns: a rule above it ends there first. */
uint32_t grammar_to_end(const qw_grammar *g, uint32_t state, uint32_t a, uint32_t b, bool returns);

/* ---- matching --------------------------------------------------------------------------------- */

/* One reading of the text so far: a state, its counters, and the frames below it. */
typedef struct match_head {
    uint32_t state, node;
    uint16_t a, b;         /* count; objects: next entry, and number of keys */
    uint8_t level;         /* objects that are open */
} match_head;

/* A frame: where to go on when the rule above it ends. Node 0 is the bottom. */
typedef struct match_node {
    uint32_t parent, ret;
    uint16_t a, b;
    uint16_t depth;
    uint8_t level;
} match_node;

/* Where heads and frames are made: the matcher's own when it takes a token, the masker's when it looks for tokens. */
typedef struct match_run {
    const qw_grammar *g;
    match_node *nodes;     /* borrows */
    uint32_t n_nodes, nodes_cap;
    bool key_is_new;       /* the key so far is none of the object's */
    bool keys_full;        /* no more keys that nothing asks for */
    bool at_begin;         /* this is the first byte of a token */
    bool closed;           /* the heads hold all that calls and returns lead to */
    uint64_t steps;        /* heads that bytes were tried on */
} match_run;

enum {
    MATCH_NODES_MAX = QW_GRAMMAR_HEADS_MAX * QW_GRAMMAR_DEPTH_MAX,
    MATCH_WORK_MAX = 128, /* heads that one byte may lead through */
    MATCH_SPARE = MATCH_NODES_MAX + MATCH_WORK_MAX,
    MATCH_KEYS_CAP = QW_GRAMMAR_KEYS_MAX + QW_GRAMMAR_DEPTH_MAX * 8,
    MATCH_MIN_OPEN = 8    /* keys that a schema may ask for without naming them */
};

typedef struct match_key {
    uint64_t hash;
    uint8_t level;
} match_key;

struct qw_matcher {
    const qw_grammar *g;   /* borrows */
    const qw_tokenizer *tokenizer; /* borrows */
    bool ended;
    uint32_t n_heads, n_nodes, n_keys;
    uint64_t key;          /* hash of the key so far */
    match_head heads[QW_GRAMMAR_HEADS_MAX];
    match_key keys[MATCH_KEYS_CAP];
    match_node nodes[MATCH_NODES_MAX];
    match_node *spare;     /* owns: [MATCH_SPARE], where a step makes its frames */
    qw_matcher *saved;     /* owns: the place to go back to when a token does not fit; NULL in itself */
};

/* Heads after one byte; out has QW_GRAMMAR_HEADS_MAX places. Returns their number. */
uint32_t match_byte(match_run *r, const match_head *in, uint32_t n, uint8_t byte, match_head *out);
/* Can a byte follow in a state, in it or in what it calls and returns to? -1: any. */
static inline bool match_admits(const qw_grammar *g, uint32_t state, int byte)
{
    return byte < 0 || g->nullable[state] || (g->first[state][byte / 64] >> byte % 64 & 1);
}
/* All heads that calls and returns lead to without a byte: MATCH_WORK_MAX places. */
uint32_t match_closure(match_run *r, const match_head *in, uint32_t n, match_head *out);
/* Least bytes from a head to the end of the text. below: those of the first n_below frames, from match_frames_to_end. */
uint32_t match_to_end(const qw_grammar *g, const match_node *nodes, const uint32_t *below, uint32_t n_below,
                      const match_head *h);
void match_frames_to_end(const qw_grammar *g, const match_node *nodes, uint32_t n, uint32_t *below);
bool match_may_end(const match_run *r, const match_head *heads, uint32_t n);
/* Sets what the run knows about keys from the matcher's place. */
void match_run_begin(match_run *r, const qw_matcher *m, match_node *nodes, uint32_t cap);

#endif
