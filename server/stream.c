/* stream.c - see stream.h. */
#include "stream.h"

#include "base/clock.h"
#include "generation.h"
#include "http_impl.h"

#include <stdlib.h>
#include <string.h>

struct stream_event {
    struct stream_event *next;
    size_t bytes;
    char text[];
};

struct stream {
    struct server *sv;
    char id[40];
    uint64_t owner;
    struct call *source; /* NULL: it has ended, and its call, too */
    bool detached;       /* the source has no client of its own; it is ours */
    bool ended, broken;  /* broken: for want of memory */
    uint64_t alone_us;   /* since when nobody reads; 0: somebody does */
    struct stream_event *head, *tail;
    size_t bytes;        /* of all events kept */
    uint64_t first, n;   /* head's number; events so far, those let go included */
    struct call *reader; /* linked by next_reader */
    struct stream *next;
};

static void drop_events(struct stream *s, size_t bytes)
{
    while (s->head && s->bytes > bytes) {
        struct stream_event *ev = s->head;
        s->head = ev->next;
        s->tail = s->head ? s->tail : NULL;
        s->bytes -= ev->bytes;
        s->first++;
        free(ev);
    }
}

/* Nobody but the first client, if it is still there, reads from now on. */
static void rest_alone(struct stream *s)
{
    if ((s->detached || s->ended) && !s->reader && !s->alone_us)
        s->alone_us = clock_us();
}

static void end_readers(struct stream *s)
{
    for (struct call *r = s->reader; r; r = r->next_reader) {
        r->sse.buf.failed |= s->broken;
        sse_end(&r->sse);
        http_wake(r);
    }
    s->ended = true;
    rest_alone(s);
}

static void keep(struct stream *s, const char *text, size_t n)
{
    struct stream_event *ev = malloc(sizeof *ev + n);
    if (!ev) {
        s->broken = true;
        drop_events(s, 0);
        return;
    }
    *ev = (struct stream_event){.bytes = n};
    memcpy(ev->text, text, n);
    if (s->tail)
        s->tail->next = ev;
    else
        s->head = ev;
    s->tail = ev;
    s->bytes += n;
    s->n++;
    size_t most = s->sv->settings->stream_buffer;
    drop_events(s, n > most ? n : most);
}

/* The source's sse has one more event; NULL: it has ended. */
static void on_event(void *arg, const char *text, size_t n)
{
    struct stream *s = arg;
    if (text && !s->broken)
        keep(s, text, n);
    for (struct call *r = s->reader; text && r; r = r->next_reader) {
        r->sse.buf.failed |= s->broken;
        sse_raw(&r->sse, text, n);
        http_wake(r);
    }
    if (!text)
        end_readers(s);
}

/* The source's client has left, and libmicrohttpd is through with its call. */
static bool is_ours(const struct stream *s)
{
    return s->detached && s->source && s->source->ended;
}

static void stream_free(struct stream *s)
{
    for (struct call *r = s->reader, *next; r; r = next) {
        next = r->next_reader;
        r->stream = NULL;
        sse_end(&r->sse);
        http_wake(r);
    }
    struct call *c = s->source;
    if (c) {
        c->stream = NULL;
        c->sse.heard = NULL;
    }
    if (c && s->detached)
        generation_cancel(c);
    if (c && is_ours(s))
        http_free_call(c);
    drop_events(s, 0);
    free(s);
}

static void forget(struct server *sv, struct stream *s)
{
    struct stream **at = &sv->streams;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    sv->n_streams--;
    stream_free(s);
}

static struct stream *find(struct server *sv, const char *id, uint64_t owner)
{
    struct stream *s = sv->streams;
    while (s && (s->owner != owner || strcmp(s->id, id) != 0))
        s = s->next;
    return s;
}

/* New ones stand in front, so the last that has ended is the oldest. */
static bool make_room(struct server *sv)
{
    struct stream *oldest = NULL;
    if (sv->n_streams < STREAMS_MAX)
        return true;
    for (struct stream *s = sv->streams; s; s = s->next)
        if (s->ended && !s->source && !s->reader)
            oldest = s;
    if (oldest)
        forget(sv, oldest);
    return oldest;
}

