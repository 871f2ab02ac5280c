/* charset.h - sets of Unicode characters, and the bytes that spell them.
 *
 * A set is a sorted list of ranges without overlaps. Surrogates are in no set. Errors: memory; the
 * set is then `failed`, and everything made from it too. Thread: any; a set belongs to its caller.
 */
#ifndef GAZE_GRAMMAR_CHARSET_H
#define GAZE_GRAMMAR_CHARSET_H

#include "grammar/builder.h"

struct char_range {
    uint32_t lo, hi; /* both included */
};

struct charset { /* {0}: empty */
    struct char_range *range;
    uint32_t n, max;
    bool failed;
};
enum { MAX_CHAR = 0x10FFFF };

void charset_free(struct charset *s);
/* lo <= hi <= MAX_CHAR. Any order; charset_normalise() once all are in. */
void charset_add(struct charset *s, uint32_t lo, uint32_t hi);
void charset_add_all(struct charset *s, const struct charset *t);
void charset_normalise(struct charset *s);
void charset_complement(struct charset *s); /* s: normalised, before and after */
bool charset_has(const struct charset *s, uint32_t c);
/* The characters of both; all three normalised, *out empty before. */
void charset_intersect(struct charset *out, const struct charset *s, const struct charset *t);

/* A Unicode property as \p{...} names it: a general category, Script=..., Script_Extensions=..., or
 * a binary property. Adds its characters to s. Looked up once per process and name. false: there is
 * none of this name. */
bool charset_add_property(struct charset *s, const char *name, size_t n);

/* One character of the set, in UTF-8. With json, as the content of a JSON string spells it, each
 * character in one way: \" \\ \b \f \n \r \t, \u00xx for the other controls, all else as it is. */
gb_node charset_node(struct grammar_builder *b, const struct charset *s, bool json);

#endif
