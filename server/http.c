/* http.c - see http.h and http_impl.h: calls, from the request line to the last byte. */
#include "http.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "generation.h"
#include "hex.h"
#include "http_impl.h"
#include "loop.h"
#include "stream.h"
#include "tracing.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum {
    STREAM_BLOCK = 1024, /* what HTTP/1.0, which has no chunks, gets at once; 1.1 has more room */
    DISCARD_FACTOR = 8   /* a body so many times too large is read and dropped, so that the client
                            hears the 413; a larger one is cut off */
};

const char *http_header(struct call *c, const char *name)
{
    return MHD_lookup_connection_value(c->mhd, MHD_HEADER_KIND, name);
}

const char *http_query(struct call *c, const char *name)
{
    return MHD_lookup_connection_value(c->mhd, MHD_GET_ARGUMENT_KIND, name);
}

bool http_query_number(struct call *c, const char *name, uint64_t *out)
{
    const char *value = http_query(c, name);
    size_t n = value ? strlen(value) : 0;
    if (!value)
        return true;
    if (n && n < 19 && strspn(value, "0123456789") == n) {
        *out = strtoull(value, NULL, 10);
        return true;
    }
    http_fail(c, 400, name, "invalid_value", "%s: expected a number of at most 18 digits", name);
    return false;
}

void http_set_state(struct conn *conn, enum conn_state state)
{
    conn->state = state;
    conn->since_us = clock_us();
    conn->read_bytes = 0;
}

void http_count(struct server *sv, const char *handler, const char *method, int status)
{
    static const char *const known[] = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"};
    const char *name = "other"; /* a client must not invent label values */
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(method, known[i]))
            name = known[i];
    for (uint32_t i = 0; i < sv->n_counters; i++) {
        struct http_counter *k = &sv->counter[i];
        if (k->status == status && k->handler == handler && !strcmp(k->method, name)) {
            k->count++;
            return;
        }
    }
    if (sv->n_counters == MAX_COUNTERS)
        return;
    struct http_counter *k = &sv->counter[sv->n_counters++];
    *k = (struct http_counter){.handler = handler, .status = status, .count = 1};
    snprintf(k->method, sizeof k->method, "%s", name);
}

/* --- answers ------------------------------------------------------------------------------- */

void http_text(struct call *c, int status, const char *content_type)
{
    assert(!c->status);
    c->status = status;
    c->content_type = content_type;
    if (c->answer.failed) {
        buf_free(&c->answer);
        c->status = 503;
    }
    http_wake(c);
}

void http_json(struct call *c, int status)
{
    http_text(c, status, "application/json");
}

bool http_speaks_messages(const struct call *c)
{
    static const char path[] = "/v1/messages";
    size_t n = sizeof path - 1;
    return !strncmp(c->path, path, n) && (!c->path[n] || c->path[n] == '/');
}

void http_write_error(const struct call *c, struct buf *out, const struct api_error *ae)
{
    struct api_error named = *ae;
    size_t n = strlen(named.message);
    if (ae->status == 500) /* the log knows more of this request */
        snprintf(named.message + n, sizeof named.message - n, " (request %s)", c->request_id);
    if (http_speaks_messages(c))
        api_error_messages_json(out, &named, c->request_id);
    else
        api_error_json(out, &named);
}

void http_error(struct call *c, const struct api_error *ae)
{
    buf_free(&c->answer);
    http_write_error(c, &c->answer, ae);
    c->retry_after_s = ae->retry_after_s;
    http_json(c, ae->status);
}

