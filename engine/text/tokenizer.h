/* tokenizer.h - byte-level BPE from a Hugging Face tokenizer.json.
 *
 * Read once, then immutable. Encoding first cuts out added tokens (the longest match at each
 * position; only where the caller allows it), then splits each piece by the pre-tokenizer's regexes
 * in the order of the file ("Isolated"), maps bytes by GPT-2's table and merges by rank. Decoding
 * gives exactly the bytes of each token.
 *
 * Thread: any, at the same time; scratch lives in the call.
 * Bound:  time is O(n log n) in the text's bytes, however hostile the text (no quadratic merging).
 */
#ifndef GAZE_TEXT_TOKENIZER_H
#define GAZE_TEXT_TOKENIZER_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer; /* opaque */

/* Token ids that grow; free with token_vec_free(). A zeroed one is empty and ready. */
struct token_vec {
    uint32_t *id;
    size_t n, max;
};
MUST_CHECK enum err_code token_vec_push(struct token_vec *v, uint32_t id, struct err *e);
void token_vec_free(struct token_vec *v);

/* A piece of a prompt. Only `markup` pieces may become added (special) tokens: a caller's text
 * never does, even when it spells one, and none is found across the border of two pieces. What is
 * left between two added tokens is one text for the pre-tokenizer, whatever pieces it came from: so
 * a prompt gets the ids it would have as a single string, as in training, unless its text spells a
 * token. */
struct text_part {
    const char *text;
    size_t bytes;
    bool markup;
};

/* Reads dir/tokenizer.json and dir/tokenizer_config.json (the latter may be missing). ERR_IO,
 * ERR_INVALID (names the file and what is unsupported: another model type, a normalizer ...),
 * ERR_NOMEM. End it with tokenizer_close(). */
MUST_CHECK enum err_code tokenizer_open(struct tokenizer **out, const char *dir, struct err *e);
void tokenizer_close(struct tokenizer *tok);
/* The same from bytes in memory. config (tokenizer_config.json) may be NULL. */
MUST_CHECK enum err_code tokenizer_parse(struct tokenizer **out, const char *json,
                                         size_t json_bytes, const char *config, size_t config_bytes,
                                         struct err *e);

/* Appends the ids of one text. Invalid UTF-8 is allowed: each bad byte is a piece of its own. */
MUST_CHECK enum err_code tokenizer_encode(const struct tokenizer *tok, const struct text_part *part,
                                          size_t n_parts, struct token_vec *out, struct err *e);

/* The bytes of one token; an id without a token gives 0 bytes. Borrowed from tok. Added tokens give
 * their literal text. */
const char *tokenizer_bytes(const struct tokenizer *tok, uint32_t id, size_t *bytes);

/* Appends the decoded bytes of ids to a malloc'ed buffer that the caller frees; *bytes excludes the
 * final NUL. skip_special leaves out tokens with "special": true. */
MUST_CHECK enum err_code tokenizer_decode(const struct tokenizer *tok, const uint32_t *id, size_t n,
                                          bool skip_special, char **out, size_t *bytes,
                                          struct err *e);

uint32_t tokenizer_n_ids(const struct tokenizer *tok); /* highest id + 1 */
/* Bytes of the longest token: a text of n bytes has at least n / longest tokens. */
uint32_t tokenizer_longest(const struct tokenizer *tok);
bool tokenizer_is_special(const struct tokenizer *tok, uint32_t id); /* "special": true */
bool tokenizer_is_added(const struct tokenizer *tok, uint32_t id);
/* The id of an added (or plain) token by its literal text; UINT32_MAX when there is none. */
uint32_t tokenizer_find(const struct tokenizer *tok, const char *text, size_t bytes);
uint32_t tokenizer_bos(const struct tokenizer *tok); /* UINT32_MAX: none */
uint32_t tokenizer_eos(const struct tokenizer *tok);
bool tokenizer_add_bos(const struct tokenizer *tok); /* add_bos_token: raw text gets BOS */
const char *tokenizer_chat_template(const struct tokenizer *tok); /* the Jinja text, or NULL */

#endif
