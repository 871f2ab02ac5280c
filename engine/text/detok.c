/* detok.c - see detok.h.
 *
 * Bytes go through two sieves. The first holds at most three bytes: the beginning of a character
 * that may still be completed. The second runs one Knuth-Morris-Pratt matcher per stop string over
 * whole characters; the longest prefix that any of them has matched is what must be held back, no
 * more. Both work byte by byte, so the text does not depend on where the tokens' borders are.
 */
#include "text/detok.h"

#include "base/fault.h"

#include <string.h>

struct detok {
    const struct tokenizer *tok;
    const struct stop_list *stop;
    uint32_t *matched;     /* by stop string: how many of its bytes the text ends with */
    uint32_t **fail;       /* by stop string: where to go on after a mismatch */
    unsigned char half[4]; /* the beginning of a character */
    unsigned n_half;
    bool skip_special, stopped;
    char *text; /* held back from earlier, then what this call adds */
    size_t n_text, max_text;
    size_t n_given; /* bytes at the front that the last call gave out */
};

/* What a token of n bytes may bring: each becomes at most U+FFFD, and so does a half character. */
static size_t text_bytes(size_t n)
{
    return 3 * (n + 1);
}

static void make_fail(const char *s, size_t n, uint32_t *fail)
{
    uint32_t k = 0;
    fail[0] = 0;
    for (size_t i = 1; i < n; i++) {
        while (k && s[i] != s[k])
            k = fail[k - 1];
        k += s[i] == s[k];
        fail[i] = k;
    }
}

enum err_code detok_create(struct detok **out, struct arena *a, const struct tokenizer *tok,
                           const struct stop_list *stop, bool skip_special, struct err *e)
{
    struct detok *d = FAULT("detok.create") ? NULL : arena_zalloc(a, sizeof *d);
    uint32_t n_stop = stop ? stop->n : 0;
    size_t total = n_stop, most_held = 0;
    for (uint32_t i = 0; i < n_stop; i++) {
        assert(stop->bytes[i] > 0 && stop->bytes[i] < UINT32_MAX);
        total += stop->bytes[i];
        most_held = stop->bytes[i] > most_held ? stop->bytes[i] : most_held;
    }
    if (!d)
        return err_set(e, ERR_NOMEM, "detokenizer");
    d->tok = tok;
    d->stop = stop;
    d->skip_special = skip_special;
    d->max_text = most_held + text_bytes(tokenizer_longest(tok));
    d->text = arena_alloc(a, d->max_text);
    d->matched = arena_zalloc(a, total * sizeof *d->matched);
    d->fail = arena_zalloc(a, n_stop * sizeof *d->fail);
    if (!d->text || !d->matched || !d->fail)
        return err_set(e, ERR_NOMEM, "detokenizer: %u stop strings", n_stop);
    uint32_t *next = d->matched + n_stop;
    for (uint32_t i = 0; i < n_stop; i++) {
        d->fail[i] = next;
        make_fail(stop->text[i], stop->bytes[i], next);
        next += stop->bytes[i];
    }
    *out = d;
    return ERR_OK;
}

/* ---- the first sieve ---- */

static unsigned char_length(unsigned char lead)
{
    return lead < 0x80                   ? 1
           : lead >= 0xC2 && lead < 0xE0 ? 2
           : (lead & 0xF0) == 0xE0       ? 3
           : lead >= 0xF0 && lead < 0xF5 ? 4
                                         : 0;
}

/* Whether byte may follow the first n bytes of a character that begins with lead. */
static bool may_follow(unsigned char lead, unsigned n, unsigned char byte)
{
    unsigned char low = 0x80, high = 0xBF;
    if (n == 1) { /* no overlong forms, no surrogates, nothing above U+10FFFF */
        low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : low;
        high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : high;
    }
    return byte >= low && byte <= high;
}

static void add_bytes(struct detok *d, const void *bytes, size_t n)
{
    assert(n <= d->max_text - d->n_text);
    memcpy(d->text + d->n_text, bytes, n);
    d->n_text += n;
}