void http_fail(struct call *c, int status, const char *param, const char *code, const char *fmt,
               ...)
{
    struct api_error ae;
    char message[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    api_fail(&ae, status, param, code, "%s", message);
    http_error(c, &ae);
}

void http_stream(struct call *c)
{
    assert(!c->status);
    c->status = 200;
    c->streaming = true;
    c->sse.written_us = clock_us();
    http_wake(c);
}

void http_wake(struct call *c)
{
    if (!c->suspended)
        return;
    c->suspended = false;
    MHD_resume_connection(c->mhd);
}

/* --- a client that leaves -------------------------------------------------------------------- */

static void free_watch(uv_handle_t *h)
{
    free(h->data);
}

void http_stop_watch(struct call *c)
{
    struct watch *w = c->watch;
    if (!w)
        return;
    c->watch = NULL;
    w->call = NULL;
    uv_poll_stop(&w->poll);
    uv_close((uv_handle_t *)&w->poll, free_watch);
}

/* libmicrohttpd looks for closed connections along a list ordered by time and stops at the first
 * one that is open, so an old idle connection would keep this one's descriptor. With a time limit
 * of its own it stands in another list, which is walked as a whole. */
void http_wake_to_close(struct call *c)
{
    MHD_set_connection_option(c->mhd, MHD_CONNECTION_OPTION_TIMEOUT, 1u);
    http_wake(c);
}

static void client_left(struct call *c)
{
    if (c->gone)
        return;
    c->gone = true;
    c->sv->n_disconnects++;
    if (!stream_detach(c))
        generation_cancel(c);
    http_wake_to_close(c);
}

static void on_disconnect(uv_poll_t *poll, int status, int events)
{
    struct watch *w = poll->data;
    (void)status; /* an error of the socket is a client that left, too */
    (void)events;
    struct call *c = w->call;
    if (!c)
        return;
    struct server *sv = c->sv;
    http_stop_watch(c);
    client_left(c);
    server_turn(sv);
}

/* From the first sleep on to the end of the call. Without memory for a watch the client's leaving
 * is noticed at the next write. */
static void start_watch(struct call *c)
{
    if (c->watch)
        return;
    struct watch *w = calloc(1, sizeof *w);
    if (!w)
        return;
    w->call = c;
    if (uv_poll_init(&c->sv->loop, &w->poll, c->conn->fd)) {
        free(w);
        return;
    }
    w->poll.data = w;
    c->watch = w;
    uv_poll_start(&w->poll, UV_DISCONNECT, on_disconnect);
}

static void sleep_call(struct call *c)
{
    c->suspended = true;
    MHD_suspend_connection(c->mhd);
    start_watch(c);
}

/* --- the life of a call ---------------------------------------------------------------------- */

void http_free_call(struct call *c)
{
    if (c->admitted)
        auth_release(c->key);
    stream_leave(c);
    generation_free(c);
    buf_free(&c->body);
    buf_free(&c->answer);
    sse_free(&c->sse);
    free(c);
}

static void make_request_id(struct call *c)
{
    const char *given = http_header(c, "x-request-id");
    size_t n = given ? strlen(given) : 0;
    bool good = n >= 1 && n <= 64;
    for (size_t i = 0; good && i < n; i++) /* nothing that could break a header or a log line */
        good = given[i] > ' ' && given[i] < 0x7F && given[i] != '"';
    if (good)
        snprintf(c->request_id, sizeof c->request_id, "%s", given);
    else
        snprintf(c->request_id, sizeof c->request_id, "req_%016llx",
                 (unsigned long long)hash_mix(c->sv->id_seed++));
}

static void fail_too_large(struct call *c, uint64_t bytes)
{
    http_fail(c, 413, NULL, "request_too_large", "The body has %llu bytes%s, the limit is %llu.",
              (unsigned long long)bytes, http_header(c, "content-length") ? "" : " or more",
              (unsigned long long)c->sv->settings->body_limit);
}

static enum MHD_Result add_header(struct MHD_Response *r, const char *name, const char *value)
{
    return MHD_add_response_header(r, name, value);
}

static void add_limit_headers(struct MHD_Response *r, const char *what,
                              const struct bucket_state *b)
{
    char name[48], value[32];
    snprintf(name, sizeof name, "x-ratelimit-limit-%s", what);
    snprintf(value, sizeof value, "%u", b->limit);
    add_header(r, name, value);
    snprintf(name, sizeof name, "x-ratelimit-remaining-%s", what);
    snprintf(value, sizeof value, "%u", b->remaining);
    add_header(r, name, value);
    snprintf(name, sizeof name, "x-ratelimit-reset-%s", what);
    snprintf(value, sizeof value, "%.3fs", b->reset_s);
    add_header(r, name, value);
}

static void add_key_headers(struct call *c, struct MHD_Response *r)
{
    struct bucket_state b;
    uint64_t now_us = clock_us();
    if (c->challenge)
        add_header(r, "WWW-Authenticate", "Bearer");
    if (c->key && auth_requests_left(c->key, now_us, &b))
        add_limit_headers(r, "requests", &b);
    if (c->key && auth_tokens_left(c->key, now_us, &b))
        add_limit_headers(r, "tokens", &b);
}

/* The page talks to this server and to nobody else, and stands in nobody else's frame. */
static void add_page_headers(struct MHD_Response *r)
{
    add_header(r, "Content-Security-Policy",
               "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
               "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
               "frame-ancestors 'none'");
    add_header(r, "X-Content-Type-Options", "nosniff");
    add_header(r, "Referrer-Policy", "no-referrer");
    add_header(r, "Cache-Control", "no-cache");
}

static void add_headers(struct call *c, struct MHD_Response *r)
{
    const struct settings *s = c->sv->settings;
    char number[16];
    if (c->content_type)
        add_header(r, "Content-Type", c->content_type);
    add_header(r, "x-request-id", c->request_id);
    if (c->allow)
        add_header(r, "Allow", c->allow);
    if (c->retry_after_s) {
        snprintf(number, sizeof number, "%u", c->retry_after_s);
        add_header(r, "Retry-After", number);
    }
    if (c->traced) {
        char trace[TRACE_HEADER];
        trace_header(trace, &c->trace);
        add_header(r, "traceparent", trace);
    }
    add_key_headers(c, r);
    if (s->cors[0]) {
        add_header(r, "Access-Control-Allow-Origin", s->cors);
        if (strcmp(s->cors, "*") != 0)
            add_header(r, "Vary", "Origin");
        add_header(r, "Access-Control-Expose-Headers",
                   "x-request-id, retry-after, x-ratelimit-limit-requests, "
                   "x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
                   "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, "
                   "x-ratelimit-reset-tokens");
        if (!strcmp(c->method, "OPTIONS")) {
            add_header(r, "Access-Control-Allow-Methods",
                       c->allow ? c->allow : "GET, POST, DELETE, OPTIONS");
            add_header(r, "Access-Control-Allow-Headers",
                       "Authorization, Content-Type, x-request-id, x-api-key, anthropic-version, "
                       "traceparent, tracestate");
            add_header(r, "Access-Control-Max-Age", "86400");
        }
    }
    if (c->close_after || c->sv->draining)
        add_header(r, "Connection", "close");
}

/* libmicrohttpd asks for more of a stream. */
static ssize_t read_stream(void *arg, uint64_t pos, char *to, size_t max)
{
    struct call *c = arg;
    (void)pos;
    if (c->gone)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    long n = sse_read(&c->sse, to, max);
    if (n > 0)
        return n;
    if (n == -1)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (n < 0)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    sleep_call(c); /* returning 0 awake would spin */
    return 0;
}

static enum MHD_Result queue_answer(struct call *c)
{
    struct MHD_Response *r;
    if (c->streaming) {
        r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, c, NULL);
        c->content_type = "text/event-stream; charset=utf-8";
    } else {
        r = MHD_create_response_from_buffer_with_free_callback(c->answer.n, c->answer.s, free);
    }
    if (!r)
        return MHD_NO;
    if (c->route && c->route->media && !strcmp(c->route->media, "text/html"))
        add_page_headers(r);
    if (c->streaming) {
        add_header(r, "Cache-Control", "no-cache");
        add_header(r, "X-Accel-Buffering", "no"); /* a proxy must not hold events back */
    } else {
        c->answer = (struct buf){0}; /* the response owns it now */
    }
    add_headers(c, r);
    c->conn->queueing = true;
    enum MHD_Result ok = MHD_queue_response(c->mhd, (unsigned)c->status, r);
    c->conn->queueing = false;
    MHD_destroy_response(r);
    c->queued = ok == MHD_YES;
    http_set_state(c->conn, CONN_ANSWERING);
    return ok;
}

