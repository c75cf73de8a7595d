/* think.c: see think.h. */
#include "engine/think.h"

#include <string.h>

/* Source: the stop that Qwen3's model card and technical report give for a thinking budget. */
static const char limit_words[] = "\n\nConsidering the limited time by the user, I have to give the solution based on the "
                                  "thinking directly now.\n</think>\n\n";
/* The model thought it was done. */
static const char end_words[] = "\n</think>\n\n";

qw_status qw_think_words_create(const qw_tokenizer *t, qw_think_words *out, qw_err *err)
{
    *out = (qw_think_words){0};
    qw_status status = qw_tokenizer_encode(t, limit_words, strlen(limit_words), true, &out->limit, err);
    if (status == QW_OK) status = qw_tokenizer_encode(t, end_words, strlen(end_words), true, &out->end, err);
    if (status != QW_OK) qw_think_words_free(out);
    return status;
}

void qw_think_words_free(qw_think_words *w)
{
    qw_tokens_free(&w->limit);
    qw_tokens_free(&w->end);
}

static void close_with(qw_think *t, const qw_tokens *words)
{
    t->next = words->ids;
    t->n_next = words->n;
    t->closed = true;
}

static bool is_used_up(const qw_think *t)
{
    return t->tokens_max > 0 && t->n_tokens >= t->tokens_max;
}

int32_t qw_think_next(qw_think *t, int32_t drawn, qw_think_at at)
{
    if (!t->words) return drawn;
    if (at.in_thinking && at.between && !t->closed) {
        t->caught = at.ends;
        if (at.ends) close_with(t, &t->words->end);
        else if (is_used_up(t)) close_with(t, &t->words->limit);
    }
    t->n_tokens += at.in_thinking;
    if (t->n_next == 0) return drawn;
    t->n_next--;
    return *t->next++;
}
