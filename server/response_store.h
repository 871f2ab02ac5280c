/* response_store.h - answers of /v1/responses, kept for GET and for previous_response_id.
 *
 * In memory alone, bounded by count and by bytes: what was used longest ago goes first, and an
 * answer larger than the whole bound is not kept. An entry is found by who made it alone.
 *
 * Thread:    any; a lock inside.
 * Ownership: of copies; what is given is the caller's, to free().
 */
#ifndef GAZE_SERVER_RESPONSE_STORE_H
#define GAZE_SERVER_RESPONSE_STORE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct response_store; /* opaque */

MUST_CHECK enum err_code response_store_open(struct response_store **out, uint32_t max_entries,
                                             size_t max_bytes, struct err *e);
void response_store_close(struct response_store *s); /* NULL is allowed */

enum response_part { RESPONSE_ANSWER, RESPONSE_TALK, RESPONSE_PARTS };
/* text[RESPONSE_ANSWER]: the answer's JSON; text[RESPONSE_TALK]: the conversation up to and with
 * it, as an array of chat messages. False: it was too large, or there is no memory. */
bool response_store_put(struct response_store *s, const char *id, uint64_t owner,
                        const char *const text[RESPONSE_PARTS], const size_t bytes[RESPONSE_PARTS]);
/* NUL-terminated; NULL: not there, not this owner's, or no memory. */
char *response_store_get(struct response_store *s, const char *id, uint64_t owner,
                         enum response_part part, size_t *bytes);
bool response_store_delete(struct response_store *s, const char *id, uint64_t owner);
size_t response_store_bytes(struct response_store *s, uint32_t *n_entries); /* held now */

#endif
