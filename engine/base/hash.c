/* hash.c - see hash.h. Eight bytes a round: multiply, fold the high half in. */
#include "base/hash.h"

#include <string.h>

uint64_t hash_bytes(uint64_t seed, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    uint64_t h = hash_mix(seed ^ (0x9E3779B97F4A7C15u * (bytes + 1)));
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        h = (h ^ w) * 0xFF51AFD7ED558CCDu;
        h ^= h >> 32;
    }
    uint64_t w = 0;
    memcpy(&w, p, bytes);
    return hash_mix((h ^ w) * 0xC4CEB9FE1A85EC53u);
}
