/* vocab.h - the tokens of a vocabulary as a trie of their bytes.
 *
 * Nodes lie in the order of a walk that goes down first; the root is node 0, at depth 0. So the
 * nodes below node i are [i + 1, node[i].after), and their tokens a range too.
 *
 * Thread: read by any once it is open.
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

enum { MAX_TOKEN_BYTES = 4096 }; /* longer ones are never allowed */

struct grammar_vocab {
    struct trie_node *node; /* n_nodes, and one more that closes the token ranges */
    uint32_t n_nodes;
    uint32_t *token; /* ids, sorted by their bytes */
    uint32_t n_tokens;
    uint32_t n_ids;
    uint32_t n_words; /* of a mask */
    uint32_t max_depth;
};

static inline void mask_set(uint32_t *mask, uint32_t id)
{
    mask[id >> 5] |= (uint32_t)1 << (id & 31);
}

/* All tokens that end at this node. */
static inline void mask_set_node(const struct grammar_vocab *v, uint32_t *mask, uint32_t node)
{
    for (uint32_t t = v->node[node].token; t < v->node[node + 1].token; t++)
        mask_set(mask, v->token[t]);
}

#endif
