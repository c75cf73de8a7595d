/* tape.h: what a model said, with its most probable tokens at each place: recorded once, replayed often.
 *
 * Text: for each answer a line "kind n_prompt n_answer", a line of all token ids, and for each token of the answer a line
 * "id logprob" TAPE_TOP times. One thread.
 */
#ifndef TESTS_DRAFTS_TAPE_H
#define TESTS_DRAFTS_TAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TAPE_TOP = 8, TAPE_KIND_MAX = 16 };

typedef struct tape_top {
    int32_t token;
    float logprob;
} tape_top;

typedef struct tape_case {
    char kind[TAPE_KIND_MAX];
    int32_t *tokens; /* [n_prompt + n_answer] */
    tape_top *top;   /* [n_answer, TAPE_TOP] */
    uint32_t n_prompt, n_answer;
} tape_case;

typedef struct tape {
    tape_case *cases; /* [n_cases] */
    size_t n_cases;
} tape;

/* The model at `path` answers every prompt of a file (its format: prompts.txt), greedily and all at once. Each of these
 * returns false when it has said why on standard error. */
bool tape_record(const char *path, const char *prompts, int32_t n_answer_max, tape *out);
bool tape_write(const tape *t, const char *path);
bool tape_read(const char *path, tape *out);
void tape_free(tape *t);

#endif
