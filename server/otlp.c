/* otlp.c - see otlp.h. */
#include "otlp.h"

#include "base/clock.h"
#include "base/log.h"
#include "version.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    FLUSH_MS = 1000,
    MAX_PENDING = 4 << 20,  /* bytes of spans that wait */
    MAX_REQUEST = 1 << 20,  /* of pending bytes a request goes out at once */
    PATIENCE_US = 10000000, /* for one request */
    STATUS_BYTES = 12       /* "HTTP/1.1 200" */
};

/* One request; it outlives its otlp when that closes first. */
struct post {
    struct otlp *owner; /* NULL: nobody waits for it any more */
    uv_getaddrinfo_t dns;
    uv_tcp_t tcp;
    uv_connect_t connect;
    uv_write_t write;
    struct buf out;
    char status[STATUS_BYTES + 1];
    char piece[512];
    size_t n_status;
    uint64_t n_spans, begun_us;
    bool resolving, open; /* where it is: its handle lives between open and its close callback */
};

struct otlp {
    uv_loop_t *loop;
    uv_timer_t *timer; /* of its own life: libuv frees a handle later than we do this */
    char host[256], port[8], path[256], instance[128];
    struct buf pending; /* spans with commas between */
    uint64_t n_pending;
    struct post *post; /* under way; NULL: none */
    struct otlp_counts count;
    bool failing; /* the last request failed: said once */
};

static enum err_code read_endpoint(struct otlp *o, const char *url, struct err *e)
{
    static const char scheme[] = "http://", traces[] = "/v1/traces";
    const char *s = url;
    if (strncasecmp(s, scheme, sizeof scheme - 1) != 0)
        return err_set(e, ERR_INVALID, "otlp-endpoint: \"%.100s\" does not begin with http://",
                       url);
    s += sizeof scheme - 1;
    bool v6 = *s == '[';
    s += v6;
    size_t n = strcspn(s, v6 ? "]" : ":/");
    if (!n || n >= sizeof o->host || (v6 && s[n] != ']'))
        return err_set(e, ERR_INVALID, "otlp-endpoint: \"%.100s\" names no host", url);
    snprintf(o->host, sizeof o->host, "%.*s", (int)n, s);
    s += n + v6;
    snprintf(o->port, sizeof o->port, "4318");
    if (*s == ':') {
        n = strspn(s + 1, "0123456789");
        if (!n || n > 5)
            return err_set(e, ERR_INVALID, "otlp-endpoint: \"%.100s\" has a bad port", url);
        snprintf(o->port, sizeof o->port, "%.*s", (int)n, s + 1);
        s += n + 1;
    }
    n = strlen(s);
    while (n && s[n - 1] == '/')
        n--;
    if ((*s && *s != '/') || n + sizeof traces > sizeof o->path || strpbrk(s, " \r\n?#"))
        return err_set(e, ERR_INVALID, "otlp-endpoint: \"%.100s\" is no address", url);
    bool whole =
        n >= sizeof traces - 1 && !memcmp(s + n - (sizeof traces - 1), traces, sizeof traces - 1);
    snprintf(o->path, sizeof o->path, "%.*s%s", (int)n, s, whole ? "" : traces);
    return ERR_OK;
}

/* --- one request -------------------------------------------------------------------------------
 */

static void free_post(struct post *p)
{
    buf_free(&p->out);
    free(p);
}

static void on_closed(uv_handle_t *h)
{
    free_post(h->data);
}

/* why NULL: it was taken. The request is over for its owner; its handle follows. */
static void end_post(struct post *p, const char *why)
{
    struct otlp *o = p->owner;
    if (o) {
        *(why ? &o->count.failed : &o->count.sent) += p->n_spans;
        if (why && !o->failing)
            log_warn("otlp", "error=\"%s\" host=%s port=%s spans=%llu", why, o->host, o->port,
                     (unsigned long long)p->n_spans);
        o->failing = why != NULL;
        o->post = NULL;
    }
    p->owner = NULL;
    if (p->open) {
        p->open = false;
        uv_close((uv_handle_t *)&p->tcp, on_closed);
    } else if (!p->resolving) {
        free_post(p);
    }
}

static void on_room(uv_handle_t *h, size_t wanted, uv_buf_t *out)
{
    struct post *p = h->data;
    (void)wanted;
    *out = uv_buf_init(p->piece, sizeof p->piece);
}

/* Only the status counts. */
static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *from)
{
    struct post *p = stream->data;
    if (!p->open)
        return;
    if (n < 0) {
        end_post(p, "the collector hung up");
        return;
    }
    size_t room = STATUS_BYTES - p->n_status, take = (size_t)n < room ? (size_t)n : room;
    memcpy(p->status + p->n_status, from->base, take);
    p->n_status += take;
    if (p->n_status < STATUS_BYTES)
        return;
    bool http = !strncmp(p->status, "HTTP/1.", 7), good = http && !strncmp(p->status + 9, "2", 1);
    char why[64];
    snprintf(why, sizeof why, "the collector answered %.3s", http ? p->status + 9 : "nonsense");
    end_post(p, good ? NULL : why);
}

static void on_written(uv_write_t *w, int status)
{
    struct post *p = w->handle->data;
    if (status < 0 && p->open)
        end_post(p, uv_strerror(status));
}

