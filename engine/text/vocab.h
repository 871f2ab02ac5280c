/* vocab.h - token id <-> bytes, and GPT-2's spelling of bytes as printable characters.
 *
 * A tokenizer.json spells each byte of a token as one character (a space is U+0120). We undo that
 * once, while loading: from then on a token is plain bytes. Tokens whose text is not spelt that way
 * (special tokens with characters outside the 256) keep their literal text and cannot be found as
 * plain tokens.
 *
 * Thread: built by one, then read by any.
 */
#ifndef GAZE_TEXT_VOCAB_H
#define GAZE_TEXT_VOCAB_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { VOCAB_MAX_IDS = 1 << 21 }; /* ids fit in 21 bits, so that a merge fits in one word (bpe.h) */
enum { VOCAB_NONE = 0xFFFFFFFF };

struct vocab {
    char *blob; /* all tokens' bytes */
    size_t blob_bytes, blob_max;
    struct vocab_text {
        uint32_t at, bytes;
    } * text;                /* by id */
    uint32_t n_ids, max_ids; /* highest id + 1; room */
    uint32_t longest;        /* token's bytes */
    struct vocab_slot {
        uint32_t hash, id; /* id VOCAB_NONE: empty */
    } * slot;
    uint32_t mask; /* slots - 1 */
};

/* Room for max_ids ids, of which max_plain can be found by their bytes, and blob_max bytes of text.
 * ERR_NOMEM. End it with vocab_free(), also after a failure. */
MUST_CHECK enum err_code vocab_init(struct vocab *v, uint32_t max_ids, uint32_t max_plain,
                                    size_t blob_max, struct err *e);
void vocab_free(struct vocab *v);

/* Gives id these bytes (which must fit in the room); plain: vocab_find() will find it. False, and
 * nothing is changed, when the id has other bytes already, or the bytes another plain token. */
bool vocab_put(struct vocab *v, uint32_t id, const char *bytes, size_t n, bool plain);

/* Undoes GPT-2's spelling. Writes at most n bytes to out; false when a character is not one of the
 * 256. */
bool vocab_unspell(const char *text, size_t n, char *out, size_t *out_bytes);

static inline uint32_t vocab_hash(const char *p, size_t n)
{
    uint64_t a = 0, b = 0, h = n * 0x9E3779B97F4A7C15u;
    for (; n > 16; n -= 8, p += 8) {
        memcpy(&a, p, 8);
        h = (h ^ a) * 0xFF51AFD7ED558CCDu;
        h ^= h >> 32;
    }
    if (n >= 8) {
        memcpy(&a, p, 8);
        memcpy(&b, p + n - 8, 8);
    } else if (n >= 4) {
        uint32_t x = 0, y = 0;
        memcpy(&x, p, 4);
        memcpy(&y, p + n - 4, 4);
        a = x;
        b = y;
    } else if (n) {
        a = (unsigned char)p[0];
        b = ((uint64_t)(unsigned char)p[n / 2] << 8) | (unsigned char)p[n - 1];
    }
    h = (h ^ a) * 0xFF51AFD7ED558CCDu;
    h = (h ^ (h >> 29) ^ b) * 0xC4CEB9FE1A85EC53u;
    return (uint32_t)(h >> 32);
}

/* The plain token with exactly these bytes; VOCAB_NONE when there is none. */
static inline uint32_t vocab_find(const struct vocab *v, const char *p, size_t n)
{
    uint32_t h = vocab_hash(p, n);
    for (uint32_t i = h & v->mask;; i = (i + 1) & v->mask) {
        const struct vocab_slot *s = &v->slot[i];
        if (s->id == VOCAB_NONE)
            return VOCAB_NONE;
        if (s->hash == h && v->text[s->id].bytes == n &&
            memcmp(v->blob + v->text[s->id].at, p, n) == 0)
            return s->id;
    }
}

#endif
