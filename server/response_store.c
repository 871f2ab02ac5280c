/* response_store.c - see response_store.h. */
#include "response_store.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry { /* free when text[0] is NULL */
    char id[48];
    uint64_t owner, used; /* used: the store's clock when it was last asked for */
    char *text[RESPONSE_PARTS];
    size_t bytes[RESPONSE_PARTS];
};

struct response_store {
    pthread_mutex_t lock;
    uint32_t max_entries, n_entries;
    size_t max_bytes, bytes;
    uint64_t clock;
    struct entry entry[];
};

enum err_code response_store_open(struct response_store **out, uint32_t max_entries,
                                  size_t max_bytes, struct err *e)
{
    struct response_store *s = calloc(1, sizeof *s + max_entries * sizeof *s->entry);
    if (!s)
        return err_set(e, ERR_NOMEM, "store of %u responses", max_entries);
    if (pthread_mutex_init(&s->lock, NULL)) {
        free(s);
        return err_set(e, ERR_NOMEM, "store of responses: a lock");
    }
    s->max_entries = max_entries;
    s->max_bytes = max_bytes;
    *out = s;
    return ERR_OK;
}

static void drop(struct response_store *s, struct entry *en)
{
    for (int i = 0; i < RESPONSE_PARTS; i++) {
        s->bytes -= en->bytes[i];
        free(en->text[i]);
    }
    *en = (struct entry){0};
    s->n_entries--;
}

void response_store_close(struct response_store *s)
{
    if (!s)
        return;
    for (uint32_t i = 0; i < s->max_entries; i++)
        if (s->entry[i].text[0])
            drop(s, &s->entry[i]);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static struct entry *find(struct response_store *s, const char *id, uint64_t owner)
{
    for (uint32_t i = 0; i < s->max_entries; i++) {
        struct entry *en = &s->entry[i];
        if (en->text[0] && en->owner == owner && !strcmp(en->id, id))
            return en;
    }
    return NULL;
}

static struct entry *oldest(struct response_store *s)
{
    struct entry *best = NULL;
    for (uint32_t i = 0; i < s->max_entries; i++)
        if (s->entry[i].text[0] && (!best || s->entry[i].used < best->used))
            best = &s->entry[i];
    return best;
}

static struct entry *unused(struct response_store *s)
{
    for (uint32_t i = 0; i < s->max_entries; i++)
        if (!s->entry[i].text[0])
            return &s->entry[i];
    return NULL;
}

static char *copy(const char *text, size_t bytes)
{
    char *to = malloc(bytes + 1);
    if (to) {
        memcpy(to, text, bytes);
        to[bytes] = 0;
    }
    return to;
}

bool response_store_put(struct response_store *s, const char *id, uint64_t owner,
                        const char *const text[RESPONSE_PARTS], const size_t bytes[RESPONSE_PARTS])
{
    struct entry made = {.owner = owner};
    size_t total = 0, n = strlen(id);
    for (int i = 0; i < RESPONSE_PARTS; i++)
        total += bytes[i];
    if (!s->max_entries || total > s->max_bytes || n >= sizeof made.id)
        return false;
    memcpy(made.id, id, n);
    for (int i = 0; i < RESPONSE_PARTS; i++) {
        made.bytes[i] = bytes[i];
        made.text[i] = copy(text[i], bytes[i]);
        if (!made.text[i]) {
            while (i)
                free(made.text[--i]);
            return false;
        }
    }
    pthread_mutex_lock(&s->lock);
    while (s->n_entries == s->max_entries || s->bytes + total > s->max_bytes)
        drop(s, oldest(s));
    made.used = ++s->clock;
    *unused(s) = made;
    s->n_entries++;
    s->bytes += total;
    pthread_mutex_unlock(&s->lock);
    return true;
}

char *response_store_get(struct response_store *s, const char *id, uint64_t owner,
                         enum response_part part, size_t *bytes)
{
    char *text = NULL;
    pthread_mutex_lock(&s->lock);
    struct entry *en = find(s, id, owner);
    if (en) {
        en->used = ++s->clock;
        *bytes = en->bytes[part];
        text = copy(en->text[part], en->bytes[part]);
    }
    pthread_mutex_unlock(&s->lock);
    return text;
}

bool response_store_delete(struct response_store *s, const char *id, uint64_t owner)
{
    pthread_mutex_lock(&s->lock);
    struct entry *en = find(s, id, owner);
    if (en)
        drop(s, en);
    pthread_mutex_unlock(&s->lock);
    return en != NULL;
}

size_t response_store_bytes(struct response_store *s, uint32_t *n_entries)
{
    pthread_mutex_lock(&s->lock);
    size_t bytes = s->bytes;
    *n_entries = s->n_entries;
    pthread_mutex_unlock(&s->lock);
    return bytes;
}
