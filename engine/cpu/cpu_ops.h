/* cpu_ops.h - ops.h on a CPU.
 *
 * AVX-512 (BF16, VNNI), AVX2 and portable C, chosen when it opens (or by
 * GAZE_SIMD=avx512|avx2|portable, for tests); a fork-join pool shared by the lanes. FP8 and BF16
 * weights are used where they lie. Thread: ops of the two lanes may be called from two threads at
 * once; decode's parallel parts go first.
 */
#ifndef GAZE_CPU_OPS_H
#define GAZE_CPU_OPS_H

#include "model/ops.h"

/* Reserves KV planes and workspace. ERR_NOMEM, ERR_INVALID (a size that the ops cannot do, by
 * name). cfg must outlive it; end it with ops->close(). */
MUST_CHECK enum err_code cpu_ops_open(struct ops **out, const struct model_config *cfg,
                                      const struct ops_limits *limits, struct err *e);
/* What cpu_ops_open() with these limits would reserve; alloc_act() and alloc_sel() come on top.
 * When not even addresses can be had for it, workspace_bytes is absurdly large. */
struct ops_plan cpu_ops_plan(const struct model_config *cfg, const struct ops_limits *limits);

#endif
