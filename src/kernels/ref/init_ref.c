/* init_ref.c: the slots of level "ref" (ref: portable C). Called by qw_kernels_get() alone, after the
 * levels below it. Any thread.
 */
#include "kernels/kernels_private.h"

void qw_kernels_init_ref(qw_kernels *t)
{
    qw_act_init_ref(t);
    qw_gemm_init_ref(t);
    qw_gemm_float_init_ref(t);
    qw_float_init_ref(t);
    qw_attn_init_ref(t);
    qw_delta_init_ref(t);
}
