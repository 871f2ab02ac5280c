/* dsa_portable.c - dsa_loops.h in plain C, and the choice of a table. */
#include "cpu/dsa_body.h"

const struct dsa_loops dsa_loops_portable = DSA_LOOPS_TABLE;

const struct dsa_loops *dsa_loops_for(const char *kernels_name)
{
    const struct dsa_loops *t = NULL;
    if (!strcmp(kernels_name, "avx512"))
        t = dsa_loops_avx512();
    else if (!strcmp(kernels_name, "avx2"))
        t = dsa_loops_avx2();
    return t ? t : &dsa_loops_portable;
}