bool stream_begin(struct call *c, const char *id, uint64_t owner, struct api_error *ae)
{
    struct server *sv = c->sv;
    if (!sv->settings->resume_s)
        return api_fail(ae, 400, "resumable", "invalid_value",
                        "resumable: this server keeps no streams (resume is 0)");
    if (!make_room(sv))
        return api_fail(ae, 429, "resumable", "rate_limit_exceeded",
                        "The server keeps at most %d resumable streams. Try again shortly.",
                        STREAMS_MAX);
    struct stream *s = calloc(1, sizeof *s);
    if (!s)
        return api_fail(ae, 503, NULL, "out_of_memory", "There is no memory for this request.");
    *s = (struct stream){.sv = sv, .owner = owner, .source = c, .next = sv->streams};
    snprintf(s->id, sizeof s->id, "%s", id);
    sv->streams = s;
    sv->n_streams++;
    c->stream = s;
    c->sse.heard = on_event;
    c->sse.heard_arg = s;
    return true;
}

bool stream_detach(struct call *c)
{
    struct stream *s = c->stream;
    if (!s || s->source != c || s->ended || !c->streaming || c->sv->stopping)
        return false;
    if (!s->detached) {
        s->detached = true;
        c->sse.deaf = true;
        rest_alone(s);
    }
    return true;
}

void stream_leave(struct call *c)
{
    struct stream *s = c->stream;
    if (!s)
        return;
    c->stream = NULL;
    if (s->source == c) {
        s->source = NULL;
        c->sse.heard = NULL;
        if (!s->ended) { /* it was never begun, or the server stops */
            end_readers(s);
            forget(c->sv, s);
        }
        return;
    }
    struct call **at = &s->reader;
    while (*at != c)
        at = &(*at)->next_reader;
    *at = c->next_reader;
    rest_alone(s);
}

void stream_read(struct call *c, const char *id, uint64_t owner, uint64_t from)
{
    struct stream *s = find(c->sv, id, owner);
    if (!s || s->broken) {
        http_fail(c, 404, "stream_id", "stream_not_found",
                  "The stream \"%.64s\" is not there: it was not made resumable, or has ended too "
                  "long ago.",
                  id);
        return;
    }
    if (from < s->first || from > s->n) {
        bool gone = from < s->first;
        http_fail(c, gone ? 404 : 400, "from", gone ? "events_gone" : "invalid_value",
                  "from: event %llu is not there, the stream holds %llu to %llu.",
                  (unsigned long long)from, (unsigned long long)s->first, (unsigned long long)s->n);
        return;
    }
    uint64_t number = s->first;
    for (const struct stream_event *ev = s->head; ev; ev = ev->next)
        if (number++ >= from)
            sse_raw(&c->sse, ev->text, ev->bytes);
    if (s->ended) {
        sse_end(&c->sse);
    } else {
        c->stream = s;
        c->next_reader = s->reader;
        s->reader = c;
        s->alone_us = 0;
    }
    http_stream(c);
}

bool stream_delete(struct server *sv, const char *id, uint64_t owner)
{
    struct stream *s = find(sv, id, owner);
    if (!s)
        return false;
    struct call *c = s->source;
    if (c && !s->detached)
        generation_stop(c);
    forget(sv, s);
    return true;
}

struct call *stream_detached(struct server *sv, const char *id, uint64_t owner)
{
    const struct stream *s = find(sv, id, owner);
    return s && is_ours(s) ? s->source : NULL;
}

struct call *stream_source(struct call *c)
{
    return c->stream && c->stream->source ? c->stream->source : c;
}

void streams_fail(struct server *sv, const struct api_error *ae)
{
    for (const struct stream *s = sv->streams; s; s = s->next)
        if (is_ours(s))
            generation_fail(s->source, ae);
}

void streams_sweep(struct server *sv, uint64_t now_us)
{
    for (struct stream *s = sv->streams, *next; s; s = next) {
        next = s->next;
        if (is_ours(s) && s->ended) {
            struct call *c = s->source;
            stream_leave(c);
            http_free_call(c);
        }
        if (s->alone_us && now_us > s->alone_us + sv->settings->resume_s * 1000000)
            forget(sv, s);
    }
}

void streams_close(struct server *sv)
{
    while (sv->streams)
        forget(sv, sv->streams);
}

uint32_t streams_count(const struct server *sv, uint32_t *n_detached)
{
    *n_detached = 0;
    for (const struct stream *s = sv->streams; s; s = s->next)
        *n_detached += is_ours(s) && !s->ended;
    return sv->n_streams;
}
