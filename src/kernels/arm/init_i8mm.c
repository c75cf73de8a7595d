/* init_i8mm.c: the slots of level "i8mm" (FEAT_I8MM). Called by qw_kernels_get() alone, after the
 * levels below it. Any thread.
 */
#include "kernels/kernels_private.h"

void qw_kernels_init_i8mm(qw_kernels *t)
{
    qw_gemm_init_i8mm(t);
}
