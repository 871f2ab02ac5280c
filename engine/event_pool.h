/* event_pool.h - a store of events, made at start: what a running request says takes no memory of
 * the machine's, so none can be lacking.
 *
 * An event is taken by the scheduler's thread and comes back by gen_event_free() on any other, to a
 * list of its own that the taker empties when its stock runs out. Beyond the store, because who
 * takes events away is far behind, and for events that are larger than a token's, the machine is
 * asked for memory after all.
 *
 * Thread: create, new and destroy by one; gen_event_free() by any.
 */
#ifndef GAZE_EVENT_POOL_H
#define GAZE_EVENT_POOL_H

#include "request.h"

enum {
    EVENT_POOL_EACH = 32, /* per running sequence: tokens that may wait to be taken away */
    EVENT_POOL_TEXT = 400 /* bytes of text in one: those of a token of 128, each become U+FFFD */
};

struct event_pool; /* opaque */
MUST_CHECK enum err_code event_pool_create(struct event_pool **out, uint32_t n_events,
                                           struct err *e);
void event_pool_destroy(struct event_pool *p); /* all events are back, which it asserts */
size_t event_pool_bytes(uint32_t n_events);
/* As gen_event_new(). */
struct gen_event *event_pool_new(struct event_pool *p, enum gen_event_kind kind, struct req_id id,
                                 uint32_t n_tokens, size_t text_bytes);
void event_pool_put(struct event_pool *p, struct gen_event *ev); /* for gen_event_free() */

#endif
