/* ebnf.h - grammars written as text, and lists of strings, as languages.
 *
 * Both common notations are read, GBNF and the EBNF that goes by `root ::=`:
 *
 *   rule  ::= alternative | alternative          the start symbol is root; # begins a comment
 *   "text" [a-z] [^a-z] . name ( ... )           escapes \n \r \t \" \\ \] \[ \- \^ \/ \' \0 \xHH
 *   x* x+ x? x{3} x{2,} x{2,5} x{,5}             \uHHHH \u{...} \UHHHHHHHH \b \f \v
 *
 * White space and new lines are free; a rule ends where the next `name ::=` begins.
 *
 * Errors: ERR_INVALID with line and reason; ERR_NOMEM. That a rule is used but not defined, or
 * begins with itself, is found by grammar_compile(). Thread: as the builder.
 */
#ifndef GAZE_GRAMMAR_EBNF_H
#define GAZE_GRAMMAR_EBNF_H

#include "grammar/builder.h"

MUST_CHECK enum err_code grammar_ebnf(gb_node *out, struct grammar_builder *b, const char *text,
                                      size_t bytes, struct err *e);

/* Exactly these strings. */
gb_node grammar_choice(struct grammar_builder *b, const char *const *choice, const size_t *bytes,
                       size_t n);

#endif
