/* added_tokens.h - finding added tokens in markup: the longest one at each position, by a byte
 * trie.
 *
 * Thread: built by one, then read by any.
 * Cost:   a byte that starts no added token is one table look-up; a position costs at most the
 * length of the longest added token, however many there are.
 */
#ifndef GAZE_TEXT_ADDED_TOKENS_H
#define GAZE_TEXT_ADDED_TOKENS_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_tokens {        /* zeroed is empty and ready */
    struct added_node *node; /* node 0 is the root */
    uint32_t n_nodes, max_nodes;
    bool first[256]; /* bytes that start one */
};

/* text must not be empty; the same text again takes the new id. ERR_NOMEM. */
MUST_CHECK enum err_code added_tokens_put(struct added_tokens *t, const char *text, size_t n,
                                          uint32_t id, struct err *e);
void added_tokens_free(struct added_tokens *t);

/* The first added token at or after *at: true, with its place, length and id. */
bool added_tokens_find(const struct added_tokens *t, const char *text, size_t n, size_t *at,
                       size_t *bytes, uint32_t *id);
/* The id of exactly this text; UINT32_MAX when it is no added token. */
uint32_t added_tokens_id(const struct added_tokens *t, const char *text, size_t n);

#endif
