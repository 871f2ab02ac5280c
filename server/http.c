/* http.c - see http.h. */
#include "http.h"

#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "generation.h"
#include "loop.h"
#include "tls.h"
#include "tracing.h"

#include <errno.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    STREAM_BLOCK = 8192,
    DISCARD_FACTOR = 8, /* a body so many times too large is read and dropped, so that the client
                           hears the 413; a larger one is cut off */
    LOOK_US = 1000000,  /* how often a quiet connection is asked whether its client is there */
    SLOW_BYTES_PER_S = 16384 /* a body that comes faster than this is never too slow */
};

static const char *header(struct call *c, const char *name)
{
    return MHD_lookup_connection_value(c->mhd, MHD_HEADER_KIND, name);
}

static void set_state(struct conn *conn, enum conn_state state)
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

void http_error(struct call *c, const struct api_error *ae)
{
    buf_free(&c->answer);
    api_error_json(&c->answer, ae);
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

static void stop_watch(struct call *c)
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
static void wake_to_close(struct call *c)
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
    generation_cancel(c);
    wake_to_close(c);
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
    stop_watch(c);
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

static void free_call(struct call *c)
{
    generation_free(c);
    buf_free(&c->body);
    buf_free(&c->answer);
    sse_free(&c->sse);
    free(c);
}

static void make_request_id(struct call *c)
{
    const char *given = header(c, "x-request-id");
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

static bool path_matches(const struct route *r, const char *path)
{
    size_t n = strlen(r->path);
    if (r->path[n - 1] == '*')
        return !strncmp(r->path, path, n - 1) && path[n - 1];
    return !strcmp(r->path, path);
}

static bool method_matches(const struct route *r, const char *method)
{
    return !strcmp(r->method, method) || (!strcmp(r->method, "GET") && !strcmp(method, "HEAD"));
}

/* The route, or NULL with *allow telling which methods the path has (NULL: no such path). */
static const struct route *find_route(const struct call *c, const char **allow,
                                      const char **handler)
{
    bool get = false, post = false;
    *handler = "none";
    for (const struct route *r = http_routes; r->path; r++) {
        if (!path_matches(r, c->path))
            continue;
        *handler = r->handler;
        if (method_matches(r, c->method))
            return r;
        get |= !strcmp(r->method, "GET");
        post |= !strcmp(r->method, "POST");
    }
    *allow = get && post ? "GET, HEAD, POST, OPTIONS"
             : get       ? "GET, HEAD, OPTIONS"
             : post      ? "POST, OPTIONS"
                         : NULL;
    return NULL;
}

static bool json_content_type(const char *type)
{
    if (!type || !*type)
        return true; /* a client that says nothing means JSON */
    size_t n = strcspn(type, "; ");
    return (n == 16 && !strncasecmp(type, "application/json", 16)) ||
           (n > 5 && !strncasecmp(type + n - 5, "+json", 5));
}

/* "Authorization: Bearer SECRET", or x-api-key as some clients send it. */
static const char *sent_key(struct call *c)
{
    const char *value = header(c, "authorization");
    if (!value)
        return header(c, "x-api-key");
    if (strncasecmp(value, "bearer ", 7) != 0)
        return NULL;
    return value + 7 + strspn(value + 7, " ");
}

/* Everybody may ask for health, and a browser before it may send a key. */
static bool answer_unknown_key(struct call *c, const char *handler)
{
    struct server *sv = c->sv;
    if (!auth_required(sv->auth) || !strcmp(handler, "health") || !strcmp(c->method, "OPTIONS") ||
        (sv->settings->open_metrics && !strcmp(handler, "metrics")))
        return false;
    const char *secret = sent_key(c);
    c->key = secret ? auth_find(sv->auth, secret, strlen(secret)) : NULL;
    if (c->key)
        return false;
    c->challenge = true;
    http_fail(c, 401, NULL, "invalid_api_key", "%s",
              secret ? "The API key is not known here."
                     : "An API key is needed: send the header Authorization: Bearer KEY.");
    return true;
}

static bool answer_over_limit(struct call *c)
{
    struct api_error ae;
    if (!c->key)
        return false;
    c->admitted = auth_admit(c->key, clock_us(), &ae);
    if (!c->admitted)
        http_error(c, &ae);
    return !c->admitted;
}

/* What can be said from the headers alone; true when it was an answer. */
static bool answer_from_headers(struct call *c, const char **handler)
{
    struct server *sv = c->sv;
    const char *allow = NULL;
    const struct route *r = find_route(c, &allow, handler);
    if (answer_unknown_key(c, *handler))
        return true;
    if (!r && !allow) {
        http_fail(c, 404, NULL, "not_found", "There is nothing at %.120s.", c->path);
    } else if (!strcmp(c->method, "OPTIONS")) {
        c->allow = allow ? allow : "GET, HEAD, POST, OPTIONS";
        http_text(c, 204, NULL);
    } else if (!r) {
        c->allow = allow;
        http_fail(c, 405, NULL, "method_not_allowed", "%s is not allowed here, only %s.", c->method,
                  allow);
    } else if (r->body && !json_content_type(header(c, "content-type"))) {
        http_fail(c, 415, NULL, "unsupported_media_type",
                  "The content type must be application/json.");
    } else if (r->needs_engine && sv->draining) {
        http_fail(c, 503, NULL, "draining",
                  "The server is shutting down and takes no new requests.");
    } else if (r->needs_engine && !sv->engine) {
        http_fail(c, 503, NULL, "loading", "The model is still loading.");
    } else if (!(r->needs_engine && r->body && answer_over_limit(c))) {
        c->route = r;
        return false;
    }
    return true;
}

static void fail_too_large(struct call *c, uint64_t bytes)
{
    http_fail(c, 413, NULL, "request_too_large", "The body has %llu bytes%s, the limit is %llu.",
              (unsigned long long)bytes, header(c, "content-length") ? "" : " or more",
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
                       c->allow ? c->allow : "GET, POST, OPTIONS");
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
    if (c->streaming) {
        add_header(r, "Cache-Control", "no-cache");
        add_header(r, "X-Accel-Buffering", "no"); /* a proxy must not hold events back */
    } else {
        c->answer = (struct buf){0}; /* the response owns it now */
    }
    add_headers(c, r);
    enum MHD_Result ok = MHD_queue_response(c->mhd, (unsigned)c->status, r);
    MHD_destroy_response(r);
    c->queued = ok == MHD_YES;
    set_state(c->conn, CONN_ANSWERING);
    return ok;
}

static void begin_call(struct call *c, const char **handler)
{
    const char *length = header(c, "content-length");
    uint64_t bytes = length ? strtoull(length, NULL, 10) : 0, limit = c->sv->settings->body_limit;
    make_request_id(c);
    tracing_begin(c, header(c, "traceparent"));
    answer_from_headers(c, handler);
    if (!c->status && bytes > limit)
        fail_too_large(c, bytes);
}

/* Whether the answer to a body that is not wanted goes out before it was read: the client waits for
 * our 100, or sends far too much. Else it is read and dropped, so that the connection stays usable.
 */
static bool answer_early(struct call *c)
{
    const char *length = header(c, "content-length"), *expect = header(c, "expect");
    if (!c->status)
        return false;
    return expect ||
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

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *url,
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
        set_state(c->conn, CONN_ANSWERING);
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
static void *on_request_line(void *cls, const char *uri, struct MHD_Connection *mhd)
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
    set_state(conn, CONN_READING);
    return c;
}

static void log_call(struct call *c, enum MHD_RequestTerminationCode why)
{
    const char *allow, *handler = "none";
    int status = c->status;
    if (c->mhd)
        find_route(c, &allow, &handler);
    if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK && (!status || c->gone || c->streaming))
        status = 499; /* the client closed it; logged, never sent */
    http_count(c->sv, handler, c->method, status);
    tracing_end(c, handler, status);
    enum log_level level = c->route && c->route->needs_engine ? LOG_INFO : LOG_DEBUG;
    if (level < log_get_level())
        return;
    char path[120], trace[2 * TRACE_ID + 1] = "";
    if (c->traced)
        trace_hex(trace, c->trace.id, TRACE_ID);
    log_at(level, "http", "request=%s method=%s path=\"%s\" status=%d ms=%.1f%s%s%s%s",
           c->request_id, c->method, log_escape(path, sizeof path, c->path), status,
           (double)(clock_us() - c->begun_us) * 1e-3, c->key ? " key=" : "",
           c->key ? c->key->name : "", c->traced ? " trace=" : "", trace);
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                         enum MHD_RequestTerminationCode why)
{
    struct server *sv = cls;
    struct call *c = *con_cls;
    (void)mhd;
    if (!c)
        return;
    *con_cls = NULL;
    stop_watch(c);
    if (c->admitted)
        auth_release(c->key);
    c->admitted = false;
    log_call(c, why);
    set_state(c->conn, CONN_IDLE);
    c->suspended = false;
    c->ended = true;
    c->gone = true;
    c->conn = NULL;
    generation_cancel(c);
    if (c->prev)
        c->prev->next = c->next;
    else
        sv->calls = c->next;
    if (c->next)
        c->next->prev = c->prev;
    sv->n_calls--;
    if (!c->working)
        free_call(c);
}

bool http_work_done(struct call *c)
{
    c->working = false;
    if (!c->ended)
        return true;
    free_call(c);
    return false;
}

/* --- connections ----------------------------------------------------------------------------- */

static void on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct server *sv = cls;
    struct conn *conn = *socket_context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        conn = calloc(1, sizeof *conn);
        if (!conn || !info) {
            free(conn);
            return; /* requests on it find no conn and are refused */
        }
        conn->fd = info->connect_fd;
        set_state(conn, CONN_IDLE);
        conn->next = sv->conns;
        if (sv->conns)
            sv->conns->prev = conn;
        sv->conns = conn;
        sv->n_conns++;
        *socket_context = conn;
    } else if (conn) {
        if (conn->prev)
            conn->prev->next = conn->next;
        else
            sv->conns = conn->next;
        if (conn->next)
            conn->next->prev = conn->prev;
        sv->n_conns--;
        free(conn);
        *socket_context = NULL;
    }
}

