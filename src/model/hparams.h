/* hparams.h: hyper-parameters of a model file, each present, of the right type and inside its range. */
#ifndef QW_MODEL_HPARAMS_H
#define QW_MODEL_HPARAMS_H

#include "model/net.h"

/* Reads `A.*` for the architecture A of the file. All faults in one message, QW_E_FORMAT; an architecture or a
 * rope scaling that qw does not run is QW_E_UNSUPPORTED. */
qw_status qw_hparams_read(const qw_gguf *file, qw_hparams *out, qw_err *err) QW_MUST_CHECK;

#endif
