/* otlp.h - sends spans to a collector: OTLP over HTTP with JSON, on the server's own loop.
 *
 * Spans gather and go out every second, one request at a time. A collector that is slow, away or
 * unwilling costs spans and nothing else: what does not fit in the buffer is dropped, what was not
 * taken is not sent again, both are counted. Only http:// is spoken: a collector beside the server
 * carries on with TLS.
 *
 * Thread: the loop's.
 */
#ifndef GAZE_SERVER_OTLP_H
#define GAZE_SERVER_OTLP_H

#include "trace.h"

#include <uv.h>

struct otlp; /* opaque */

/* endpoint: http://HOST[:PORT][/BASE], as in OTEL_EXPORTER_OTLP_ENDPOINT; /v1/traces is added.
 * instance: what this server calls itself. ERR_INVALID, ERR_NOMEM. */
MUST_CHECK enum err_code otlp_open(struct otlp **out, uv_loop_t *loop, const char *endpoint,
                                   const char *instance, struct err *e);
/* Sends what is left, for at most wait_ms, then lets go of its handles; uv_run() once more before
 * the loop is closed. NULL: nothing. */
void otlp_close(struct otlp *o, unsigned wait_ms);
void otlp_add(struct otlp *o, const struct span *s);

struct otlp_counts {
    uint64_t sent, failed, dropped; /* spans */
};
struct otlp_counts otlp_get_counts(const struct otlp *o);

#endif
