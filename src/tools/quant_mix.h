/* quant_mix.h: which type each tensor of a model gets when it is quantised.
 *
 * Not every matrix bears few bits equally well. A mix has a type for most of them and a better one for some: the output,
 * the values of attention, the way down of the feed-forward blocks in a part of the layers. Names and choices are
 * llama.cpp's, so that "Q4_K_M" means the same file everywhere; docs/blocks.md has the table. Pure functions, any thread.
 */
#ifndef QW_TOOLS_QUANT_MIX_H
#define QW_TOOLS_QUANT_MIX_H

#include "formats/gguf.h"

typedef struct qw_quant_mix {
    const char *name;   /* "Q4_K_M" */
    qw_type type;       /* of most matrices */
    uint32_t file_type; /* general.file_type */
} qw_quant_mix;

/* The mix of a name, in any case; "Q3_K", "Q4_K" and "Q5_K" are their _M. NULL: there is none. */
const qw_quant_mix *qw_quant_mix_find(const char *name);
/* All names, with spaces between. */
void qw_quant_mix_names(char *out, size_t cap);

/* types [n_tensors]: of every tensor of the file, which is its own where it stays as it is: vectors, norms, routers,
 * convolutions. importances: whether there are any for the quantisation. */
qw_status qw_quant_mix_types(const qw_quant_mix *mix, const qw_gguf *file, bool importances, qw_type *types,
                             qw_err *err) QW_MUST_CHECK;

#endif