static void on_connected(uv_connect_t *c, int status)
{
    struct post *p = c->handle->data;
    if (!p->open)
        return; /* closed meanwhile */
    if (status < 0) {
        end_post(p, uv_strerror(status));
        return;
    }
    uv_buf_t out = uv_buf_init(p->out.s, (unsigned)p->out.n);
    status = uv_write(&p->write, (uv_stream_t *)&p->tcp, &out, 1, on_written);
    if (status >= 0)
        status = uv_read_start((uv_stream_t *)&p->tcp, on_room, on_read);
    if (status < 0)
        end_post(p, uv_strerror(status));
}

static void on_resolved(uv_getaddrinfo_t *dns, int status, struct addrinfo *list)
{
    struct post *p = dns->data;
    p->resolving = false;
    if (!p->owner) {
        uv_freeaddrinfo(list);
        free_post(p);
        return;
    }
    if (status >= 0)
        status = uv_tcp_init(dns->loop, &p->tcp);
    if (status < 0) {
        uv_freeaddrinfo(list);
        end_post(p, uv_strerror(status));
        return;
    }
    p->open = true;
    p->tcp.data = p;
    status = uv_tcp_connect(&p->connect, &p->tcp, list->ai_addr, on_connected);
    uv_freeaddrinfo(list);
    if (status < 0)
        end_post(p, uv_strerror(status));
}

static bool write_request(struct otlp *o, struct post *p)
{
    struct buf body = {0};
    bool v6 = strchr(o->host, ':');
    spans_request_json(&body, version_number, o->instance, &o->pending);
    buf_fmt(&p->out,
            "POST %s HTTP/1.1\r\nHost: %s%s%s:%s\r\nUser-Agent: gaze/%s\r\n"
            "Content-Type: application/json\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
            o->path, v6 ? "[" : "", o->host, v6 ? "]" : "", o->port, version_number, body.n);
    buf_add(&p->out, body.s, body.n);
    bool ok = !body.failed && !p->out.failed;
    buf_free(&body);
    return ok;
}

static void send_pending(struct otlp *o)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct post *p = calloc(1, sizeof *p);
    uint64_t n = o->n_pending;
    bool ready = p && write_request(o, p);
    buf_free(&o->pending);
    o->n_pending = 0;
    if (!ready) {
        o->count.dropped += n;
        if (p)
            free_post(p);
        return;
    }
    p->owner = o;
    p->n_spans = n;
    p->begun_us = clock_us();
    p->dns.data = p;
    p->resolving = true;
    o->post = p;
    int status = uv_getaddrinfo(o->loop, &p->dns, on_resolved, o->host, o->port, &hints);
    if (status < 0) {
        p->resolving = false;
        end_post(p, uv_strerror(status));
    }
}

static void flush(struct otlp *o)
{
    if (o->post && clock_us() > o->post->begun_us + PATIENCE_US)
        end_post(o->post, "the collector took too long");
    if (!o->post && o->n_pending)
        send_pending(o);
}

static void on_flush(uv_timer_t *t)
{
    flush(t->data);
}

/* --- the interface -----------------------------------------------------------------------------
 */

enum err_code otlp_open(struct otlp **out, uv_loop_t *loop, const char *endpoint,
                        const char *instance, struct err *e)
{
    struct otlp *o = calloc(1, sizeof *o);
    if (!o)
        return err_set(e, ERR_NOMEM, "otlp");
    o->loop = loop;
    snprintf(o->instance, sizeof o->instance, "%s", instance);
    if (read_endpoint(o, endpoint, e)) {
        free(o);
        return e->code;
    }
    o->timer = calloc(1, sizeof *o->timer);
    if (!o->timer) {
        free(o);
        return err_set(e, ERR_NOMEM, "otlp");
    }
    uv_timer_init(loop, o->timer);
    o->timer->data = o;
    uv_timer_start(o->timer, on_flush, FLUSH_MS, FLUSH_MS);
    *out = o;
    return ERR_OK;
}

static void free_timer(uv_handle_t *h)
{
    free(h);
}

void otlp_close(struct otlp *o, unsigned wait_ms)
{
    if (!o)
        return;
    uint64_t end_us = clock_us() + wait_ms * UINT64_C(1000);
    uv_timer_start(o->timer, on_flush, 0, 20);
    while ((o->post || o->n_pending) && clock_us() < end_us)
        uv_run(o->loop, UV_RUN_ONCE);
    if (o->post)
        end_post(o->post, "the server ended");
    uv_close((uv_handle_t *)o->timer, free_timer);
    buf_free(&o->pending);
    free(o);
}

void otlp_add(struct otlp *o, const struct span *s)
{
    struct buf one = {0};
    span_json(&one, s);
    bool fits = !one.failed && o->pending.n + one.n < MAX_PENDING;
    if (fits) {
        if (o->n_pending)
            buf_add(&o->pending, ",", 1);
        buf_add(&o->pending, one.s, one.n);
        o->n_pending++;
    }
    buf_free(&one);
    if (o->pending.failed) { /* half a span is in it */
        o->count.dropped += o->n_pending;
        o->n_pending = 0;
        buf_free(&o->pending);
    } else if (!fits) {
        o->count.dropped++;
    }
    if (o->pending.n > MAX_REQUEST)
        flush(o);
}

struct otlp_counts otlp_get_counts(const struct otlp *o)
{
    return o->count;
}
