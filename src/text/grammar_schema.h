/* grammar_schema.h: what the files that read JSON schemas share. Internal to the grammar compiler; one thread.
 *
 * What is compiled is a set of schemas that must all hold, because $ref, allOf and their neighbours add up: a goal. Each
 * goal becomes a rule; the goals of properties and items are queued, so nothing recurses. A schema is a slice of the
 * document in the form that qw_json_rewrite gives it; two slices are the same when they begin in the same place.
 */
#ifndef QW_TEXT_GRAMMAR_SCHEMA_H
#define QW_TEXT_GRAMMAR_SCHEMA_H

#include "text/grammar_private.h"

typedef enum schema_keyword {
    KW_TYPE, KW_ENUM, KW_CONST, KW_ANY_OF, KW_ONE_OF, KW_ALL_OF, KW_REF,
    KW_MINIMUM, KW_MAXIMUM, KW_EXCLUSIVE_MINIMUM, KW_EXCLUSIVE_MAXIMUM, KW_MULTIPLE_OF,
    KW_MIN_LENGTH, KW_MAX_LENGTH, KW_PATTERN, KW_FORMAT,
    KW_ITEMS, KW_PREFIX_ITEMS, KW_MIN_ITEMS, KW_MAX_ITEMS, KW_UNIQUE_ITEMS,
    KW_PROPERTIES, KW_REQUIRED, KW_ADDITIONAL, KW_PATTERN_PROPERTIES, KW_MIN_PROPERTIES, KW_MAX_PROPERTIES,
    KW_ANNOTATION, KW_COUNT = KW_ANNOTATION
} schema_keyword;

enum { TYPE_NULL = 1, TYPE_BOOL = 2, TYPE_INTEGER = 4, TYPE_NUMBER = 8, TYPE_STRING = 16, TYPE_ARRAY = 32,
       TYPE_OBJECT = 64, TYPE_EVERY = 127 };

enum { SCHEMA_SET_MAX = 64, SCHEMA_MIN_MAX = 60000, SCHEMA_PATTERNS_MAX = 64, BUCKETS = 4096 };

/* A schema of a goal. chosen: anyOf and oneOf were decided; branch: it is what the last decision chose. */
typedef struct schema_item {
    qw_text s;
    bool any_chosen, one_chosen, branch;
} schema_item;

typedef struct schema_goal {
    uint32_t items, n; /* in schema_compiler.items */
    uint32_t rule;
    uint32_t next;     /* of the same bucket; 0: none */
    bool raw;          /* a string stands without quotes */
} schema_goal;

/* A schema with its keywords; .s NULL where one is absent. */
typedef struct schema_node {
    schema_item item;
    qw_text kw[KW_COUNT];
    uint32_t parent;   /* in the set: who brought it in; itself: nobody */
    bool never;        /* false */
    bool asserts;      /* more than $ref and allOf */
} schema_node;

typedef struct schema_compiler {
    grammar_build *b;
    const char *what;  /* borrows: for messages */
    qw_text root;      /* the document, rewritten */
    schema_item *items; /* owns */
    uint32_t n_items, items_cap;
    schema_goal *goals; /* owns; from 1 */
    uint32_t n_goals, goals_cap;
    uint32_t buckets[BUCKETS];
    schema_node nodes[SCHEMA_SET_MAX]; /* the goal that is being compiled */
    uint32_t n;
    bool again;        /* a schema turned out to be of a branch after it was followed, perhaps */
    qw_buf text;       /* the document */
} schema_compiler;

/* Sets the error, with the place of a schema in front. */
void schema_fail(schema_compiler *c, qw_status status, qw_text at, const char *fmt, ...) QW_PRINTF(4, 5);
/* Rule of a goal; queued when it is new. 0 on failure. */
uint32_t schema_goal_rule(schema_compiler *c, const schema_item *items, uint32_t n, bool raw);
/* Reads one schema's keywords. */
bool schema_read(schema_compiler *c, qw_text s, schema_node *node);
/* Resolves a $ref; .s NULL with an error set. */
qw_text schema_resolve(schema_compiler *c, qw_text ref, qw_text at);
/* Member of an object by its name as JSON text (with quotes). */
qw_text schema_member(qw_text object, qw_text quoted);
/* Types that a schema names. */
unsigned schema_types(schema_compiler *c, const schema_node *node);
unsigned schema_type_of_value(qw_text value);
/* A count such as minItems; beyond GRAMMAR_COUNT_MAX it is that. */
uint32_t schema_count(schema_compiler *c, const schema_node *node, schema_keyword k);
bool schema_same_value(qw_text x, qw_text y);
/* Can no value satisfy both? Only what is easily seen. */
bool schema_disjoint(schema_compiler *c, qw_text x, qw_text y);

/* Expressions of the values that satisfy all of c->nodes, by type; 0: none, or an error is set. */
uint32_t schema_values_ast(schema_compiler *c, bool raw);     /* enum and const */
uint32_t schema_string_ast(schema_compiler *c, bool raw);
uint32_t schema_array_rule(schema_compiler *c);
/* minProperties and maxProperties of all. False: nothing fits, or an error is set. */
bool schema_property_counts(schema_compiler *c, uint32_t *min, uint32_t *max);
uint32_t schema_object_rule(schema_compiler *c);
/* The parameters of a call in the XML form, for an object's schema in c->nodes. */
uint32_t schema_parameters_ast(schema_compiler *c);

#endif
