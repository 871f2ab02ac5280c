/* cuda_ops.h - ops.h on one NVIDIA GPU, and the weights it reads.
 *
 * Any member of the family; compute capability 8.0 or later. Activations are fp32; in the
 * fast precision products split them into two bf16 as they read them, as the CPU's do (one bf16
 * takes the random goldens to 2e-2 .. 2e-1 root mean square: other experts, other selections). Each
 * lane has its stream; all memory is reserved when the back end opens; a step's arrays go up once,
 * in begin(). The KV planes have the CPU's bytes. Equal bits: how a product or a sum is cut depends
 * on the sizes of one row's work alone.
 *
 * Thread: ops of the two lanes may be called from two threads at once.
 */
#ifndef GAZE_CUDA_OPS_H
#define GAZE_CUDA_OPS_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "model/ops.h"

/* 0 when there is no driver or no device that the kernels run on. */
uint32_t cuda_device_count(void);
/* ERR_CUDA: why a device cannot be used (no driver, one that is too old, no such GPU, one that is
 * too old), in one sentence that offers the CPU. */
MUST_CHECK enum err_code cuda_device_check(uint32_t device, struct err *e);
/* Whether PRECISION_FP8 has kernels of its own there (Hopper); elsewhere it rounds as it says and
 * multiplies as the fast precision does. */
bool cuda_device_multiplies_fp8(uint32_t device);
/* Whether each of the n devices from `first` on reads the memory of all others, and they are few
 * enough for the "device" communicator (comm.h). */
bool cuda_devices_reach(uint32_t first, uint32_t n);
/* Free memory of a device now; 0 when it cannot be asked. */
size_t cuda_device_free_bytes(uint32_t device);

/* What a device can do at most, per second: bytes read and written by a copy that is timed now
 * (512 MiB of its memory, or half of what is free, for some ms), and bf16 operations by its
 * multiprocessors' highest clock, as many per cycle as sm_90 has. ERR_CUDA. */
MUST_CHECK enum err_code cuda_limits_measure(uint32_t device, double *bytes, double *flops,
                                             struct err *e);

/* Reserves KV planes and workspace on the device. ERR_NOMEM, ERR_CUDA, ERR_INVALID (a size that
 * the kernels cannot do, by name). cfg must outlive it; end it with ops->close(). */
MUST_CHECK enum err_code cuda_ops_open(struct ops **out, const struct model_config *cfg,
                                       const struct ops_limits *limits, uint32_t device,
                                       struct err *e);
/* What cuda_ops_open() would reserve on the device; alloc_act() and alloc_sel() come on top. Needs
 * no device. */
struct ops_plan cuda_ops_plan(const struct model_config *cfg, const struct ops_limits *limits);

/* A copy of `from` whose matrices and vectors lie on the device, in the file's own formats; `from`
 * may be closed afterwards. ERR_NOMEM, ERR_CUDA. End it with cuda_weights_close(), after the ops
 * that read it. */
MUST_CHECK enum err_code cuda_weights_upload(struct weights **out, const struct weights *from,
                                             const struct model_config *cfg, uint32_t device,
                                             weights_progress *progress, void *arg, struct err *e);
/* The same where only vectors are there (weights_dummy_shapes()): matrices are random numbers that
 * the device makes up, at the speed of its memory. */
MUST_CHECK enum err_code cuda_weights_dummy(struct weights **out, const struct weights *shapes,
                                            const struct model_config *cfg, uint32_t device,
                                            weights_progress *progress, void *arg, struct err *e);
void cuda_weights_close(struct weights *w);

#ifdef __cplusplus
}
#endif
#endif
