/* clock.h - monotonic time in microseconds. Thread: any. */
#ifndef GAZE_BASE_CLOCK_H
#define GAZE_BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_us(void);     /* since an arbitrary start; never goes back */
uint64_t clock_unix_s(void); /* seconds since 1970, for `created` fields */

#endif
