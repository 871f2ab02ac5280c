/* pretokenize.h - text into the pieces that merging may not cross, by the regexes of a
 * tokenizer.json.
 *
 * Stages run in the file's order; each splits the pieces of the one before ("Isolated": matches and
 * what lies between them all become pieces). A regex sees its piece alone, so a look-ahead ends
 * there. Supported: Sequence, Split (Isolated, a Regex or a String), Digits, ByteLevel without a
 * prefix space (with use_regex it brings GPT-2's own pattern). Anything else is refused by name.
 *
 * The patterns are written for Oniguruma and run by PCRE2. Where the two read the same letters
 * differently the pattern is rewritten first: \s is Unicode White_Space (PCRE2 would add U+180E),
 * and a class intersection [a&&[^b]] becomes a look-ahead; categories gain what newer versions of
 * Unicode added (unicode_news.h).
 *
 * Thread: built by one, then read by any; a struct pretok_scratch belongs to one call.
 */
#ifndef GAZE_TEXT_PRETOKENIZE_H
#define GAZE_TEXT_PRETOKENIZE_H

#include "base/err.h"

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

struct pretok;         /* opaque */
struct pretok_scratch; /* opaque */

/* config is the file's "pre_tokenizer" (may be NULL or null: no splitting). ERR_INVALID names what
 * is not supported or the regex that does not compile; ERR_NOMEM. */
MUST_CHECK enum err_code pretok_create(struct pretok **out, const cJSON *config, struct err *e);
void pretok_destroy(struct pretok *p);

MUST_CHECK enum err_code pretok_scratch_create(struct pretok_scratch **out, struct err *e);
void pretok_scratch_destroy(struct pretok_scratch *s);

typedef enum err_code (*pretok_piece_fn)(void *arg, const char *piece, size_t n, struct err *e);
/* Calls fn for each piece of text, in order; none is empty and together they are the text, which
 * must be valid UTF-8. Ends early when fn fails. ERR_INVALID when a pattern of the file needs more
 * backtracking than its limit allows. */
MUST_CHECK enum err_code pretok_split(const struct pretok *p, struct pretok_scratch *s,
                                      const char *text, size_t n, pretok_piece_fn fn, void *arg,
                                      struct err *e);

#endif
