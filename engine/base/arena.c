/* arena.c - see arena.h. */
#include "base/arena.h"

#include "base/fault.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct arena_block {
    struct arena_block *next;
    size_t capacity_bytes;
    size_t used_bytes;
    _Alignas(16) unsigned char bytes[];
};

void arena_init(struct arena *a, size_t block_bytes)
{
    *a = (struct arena){.block_bytes = block_bytes ? block_bytes : 4096};
}

void arena_free(struct arena *a)
{
    for (struct arena_block *b = a->head, *next; b; b = next) {
        next = b->next;
        free(b);
    }
    arena_init(a, a->block_bytes);
}

void *arena_alloc(struct arena *a, size_t bytes)
{
    if (bytes > SIZE_MAX / 2 || FAULT("arena.alloc"))
        return NULL;
    size_t need = (bytes + 15) & ~(size_t)15;
    struct arena_block *b = a->head;
    if (!b || b->capacity_bytes - b->used_bytes < need) {
        size_t capacity = need > a->block_bytes ? need : a->block_bytes;
        b = malloc(sizeof *b + capacity);
        if (!b)
            return NULL;
        b->capacity_bytes = capacity;
        b->used_bytes = 0;
        b->next = a->head;
        a->head = b;
    }
    void *p = b->bytes + b->used_bytes;
    b->used_bytes += need;
    a->used_bytes += need;
    return p;
}

void *arena_zalloc(struct arena *a, size_t bytes)
{
    void *p = arena_alloc(a, bytes);
    return p ? memset(p, 0, bytes) : NULL;
}

char *arena_strndup(struct arena *a, const char *s, size_t len)
{
    char *p = arena_alloc(a, len + 1);
    if (p) {
        memcpy(p, s, len);
        p[len] = '\0';
    }
    return p;
}
