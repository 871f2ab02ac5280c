#include "grammar/vocab.h"

#include "base/fault.h"
#include "grammar/lexeme.h"

#include <stdlib.h>
#include <string.h>

static int by_spelling(const void *x, const void *y)
{
    const struct spelled *a = x, *b = y;
    uint32_t n = a->n < b->n ? a->n : b->n;
    int c = n ? memcmp(a->p, b->p, n) : 0;
    if (c)
        return c;
    return a->n != b->n ? (a->n > b->n) - (a->n < b->n) : (a->id > b->id) - (a->id < b->id);
}

static uint32_t shared_prefix(const struct spelled *a, const struct spelled *b)
{
    uint32_t n = a->n < b->n ? a->n : b->n, k = 0;
    while (k < n && a->p[k] == b->p[k])
        k++;
    return k;
}

/* Sorted strings -> nodes. path[d] is the open node at depth d. */
static void trie_fill(struct trie *t, const struct spelled *s, uint32_t n)
{
    uint32_t path[MAX_TOKEN_BYTES + 1];
    uint32_t depth = 0;
    path[0] = 0;
    t->node[0] = (struct trie_node){0};
    t->n_nodes = 1;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t keep = i ? shared_prefix(&s[i - 1], &s[i]) : 0;
        for (; depth > keep; depth--)
            t->node[path[depth]].after = t->n_nodes;
        while (depth < s[i].n) {
            path[depth + 1] = t->n_nodes;
            t->node[t->n_nodes++] = (struct trie_node){
                .token = i, .depth = (uint16_t)(depth + 1), .byte = (uint8_t)s[i].p[depth]};
            depth++;
        }
        if (depth > t->max_depth)
            t->max_depth = depth;
        t->token[i] = s[i].id;
    }
    for (uint32_t d = 0; d <= depth; d++)
        t->node[path[d]].after = t->n_nodes;
    t->node[t->n_nodes] = (struct trie_node){.after = t->n_nodes, .token = n};
    t->n_tokens = n;
}

/* By counting: how many tokens have each length. */
static bool sort_by_length(struct grammar_vocab *v)
{
    uint32_t *begin = calloc(MAX_TOKEN_BYTES + 2, sizeof *begin);
    v->by_length = malloc(((size_t)v->trie.n_tokens + 1) * sizeof *v->by_length);
    bool ok = begin && v->by_length;
    for (uint32_t i = 0; i < v->trie.n_tokens && ok; i++)
        begin[MAX_TOKEN_BYTES - (v->at[i + 1] - v->at[i]) + 1]++;
    for (uint32_t n = 1; n < MAX_TOKEN_BYTES + 2 && ok; n++)
        begin[n] += begin[n - 1];
    for (uint32_t i = 0; i < v->trie.n_tokens && ok; i++)
        v->by_length[begin[MAX_TOKEN_BYTES - (v->at[i + 1] - v->at[i])]++] = i;
    free(begin);
    return ok;
}

bool trie_make(struct trie *t, struct spelled *s, uint32_t n)
{
    *t = (struct trie){0};
    if (n > 1)
        qsort(s, n, sizeof *s, by_spelling);
    size_t n_nodes = 2; /* the root, and the one that closes */
    for (uint32_t i = 0; i < n; i++)
        n_nodes += s[i].n - (i ? shared_prefix(&s[i - 1], &s[i]) : 0);
    t->node = FAULT("grammar.vocab") ? NULL : malloc(n_nodes * sizeof *t->node);
    t->token = malloc(((size_t)n + 1) * sizeof *t->token);
    if (!t->node || !t->token) {
        trie_free(t);
        return false;
    }
    trie_fill(t, s, n);
    assert(t->n_nodes + 1 == n_nodes);
    return true;
}

void trie_free(struct trie *t)
{
    free(t->node);
    free(t->token);
    *t = (struct trie){0};
}

enum err_code grammar_vocab_open(struct grammar_vocab **out, uint32_t n_ids,
                                 const char *(*bytes)(const void *arg, uint32_t id, size_t *n),
                                 const void *arg, struct err *e)
{
    size_t total = 0;
    for (uint32_t id = 0; id < n_ids; id++) {
        size_t n = 0;
        bytes(arg, id, &n);
        total += n <= MAX_TOKEN_BYTES ? n : 0;
    }
    struct grammar_vocab *v = FAULT("grammar.vocab") ? NULL : calloc(1, sizeof *v);
    struct spelled *s = malloc(((size_t)n_ids + 1) * sizeof *s);
    char *text = malloc(total + 1);
    if (!v || !s || !text)
        goto no_memory;
    uint32_t n_tokens = 0;
    size_t used = 0;
    for (uint32_t id = 0; id < n_ids; id++) {
        size_t n = 0;
        const char *p = bytes(arg, id, &n);
        if (n == 0 || n > MAX_TOKEN_BYTES)
            continue;
        memcpy(text + used, p, n);
        s[n_tokens++] = (struct spelled){text + used, (uint32_t)n, id};
        used += n;
    }
    v->n_ids = n_ids;
    v->n_words = (n_ids + 31) / 32;
    v->text = malloc(total + 1);
    v->at = malloc(((size_t)n_tokens + 1) * sizeof *v->at);
    v->place = calloc((size_t)n_ids + 1, sizeof *v->place);
    v->lexicon = lexicon_open();
    if (!v->text || !v->at || !v->place || !v->lexicon || !trie_make(&v->trie, s, n_tokens))
        goto no_memory;
    v->at[0] = 0;
    for (uint32_t i = 0; i < n_tokens; i++) { /* sorted by now */
        memcpy(v->text + v->at[i], s[i].p, s[i].n);
        v->at[i + 1] = v->at[i] + s[i].n;
        v->place[s[i].id] = i;
    }
    if (!sort_by_length(v))
        goto no_memory;
    free(s);
    free(text);
    *out = v;
    return ERR_OK;
no_memory:
    free(s);
    free(text);
    grammar_vocab_close(v);
    return err_set(e, ERR_NOMEM, "no memory for the trie of a vocabulary of %u", n_ids);
}

void grammar_vocab_close(struct grammar_vocab *v)
{
    if (!v)
        return;
    lexicon_close(v->lexicon);
    trie_free(&v->trie);
    free(v->text);
    free(v->at);
    free(v->place);
    free(v->by_length);
    free(v);
}

/* The trie's node of these bytes; false: there is none. */
static bool find_node(const struct trie *t, const char *p, size_t bytes, uint32_t *at)
{
    *at = 0;
    for (size_t i = 0; i < bytes; i++) {
        uint32_t end = t->node[*at].after, child = *at + 1;
        while (child < end && t->node[child].byte != (unsigned char)p[i])
            child = t->node[child].after;
        if (child >= end)
            return false;
        *at = child;
    }
    return true;
}

bool grammar_vocab_has_longer(const struct grammar_vocab *v, const char *p, size_t bytes)
{
    uint32_t at;
    return find_node(&v->trie, p, bytes, &at) && v->trie.node[at].after > at + 1;
}

void grammar_vocab_without_longer(const struct grammar_vocab *v, const char *p, size_t bytes,
                                  uint32_t *mask)
{
    const struct trie *t = &v->trie;
    uint32_t at;
    if (!find_node(t, p, bytes, &at))
        return;
    for (uint32_t k = t->node[at + 1].token; k < t->node[t->node[at].after].token; k++)
        mask[t->token[k] >> 5] &= ~((uint32_t)1 << (t->token[k] & 31));
}
