/* model.h: what the simulation computes with: a fake model, or a real one. */
#ifndef QW_TESTS_SIM_MODEL_H
#define QW_TESTS_SIM_MODEL_H

#include "engine/core.h"

typedef struct sim_solo {
    int32_t *tokens;  /* [n] of the answer */
    uint64_t *hashes; /* [n] of the logits that each was drawn from */
} sim_solo;

typedef struct sim_model sim_model;
struct sim_model {
    uint32_t n_vocab;
    bool recurrent;
    /* Before all that follows: which kind of model it is in this run, where that is the seed's choice; room for solo. */
    void (*begin)(sim_model *m, uint64_t seed, uint32_t context);
    /* A pool of pages and slots, and functions that compute with it (compute.ctx is the model); closed with close_run. */
    qw_seq_pool *(*open_run)(sim_model *m, uint64_t seed, uint32_t n_pages, uint32_t n_slots, uint32_t n_rows_max, uint32_t context);
    void (*close_run)(sim_model *m);
    void (*forward)(void *model, const qw_row *rows, size_t n);
    void (*logits)(void *model, const uint32_t *rows, size_t n, float *out, size_t ld);
    /* The first n tokens of the answer to tokens [n_prompt], computed alone. */
    void (*solo)(sim_model *m, const int32_t *tokens, uint32_t n_prompt, const qw_sampling *sampling, uint32_t n, sim_solo *out);
    int64_t (*cost_us)(size_t n_rows); /* of a pass, in the simulation's time */
    /* What a row of the last pass computed, and what the last solo did at a position; NULL: cannot be told. */
    uint64_t (*row)(const sim_model *m, uint32_t row);
    uint64_t (*position)(const sim_model *m, uint32_t pos);
    void (*close)(sim_model *m);
};

uint64_t sim_mix(uint64_t a, uint64_t b);
uint64_t sim_hash_floats(const float *x, size_t n);

sim_model *sim_fake_model(void);
/* Ends the program with one line when the file cannot be opened. */
sim_model *sim_real_model(const char *path);

#endif
