/* builder_nodes.h - a builder's graph as the compiler reads it.
 *
 * Nodes lie in one array, each after the nodes it is made of, rules excepted. Lists of parts, byte
 * strings and byte sets lie in pools beside it. Thread: as the builder.
 */
#ifndef GAZE_GRAMMAR_BUILDER_NODES_H
#define GAZE_GRAMMAR_BUILDER_NODES_H

#include "grammar/builder.h"

enum gb_kind {
    NODE_NEVER,
    NODE_EMPTY,
    NODE_BYTES,  /* a: offset in the text pool, b: how many, at least 1 */
    NODE_SET,    /* a: index of the set; two bytes or more are in it */
    NODE_SEQ,    /* a: offset in the part pool, b: how many, at least 2 */
    NODE_ALT,    /* likewise; sorted, no two alike */
    NODE_REPEAT, /* a: of what, b: min, c: max */
    NODE_AND,    /* a, b: of what */
    NODE_MINUS,  /* a without b */
    NODE_RULE,   /* a: the body, or NODE_UNDEFINED; b: offset of the name, c: its length */
    NODE_UNIQUE, /* a: the body */
    NODE_ITEM    /* a: of what */
};
#define NODE_UNDEFINED UINT32_MAX

enum { NODE_HAS_RULE = 1, NODE_HAS_SCOPE = 2, NODE_KNOWN_REGULAR = 4 };

struct gb_node_data {
    uint8_t kind;
    uint8_t flags;
    uint32_t a, b, c;
};

struct byte_set {
    uint64_t w[4];
};

static inline bool byte_set_has(const struct byte_set *s, unsigned byte)
{
    return s->w[byte >> 6] >> (byte & 63) & 1;
}

static inline void byte_set_add(struct byte_set *s, unsigned byte)
{
    s->w[byte >> 6] |= (uint64_t)1 << (byte & 63);
}

struct grammar_builder {
    struct gb_node_data *node;
    uint32_t n_nodes, max_nodes;
    uint32_t *part;
    uint32_t n_parts, max_parts;
    char *text;
    uint32_t n_text, max_text;
    struct byte_set *set;
    uint32_t n_sets, max_sets;
    uint64_t *placed; /* hashes of names */
    uint32_t n_placed, max_placed;
    uint32_t *table; /* hash -> node + 1; a power of two */
    uint32_t n_table;
    struct err err;
};

/* Keeps the error unless there is one already. Returns GB_NEVER. */
gb_node gb_fail(struct grammar_builder *b, enum err_code code, const char *what);

#endif
