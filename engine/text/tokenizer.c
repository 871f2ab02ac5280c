/* tokenizer.c - see tokenizer.h: encoding, decoding and what a token is. */
#include "text/tokenizer.h"

#include "base/fault.h"
#include "base/json.h"
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

void tokenizer_close(struct tokenizer *tok)
{
    if (!tok)
        return;
    vocab_free(&tok->vocab);
    bpe_free(&tok->bpe);
    added_tokens_free(&tok->added);
    pretok_destroy(tok->pretok);
    free(tok->flags);
    free((void *)tok->whole);
    free(tok->chat_template);
    free(tok);
}

/* ---- encoding ---- */

struct encoder {
    const struct tokenizer *tok;
    struct pretok_scratch *pretok;
    struct bpe_scratch bpe;
    struct token_vec *out;
};

enum { WHOLE_UNKNOWN, WHOLE_YES, WHOLE_NO };

/* Whether merging the bytes of token id, which are this piece, gives id itself. Nearly always so,
 * but a token may stand in the vocabulary that its own bytes never merge into. */
static enum err_code is_whole(struct encoder *en, uint32_t id, const char *piece, size_t n,
                              bool *yes, struct err *e)
{
    _Atomic uint8_t *memo = &en->tok->whole[id];
    uint8_t known = atomic_load_explicit(memo, memory_order_relaxed);
    if (known == WHOLE_UNKNOWN) {
        size_t n_out = 0;
        if (token_vec_reserve(en->out, n, e))
            return e->code;
        uint32_t *to = en->out->id + en->out->n;
        if (bpe_encode(&en->tok->bpe, &en->bpe, piece, n, to, &n_out, e))
            return e->code;
        known = n_out == 1 && to[0] == id ? WHOLE_YES : WHOLE_NO;
        atomic_store_explicit(memo, known, memory_order_relaxed);
    }
    *yes = known == WHOLE_YES;
    return ERR_OK;
}

static enum err_code encode_piece(void *arg, const char *piece, size_t n, struct err *e)
{
    struct encoder *en = arg;
    const struct tokenizer *t = en->tok;
    if (n == 1)
        return token_vec_push(en->out, t->bpe.byte_id[(unsigned char)piece[0]], e);
    uint32_t id = vocab_find(&t->vocab, piece, n);
    if (id != VOCAB_NONE) {
        bool yes = t->ignore_merges && !(t->flags[id] & TOKEN_SPECIAL);
        if (!yes && is_whole(en, id, piece, n, &yes, e))
            return e->code;
        if (yes)
            return token_vec_push(en->out, id, e);
    }
    size_t n_out = 0;
    if (token_vec_reserve(en->out, n, e) ||
        bpe_encode(&t->bpe, &en->bpe, piece, n, en->out->id + en->out->n, &n_out, e))
        return e->code;
    en->out->n += n_out;
    return ERR_OK;
}

/* Text without added tokens. Stretches of valid UTF-8 are split; a byte between them stands alone.
 */
static enum err_code encode_plain(struct encoder *en, const char *text, size_t n, struct err *e)
{
    while (n) {
        size_t valid = n;
        if (utf8_valid(text, n, &valid))
            valid = n;
        if (pretok_split(en->tok->pretok, en->pretok, text, valid, encode_piece, en, e))
            return e->code;
        if (valid == n)
            break;
        if (encode_piece(en, text + valid, 1, e))
            return e->code;
        text += valid + 1;
        n -= valid + 1;
    }
    return ERR_OK;
}

/* joined is the text of all parts, one after the other. */
static enum err_code encode_parts(struct encoder *en, const struct text_part *part, size_t n_parts,
                                  const char *joined, struct err *e)
{
    size_t plain = 0, end = 0; /* where the text not yet encoded begins, and where this part ends */
    for (size_t i = 0; i < n_parts; i++) {
        size_t at = end, bytes = 0;
        uint32_t id = 0;
        end += part[i].bytes;
        while (part[i].markup &&
               added_tokens_find(&en->tok->added, joined, end, &at, &bytes, &id)) {
            if (encode_plain(en, joined + plain, at - plain, e) || token_vec_push(en->out, id, e))
                return e->code;
            plain = at = at + bytes;
        }
    }
    return encode_plain(en, joined + plain, end - plain, e);
}

