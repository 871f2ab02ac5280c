/* added_tokens.c - see added_tokens.h. A node's children are a list: they are few, except where a
 * number follows, and then ten. */
#include "text/added_tokens.h"

#include "base/fault.h"

#include <stdlib.h>

struct added_node {
    uint32_t child, sibling; /* 0: none, as the root is nobody's child */
    uint32_t id;             /* UINT32_MAX: no token ends here */
    unsigned char byte;
};

static uint32_t child_of(const struct added_tokens *t, uint32_t at, unsigned char byte)
{
    uint32_t c = t->node[at].child;
    while (c && t->node[c].byte != byte)
        c = t->node[c].sibling;
    return c;
}

static enum err_code room(struct added_tokens *t, size_t more, struct err *e)
{
    if (t->n_nodes + more <= t->max_nodes)
        return ERR_OK;
    size_t max = 2 * (t->n_nodes + more);
    if (max > UINT32_MAX)
        return err_set(e, ERR_INVALID, "added tokens of %zu bytes together", max);
    struct added_node *p = FAULT("added_tokens.put") ? NULL : realloc(t->node, max * sizeof *p);
    if (!p)
        return err_set(e, ERR_NOMEM, "added tokens");
    t->node = p;
    t->max_nodes = (uint32_t)max;
    if (t->n_nodes == 0)
        t->node[t->n_nodes++] = (struct added_node){.id = UINT32_MAX};
    return ERR_OK;
}

enum err_code added_tokens_put(struct added_tokens *t, const char *text, size_t n, uint32_t id,
                               struct err *e)
{
    assert(n > 0);
    if (room(t, n + 1, e))
        return e->code;
    uint32_t at = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)text[i];
        uint32_t c = child_of(t, at, byte);
        if (!c) {
            c = t->n_nodes++;
            t->node[c] = (struct added_node){0, t->node[at].child, UINT32_MAX, byte};
            t->node[at].child = c;
        }
        at = c;
    }
    t->node[at].id = id;
    t->first[(unsigned char)text[0]] = true;
    return ERR_OK;
}

void added_tokens_free(struct added_tokens *t)
{
    free(t->node);
    *t = (struct added_tokens){0};
}

/* The longest token that starts at text[0]; 0 bytes when there is none. */
static size_t longest_here(const struct added_tokens *t, const char *text, size_t n, uint32_t *id)
{
    size_t best = 0;
    uint32_t at = 0;
    for (size_t i = 0; i < n && (at = child_of(t, at, (unsigned char)text[i])) != 0; i++) {
        if (t->node[at].id != UINT32_MAX) {
            best = i + 1;
            *id = t->node[at].id;
        }
    }
    return best;
}

bool added_tokens_find(const struct added_tokens *t, const char *text, size_t n, size_t *at,
                       size_t *bytes, uint32_t *id)
{
    for (size_t i = *at; i < n; i++) {
        if (!t->first[(unsigned char)text[i]])
            continue;
        *bytes = longest_here(t, text + i, n - i, id);
        if (*bytes) {
            *at = i;
            return true;
        }
    }
    return false;
}

uint32_t added_tokens_id(const struct added_tokens *t, const char *text, size_t n)
{
    uint32_t at = 0;
    if (n == 0 || !t->n_nodes)
        return UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        at = child_of(t, at, (unsigned char)text[i]);
        if (!at)
            return UINT32_MAX;
    }
    return t->node[at].id;
}
