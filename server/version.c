/* version.c - see version.h; the numbers come from the Makefile. */
#include "version.h"

#ifndef GAZE_VERSION
#define GAZE_VERSION "unknown"
#endif
#ifndef GAZE_COMMIT
#define GAZE_COMMIT "unknown"
#endif

const char version_number[] = GAZE_VERSION;
const char version_commit[] = GAZE_COMMIT;
