/* script.c: conversations that follow from a seed, with the answers that a model gives when it computes them alone.
 *
 * What a client says does not depend on what happens to the engine, so the whole talk is known before any process begins, and
 * every row of logits of it is computed once. */
#include <string.h>

#include "sim_models.h"

static void add_tokens(turn *t, const sim_model *m, dice *d, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) t->tokens[t->n_prompt++] = (int32_t)below(d, m->n_vocab);
    t->edges[t->n_edges++] = t->n_prompt;
}

/* Long enough for several pages now and then. */
static uint32_t message_tokens(dice *d)
{
    return chance(d, 25) ? 40 + below(d, 60) : 1 + below(d, 24);
}

/* The system message is the same for all clients of a seed. */
static void begin_talk(turn *t, const sim_model *m, uint64_t seed, dice *d)
{
    dice of_seed = {sim_mix(seed, 3)};
    if (chance(d, 80)) add_tokens(t, m, &of_seed, 10 + below(&of_seed, 110));
    add_tokens(t, m, d, message_tokens(d));
}

/* After the turn before: an answer and a message more, now and then another message in place of the last one, or the same
 * prompt once more. */
static void go_on(turn *t, const turn *before, const sim_model *m, dice *d)
{
    uint32_t what = below(d, 100);
    memcpy(t->tokens, before->tokens, sizeof t->tokens);
    memcpy(t->edges, before->edges, sizeof t->edges);
    t->n_edges = before->n_edges;
    t->n_prompt = before->n_prompt;
    if (what < 8) return;
    if (what < 20 && t->n_edges > 1) {
        t->n_prompt = t->edges[--t->n_edges - 1];
    } else {
        t->n_prompt += before->n_answer;
        t->edges[t->n_edges++] = t->n_prompt;
    }
    add_tokens(t, m, d, message_tokens(d));
}

static void answer_alone(sim_model *m, turn *t, dice *d)
{
    t->n_answer = 1 + below(d, chance(d, 30) ? ANSWER_MAX : 6);
    t->sampling = (qw_sampling){.temperature = chance(d, 50) ? 0.0f : 0.8f, .top_k = chance(d, 50) ? 10 : 0, .top_p = 1,
                                .repetition_penalty = chance(d, 30) ? 1.1f : 1.0f, .top_logprobs = -1, .seed = below(d, 1000)};
    sim_solo out = {t->tokens + t->n_prompt, t->hashes};
    m->solo(m, t->tokens, t->n_prompt, &t->sampling, t->n_answer, &out);
}

void script_make(sim_model *m, uint64_t seed, script *out)
{
    dice d = {sim_mix(seed, 1)};
    *out = (script){.seed = seed, .n_clients = 2 + below(&d, CLIENTS_MAX - 1)};
    for (uint32_t i = 0; i < out->n_clients; i++) {
        client *c = &out->clients[i];
        c->owner = (uint8_t)below(&d, 2);
        c->n_turns = 2 + below(&d, TURNS_MAX - 1);
        for (uint32_t k = 0; k < c->n_turns; k++) {
            if (k == 0) begin_talk(&c->turns[k], m, seed, &d);
            else go_on(&c->turns[k], &c->turns[k - 1], m, &d);
            answer_alone(m, &c->turns[k], &d);
            uint32_t n = c->turns[k].n_prompt + c->turns[k].n_answer;
            if (n > out->n_longest) out->n_longest = n;
        }
    }
}
