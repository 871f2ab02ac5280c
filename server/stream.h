/* stream.h - streams that outlive their connection: "resumable": true, GET /v1/streams/{id}?from=N.
 *
 *   the call that generates --> its sse --> the client
 *                                  `-----> the stream's last events --> further readers
 *
 * Of such a stream the last events are kept, as many bytes as a slow reader may be owed
 * (stream_buffer). When its client leaves, the answer goes on being made, for resume_s seconds
 * without any reader; so long, too, it can be read after its end. A reader gets the events from
 * number N on (0: the first), then those to come, byte for byte as the first client did; comments
 * are not kept. An answer is found by its id ("chatcmpl-...", "resp_..."), by the key that asked
 * for it alone.
 *
 * Thread:    the loop's.
 * Ownership: a call whose client has left is the stream's (stream_detach), until it has ended.
 * Bound:     STREAMS_MAX of them; the one that ended first makes room, else a new one is refused.
 */
#ifndef GAZE_SERVER_STREAM_H
#define GAZE_SERVER_STREAM_H

#include "server.h"

enum { STREAMS_MAX = 256 };
struct stream; /* opaque */

/* The call's events, none of which were written yet, are kept from now on. False: *ae is set. */
bool stream_begin(struct call *c, const char *id, uint64_t owner, struct api_error *ae);
/* The call's client has left. True: the call goes on without it, and is the stream's. */
bool stream_detach(struct call *c);
/* Answers the call with the stream of this id, from event `from` on. */
void stream_read(struct call *c, const char *id, uint64_t owner, uint64_t from);
/* DELETE: an answer under way ends as if its client had left; nothing is kept. False: not there. */
bool stream_delete(struct server *sv, const char *id, uint64_t owner);
/* The call ends: it no longer writes or reads a stream. Harmless for all others. */
void stream_leave(struct call *c);

/* A call that goes on without its client; NULL: there is none of this id. */
struct call *stream_detached(struct server *sv, const char *id, uint64_t owner);
/* The call that writes what c reads; c itself where it reads nothing. */
struct call *stream_source(struct call *c);
void streams_fail(struct server *sv, const struct api_error *ae); /* those without their client */
void streams_sweep(struct server *sv, uint64_t now_us);
void streams_close(struct server *sv); /* all calls have ended but those that are ours */
uint32_t streams_count(const struct server *sv, uint32_t *n_detached);

#endif
