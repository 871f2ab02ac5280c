/* split.c - see split.h. */
#include "split.h"

static const char mark[] = "</think>";
enum { MARK_BYTES = sizeof mark - 1 };

void split_put(struct split *s, const char *text, size_t n, bool last, struct buf *reasoning,
               struct buf *content)
{
    size_t i = 0;
    while (s->thinking && i < n) {
        if (text[i] == mark[s->held]) {
            i++;
            if (++s->held == MARK_BYTES) {
                s->thinking = false;
                s->held = 0;
            }
        } else if (s->held) { /* '<' is only at the mark's beginning, so nothing is looked at twice
                               */
            buf_add(reasoning, mark, s->held);
            s->held = 0;
        } else {
            buf_add(reasoning, text + i, 1);
            i++;
        }
    }
    buf_add(content, text + i, n - i);
    if (last && s->held) {
        buf_add(reasoning, mark, s->held);
        s->held = 0;
    }
}
