#include "grammar/vocab.h"

#include "base/fault.h"

#include <stdlib.h>
#include <string.h>

struct spelled {
    const char *p; /* into the copy of all tokens' bytes */
    uint32_t n;
    uint32_t id;
};

static int by_spelling(const void *x, const void *y)
{
    const struct spelled *a = x, *b = y;
    uint32_t n = a->n < b->n ? a->n : b->n;
    int c = memcmp(a->p, b->p, n);
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

/* Sorted tokens -> nodes. path[d] is the open node at depth d. */
static void trie_fill(struct grammar_vocab *v, const struct spelled *s, uint32_t n)
{
    uint32_t path[MAX_TOKEN_BYTES + 1];
    uint32_t depth = 0;
    path[0] = 0;
    v->node[0] = (struct trie_node){0};
    v->n_nodes = 1;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t keep = i ? shared_prefix(&s[i - 1], &s[i]) : 0;
        for (; depth > keep; depth--)
            v->node[path[depth]].after = v->n_nodes;
        while (depth < s[i].n) {
            path[depth + 1] = v->n_nodes;
            v->node[v->n_nodes++] = (struct trie_node){
                .token = i, .depth = (uint16_t)(depth + 1), .byte = (uint8_t)s[i].p[depth]};
            depth++;
        }
        if (depth > v->max_depth)
            v->max_depth = depth;
        v->token[i] = s[i].id;
    }
    for (uint32_t d = 0; d <= depth; d++)
        v->node[path[d]].after = v->n_nodes;
    v->node[v->n_nodes] = (struct trie_node){.after = v->n_nodes, .token = n};
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
    if (n_tokens > 1)
        qsort(s, n_tokens, sizeof *s, by_spelling);
    size_t n_nodes = 2; /* the root, and the one that closes */
    for (uint32_t i = 0; i < n_tokens; i++)
        n_nodes += s[i].n - (i ? shared_prefix(&s[i - 1], &s[i]) : 0);
    v->node = calloc(n_nodes, sizeof *v->node);
    v->token = malloc(((size_t)n_tokens + 1) * sizeof *v->token);
    if (!v->node || !v->token)
        goto no_memory;
    v->n_ids = n_ids;
    v->n_words = (n_ids + 31) / 32;
    v->n_tokens = n_tokens;
    trie_fill(v, s, n_tokens);
    assert(v->n_nodes + 1 == n_nodes);
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
    free(v->node);
    free(v->token);
    free(v);
}