/* Nothing of an answer may be under way when status is given: this writes past libmicrohttpd, which
 * cannot answer a request before it has all of it. */
void http_cut(struct server *sv, struct conn *conn, int status, const char *why)
{
    struct api_error ae;
    struct buf body = {0}, all = {0};
    if (conn->cut)
        return;
    conn->cut = true;
    sv->n_cut_off++;
    if (status && !sv->settings->tls_cert[0]) { /* bare words would break a TLS connection */
        api_fail(&ae, status, NULL, status == 408 ? "request_timeout" : "request_too_large",
                 "The request was not taken: %s.", why);
        api_error_json(&body, &ae);
        buf_fmt(&all,
                "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                "Connection: close\r\n\r\n",
                status, status == 408 ? "Request Timeout" : "Content Too Large", body.n);
        buf_add(&all, body.s, body.n);
        if (!all.failed && send(conn->fd, all.s, all.n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            log_debug("http", "cut status=%d not_sent=\"%s\"", status, strerror(errno));
        buf_free(&body);
        buf_free(&all);
    }
    log_info("http", "cut=\"%s\" status=%d", why, status);
    shutdown(conn->fd, SHUT_RDWR);
}

/* A farewell that comes together with the last bytes can go unnoticed: libmicrohttpd hears of each
 * change once, reads what it wants, and waits for the next. */
static bool has_left(struct conn *conn, uint64_t now_us)
{
    char byte;
    if (conn->state == CONN_ANSWERING || now_us < conn->since_us + LOOK_US ||
        now_us < conn->looked_us + LOOK_US)
        return false;
    conn->looked_us = now_us;
    ssize_t n = recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

static void sweep_conn(struct server *sv, struct conn *conn, uint64_t now_us)
{
    const struct settings *s = sv->settings;
    uint64_t age_us = now_us - conn->since_us, slow_us = s->slow_client_s * 1000000;
    if (conn->cut)
        return;
    if (has_left(conn, now_us)) {
        conn->cut = true;
        shutdown(conn->fd, SHUT_RDWR); /* which is a change again */
        return;
    }
    if (conn->state == CONN_IDLE && (age_us > s->keep_alive_s * 1000000 || sv->draining)) {
        if (!sv->draining || age_us > 1000000) {
            conn->cut = true;
            shutdown(conn->fd, SHUT_RDWR);
        }
    } else if (conn->state == CONN_READING &&
               age_us > slow_us + conn->read_bytes * 1000000 / SLOW_BYTES_PER_S) {
        http_cut(sv, conn, 408, "it came too slowly");
    }
}

static void sweep_call(struct call *c, uint64_t now_us)
{
    const struct settings *s = c->sv->settings;
    if (!c->streaming || c->gone || !c->conn)
        return;
    bool stalled = c->sse.waiting_us && now_us > c->sse.waiting_us + s->slow_client_s * 1000000;
    if (stalled || sse_waiting(&c->sse) > s->stream_buffer) {
        c->gone = true;
        generation_cancel(c);
        http_cut(c->sv, c->conn, 0, stalled ? "the reader stalled" : "the reader is too slow");
        wake_to_close(c);
    } else if (!c->sse.ended && now_us > c->sse.written_us + s->sse_ping_s * 1000000) {
        generation_ping(c);
    }
}

void http_sweep(struct server *sv, uint64_t now_us)
{
    for (struct conn *conn = sv->conns; conn; conn = conn->next)
        sweep_conn(sv, conn, now_us);
    for (struct call *c = sv->calls; c; c = c->next)
        sweep_call(c, now_us);
}

/* --- start and stop -------------------------------------------------------------------------- */

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
    if (a->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
    return false;
}

/* Where others can reach it, somebody must have decided who may. The list is the caller's. */
static enum err_code resolve(const struct settings *s, const struct auth *auth,
                             struct addrinfo **list, struct err *e)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    char port[8];
    snprintf(port, sizeof port, "%u", (unsigned)s->port);
    int code = getaddrinfo(s->host, port, &hints, list);
    if (code)
        return err_set(e, ERR_IO, "host %.100s: %s", s->host, gai_strerror(code));
    for (struct addrinfo *a = *list; a; a = a->ai_next) {
        if (auth_required(auth) || s->insecure || is_loopback(a->ai_addr))
            continue;
        freeaddrinfo(*list);
        return err_set(e, ERR_INVALID,
                       "host %.60s can be reached from outside and no key is asked for; give "
                       "--key-file or GAZE_API_KEY, or say --insecure",
                       s->host);
    }
    return ERR_OK;
}

enum err_code http_check_address(const struct settings *s, const struct auth *auth, struct err *e)
{
    struct addrinfo *list;
    if (resolve(s, auth, &list, e))
        return e->code;
    freeaddrinfo(list);
    return ERR_OK;
}

static enum err_code listen_on(struct server *sv, int *out, struct err *e)
{
    const struct settings *s = sv->settings;
    struct addrinfo *list;
    int on = 1, fd = -1, code = 0;
    if (resolve(s, sv->auth, &list, e))
        return e->code;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
            continue;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, 1024)) {
            code = errno;
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    if (fd < 0)
        return err_set(e, ERR_IO, "cannot listen on %.100s port %u: %s", s->host, (unsigned)s->port,
                       strerror(code ? code : errno));
    struct sockaddr_storage at;
    socklen_t n = sizeof at;
    if (getsockname(fd, (struct sockaddr *)&at, &n) == 0)
        sv->port = ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port
                                                  : ((struct sockaddr_in *)&at)->sin_port);
    *out = fd;
    return ERR_OK;
}

