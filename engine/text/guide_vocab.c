/* guide_vocab.c - see guide_vocab.h. */
#include "text/guide_vocab.h"

#include "base/fault.h"

#include <stdlib.h>
#include <string.h>

const char *guide_vocab_bytes(const struct guide_vocab *v, uint32_t id, size_t *bytes)
{
    *bytes = 0;
    if (id >= v->n_ids || id >= tokenizer_n_ids(v->tok))
        return "";
    if (v->added[id]) {
        *bytes = strlen(v->added[id]);
        return v->added[id];
    }
    const char *p = tokenizer_bytes(v->tok, id, bytes);
    if (*bytes && memchr(p, GUIDE_MARK, *bytes))
        *bytes = 0;
    return p;
}

static const char *bytes_of(const void *arg, uint32_t id, size_t *n)
{
    return guide_vocab_bytes(arg, id, n);
}

/* GUIDE_MARK and the literal text, which holds no NUL. */
static bool spell_added(struct guide_vocab *v, uint32_t id)
{
    size_t n;
    const char *p = tokenizer_bytes(v->tok, id, &n);
    char *s = malloc(n + 2);
    if (!s)
        return false;
    s[0] = (char)GUIDE_MARK;
    memcpy(s + 1, p, n);
    s[n + 1] = 0;
    v->added[id] = s;
    return true;
}

enum err_code guide_vocab_open(struct guide_vocab **out, const struct tokenizer *tok,
                               uint32_t n_ids, struct err *e)
{
    static const char end[] = "</think>";
    struct guide_vocab *v = FAULT("guide_vocab.open") ? NULL : calloc(1, sizeof *v);
    if (!v)
        return err_set(e, ERR_NOMEM, "no memory for a vocabulary of %u tokens", n_ids);
    v->tok = tok;
    v->n_ids = n_ids;
    v->n_words = (n_ids + 31) / 32;
    v->plain = calloc((size_t)v->n_words + 1, sizeof *v->plain);
    v->added = calloc((size_t)n_ids + 1, sizeof *v->added);
    bool ok = v->plain && v->added;
    for (uint32_t id = 0; ok && id < n_ids && id < tokenizer_n_ids(tok); id++) {
        if (tokenizer_is_added(tok, id))
            ok = spell_added(v, id);
        else
            v->plain[id / 32] |= (uint32_t)1 << id % 32;
    }
    uint32_t id = tokenizer_find(tok, end, sizeof end - 1);
    v->think_end = id != UINT32_MAX && tokenizer_is_added(tok, id) ? id : UINT32_MAX;
    if (!ok)
        err_set(e, ERR_NOMEM, "no memory for a vocabulary of %u tokens", n_ids);
    if (!ok || grammar_vocab_open(&v->vocab, n_ids, bytes_of, v, e)) {
        guide_vocab_close(v);
        return e->code;
    }
    *out = v;
    return ERR_OK;
}

void guide_vocab_close(struct guide_vocab *v)
{
    if (!v)
        return;
    if (v->vocab)
        grammar_vocab_close(v->vocab);
    for (uint32_t id = 0; v->added && id < v->n_ids; id++)
        free(v->added[id]);
    free(v->added);
    free(v->plain);
    free(v);
}

enum err_code guide_vocab_markup(gb_node *out, struct grammar_builder *b,
                                 const struct guide_vocab *v, const char *markup, struct err *e)
{
    struct text_part part = {markup, strlen(markup), true};
    struct token_vec ids = {0};
    gb_node *node = NULL;
    if (tokenizer_encode(v->tok, &part, 1, &ids, e))
        goto done;
    node = malloc((ids.n + 1) * sizeof *node);
    if (!node) {
        err_set(e, ERR_NOMEM, "no memory for a marker");
        goto done;
    }
    for (size_t i = 0; i < ids.n; i++) {
        size_t n;
        const char *p = guide_vocab_bytes(v, ids.id[i], &n);
        node[i] = gb_bytes(b, p, n);
    }
    *out = gb_seq(b, node, ids.n);
    (void)gb_error(b, e);
done:
    free(node);
    token_vec_free(&ids);
    return e->code;
}
