/* arena.h - memory that is given piece by piece and taken back at once.
 *
 * A request's memory is one arena: everything that lives as long as it does comes from here.
 * Thread: one owner at a time. Pieces are aligned to 16 bytes and are not zeroed.
 */
#ifndef GAZE_BASE_ARENA_H
#define GAZE_BASE_ARENA_H

#include "base/err.h"

#include <stddef.h>

struct arena_block; /* opaque */
struct arena {
    struct arena_block *head;
    size_t used_bytes;  /* given out, alignment included */
    size_t block_bytes; /* how much a new block holds at least */
};

void arena_init(struct arena *a, size_t block_bytes); /* takes no memory yet; block_bytes 0: 4096 */
void arena_free(struct arena *a);                     /* all pieces at once; a is as after init */

/* NULL when the machine has no memory left. bytes may be 0. */
void *arena_alloc(struct arena *a, size_t bytes);
void *arena_zalloc(struct arena *a, size_t bytes);
char *arena_strndup(struct arena *a, const char *s, size_t len); /* NUL-terminated copy */

#endif
