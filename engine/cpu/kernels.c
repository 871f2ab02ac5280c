/* kernels.c - which table this CPU gets. */
#include "cpu/kernels.h"

#include "cpu/kernels_sets.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
static bool has_avx2(void)
{
    /* F16C came two years before AVX2; clang's builtin does not know its name. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512bf16");
}
#endif

const struct kernels *kernels_by_name(const char *name)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(name, "avx512"))
        return has_avx512() ? &kernels_avx512 : NULL;
    if (!strcmp(name, "avx2"))
        return has_avx2() ? &kernels_avx2 : NULL;
#endif
    return strcmp(name, "portable") ? NULL : &kernels_portable;
}

const struct kernels *kernels_pick(void)
{
    const char *wanted = getenv("GAZE_SIMD");
    if (wanted && *wanted)
        return kernels_by_name(wanted);
    static const char *const best[] = {"avx512", "avx2"};
    for (size_t i = 0; i < sizeof best / sizeof *best; i++) {
        const struct kernels *k = kernels_by_name(best[i]);
        if (k)
            return k;
    }
    return &kernels_portable;
}
