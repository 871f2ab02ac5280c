/* builder.h - a language of byte strings, put together from parts.
 *
 * The front ends (JSON Schema, regular expressions, EBNF, choice) describe what may be generated as
 * a graph of nodes made here; grammar_compile() turns the graph into an automaton. A node is a set
 * of byte strings. Nodes are numbers in one builder, immutable once made, shared freely: equal
 * leaves and equal compositions get the same number, so that a schema used twice costs once.
 *
 * Two kinds of node matter to the automaton. A *regular* node reaches no rule that reaches itself
 * and holds no unique scope; only regular nodes may stand under gb_and, gb_not and gb_minus. All
 * others are context-free. Text is UTF-8 bytes: gb_code_points makes the byte sequences of a range
 * of characters.
 *
 * Errors: the builder keeps the first one (no memory, too many nodes, a regular operation on what
 * is not regular) and every later call gives GB_NEVER; gb_error() tells. So front ends need no
 * check at each call. Thread: any, one at a time. Memory: all in the builder, freed at once by
 * gb_close.
 */
#ifndef GAZE_GRAMMAR_BUILDER_H
#define GAZE_GRAMMAR_BUILDER_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint32_t gb_node;
enum {
    GB_NEVER = 0,            /* no string at all */
    GB_EMPTY = 1,            /* the empty string alone */
    GB_MAX_NODES = 4u << 20, /* more: ERR_INVALID, too large */
};
#define GB_UNBOUNDED UINT32_MAX /* gb_repeat: no upper limit */

struct grammar_builder; /* opaque */
MUST_CHECK enum err_code gb_open(struct grammar_builder **out, struct err *e);
void gb_close(struct grammar_builder *b);
/* ERR_OK, or the first error that a call met. */
enum err_code gb_error(const struct grammar_builder *b, struct err *e);

/* Leaves. */
gb_node gb_bytes(struct grammar_builder *b, const char *s, size_t bytes); /* exactly these */
gb_node gb_byte_set(struct grammar_builder *b, const uint64_t set[4]);    /* one byte of the set */
/* One character between lo and hi, both included, as UTF-8; surrogates are left out. */
gb_node gb_code_points(struct grammar_builder *b, uint32_t lo, uint32_t hi);

/* Compositions. n may be 0: gb_seq gives GB_EMPTY, gb_alt GB_NEVER. */
gb_node gb_seq(struct grammar_builder *b, const gb_node *part, size_t n);
gb_node gb_alt(struct grammar_builder *b, const gb_node *part, size_t n);
/* min <= max; max may be GB_UNBOUNDED. Large counts are kept as counts, not copied. */
gb_node gb_repeat(struct grammar_builder *b, gb_node x, uint32_t min, uint32_t max);

/* Of regular nodes: strings of both; strings not of x; strings of x that are not of y. */
gb_node gb_and(struct grammar_builder *b, gb_node x, gb_node y);
gb_node gb_not(struct grammar_builder *b, gb_node x);
gb_node gb_minus(struct grammar_builder *b, gb_node x, gb_node y);
/* The same, but where x is a repetition within bounds these stay apart from the rest. */
gb_node gb_minus_keeping_length(struct grammar_builder *b, gb_node x, gb_node y);
bool gb_is_regular(const struct grammar_builder *b, gb_node x);

/* A rule is a name for a node that is given later: recursion. Define each exactly once. */
gb_node gb_rule(struct grammar_builder *b, const char *name); /* name: for messages; copied */
void gb_define(struct grammar_builder *b, gb_node rule, gb_node body);

/* Items that differ. Inside a scope, the strings that its items match must all be different (an
 * item belongs to the innermost scope around it). An item must not match the empty string, and what
 * follows an item must not be able to prolong it (JSON values before a comma are such). Where a
 * further item is demanded by the body, the compiler and the matcher see to it that one is left. */
gb_node gb_unique(struct grammar_builder *b, gb_node body);
gb_node gb_item(struct grammar_builder *b, gb_node x);
/* Where items hold JSON: objects alike but for the order of their members are alike. Members of
 * this name, as JSON in quotes, come in one order, and before others that may come in any. */
void gb_placed(struct grammar_builder *b, const char *name, size_t bytes);

#endif
