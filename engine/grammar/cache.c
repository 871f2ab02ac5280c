/* cache.c - see cache.h: a list, the most recently used first. */
#include "grammar/cache.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/hash.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct entry *prev, *next;
    struct grammar *grammar; /* NULL: being made, or refused */
    bool making;
    uint32_t n_waiting;
    struct err err; /* when refused */
    uint64_t hash;
    size_t bytes;
    char key[];
};

struct grammar_cache {
    pthread_mutex_t lock;
    pthread_cond_t made;
    struct entry *head, *tail;
    uint32_t max_entries;
    size_t max_bytes;
    struct grammar_cache_counts counts; /* entries; its bytes are summed when they are asked for */
};

enum err_code grammar_cache_open(struct grammar_cache **out, uint32_t max_entries, size_t max_bytes,
                                 struct err *e)
{
    struct grammar_cache *c = FAULT("grammar.cache") ? NULL : calloc(1, sizeof *c);
    if (!c)
        return err_set(e, ERR_NOMEM, "no memory for a cache of grammars");
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->made, NULL);
    c->max_entries = max_entries;
    c->max_bytes = max_bytes;
    *out = c;
    return ERR_OK;
}

static void unlink_entry(struct grammar_cache *c, struct entry *x)
{
    *(x->prev ? &x->prev->next : &c->head) = x->next;
    *(x->next ? &x->next->prev : &c->tail) = x->prev;
    x->prev = x->next = NULL;
    c->counts.entries--;
}

static void put_first(struct grammar_cache *c, struct entry *x)
{
    x->prev = NULL;
    x->next = c->head;
    *(c->head ? &c->head->prev : &c->tail) = x;
    c->head = x;
    c->counts.entries++;
}

static void entry_free(struct entry *x)
{
    grammar_close(x->grammar);
    free(x);
}

void grammar_cache_close(struct grammar_cache *c)
{
    if (!c)
        return;
    for (struct entry *x = c->head, *next; x; x = next) {
        next = x->next;
        assert(!x->making);
        entry_free(x);
    }
    pthread_cond_destroy(&c->made);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static struct entry *find(const struct grammar_cache *c, const char *key, size_t bytes,
                          uint64_t hash)
{
    struct entry *x = c->head;
    while (x && (x->hash != hash || x->bytes != bytes || memcmp(x->key, key, bytes) != 0))
        x = x->next;
    return x;
}

static size_t entry_bytes(const struct entry *x)
{
    return sizeof *x + x->bytes + (x->grammar ? grammar_bytes(x->grammar) : 0);
}

static size_t all_bytes(const struct grammar_cache *c)
{
    size_t sum = 0;
    for (const struct entry *x = c->head; x; x = x->next)
        sum += entry_bytes(x);
    return sum;
}

/* The first stays whatever it needs: it is the one that was just asked for. */
static void evict(struct grammar_cache *c)
{
    size_t bytes = all_bytes(c);
    for (struct entry *x = c->tail, *prev; x && x != c->head; x = prev) {
        prev = x->prev;
        if (c->counts.entries <= c->max_entries && bytes <= c->max_bytes)
            return;
        if (x->making || x->n_waiting)
            continue;
        bytes -= entry_bytes(x);
        unlink_entry(c, x);
        entry_free(x);
        c->counts.evicted++;
    }
}

/* What the entry says, once it is made; the lock is held. */
static enum err_code answer(struct grammar_cache *c, struct entry *x, struct grammar **out,
                            struct err *e)
{
    x->n_waiting++;
    while (x->making)
        pthread_cond_wait(&c->made, &c->lock);
    x->n_waiting--;
    *e = x->err;
    if (x->grammar)
        *out = grammar_ref(x->grammar);
    if (x->err.code && x->err.code != ERR_INVALID && x->n_waiting == 0) {
        unlink_entry(c, x);
        entry_free(x);
    }
    return e->code;
}

enum err_code grammar_cache_get(struct grammar_cache *c, struct grammar **out, const char *key,
                                size_t bytes, grammar_maker *make, void *arg, struct err *e)
{
    uint64_t hash = hash_bytes(0, key, bytes);
    pthread_mutex_lock(&c->lock);
    struct entry *x = find(c, key, bytes, hash);
    if (x) {
        c->counts.hits++;
        unlink_entry(c, x);
        put_first(c, x);
        enum err_code code = answer(c, x, out, e);
        pthread_mutex_unlock(&c->lock);
        return code;
    }
    x = FAULT("grammar.cache") ? NULL : calloc(1, sizeof *x + bytes);
    if (!x) {
        pthread_mutex_unlock(&c->lock);
        return err_set(e, ERR_NOMEM, "no memory for a grammar of %zu bytes", bytes);
    }
    x->making = true;
    x->hash = hash;
    x->bytes = bytes;
    memcpy(x->key, key, bytes);
    put_first(c, x);
    c->counts.misses++;
    pthread_mutex_unlock(&c->lock);

    struct grammar *g = NULL;
    struct err why = {0};
    uint64_t from = clock_us();
    if (make(arg, &g, &why) == ERR_OK)
        why.code = ERR_OK;

    pthread_mutex_lock(&c->lock);
    c->counts.make_us += clock_us() - from;
    c->counts.refused += why.code == ERR_INVALID;
    x->grammar = g;
    x->err = why;
    x->making = false;
    pthread_cond_broadcast(&c->made);
    enum err_code code = answer(c, x, out, e);
    evict(c);
    pthread_mutex_unlock(&c->lock);
    return code;
}

bool grammar_cache_has(struct grammar_cache *c, const char *key, size_t bytes)
{
    uint64_t hash = hash_bytes(0, key, bytes);
    pthread_mutex_lock(&c->lock);
    const struct entry *x = find(c, key, bytes, hash);
    bool has = x && !x->making;
    pthread_mutex_unlock(&c->lock);
    return has;
}

struct grammar_cache_counts grammar_cache_get_counts(struct grammar_cache *c)
{
    pthread_mutex_lock(&c->lock);
    struct grammar_cache_counts n = c->counts;
    n.bytes = all_bytes(c);
    pthread_mutex_unlock(&c->lock);
    return n;
}
