/* init_dotprod.c: the slots of level "dotprod" (FEAT_DotProd). Called by qw_kernels_get() alone, after the
 * levels below it. Any thread.
 */
#include "kernels/kernels_private.h"

void qw_kernels_init_dotprod(qw_kernels *t)
{
    qw_gemm_init_dotprod(t);
}
