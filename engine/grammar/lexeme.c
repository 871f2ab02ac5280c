#include "grammar/lexeme.h"

#include "base/fault.h"
#include "base/hash.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { N_BUCKETS = 256, MAX_RESTS = 1 << 17 };

struct lexicon {
    pthread_mutex_t lock;
    struct lexeme *bucket[N_BUCKETS];
    size_t bytes;
    struct {
        uint32_t *at; /* NULL until it is wanted */
        uint32_t n;
    } with_byte[256];
};

struct lexicon *lexicon_open(void)
{
    struct lexicon *l = FAULT("grammar.lexicon") ? NULL : calloc(1, sizeof *l);
    if (l)
        pthread_mutex_init(&l->lock, NULL);
    return l;
}

static void profile_free(struct profile *p)
{
    if (!p)
        return;
    free(p->inside);
    free(p->need);
    free(p->done);
    trie_free(&p->rest);
    free(p);
}

static void lexeme_free(struct lexeme *x)
{
    for (uint32_t i = 0; i < x->n_states && x->profile; i++)
        profile_free(x->profile[i]);
    free(x->profile);
    free(x->to);
    free(x);
}

void lexicon_close(struct lexicon *l)
{
    if (!l)
        return;
    for (unsigned i = 0; i < N_BUCKETS; i++)
        for (struct lexeme *x = l->bucket[i], *next; x; x = next) {
            next = x->next;
            lexeme_free(x);
        }
    for (unsigned byte = 0; byte < 256; byte++)
        free(l->with_byte[byte].at);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

const struct lexeme *lexicon_find(const struct grammar_vocab *v, uint8_t (*to)[256],
                                  uint32_t n_states)
{
    struct lexicon *l = v->lexicon;
    size_t bytes = n_states * sizeof *to;
    uint64_t hash = hash_bytes(n_states, to, bytes);
    pthread_mutex_lock(&l->lock);
    struct lexeme *x = l->bucket[hash % N_BUCKETS];
    while (x && (x->hash != hash || x->n_states != n_states || memcmp(x->to, to, bytes) != 0))
        x = x->next;
    if (!x && l->bytes + bytes <= LEXICON_BYTES) {
        x = FAULT("grammar.lexicon") ? NULL : calloc(1, sizeof *x);
        if (x) {
            x->n_states = n_states;
            x->hash = hash;
            x->to = malloc(bytes);
            x->profile = calloc(n_states, sizeof *x->profile);
        }
        if (x && x->to && x->profile) {
            memcpy(x->to, to, bytes);
            x->next = l->bucket[hash % N_BUCKETS];
            l->bucket[hash % N_BUCKETS] = x;
            l->bytes += bytes;
        } else if (x) {
            lexeme_free(x);
            x = NULL;
        }
    }
    pthread_mutex_unlock(&l->lock);
    return x;
}

struct place { /* after the bytes of a path */
    uint8_t state;
    uint16_t done;
};

struct rests {
    struct spelled *s; /* id: index of the token and, above it, how many bodies are done */
    uint32_t n, max;
};

/* The tokens below `node` leave the repetition; each cut where a body is complete gives a rest. */
static bool leave(const struct grammar_vocab *v, const struct trie_node *node,
                  const struct place *path, struct rests *r)
{
    const struct trie *t = &v->trie;
    for (unsigned cut = 1; cut < node->depth; cut++) {
        if (path[cut].state != LEXEME_START || path[cut].done > MAX_NEED)
            continue;
        for (uint32_t k = node->token; k < t->node[node->after].token; k++) {
            if (r->n == r->max) {
                uint32_t max = r->max ? r->max * 2 : 1024;
                struct spelled *s = max > MAX_RESTS ? NULL : realloc(r->s, max * sizeof *r->s);
                if (!s)
                    return false;
                r->s = s;
                r->max = max;
            }
            r->s[r->n++] = (struct spelled){v->text + v->at[k] + cut, v->at[k + 1] - v->at[k] - cut,
                                            t->token[k] << 8 | path[cut].done};
        }
    }
    return true;
}

/* Walks all tokens from this state. False: no memory, or too much of it. */
static bool profile_fill(const struct grammar_vocab *v, const struct lexeme *x, uint32_t state,
                         struct profile *p, struct rests *r)
{
    const struct trie *t = &v->trie;
    struct place path[MAX_TOKEN_BYTES + 1];
    path[0] = (struct place){(uint8_t)state, 0};
    for (uint32_t i = 1; i < t->n_nodes;) {
        const struct trie_node *n = &t->node[i];
        struct place at = path[n->depth - 1];
        at.state = x->to[at.state][n->byte];
        if (at.state == LEXEME_DEAD) {
            if (!leave(v, n, path, r))
                return false;
            i = n->after;
            continue;
        }
        if (at.state == LEXEME_DONE) {
            at.state = LEXEME_START;
            at.done++;
        }
        path[n->depth] = at;
        unsigned need = (unsigned)at.done + (at.state != LEXEME_START ? 1 : 0);
        if (n->token < n[1].token && need > MAX_NEED)
            return false;
        for (uint32_t k = n->token; k < n[1].token; k++) {
            mask_set(p->inside, t->token[k]);
            p->need[t->token[k]] = (uint8_t)need;
            if (need > p->max_need)
                p->max_need = (uint8_t)need;
        }
        i++;
    }
    if (!trie_make(&p->rest, r->s, r->n))
        return false;
    p->done = malloc((size_t)r->n + 1);
    for (uint32_t k = 0; k < r->n && p->done; k++) {
        p->done[k] = (uint8_t)(p->rest.token[k] & 0xFF);
        p->rest.token[k] >>= 8;
        if (p->done[k] > p->max_done)
            p->max_done = p->done[k];
    }
    return p->done;
}

static struct profile *profile_make(const struct grammar_vocab *v, const struct lexeme *x,
                                    uint32_t state)
{
    struct profile *p = FAULT("grammar.lexicon") ? NULL : calloc(1, sizeof *p);
    if (!p)
        return NULL;
    struct rests r = {0};
    p->inside = calloc(v->n_words + 2, sizeof *p->inside);
    p->need = calloc(v->n_words + 1, 32);
    p->usable = p->inside && p->need && v->n_ids < 1 << 24 && profile_fill(v, x, state, p, &r);
    free(r.s);
    if (!p->usable) { /* kept, so that it is not tried again */
        free(p->inside);
        free(p->need);
        free(p->done);
        trie_free(&p->rest);
        *p = (struct profile){0};
    }
    return p;
}

const struct profile *lexeme_profile(const struct grammar_vocab *v, const struct lexeme *x,
                                     uint32_t state)
{
    struct lexicon *l = v->lexicon;
    pthread_mutex_lock(&l->lock);
    struct profile *p = x->profile[state];
    if (!p && l->bytes <= LEXICON_BYTES) {
        p = profile_make(v, x, state);
        x->profile[state] = p;
        if (p && p->usable)
            l->bytes += v->n_words * 36 + p->rest.n_nodes * sizeof *p->rest.node +
                        p->rest.n_tokens * (size_t)5;
    }
    pthread_mutex_unlock(&l->lock);
    return p && p->usable ? p : NULL;
}

const uint32_t *lexicon_with_byte(const struct grammar_vocab *v, uint8_t byte, uint32_t *n)
{
    struct lexicon *l = v->lexicon;
    pthread_mutex_lock(&l->lock);
    if (!l->with_byte[byte].at) {
        uint32_t count = 0, n_tokens = v->trie.n_tokens;
        uint32_t *at =
            FAULT("grammar.lexicon") ? NULL : malloc((n_tokens + (size_t)1) * sizeof *at);
        for (uint32_t i = 0; at && i < n_tokens; i++)
            if (memchr(v->text + v->at[i], byte, v->at[i + 1] - v->at[i]))
                at[count++] = i;
        uint32_t *fit = at ? realloc(at, (count + (size_t)1) * sizeof *at) : NULL;
        l->with_byte[byte].at = fit ? fit : at;
        l->with_byte[byte].n = count;
    }
    const uint32_t *at = l->with_byte[byte].at;
    *n = l->with_byte[byte].n;
    pthread_mutex_unlock(&l->lock);
    return at;
}

/* Eight needs at a time: need is below 128 or above, and most is below 256, so the comparison is
 * made in 16-bit lanes of the even and the odd bytes. */
void profile_inside(const struct grammar_vocab *v, const struct profile *p, uint32_t most,
                    uint32_t *mask)
{
    if (most >= p->max_need) {
        for (uint32_t w = 0; w < v->n_words; w++)
            mask[w] |= p->inside[w];
        return;
    }
    for (uint32_t w = 0; w < v->n_words; w++) {
        uint32_t in = p->inside[w], keep = 0;
        if (!in)
            continue;
        const uint8_t *need = p->need + 32 * (size_t)w;
        for (unsigned i = 0; i < 32; i += 8) {
            uint64_t x;
            memcpy(&x, need + i, 8);
            const uint64_t even = 0x00FF00FF00FF00FFu, one = 0x0001000100010001u;
            uint64_t limit = one * (0x100 + most);
            uint64_t a = ((limit - (x & even)) >> 8) & one;        /* bytes 0 2 4 6 */
            uint64_t b = ((limit - ((x >> 8) & even)) >> 8) & one; /* bytes 1 3 5 7 */
            uint64_t both = a | b << 8; /* 1 in each byte that is small enough */
            keep |= (uint32_t)((both * 0x0102040810204080u) >> 56) << i;
        }
        mask[w] |= in & keep;
    }
}
