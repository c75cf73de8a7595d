/* importances.c: see importances.h. */
#include "tools/importances.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

qw_status qw_importances_open(const char *path, qw_gguf **out, qw_err *err)
{
    qw_text type;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_gguf_open(path, out, err));
    QW_TRY_GOTO(qw_gguf_get_str(*out, "general.type", &type, err));
    if (type.n == 7 && memcmp(type.s, "imatrix", 7) == 0) return QW_OK;
    status = qw_fail(err, QW_E_FORMAT, "%s: not an importance matrix: general.type is '%.*s', want 'imatrix'", path,
                     (int)(type.n < 40 ? type.n : 40), type.s);
fail:
    qw_gguf_close(*out);
    *out = NULL;
    return status;
}

/* A table of the file with the given sizes, or NULL when it is not there. */
static qw_status find(const qw_gguf *file, const char *name, const char *what, uint64_t k, uint64_t n,
                      const qw_tensor **out, qw_err *err)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", name, what);
    const qw_tensor *t = *out = qw_gguf_find_tensor(file, full);
    if (t && (t->type != QW_TYPE_F32 || t->ne[0] != k || t->ne[1] * t->ne[2] * t->ne[3] != n))
        return qw_fail(err, QW_E_FORMAT, "%s: %s is %s [%llu, %llu], want F32 [%llu, %llu]: it was measured on another "
                       "model", qw_gguf_path(file), full, qw_type_get((uint32_t)t->type)->name,
                       (unsigned long long)t->ne[0], (unsigned long long)t->ne[1], (unsigned long long)k,
                       (unsigned long long)n);
    return QW_OK;
}

static float float_at(const qw_tensor *t, size_t i)
{
    float f;
    memcpy(&f, t->data + i * sizeof f, sizeof f);
    return f;
}

qw_status qw_importances_read(const qw_gguf *file, const qw_tensor *matrix, float **out, qw_err *err)
{
    const qw_tensor *sums, *counts;
    size_t k = (size_t)matrix->ne[0], n = (size_t)(matrix->ne[2] * matrix->ne[3]);
    *out = NULL;
    QW_TRY(find(file, matrix->name, "in_sum2", k, n, &sums, err));
    QW_TRY(find(file, matrix->name, "counts", 1, n, &counts, err));
    if (!sums || !counts) return QW_OK;
    for (size_t i = 0; i < k * n; i++)
        if (!(float_at(sums, i) >= 0.0f) || !isfinite(float_at(sums, i)))
            return qw_fail(err, QW_E_CORRUPT, "%s: %s has a value that is no sum of squares", qw_gguf_path(file),
                           sums->name);
    QW_TRY(qw_alloc(out, k * n, sizeof **out, "importances", err));
    for (size_t i = 0; i < k * n; i++) {
        float count = float_at(counts, i / k);
        (*out)[i] = count > 0.0f && isfinite(count) ? float_at(sums, i) / count : 1.0f;
    }
    return QW_OK;
}
