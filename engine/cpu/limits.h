/* limits.h - what this machine can do at most, measured: the yardstick of every speed we print.
 *
 * Thread: any; takes some tenths of a second on n_threads threads, and 512 MB for as long.
 */
#ifndef GAZE_CPU_LIMITS_H
#define GAZE_CPU_LIMITS_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

struct cpu_limits {               /* of n_threads together, per second; the best of a few runs */
    double bf16_flops, f32_flops; /* multiply-adds count two; 0: this CPU has no such instruction */
    double cold_bytes, hot_bytes; /* read from 512 MB, and from half a megabyte */
};

MUST_CHECK enum err_code cpu_limits_measure(struct cpu_limits *out, uint32_t n_threads,
                                            struct err *e);

#endif
