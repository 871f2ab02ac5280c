/* convert.h - what the conversions of other interfaces' requests share (messages.h, responses.h).
 *
 * A request in another shape becomes one in the chat endpoint's shape: values are moved out of one
 * tree into the other, and what does not fit is refused by its own name and place.
 *
 * Thread:    any.
 * Ownership: `to` is the conversion's until convert_end() gives it away or frees it.
 * Errors:    no memory sets `failed`; convert_end() turns it into an answer.
 */
#ifndef GAZE_SERVER_CONVERT_H
#define GAZE_SERVER_CONVERT_H

#include "params.h"

struct conversion {
    cJSON *from, *to; /* the two requests */
    cJSON *messages;  /* of `to` */
    struct api_error *ae;
    bool failed;
};

bool convert_begin(struct conversion *c, cJSON *from, struct api_error *ae);
/* ok: *root is freed and becomes the new request. False, or no memory: *root stays. */
bool convert_end(struct conversion *c, cJSON **root, bool ok);

/* Takes value, under key or (NULL) at an array's end; gives it back for use, NULL without memory.
 */
cJSON *convert_add(struct conversion *c, cJSON *object, const char *key, cJSON *value);
/* A value goes over from one tree to the other; its numbers keep their spelling. */
void convert_move(struct conversion *c, cJSON *from, const char *key, cJSON *to, const char *as);
cJSON *convert_message(struct conversion *c, const char *role); /* a new one, the last */
/* The text of a part to the message's content parts. */
bool convert_text(struct conversion *c, const struct field_reader *r, const cJSON *part,
                  cJSON *message);
const char *convert_type(const cJSON *part); /* its "type", or "" */

#endif