static void on_log(void *cls, const char *fmt, va_list ap)
{
    char line[300];
    (void)cls;
    int n = vsnprintf(line, sizeof line, fmt, ap);
    while (n > 0 && n < (int)sizeof line && line[n - 1] == '\n')
        line[--n] = 0;
    log_debug("http", "%s", line);
}

/* libmicrohttpd's own limit on a connection that does nothing; ours come first. */
static uint64_t connection_timeout_s(const struct settings *s)
{
    return (s->keep_alive_s > s->slow_client_s ? s->keep_alive_s : s->slow_client_s) + 5;
}

enum err_code http_load_tls(struct server *sv, struct err *e)
{
    const struct settings *s = sv->settings;
    if (!s->tls_cert[0] != !s->tls_key[0])
        return err_set(e, ERR_INVALID, "tls-cert and tls-key belong together");
    if (!s->tls_cert[0])
        return ERR_OK;
    return tls_load(s->tls_cert, s->tls_key, connection_timeout_s(s) * 2000000, e);
}

enum err_code http_start(struct server *sv, struct err *e)
{
    const struct settings *s = sv->settings;
    uint64_t timeout = connection_timeout_s(s);
    int fd = -1;
    if (http_load_tls(sv, e) || listen_on(sv, &fd, e))
        return e->code;
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)tls_callback()},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (char *)(uintptr_t)tls_priorities},
        {MHD_OPTION_END, 0, NULL}};
    bool secure = s->tls_cert[0];
    sv->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | (secure ? MHD_USE_TLS : 0),
        0, NULL, NULL, on_request, sv, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)s->max_connections,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)timeout, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)s->header_limit, MHD_OPTION_NOTIFY_CONNECTION, on_connection, sv,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, sv, MHD_OPTION_URI_LOG_CALLBACK, on_request_line,
        sv, MHD_OPTION_ARRAY, secure ? tls : &tls[2], MHD_OPTION_END);
    if (!sv->daemon) {
        close(fd);
        tls_unload();
        return err_set(e, ERR_IO, "cannot start the HTTP server");
    }
    return ERR_OK;
}

void http_stop(struct server *sv)
{
    for (struct call *c = sv->calls; c; c = c->next) {
        stop_watch(c);
        c->gone = true;
        generation_cancel(c);
        http_wake(c); /* stopping a daemon with sleepers is not allowed */
    }
    if (sv->daemon) {
        MHD_run(sv->daemon);
        MHD_stop_daemon(sv->daemon);
        tls_unload();
    }
    sv->daemon = NULL;
}
