/* detok.h - tokens in, text out, never half a UTF-8 character; stop strings across token borders.
 *
 * A struct detok belongs to one sequence. Bytes that may still become a character, or the start of
 * a stop string, are held back; bytes that can no longer become valid UTF-8 come out as U+FFFD.
 *
 * The answer is that of reading byte by byte: the stop string that is complete first wins, of those
 * that are complete at the same byte the longest. So it does not depend on the tokens' borders.
 *
 * Thread: the scheduler's.
 */
#ifndef GAZE_TEXT_DETOK_H
#define GAZE_TEXT_DETOK_H

#include "base/arena.h"
#include "text/tokenizer.h"

struct stop_list { /* borrowed, must outlive the detok */
    const char *const *text;
    const size_t *bytes; /* each > 0 */
    uint32_t n;
    bool include; /* the stop string itself goes out (include_stop_str_in_output) */
};

struct detok;
/* In a, which must outlive it: nothing is allocated later. */
MUST_CHECK enum err_code detok_create(struct detok **out, struct arena *a,
                                      const struct tokenizer *tok, const struct stop_list *stop,
                                      bool skip_special, struct err *e);

/* Takes one token; *text (borrowed until the next call, not NUL-terminated) gets what can go out
 * now. *stopped becomes true when a stop string was completed; *stop_index says which. Text after
 * it is dropped, and so is all that comes in later calls. check_stop false: a stop string that ends
 * in this token does not stop (min_tokens); one that begins in it may end in a later one. */
void detok_put(struct detok *d, uint32_t id, bool check_stop, const char **text, size_t *bytes,
               bool *stopped, uint32_t *stop_index);
/* The end of the sequence: everything held back comes out (a half character as U+FFFD; it completes
 * no stop string). Nothing comes out after a stop. */
void detok_flush(struct detok *d, const char **text, size_t *bytes);

#endif
