/* topk.h - the selection of index.cu on rows of scores of any origin, for tests and timing.
 *
 *   score  [rows, ld]   f32  in, on the device; ld a multiple of 4, 16-byte aligned
 *   out    [rows, k]    i32  out, on the device: the positions of the k largest of the first n
 *                       scores of each row, ascending; the lower position on ties
 * Errors: ERR_INVALID, sizes; ERR_CUDA, the launch. Returns once queued on the default stream.
 */
#ifndef GAZE_CUDA_TOPK_H
#define GAZE_CUDA_TOPK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "base/err.h"

MUST_CHECK enum err_code cuda_topk_rows(const float *score, size_t ld, uint32_t rows, uint32_t n,
                                        uint32_t k, int32_t *out, struct err *e);

#ifdef __cplusplus
}
#endif
#endif