enum err_code tokenizer_encode(const struct tokenizer *tok, const struct text_part *part,
                               size_t n_parts, struct token_vec *out, struct err *e)
{
    struct encoder en = {.tok = tok, .out = out};
    size_t total = 0, n_before = out->n;
    char *copy = NULL;
    const char *joined = n_parts ? part[0].text : "";
    for (size_t i = 0; i < n_parts; i++) {
        if (part[i].bytes > UINT32_MAX - 1 - total)
            return err_set(e, ERR_INVALID, "a prompt of 4 GiB or more");
        total += part[i].bytes;
    }
    if (total == 0)
        return ERR_OK;
    if (n_parts > 1) {
        copy = FAULT("tokenizer.join") ? NULL : malloc(total);
        if (!copy)
            return err_set(e, ERR_NOMEM, "a prompt of %zu bytes", total);
        for (size_t i = 0, at = 0; i < n_parts; at += part[i++].bytes) {
            if (part[i].bytes)
                memcpy(copy + at, part[i].text, part[i].bytes);
        }
        joined = copy;
    }
    e->code = ERR_OK;
    if (token_vec_reserve(out, total / 4 + 16, e) == ERR_OK &&
        pretok_scratch_create(&en.pretok, e) == ERR_OK)
        e->code = encode_parts(&en, part, n_parts, joined, e);
    if (e->code != ERR_OK)
        out->n = n_before;
    pretok_scratch_destroy(en.pretok);
    bpe_scratch_free(&en.bpe);
    free(copy);
    return e->code;
}

/* ---- decoding ---- */

const char *tokenizer_bytes(const struct tokenizer *tok, uint32_t id, size_t *bytes)
{
    if (id >= tok->vocab.n_ids) {
        *bytes = 0;
        return "";
    }
    *bytes = tok->vocab.text[id].bytes;
    return tok->vocab.blob + tok->vocab.text[id].at;
}

enum err_code tokenizer_decode(const struct tokenizer *tok, const uint32_t *id, size_t n,
                               bool skip_special, char **out, size_t *bytes, struct err *e)
{
    size_t total = 0, len = 0;
    for (size_t i = 0; i < n; i++) {
        tokenizer_bytes(tok, id[i], &len);
        if (len > SIZE_MAX / 2 - total)
            return err_set(e, ERR_NOMEM, "the text of %zu tokens", n);
        total += len;
    }
    char *text = FAULT("tokenizer.decode") ? NULL : malloc(total + 1);
    if (!text)
        return err_set(e, ERR_NOMEM, "the text of %zu tokens: %zu bytes", n, total);
    total = 0;
    for (size_t i = 0; i < n; i++) {
        if (skip_special && tokenizer_is_special(tok, id[i]))
            continue;
        const char *p = tokenizer_bytes(tok, id[i], &len);
        memcpy(text + total, p, len);
        total += len;
    }
    text[total] = '\0';
    *out = text;
    *bytes = total;
    return ERR_OK;
}

/* ---- what a token is ---- */

uint32_t tokenizer_n_ids(const struct tokenizer *tok)
{
    return tok->vocab.n_ids;
}

uint32_t tokenizer_longest(const struct tokenizer *tok)
{
    return tok->vocab.longest;
}

bool tokenizer_is_special(const struct tokenizer *tok, uint32_t id)
{
    return id < tok->vocab.n_ids && (tok->flags[id] & TOKEN_SPECIAL);
}

bool tokenizer_is_added(const struct tokenizer *tok, uint32_t id)
{
    return id < tok->vocab.n_ids && (tok->flags[id] & TOKEN_ADDED);
}

uint32_t tokenizer_find(const struct tokenizer *tok, const char *text, size_t bytes)
{
    uint32_t id = added_tokens_id(&tok->added, text, bytes);
    return id != UINT32_MAX ? id : bytes ? vocab_find(&tok->vocab, text, bytes) : UINT32_MAX;
}

uint32_t tokenizer_bos(const struct tokenizer *tok)
{
    return tok->bos;
}

uint32_t tokenizer_eos(const struct tokenizer *tok)
{
    return tok->eos;
}

bool tokenizer_add_bos(const struct tokenizer *tok)
{
    return tok->add_bos;
}

const char *tokenizer_chat_template(const struct tokenizer *tok)
{
    return tok->chat_template;
}
