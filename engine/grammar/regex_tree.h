/* regex_tree.h - a regular expression as a tree, between its parser and the languages made of it.
 */
#ifndef GAZE_GRAMMAR_REGEX_TREE_H
#define GAZE_GRAMMAR_REGEX_TREE_H

#include "grammar/charset.h"

enum regex_kind {
    RX_EMPTY,
    RX_SET,    /* set */
    RX_SEQ,    /* first kid, then by `sibling` */
    RX_ALT,    /* likewise */
    RX_REPEAT, /* kid, min, max */
    RX_BEGIN,
    RX_END,
    RX_WORD_EDGE,     /* \b */
    RX_NOT_WORD_EDGE, /* \B */
    RX_AHEAD,         /* (?=kid) */
    RX_NOT_AHEAD      /* (?!kid) */
};

struct regex_node {
    enum regex_kind kind;
    uint32_t kid, sibling; /* 0: none; node 0 is not used */
    uint32_t min, max;     /* max: GB_UNBOUNDED for no limit */
    uint32_t set;          /* index */
    bool asserts;          /* an assertion is in it */
    bool nullable;         /* may match nothing */
};

struct regex {
    struct regex_node *node;
    uint32_t n_nodes, max_nodes;
    struct charset *set;
    uint32_t n_sets, max_sets;
    uint32_t root;
};

MUST_CHECK enum err_code regex_parse(struct regex *out, const char *pattern, size_t bytes,
                                     bool unicode, struct err *e);
void regex_free(struct regex *r);
void regex_word(struct charset *s); /* \w */

#endif
