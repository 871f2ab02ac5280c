/* markup_match.c - see markup_match.h. */
#include "text/markup_match.h"

#include <assert.h>
#include <string.h>

void marker_set_add(struct marker_set *set, const struct marker *list)
{
    for (; list && list->id; list++) {
        size_t n = strlen(list->text);
        assert(n >= 1 && n <= MARKUP_MAX_MARKER_BYTES && set->n < MARKUP_MAX_MARKERS);
        for (unsigned i = 0; i < set->n; i++) {
            size_t both = n < set->bytes[i] ? n : set->bytes[i];
            assert(memcmp(set->marker[i]->text, list->text, both) !=
                   0); /* neither begins the other */
        }
        set->marker[set->n] = list;
        set->bytes[set->n] = (uint8_t)n;
        set->n++;
        set->first[(unsigned char)list->text[0]] = true;
    }
}

enum marker_answer marker_push(struct marker_hold *hold, const struct marker_set *set, char c,
                               uint8_t *id)
{
    assert(hold->n < MARKUP_MAX_MARKER_BYTES);
    hold->byte[hold->n++] = c;
    if (!set->first[(unsigned char)hold->byte[0]])
        return MARKER_NONE;
    for (unsigned i = 0; i < set->n; i++) {
        if (hold->n > set->bytes[i] || memcmp(hold->byte, set->marker[i]->text, hold->n) != 0)
            continue;
        if (hold->n < set->bytes[i])
            return MARKER_PART;
        *id = set->marker[i]->id;
        hold->n = 0;
        return MARKER_WHOLE;
    }
    return MARKER_NONE;
}
