/* chat_json.h - JSON as the chat formats write it: ", " and ": ", no ASCII escapes, numbers as
 * sent.
 *
 * The models were trained on what Python's json.dumps(x, ensure_ascii=False) writes. cJSON keeps a
 * number as a double and forgets that it was 12345678901234567890 or 1e-07;
 * chat_json_keep_numbers() goes over the text a tree was read from and leaves each such spelling at
 * its node, where chat_json_dump() finds it. Without it a number is written as the shortest text
 * that reads back as the same double.
 *
 * Thread: any; a tree and a buffer belong to their caller.
 */
#ifndef GAZE_TEXT_CHAT_JSON_H
#define GAZE_TEXT_CHAT_JSON_H

#include "base/arena.h"

#include <cjson/cJSON.h>
#include <stdbool.h>

/* Text that grows in an arena. Zeroed with .arena set is empty and ready; `failed` is set, and
 * stays, when there was no memory. */
struct chat_buf {
    struct arena *arena;
    char *s;
    size_t n, max;
    bool failed;
};
void chat_buf_add(struct chat_buf *b, const char *s, size_t n);
void chat_buf_str(struct chat_buf *b, const char *s);

/* Appends value as JSON. Members keep their order; of a key given twice both are written. */
void chat_json_dump(struct chat_buf *b, const cJSON *value);

/* tree must be what json_parse() made of text. The spellings are freed with the tree. ERR_NOMEM. */
MUST_CHECK enum err_code chat_json_keep_numbers(cJSON *tree, const char *text, size_t bytes,
                                                struct err *e);

#endif
