/* markup_match.h - a few fixed markers found in a stream of bytes.
 *
 * A marker_set is what counts as a marker in one state of a parser. The bytes that may still become
 * one of its markers wait in a marker_hold; when they cannot any more, the first of them is text
 * and the rest is looked at afresh, perhaps under another set. No marker of a set is the beginning
 * of another, so the first one that is complete is the answer.
 *
 * Thread: any, one at a time. No memory is taken.
 */
#ifndef GAZE_TEXT_MARKUP_MATCH_H
#define GAZE_TEXT_MARKUP_MATCH_H

#include <stdbool.h>
#include <stdint.h>

enum { MARKUP_MAX_MARKERS = 20, MARKUP_MAX_MARKER_BYTES = 48 };

struct marker {
    const char *text;
    uint8_t id; /* what it means to the parser; 0 ends a list */
};

struct marker_set {
    const struct marker *marker[MARKUP_MAX_MARKERS];
    uint8_t bytes[MARKUP_MAX_MARKERS];
    uint8_t n;
    bool first[256]; /* some marker begins with this byte */
};

struct marker_hold {
    char byte[MARKUP_MAX_MARKER_BYTES];
    uint8_t n;
};

enum marker_answer {
    MARKER_NONE, /* the held bytes begin no marker: take the first as text, see to the others again
                  */
    MARKER_PART, /* wait */
    MARKER_WHOLE /* *id says which; the hold is empty again */
};

/* Adds a list (ended by id 0) to the set. The list must outlive the set. */
void marker_set_add(struct marker_set *set, const struct marker *list);

/* Appends c and says what the held bytes are now. After MARKER_NONE the caller empties the hold. */
enum marker_answer marker_push(struct marker_hold *hold, const struct marker_set *set, char c,
                               uint8_t *id);

#endif
