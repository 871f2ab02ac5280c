/* lexeme.h - a character that is repeated, and what each token does to it in any grammar.
 *
 * Nearly all tokens that can come at some place are those inside a string, a number, a run of
 * letters: a repetition of something short of which no match begins another. Such a body is a
 * *lexeme*: a small table of states over bytes. What a token does from one of its states does not
 * depend on the grammar around it, so it is worked out once per vocabulary, as a *profile*: the
 * tokens that lie wholly inside the repetition, with how many bodies they begin; and, for those
 * that do not, how their ends go on after the repetition is left.
 *
 * Thread: any; the lexicon has a lock. Lexemes and profiles live as long as their vocabulary and do
 * not change once they are given. Bounds: LEXICON_BYTES of them all; beyond, none is given, and the
 * caller walks the trie instead.
 */
#ifndef GAZE_GRAMMAR_LEXEME_H
#define GAZE_GRAMMAR_LEXEME_H

#include "grammar/vocab.h"

enum { LEXEME_DEAD, LEXEME_DONE, LEXEME_START, MAX_LEXEME_STATES = 256, MAX_NEED = 250 };
#define LEXICON_BYTES ((size_t)192 << 20)

struct lexeme {
    uint32_t n_states; /* DEAD and DONE among them */
    uint8_t (*to)[256];
    struct profile **profile; /* per state, NULL until it is wanted */
    uint64_t hash;
    struct lexeme *next;
};

struct profile {
    bool usable;
    uint32_t *inside; /* mask of the tokens that lie inside, whatever the count */
    uint8_t *need;    /* per id: how many bodies it begins or goes on with; 0: not inside */
    uint8_t max_need;
    uint8_t max_done; /* the largest in done[] */
    struct trie rest; /* of the others: what follows a whole number of bodies, at least a byte */
    uint8_t *done;    /* beside rest.token: how many bodies came before */
};

struct lexicon *lexicon_open(void); /* NULL: no memory */
void lexicon_close(struct lexicon *l);

/* The lexeme of this table: n_states rows; it stays the caller's. NULL: no memory or no room. */
const struct lexeme *lexicon_find(const struct grammar_vocab *v, uint8_t (*to)[256],
                                  uint32_t n_states);
/* NULL: no memory, no room, or a profile that would be too large: walk the trie. */
const struct profile *lexeme_profile(const struct grammar_vocab *v, const struct lexeme *x,
                                     uint32_t state);
/* The tokens in which this byte is, *n indices in the trie's order; found once. NULL: no memory. */
const uint32_t *lexicon_with_byte(const struct grammar_vocab *v, uint8_t byte, uint32_t *n);
/* ORs the tokens inside that need at most `most` bodies into mask. */
void profile_inside(const struct grammar_vocab *v, const struct profile *p, uint32_t most,
                    uint32_t *mask);

#endif