static enum MHD_Result count_header(void *arg, enum MHD_ValueKind kind, const char *key,
                                    const char *value)
{
    unsigned *n = arg; /* of Content-Length and Transfer-Encoding */
    (void)kind;
    (void)value;
    n[0] += !strcasecmp(key, "content-length");
    n[1] += !strcasecmp(key, "transfer-encoding");
    return MHD_YES;
}

/* Two measures of one body: whoever stands between us and the client may have taken the other one,
 * and what follows the body for a request of its own. And a coding that nobody here undoes. */
static bool refuse_framing(struct call *c)
{
    unsigned n[2] = {0};
    const char *coding = http_header(c, "transfer-encoding");
    MHD_get_connection_values(c->mhd, MHD_HEADER_KIND, count_header, n);
    c->unmeasured = n[0] + n[1] > 1 || (coding && strcasecmp(coding, "chunked") != 0);
    if (n[0] + n[1] > 1)
        http_fail(c, 400, NULL, "malformed_request",
                  "The request measures its body more than once, with %u Content-Length and %u "
                  "Transfer-Encoding.",
                  n[0], n[1]);
    else if (c->unmeasured)
        http_fail(c, 501, NULL, "not_implemented",
                  "The transfer coding \"%.40s\" is not known here, only chunked.", coding);
    c->close_after |= c->unmeasured;
    return c->unmeasured;
}

