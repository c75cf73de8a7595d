/* sim_models.h: what the parts of sim_models share: the script of a seed, what all processes count, chance. */
#ifndef QW_TESTS_SIM_MODELS_H
#define QW_TESTS_SIM_MODELS_H

#include <stdatomic.h>

#include "../sim/model.h"

enum { CONTEXT = 704, CLIENTS_MAX = 4, TURNS_MAX = 5, EDGES_MAX = 2 * TURNS_MAX, ANSWER_MAX = 16 };

/* In place of a number of passes. */
#define AT_END (UINT32_MAX - 1)
#define NEVER UINT32_MAX

/* ---- chance --------------------------------------------------------------------------------------- */

typedef struct dice {
    uint64_t x;
} dice;

static inline uint32_t below(dice *d, uint32_t n)
{
    d->x = d->x * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((d->x >> 33) % n);
}

static inline bool chance(dice *d, uint32_t percent)
{
    return below(d, 100) < percent;
}

/* ---- the script ----------------------------------------------------------------------------------- */

/* A prompt, and the answer to it that was computed alone. */
typedef struct turn {
    int32_t tokens[CONTEXT]; /* of both */
    uint32_t n_prompt, n_answer;
    uint32_t edges[EDGES_MAX], n_edges;
    uint64_t hashes[ANSWER_MAX]; /* of the row of logits that each token of the answer is drawn from */
    qw_sampling sampling;
} turn;

typedef struct client {
    uint8_t owner;
    uint32_t n_turns;
    turn turns[TURNS_MAX];
} client;

typedef struct script {
    uint64_t seed;
    uint32_t n_clients;
    uint32_t n_longest; /* tokens of a prompt and its answer */
    client clients[CLIENTS_MAX];
} script;

/* Conversations that follow from the seed alone. */
void script_make(sim_model *m, uint64_t seed, script *out);

/* ---- what happened -------------------------------------------------------------------------------- */

/* name, what it counts, whether a run without it proves nothing */
#define COUNTS(X)                                                                   \
    X(LIVES, "processes", true)                                                     \
    X(KILLS, "of them killed", true)                                                \
    X(CUT, "requests cut by that", true)                                            \
    X(CUT_SAVES, "saves cut by that", true)                                         \
    X(REQUESTS, "answers that came to their end", true)                             \
    X(CANCELLED, "answers cancelled", false)                                        \
    X(PIECES, "pieces of prompts before their last one", true)                      \
    X(ROWS, "rows computed", true)                                                  \
    X(GUESSES, "guesses that were right", false)                                    \
    X(PREEMPTIONS, "requests that stepped back", false)                             \
    X(EVICTIONS, "pages and snapshots given up", true)                              \
    X(SAVED, "files saved", true)                                                   \
    X(TRIMMED, "files removed by the store's limits", false)                        \
    X(RESTORES, "requests that went on from disk", true)                            \
    X(RESTORED, "tokens of these", true)                                            \
    X(DAMAGED, "files damaged", true)                                               \
    X(FOUND_BAD, "of them noticed by who needed them", true)                        \
    X(COMPARED, "rows of logits compared", true)                                    \
    X(COMPARED_RESTORED, "of them after a past from disk", true)
#define NAME_OF(name, what, must) N_##name,
typedef enum count { COUNTS(NAME_OF) N_COUNTS } count;
#undef NAME_OF

/* Between the processes: what one that is killed has written stays. */
typedef struct shared {
    _Atomic uint64_t n[N_COUNTS];
    _Atomic uint32_t next[CLIENTS_MAX]; /* turn of each client that is not answered yet */
    _Atomic uint32_t n_waiting, n_saving; /* requests, and saves, under way */
    atomic_bool failed;
} shared;

#define FAIL(sh, seed, ...)                                                    \
    do {                                                                       \
        if (!atomic_exchange(&(sh)->failed, true)) {                           \
            printf("seed %llu: ", (unsigned long long)(seed));                 \
            printf(__VA_ARGS__);                                               \
            printf("\n");                                                      \
            fflush(stdout);                                                    \
        }                                                                      \
    } while (0)

/* ---- a process ------------------------------------------------------------------------------------ */

typedef struct life_options {
    const char *dir;      /* the store's */
    uint64_t seed;        /* of this process's choices */
    uint32_t n_store_max; /* files that the store's limit has room for */
    uint32_t told_pass;   /* before that pass, or when all is said, a byte goes to told_fd: the killer's time begins */
    int told_fd;
} life_options;

/* Plays the script from where it stands to its end, on what the store has. */
void life_run(sim_model *m, const script *s, const life_options *o, shared *sh);

#endif
