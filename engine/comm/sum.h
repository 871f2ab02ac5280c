/* sum.h - sums over ranks on the host, block by block in rank order: what the bodies on host memory
 * share. Private to engine/comm.
 *
 * The first rank's values are taken, each next one's added, in fp32; a block that is stored is
 * rounded once where it is bf16. Thread: any.
 */
#ifndef GAZE_COMM_SUM_H
#define GAZE_COMM_SUM_H

#include "comm/comm.h"

enum { COMM_SUM_BLOCK = 1024 }; /* values summed at once, on the stack */

void comm_sum_add(float *sum, const unsigned char *in, size_t n, enum comm_dtype t, bool first);
void comm_sum_store(unsigned char *out, const float *sum, size_t n, enum comm_dtype t);

#endif