static void begin_call(struct call *c, const char **handler)
{
    const char *length = http_header(c, "content-length");
    uint64_t bytes = length ? strtoull(length, NULL, 10) : 0, limit = c->sv->settings->body_limit;
    make_request_id(c);
    tracing_begin(c, http_header(c, "traceparent"));
    if (refuse_framing(c))
        return;
    door_answers(c, handler);
    if (!c->status && bytes > limit)
        fail_too_large(c, bytes);
}

/* Whether the answer to a body that is not wanted goes out before it was read: the client waits for
 * our 100, sends far too much, or nobody knows how much. Else it is read and dropped, so that the
 * connection stays usable.
 */
static bool answer_early(struct call *c)
{
    const char *length = http_header(c, "content-length"), *expect = http_header(c, "expect");
    if (!c->status)
        return false;
    return expect || c->unmeasured ||
           (length && strtoull(length, NULL, 10) > DISCARD_FACTOR * c->sv->settings->body_limit);
}

static void take_body(struct call *c, const char *data, size_t n)
{
    uint64_t limit = c->sv->settings->body_limit;
    c->conn->read_bytes += n;
    if (c->conn->read_bytes > DISCARD_FACTOR * limit) {
        http_cut(c->sv, c->conn, 413, "the body is too large");
        return;
    }
    if (c->status)
        return; /* dropped */
    if (c->conn->read_bytes > limit) {
        buf_free(&c->body);
        fail_too_large(c, c->conn->read_bytes);
        return;
    }
    if (c->route && c->route->body)
        buf_add(&c->body, data, n);
}

/* Asked for by the operator alone: a prompt is its writer's. */
static void log_prompt(const struct call *c)
{
    char text[4000];
    log_info("prompt", "request=%s bytes=%zu body=\"%s\"", c->request_id, c->body.n,
             log_escape(text, sizeof text, c->body.s ? c->body.s : ""));
}

