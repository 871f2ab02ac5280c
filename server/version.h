/* version.h - what this build says of itself. Static strings; any thread. */
#ifndef GAZE_SERVER_VERSION_H
#define GAZE_SERVER_VERSION_H

extern const char version_number[]; /* "0.1.0" */
extern const char version_commit[]; /* twelve letters, or "unknown" */

#endif
