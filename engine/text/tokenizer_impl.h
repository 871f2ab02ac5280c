/* tokenizer_impl.h - what the tokenizer's files share: reading (tokenizer_json.c), using
 * (tokenizer.c). */
#ifndef GAZE_TEXT_TOKENIZER_IMPL_H
#define GAZE_TEXT_TOKENIZER_IMPL_H

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pretokenize.h"
#include "text/tokenizer.h"
#include "text/vocab.h"

#include <stdatomic.h>

enum { TOKEN_ADDED = 1, TOKEN_SPECIAL = 2 };

struct tokenizer {
    struct vocab vocab;
    struct bpe bpe;
    struct added_tokens added;
    struct pretok *pretok;
    uint8_t *flags; /* by id: TOKEN_ADDED, TOKEN_SPECIAL */
    /* By id: whether merging this token's own bytes gives the token again, so that a piece which is
     * a token needs no merging. Found out on first use; whoever finds out writes the same answer.
     */
    _Atomic uint8_t *whole;
    bool ignore_merges, add_bos;
    uint32_t bos, eos;
    char *chat_template;
};

/* Makes room for more ids. ERR_NOMEM leaves v as it was. */
MUST_CHECK enum err_code token_vec_reserve(struct token_vec *v, size_t more, struct err *e);

#endif
