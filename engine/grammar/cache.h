/* cache.h - compiled grammars by the text they were made of.
 *
 * What is asked for again is given again: a grammar, or the refusal. Threads that ask for the same
 * text at once wait for the first of them, so it is compiled once. The least recently used go when
 * there are more than max_entries or when what they hold, automata as far as they have grown
 * included, is more than max_bytes; a grammar that is still held elsewhere lives on there.
 *
 * Thread: any. A maker runs without the lock.
 */
#ifndef GAZE_GRAMMAR_CACHE_H
#define GAZE_GRAMMAR_CACHE_H

#include "grammar/grammar.h"

struct grammar_cache; /* opaque */
MUST_CHECK enum err_code grammar_cache_open(struct grammar_cache **out, uint32_t max_entries,
                                            size_t max_bytes, struct err *e);
void grammar_cache_close(struct grammar_cache *c); /* nobody is in it */

typedef enum err_code grammar_maker(void *arg, struct grammar **out, struct err *e);
/* Gives the grammar of this key, one more holder. What make refuses as ERR_INVALID is kept, other
 * errors are not. */
MUST_CHECK enum err_code grammar_cache_get(struct grammar_cache *c, struct grammar **out,
                                           const char *key, size_t bytes, grammar_maker *make,
                                           void *arg, struct err *e);
/* Whether a get would find it made. */
bool grammar_cache_has(struct grammar_cache *c, const char *key, size_t bytes);

struct grammar_cache_counts {
    uint64_t hits, misses, refused, evicted; /* refused: among the misses */
    uint64_t make_us;                        /* of all misses */
    uint32_t entries;
    size_t bytes;
};
struct grammar_cache_counts grammar_cache_get_counts(struct grammar_cache *c);

#endif
