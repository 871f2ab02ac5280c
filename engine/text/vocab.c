/* vocab.c - see vocab.h. */
#include "text/vocab.h"

#include "base/fault.h"

#include <stdlib.h>

enum err_code vocab_init(struct vocab *v, uint32_t max_ids, uint32_t max_plain, size_t blob_max,
                         struct err *e)
{
    assert(max_ids <= VOCAB_MAX_IDS && max_plain <= VOCAB_MAX_IDS);
    uint32_t n_slots = 1024;
    while (n_slots < 2 * max_plain) /* at most half full, so chains stay short */
        n_slots *= 2;
    *v = (struct vocab){.max_ids = max_ids, .blob_max = blob_max, .mask = n_slots - 1};
    if (blob_max > UINT32_MAX)
        return err_set(e, ERR_INVALID, "tokens of %zu bytes together: 4 GiB is the most", blob_max);
    v->blob = FAULT("vocab.init") ? NULL : malloc(blob_max + 1);
    v->text = calloc((size_t)max_ids + 1, sizeof *v->text);
    v->slot = malloc(n_slots * sizeof *v->slot);
    if (!v->blob || !v->text || !v->slot)
        return err_set(e, ERR_NOMEM, "a vocabulary of %u tokens", max_ids);
    memset(v->slot, 0xFF, n_slots * sizeof *v->slot);
    return ERR_OK;
}

void vocab_free(struct vocab *v)
{
    free(v->blob);
    free(v->text);
    free(v->slot);
    *v = (struct vocab){0};
}

bool vocab_put(struct vocab *v, uint32_t id, const char *bytes, size_t n, bool plain)
{
    assert(id < v->max_ids);
    struct vocab_text *t = &v->text[id];
    if (t->bytes && (t->bytes != n || memcmp(v->blob + t->at, bytes, n) != 0))
        return false;
    if (plain && vocab_find(v, bytes, n) != VOCAB_NONE)
        return false;
    if (!t->bytes) {
        assert(n <= v->blob_max - v->blob_bytes);
        memcpy(v->blob + v->blob_bytes, bytes, n);
        *t = (struct vocab_text){(uint32_t)v->blob_bytes, (uint32_t)n};
        v->blob_bytes += n;
        if (n > v->longest)
            v->longest = (uint32_t)n;
    }
    if (id >= v->n_ids)
        v->n_ids = id + 1;
    if (plain) {
        uint32_t h = vocab_hash(bytes, n), i = h & v->mask;
        while (v->slot[i].id != VOCAB_NONE)
            i = (i + 1) & v->mask;
        v->slot[i] = (struct vocab_slot){h, id};
    }
    return true;
}

/* GPT-2 spells a byte that is printable in Latin-1 as itself and the other 68 as U+0100 onwards. */
static int byte_of(unsigned cp)
{
    if ((cp >= 0x21 && cp <= 0x7E) || (cp >= 0xA1 && cp <= 0xAC) || (cp >= 0xAE && cp <= 0xFF))
        return (int)cp;
    if (cp >= 0x100 && cp < 0x100 + 33)
        return (int)cp - 0x100; /* 0x00 .. 0x20 */
    if (cp >= 0x121 && cp < 0x121 + 34)
        return (int)cp - 0x121 + 0x7F; /* 0x7F .. 0xA0 */
    return cp == 0x143 ? 0xAD : -1;
}

bool vocab_unspell(const char *text, size_t n, char *out, size_t *out_bytes)
{
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        unsigned c = (unsigned char)text[i++];
        if (c >= 0xC2 && c <= 0xC5 && i < n) /* the spelling ends at U+0143: two bytes of UTF-8 */
            c = (c & 0x1F) << 6 | ((unsigned char)text[i++] & 0x3F);
        else if (c >= 0x80)
            return false;
        int b = byte_of(c);
        if (b < 0)
            return false;
        out[k++] = (char)b;
    }
    *out_bytes = k;
    return true;
}
