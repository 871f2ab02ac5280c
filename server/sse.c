/* sse.c - see sse.h. */
#include "sse.h"

#include "base/clock.h"

#include <string.h>

static void wrote(struct sse *s)
{
    s->written_us = clock_us();
    if (!s->waiting_us)
        s->waiting_us = s->written_us;
}

/* What stands behind `from` is an event. */
static void end_event(struct sse *s, size_t from)
{
    buf_add(&s->buf, "\n\n", 2);
    if (s->heard && !s->buf.failed)
        s->heard(s->heard_arg, s->buf.s + from, s->buf.n - from);
    if (s->deaf)
        s->buf.n = from;
    wrote(s);
}

static void add_data(struct sse *s, size_t from, const char *text, size_t n)
{
    buf_add(&s->buf, "data: ", 6);
    buf_add(&s->buf, text, n);
    end_event(s, from);
}

void sse_data(struct sse *s, const struct buf *json)
{
    if (s->ended)
        return;
    if (json->failed)
        s->buf.failed = true;
    add_data(s, s->buf.n, json->s, json->n);
}

void sse_event(struct sse *s, const char *name, const struct buf *json)
{
    size_t from = s->buf.n;
    if (s->ended)
        return;
    if (json->failed)
        s->buf.failed = true;
    buf_add(&s->buf, "event: ", 7);
    buf_str(&s->buf, name);
    buf_add(&s->buf, "\n", 1);
    add_data(s, from, json->s, json->n);
}

void sse_text(struct sse *s, const char *data)
{
    if (!s->ended)
        add_data(s, s->buf.n, data, strlen(data));
}

void sse_raw(struct sse *s, const char *text, size_t n)
{
    if (s->ended)
        return;
    buf_add(&s->buf, text, n);
    wrote(s);
}

void sse_comment(struct sse *s, const char *text)
{
    if (s->ended || s->deaf)
        return;
    buf_add(&s->buf, ": ", 2);
    buf_str(&s->buf, text);
    buf_add(&s->buf, "\n\n", 2);
    wrote(s);
}

void sse_end(struct sse *s)
{
    if (s->ended)
        return;
    s->ended = true;
    if (s->heard)
        s->heard(s->heard_arg, NULL, 0);
}

size_t sse_waiting(const struct sse *s)
{
    return s->buf.n - s->taken;
}

long sse_read(struct sse *s, char *to, size_t max)
{
    size_t n = sse_waiting(s);
    if (s->buf.failed)
        return -2;
    if (!n)
        return s->ended ? -1 : 0;
    if (n > max)
        n = max;
    memcpy(to, s->buf.s + s->taken, n);
    s->taken += n;
    if (s->taken == s->buf.n) {
        s->taken = s->buf.n = 0;
        s->waiting_us = 0;
    } else {
        s->waiting_us = clock_us(); /* it moves: the clock of a stalled reader starts anew */
        if (s->taken > 65536 && s->taken > s->buf.n / 2) {
            memmove(s->buf.s, s->buf.s + s->taken, s->buf.n - s->taken);
            s->buf.n -= s->taken;
            s->taken = 0;
        }
    }
    return (long)n;
}

void sse_free(struct sse *s)
{
    buf_free(&s->buf);
    *s = (struct sse){0};
}
