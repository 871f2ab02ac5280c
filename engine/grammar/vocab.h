/* vocab.h - the tokens of a vocabulary as a trie of their bytes, and what they do in lexemes.
 *
 * A trie's nodes lie in the order of a walk that goes down first; the root is node 0, at depth 0.
 * So the nodes below node i are [i + 1, node[i].after), and their tokens a range too.
 *
 * Thread: the trie is read by any once it is open; lexemes are shared under a lock of their own.
 */
#ifndef GAZE_GRAMMAR_VOCAB_H
#define GAZE_GRAMMAR_VOCAB_H

#include "grammar/grammar.h"

struct trie_node {
    uint32_t after; /* the first node that is not below this one */
    uint32_t token; /* its tokens are token[node.token], ... up to the next node's */
    uint16_t depth;
    uint8_t byte; /* the last of its path */
};

struct trie {
    struct trie_node *node; /* n_nodes, and one more that closes the token ranges */
    uint32_t n_nodes;
    uint32_t *token; /* ids, sorted by their bytes */
    uint32_t n_tokens;
    uint32_t max_depth;
};

/* A string to be put into a trie. */
struct spelled {
    const char *p;
    uint32_t n;
    uint32_t id;
};
/* Sorts s and makes the trie of it; false: no memory. End it with trie_free(). */
MUST_CHECK bool trie_make(struct trie *t, struct spelled *s, uint32_t n);
void trie_free(struct trie *t);

enum { MAX_TOKEN_BYTES = 4096 }; /* longer ones are never allowed */

struct lexicon; /* lexeme.h */
struct grammar_vocab {
    struct trie trie;
    char *text;          /* the tokens' bytes in the trie's order */
    uint32_t *at;        /* n_tokens + 1 offsets */
    uint32_t *place;     /* id -> index in the trie's order, of ids that are there */
    uint32_t *by_length; /* indices in the trie's order, the longest tokens first */
    uint32_t n_ids;
    uint32_t n_words; /* of a mask */
    struct lexicon *lexicon;
};

static inline void mask_set(uint32_t *mask, uint32_t id)
{
    mask[id >> 5] |= (uint32_t)1 << (id & 31);
}

#endif
