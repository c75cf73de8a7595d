/* route.c: which experts a row goes to: the same for every way of computing them. Pure; any thread. Source: transformers,
 * modeling_qwen3_moe (Qwen3MoeTopKRouter).
 */
#include "backend/backend.h"

void qw_moe_route(const qw_kernels *kernels, const qw_moe *w, float *logits, uint32_t *expert, float *weight)
{
    float *p = logits, most = p[0], sum = 0, kept = 0;
    for (size_t e = 1; e < w->n_experts; e++) most = p[e] > most ? p[e] : most;
    for (size_t e = 0; e < w->n_experts; e++) p[e] -= most;
    kernels->exp(p, w->n_experts);
    for (size_t e = 0; e < w->n_experts; e++) sum += p[e];
    for (size_t e = 0; e < w->n_experts; e++) p[e] /= sum;
    for (size_t i = 0; i < w->n_used; i++) {
        size_t best = 0;
        float largest = -1.0f;
        for (size_t e = 0; e < w->n_experts; e++) {
            if (!(p[e] > largest)) continue;
            largest = p[e];
            best = e;
        }
        p[best] = -2.0f; /* taken */
        kept += largest;
        size_t at = i;
        for (; at > 0 && expert[at - 1] > best; at--) {
            expert[at] = expert[at - 1];
            weight[at] = weight[at - 1];
        }
        expert[at] = (uint32_t)best;
        weight[at] = largest;
    }
    for (size_t i = 0; i < w->n_used && w->renormalise; i++) weight[i] /= kept;
}