enum MHD_Result http_on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                const char *method, const char *version, const char *upload,
                                size_t *upload_bytes, void **con_cls)
{
    struct call *c = *con_cls;
    (void)cls;
    if (!c)
        return MHD_NO; /* there was no memory for it */
    if (!c->mhd) {
        const char *handler;
        c->mhd = mhd;
        snprintf(c->method, sizeof c->method, "%s", method);
        snprintf(c->path, sizeof c->path, "%s", url);
        c->http10 = !strcmp(version, "HTTP/1.0");
        begin_call(c, &handler);
        return answer_early(c) ? queue_answer(c) : MHD_YES;
    }
    if (c->gone || c->conn->cut)
        return MHD_NO;
    if (*upload_bytes) {
        take_body(c, upload, *upload_bytes);
        *upload_bytes = 0;
        return MHD_YES;
    }
    if (!c->handled) {
        c->handled = true;
        http_set_state(c->conn, CONN_ANSWERING);
        if (!c->status && c->body.failed)
            http_fail(c, 503, NULL, "out_of_memory", "There is no memory for this request.");
        if (!c->status && c->route->body && c->sv->settings->log_prompts)
            log_prompt(c);
        if (!c->status)
            c->route->handle(c);
    }
    if (!c->status) {
        sleep_call(c);
        return MHD_YES;
    }
    return queue_answer(c);
}

/* The request line has come: libmicrohttpd's first word about a request. */
void *http_on_request_line(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    struct server *sv = cls;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    struct conn *conn = info ? info->socket_context : NULL;
    struct call *c = conn ? calloc(1, sizeof *c) : NULL;
    (void)uri;
    if (!c)
        return NULL;
    c->sv = sv;
    c->conn = conn;
    c->begun_us = clock_us();
    c->next = sv->calls;
    if (sv->calls)
        sv->calls->prev = c;
    sv->calls = c;
    sv->n_calls++;
    http_set_state(conn, CONN_READING);
    return c;
}

static void log_call(struct call *c, enum MHD_RequestTerminationCode why)
{
    const char *allow, *handler = "none";
    int status = c->status;
    if (c->mhd)
        door_route(c, &allow, &handler);
    if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK && (!status || c->gone || c->streaming))
        status = c->conn->cut_status ? c->conn->cut_status
                                     : 499; /* the client closed it; logged, never sent */
    http_count(c->sv, handler, c->method, status);
    tracing_end(c, handler, status);
    enum log_level level = c->route && c->route->needs_engine ? LOG_INFO : LOG_DEBUG;
    if (level < log_get_level())
        return;
    char path[120], trace[2 * TRACE_ID + 1] = "";
    if (c->traced)
        hex_write(trace, c->trace.id, TRACE_ID);
    log_at(level, "http", "request=%s method=%s path=\"%s\" status=%d ms=%.1f%s%s%s%s",
           c->request_id, c->method, log_escape(path, sizeof path, c->path), status,
           (double)(clock_us() - c->begun_us) * 1e-3, c->key ? " key=" : "",
           c->key ? c->key->name : "", c->traced ? " trace=" : "", trace);
}

void http_on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                       enum MHD_RequestTerminationCode why)
{
    struct server *sv = cls;
    struct call *c = *con_cls;
    (void)mhd;
    if (!c)
        return;
    *con_cls = NULL;
    http_stop_watch(c);
    log_call(c, why);
    http_set_state(c->conn, CONN_IDLE);
    c->suspended = false;
    c->ended = true;
    c->gone = true;
    c->conn = NULL;
    bool goes_on = stream_detach(c);
    if (!goes_on)
        generation_cancel(c);
    if (c->prev)
        c->prev->next = c->next;
    else
        sv->calls = c->next;
    if (c->next)
        c->next->prev = c->prev;
    sv->n_calls--;
    if (!c->working && !goes_on)
        http_free_call(c);
}

bool http_work_done(struct call *c)
{
    c->working = false;
    if (!c->ended)
        return true;
    http_free_call(c);
    return false;
}
