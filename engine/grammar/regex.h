/* regex.h - regular expressions as ECMA-262 has them, as languages.
 *
 * Look-ahead (?= ), (?! ) and \b, \B, ^, $ are exact wherever they stand, but for those inside a
 * repetition without a limit (or with a limit above 32), where only a look-ahead before one
 * character can be said, as in ((?!x).)*$. Refused with their name: look-behind, back references,
 * modifiers (?i: ). Characters are code points with and without the u flag.
 *
 * Errors: ERR_INVALID, a wrong or refused pattern (the message says what, and at which byte);
 * ERR_NOMEM. Thread: as the builder.
 */
#ifndef GAZE_GRAMMAR_REGEX_H
#define GAZE_GRAMMAR_REGEX_H

#include "grammar/builder.h"

enum {
    REGEX_UNICODE =
        1,         /* the u flag: \p{...}, \u{...}; needless escapes and stray braces are errors */
    REGEX_JSON = 2 /* the language holds the texts as charset_node() writes them in JSON strings,
                      without the quotes */
};

/* The texts that the pattern matches from their beginning to their end. */
MUST_CHECK enum err_code grammar_regex(gb_node *out, struct grammar_builder *b, const char *pattern,
                                       size_t bytes, unsigned flags, struct err *e);

/* The texts in which the pattern is found somewhere. */
MUST_CHECK enum err_code grammar_regex_search(gb_node *out, struct grammar_builder *b,
                                              const char *pattern, size_t bytes, unsigned flags,
                                              struct err *e);

/* Any text at all, spelled in the same way. */
gb_node grammar_regex_any(struct grammar_builder *b, unsigned flags);

#endif
