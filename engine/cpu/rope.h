/* rope.h - rotation of pairs by a position's angles. cos and sin: [dim / 2], of that position.
 *
 * Interleaved pairs are (2 i, 2 i + 1), half-split ones (i, i + dim / 2). fp32, in place.
 * Thread: any.
 */
#ifndef GAZE_CPU_ROPE_H
#define GAZE_CPU_ROPE_H

#include <stdint.h>

void rope_interleaved(float *x, uint32_t dim, const float *cos, const float *sin);
void rope_half_split(float *x, uint32_t dim, const float *cos, const float *sin);

#endif
