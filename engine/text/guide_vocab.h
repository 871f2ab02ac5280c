/* guide_vocab.h - a tokenizer's tokens as grammars know them.
 *
 * A plain token is its bytes. An added token (`</think>`, the markers of tool calls) is GUIDE_MARK,
 * which is in no UTF-8 text, and then its literal text: so a grammar takes one only where it asks
 * for it, and text that spells a marker stays text. Plain tokens that hold GUIDE_MARK are never
 * allowed. Made once per tokenizer, then read by any thread.
 */
#ifndef GAZE_TEXT_GUIDE_VOCAB_H
#define GAZE_TEXT_GUIDE_VOCAB_H

#include "grammar/grammar.h"
#include "text/tokenizer.h"

enum { GUIDE_MARK = 0xFF };

struct guide_vocab {
    struct grammar_vocab *vocab;
    const struct tokenizer *tok; /* borrowed */
    uint32_t n_ids, n_words;     /* of a mask */
    uint32_t *plain;             /* mask of all tokens that are not added ones */
    uint32_t think_end;          /* `</think>` as an added token; UINT32_MAX: there is none */
    char **added;                /* per id: its spelling, or NULL */
};

/* n_ids: the model's; those without a token are never allowed. ERR_NOMEM. */
MUST_CHECK enum err_code guide_vocab_open(struct guide_vocab **out, const struct tokenizer *tok,
                                          uint32_t n_ids, struct err *e);
void guide_vocab_close(struct guide_vocab *v);

/* The bytes of one id; none for ids that are never allowed. */
const char *guide_vocab_bytes(const struct guide_vocab *v, uint32_t id, size_t *bytes);

/* Exactly this markup, in the tokens that the tokenizer makes of it. */
MUST_CHECK enum err_code guide_vocab_markup(gb_node *out, struct grammar_builder *b,
                                            const struct guide_vocab *v, const char *markup,
                                            struct err *e);

#endif
