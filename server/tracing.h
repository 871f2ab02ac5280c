/* tracing.h - a call's spans: the request as a whole, and its waiting, prefill and decode.
 *
 * Thread: the loop's.
 */
#ifndef GAZE_SERVER_TRACING_H
#define GAZE_SERVER_TRACING_H

#include "server.h"

/* Once the headers are there. */
void tracing_begin(struct call *c, const char *traceparent);
/* The call is over, its generation still there; status as it is logged. */
void tracing_end(struct call *c, const char *handler, int status);

#endif