static void add_bad(struct detok *d)
{
    add_bytes(d, "\xEF\xBF\xBD", 3);
}

/* Takes one byte; whole characters, or U+FFFD for what can no longer become one, go to the text. */
static void take_byte(struct detok *d, unsigned char byte)
{
    if (d->n_half && !may_follow(d->half[0], d->n_half, byte)) {
        add_bad(d); /* the bytes so far: one mark for all of them */
        d->n_half = 0;
    }
    unsigned length = char_length(d->n_half ? d->half[0] : byte);
    if (length == 0) {
        add_bad(d);
        return;
    }
    d->half[d->n_half++] = byte;
    if (d->n_half == length) {
        add_bytes(d, d->half, length);
        d->n_half = 0;
    }
}

/* ---- the second sieve ---- */

/* Steps every matcher over text[at]; gives the longest stop string that ends there, or none. */
static uint32_t step(struct detok *d, char c)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < d->stop->n; i++) {
        const char *s = d->stop->text[i];
        uint32_t k = d->matched[i], n = (uint32_t)d->stop->bytes[i];
        while (k && s[k] != c)
            k = d->fail[i][k - 1];
        k += s[k] == c;
        if (k == n) {
            if (best == UINT32_MAX || n > d->stop->bytes[best])
                best = i;
            k = d->fail[i]
                       [n - 1]; /* the longest proper prefix: what goes on if nobody stops here */
        }
        d->matched[i] = k;
    }
    return best;
}

static size_t held_bytes(const struct detok *d)
{
    size_t held = 0;
    for (uint32_t i = 0; d->stop && i < d->stop->n; i++)
        held = d->matched[i] > held ? d->matched[i] : held;
    return held;
}

/* Looks at text[from ...]; sets how much can go out. */
static void sieve(struct detok *d, size_t from, bool check_stop, bool *stopped,
                  uint32_t *stop_index)
{
    if (!d->stop || !d->stop->n) {
        d->n_given = d->n_text;
        return;
    }
    for (size_t i = from; i < d->n_text; i++) {
        uint32_t hit = step(d, d->text[i]);
        if (hit == UINT32_MAX || !check_stop)
            continue;
        d->n_given = i + 1 - (d->stop->include ? 0 : d->stop->bytes[hit]);
        d->n_text = d->n_given; /* what follows is dropped */
        d->n_half = 0;
        d->stopped = *stopped = true;
        *stop_index = hit;
        return;
    }
    size_t held = held_bytes(d);
    assert(held <= d->n_text);
    d->n_given = d->n_text - held;
}

/* Forgets what the last call gave out; there is room for n more bytes of tokens. */
static void begin(struct detok *d, size_t n)
{
    size_t kept = d->n_text - d->n_given;
    if (kept && d->n_given)
        memmove(d->text, d->text + d->n_given, kept);
    d->n_text = kept;
    d->n_given = 0;
    assert(kept + text_bytes(n) <= d->max_text);
}

void detok_put(struct detok *d, uint32_t id, bool check_stop, const char **text, size_t *bytes,
               bool *stopped, uint32_t *stop_index)
{
    size_t n = 0;
    const char *p = tokenizer_bytes(d->tok, id, &n);
    if (d->stopped || (d->skip_special && tokenizer_is_special(d->tok, id)))
        n = 0;
    begin(d, n);
    size_t from = d->n_text;
    for (size_t i = 0; i < n; i++)
        take_byte(d, (unsigned char)p[i]);
    bool hit = false;
    uint32_t which = 0;
    if (!d->stopped)
        sieve(d, from, check_stop, &hit, &which);
    *text = d->text;
    *bytes = d->n_given;
    *stopped = hit;
    if (hit)
        *stop_index = which;
}

void detok_flush(struct detok *d, const char **text, size_t *bytes)
{
    begin(d, 0);
    if (d->n_half)
        add_bad(d);
    d->n_half = 0;
    d->n_given = d->n_text;
    for (uint32_t i = 0; d->stop && i < d->stop->n; i++)
        d->matched[i] = 0;
    *text = d->text;
    *bytes = d->n_given;
}
