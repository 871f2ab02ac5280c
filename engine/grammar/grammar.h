/* grammar.h - which tokens keep an output inside a language.
 *
 * A grammar is compiled once from a builder's graph and is then immutable: an automaton over bytes
 * with a stack. A matcher is one place in it: where an output has got to. A token mask is a bit set
 * over the vocabulary of the tokens whose bytes can all come next with an ending still in reach.
 *
 * Exact: a byte is allowed iff some string of the language continues so; nothing that is allowed
 * leads to a dead end.
 *
 * Thread: a grammar and a vocabulary are read by any; a matcher belongs to one thread at a time.
 */
#ifndef GAZE_GRAMMAR_GRAMMAR_H
#define GAZE_GRAMMAR_GRAMMAR_H

#include "grammar/builder.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The tokens as a trie of bytes, made once per tokenizer. */
struct grammar_vocab; /* opaque */
/* bytes(arg, id, &n) gives the bytes of each id below n_ids, n = 0 for those that are never allowed
 * (special tokens, holes); borrowed until the call returns. */
MUST_CHECK enum err_code grammar_vocab_open(struct grammar_vocab **out, uint32_t n_ids,
                                            const char *(*bytes)(const void *arg, uint32_t id,
                                                                 size_t *n),
                                            const void *arg, struct err *e);
void grammar_vocab_close(struct grammar_vocab *v);
/* Takes the tokens that begin with these bytes, and have more, out of mask. */
void grammar_vocab_without_longer(const struct grammar_vocab *v, const char *p, size_t bytes,
                                  uint32_t *mask);
/* Whether a token begins with these bytes and has more. */
bool grammar_vocab_has_longer(const struct grammar_vocab *v, const char *p, size_t bytes);

struct grammar; /* opaque; counted: several requests share one */
/* The language of node `root`. vocab is borrowed for the grammar's life. ERR_INVALID: empty
 * language, or larger than its bounds (the message says which and by how much); ERR_NOMEM. */
MUST_CHECK enum err_code grammar_compile(struct grammar **out, const struct grammar_vocab *vocab,
                                         const struct grammar_builder *b, gb_node root,
                                         struct err *e);
struct grammar *grammar_ref(struct grammar *g); /* one more holder; any thread */
void grammar_close(struct grammar *g);          /* one holder less; the last frees it */
size_t grammar_bytes(const struct grammar *g);  /* that it takes, about; it grows with use */

struct grammar_matcher; /* opaque */
MUST_CHECK enum err_code grammar_matcher_open(struct grammar_matcher **out, struct grammar *g,
                                              struct err *e);
MUST_CHECK enum err_code grammar_matcher_copy(struct grammar_matcher **out,
                                              const struct grammar_matcher *m, struct err *e);
void grammar_matcher_close(struct grammar_matcher *m);

/* Takes the bytes of what was generated. false: the byte at *taken cannot come (the matcher stays
 * before the first byte of this call). ERR_NOMEM is told by grammar_matcher_failed. */
bool grammar_matcher_accept(struct grammar_matcher *m, const char *p, size_t bytes, size_t *taken);
bool grammar_matcher_may_end(const struct grammar_matcher *m);  /* the output is complete here */
bool grammar_matcher_must_end(const struct grammar_matcher *m); /* and no byte may follow */
bool grammar_matcher_failed(const struct grammar_matcher *m);   /* memory or a bound ran out */

/* Fills mask, (n_ids + 31) / 32 words, bit id % 32 of word id / 32. End ids are the caller's
 * matter: allow them iff may_end. */
void grammar_matcher_mask(struct grammar_matcher *m, uint32_t *mask);

/* The bytes that must come next whatever is chosen, up to max; 0 when there is a choice or the
 * output may end here. Does not move the matcher. */
size_t grammar_matcher_forced(struct grammar_matcher *m, char *out, size_t max);

#endif
