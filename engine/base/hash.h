/* hash.h - 64-bit hashes of bytes and words, for tables and page chains. Not for secrets. Thread:
 * any. */
#ifndef GAZE_BASE_HASH_H
#define GAZE_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(uint64_t seed, const void *data, size_t bytes);

static inline uint64_t hash_mix(uint64_t h)
{
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
    return h ^ (h >> 31);
}

#endif
