/* steer.h - an output that a grammar steers, byte by byte: masks, forced bytes and single bytes
 * agree all the way, and no place is a dead end. */
#ifndef GAZE_FUZZ_STEER_H
#define GAZE_FUZZ_STEER_H

#include "grammar/grammar.h"

#include <stdlib.h>
#include <string.h>

/* Every byte, and some longer tokens. */
static const char *const longer[] = {"ab",  "abc", "aa",   "\",\"",    "\":",  "{\"a\":", "0x",
                                     "00",  "\\n", "\\\"", "\xC3\xA9", "\xC3", "\xA9 a",  "  ",
                                     "a b", "1,1", ",1",   ",\"a\"",   "],[",  "],[1"};
enum { N_LONGER = sizeof longer / sizeof longer[0], N_IDS = 256 + N_LONGER };

static const char *token_bytes(const void *arg, uint32_t id, size_t *n)
{
    static char one[256];
    (void)arg;
    if (id >= 256) {
        *n = strlen(longer[id - 256]);
        return longer[id - 256];
    }
    one[id] = (char)id;
    *n = 1;
    return &one[id];
}

static bool spent; /* a copy ran into the bound of its own search, so its answer says nothing */

static bool can(const struct grammar_matcher *m, uint32_t id)
{
    struct grammar_matcher *c;
    struct err e;
    size_t n, taken;
    const char *p = token_bytes(NULL, id, &n);
    if (grammar_matcher_copy(&c, m, &e) != ERR_OK)
        abort();
    bool ok = grammar_matcher_accept(c, p, n, &taken);
    spent |= grammar_matcher_failed(c);
    grammar_matcher_close(c);
    return ok;
}

static void check(struct grammar_matcher *m, size_t at)
{
    uint32_t mask[(N_IDS + 31) / 32] = {0}, any = 0;
    grammar_matcher_mask(m, mask);
    if (grammar_matcher_failed(m))
        return;
    for (uint32_t i = 0; i < sizeof mask / sizeof mask[0]; i++)
        any |= mask[i];
    assert(any || grammar_matcher_may_end(m));
    assert(grammar_matcher_must_end(m) == !any);
    for (uint32_t id = at % 5; id < N_IDS; id += 5)
        assert((mask[id / 32] >> id % 32 & 1) == can(m, id) || spent);
    char forced;
    if (grammar_matcher_forced(m, &forced, 1)) {
        uint32_t byte = (unsigned char)forced;
        assert(mask[byte / 32] >> byte % 32 & 1);
        for (uint32_t id = 0; id < 256; id++)
            assert(id == byte || !(mask[id / 32] >> id % 32 & 1));
    }
}

static void steer(struct grammar *g, const uint8_t *p, size_t n)
{
    struct grammar_matcher *m;
    struct err e;
    if (grammar_matcher_open(&m, g, &e) != ERR_OK)
        abort();
    spent = false;
    for (size_t i = 0; i < n && i < 24 && !grammar_matcher_failed(m) && !spent; i++) {
        check(m, i);
        size_t taken;
        if (grammar_matcher_accept(m, (const char *)p + i, 1, &taken))
            continue;
        uint32_t id = p[i]; /* the next byte that can come */
        for (uint32_t k = 0; k < 256 && !can(m, id); k++)
            id = (id + 1) % 256;
        size_t bytes;
        const char *b = token_bytes(NULL, id, &bytes);
        if (!grammar_matcher_accept(m, b, bytes, &taken))
            break; /* the end */
    }
    grammar_matcher_close(m);
}

#endif
