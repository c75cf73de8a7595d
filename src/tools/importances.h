/* importances.h: how much each input column of a matrix matters, as measured over a text: the "importance matrix" files
 * of llama.cpp's tools and of `qw imatrix`.
 *
 * Such a file is a GGUF file with general.type "imatrix". For a matrix NAME [k, rows, n] it has NAME.in_sum2 [k, n], the
 * sums of squares of its inputs, and NAME.counts [1, n], how many inputs that were. Pure functions, any thread.
 */
#ifndef QW_TOOLS_IMPORTANCES_H
#define QW_TOOLS_IMPORTANCES_H

#include "formats/gguf.h"

/* QW_E_FORMAT when the file is a GGUF file of another kind. */
qw_status qw_importances_open(const char *path, qw_gguf **out, qw_err *err) QW_MUST_CHECK;
/* Mean squares [n_matrices, k] of the inputs of a model's matrix into *out, to be freed; NULL when the file has none. An
 * expert that was never used has ones. */
qw_status qw_importances_read(const qw_gguf *file, const qw_tensor *matrix, float **out, qw_err *err) QW_MUST_CHECK;

#endif
