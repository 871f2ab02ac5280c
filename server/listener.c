/* listener.c - see http_impl.h: connections from accept to close, their deadlines, and the start
 * and stop of libmicrohttpd. */
#include "http_impl.h"

#include "base/clock.h"
#include "base/log.h"
#include "generation.h"
#include "stream.h"
#include "tls.h"

#include <errno.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LOOK_US = 1000000,       /* how often a quiet connection is asked whether its client is there */
    SLOW_BYTES_PER_S = 16384 /* a body that comes faster than this is never too slow */
};

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
        conn->sv = sv;
        conn->fd = info->connect_fd;
        http_set_state(conn, CONN_IDLE);
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

static const struct call *call_of(const struct server *sv, const struct conn *conn)
{
    const struct call *c = sv->calls;
    while (c && c->conn != conn)
        c = c->next;
    return c;
}

void http_cut_error(struct api_error *ae, int status, const char *why)
{
    const char *code = status == 408   ? "request_timeout"
                       : status == 413 ? "request_too_large"
                       : status == 414 ? "uri_too_long"
                       : status == 431 ? "headers_too_large"
                       : status == 505 ? "http_version_not_supported"
                       : status < 500  ? "malformed_request"
                                       : "internal_error";
    api_fail(ae, status, NULL, code, "The request was not taken: %s.", why);
}

/* Nothing of an answer may be under way when status is given: this writes past libmicrohttpd, which
 * cannot answer a request before it has all of it. */
void http_cut(struct server *sv, struct conn *conn, int status, const char *why)
{
    struct api_error ae;
    struct buf body = {0}, all = {0};
    if (conn->cut)
        return;
    const struct call *c = call_of(sv, conn);
    conn->cut = true;
    conn->cut_status = status;
    sv->n_cut_off++;
    if (status && !c) /* else it is counted with the call */
        http_count(sv, "none", "other", status);
    if (status && !sv->settings->tls_cert[0]) { /* bare words would break a TLS connection */
        http_cut_error(&ae, status, why);
        if (c)
            http_write_error(c, &body, &ae);
        else
            api_error_json(&body, &ae);
        buf_fmt(&all,
                "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
                "Connection: close\r\n",
                status, MHD_get_reason_phrase_for((unsigned)status), body.n);
        if (c && c->request_id[0]) /* none before its headers are whole */
            buf_fmt(&all, "x-request-id: %s\r\n", c->request_id);
        buf_str(&all, "\r\n");
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
        if (!stream_detach(c))
            generation_cancel(c);
        http_cut(c->sv, c->conn, 0, stalled ? "the reader stalled" : "the reader is too slow");
        http_wake_to_close(c);
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
    streams_sweep(sv, now_us);
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
static enum err_code resolve(const struct settings *s, uint64_t at_port, bool keyed,
                             struct addrinfo **list, struct err *e)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    char port[8];
    snprintf(port, sizeof port, "%u", (unsigned)at_port);
    int code = getaddrinfo(s->host, port, &hints, list);
    if (code)
        return err_set(e, ERR_IO, "host %.100s: %s", s->host, gai_strerror(code));
    for (struct addrinfo *a = *list; a; a = a->ai_next) {
        if (keyed || s->insecure || is_loopback(a->ai_addr))
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
    if (resolve(s, s->port, auth_required(auth), &list, e))
        return e->code;
    freeaddrinfo(list);
    return ERR_OK;
}

enum err_code http_listen(const struct settings *s, uint64_t at_port, bool keyed, int *out,
                          uint16_t *port, struct err *e)
{
    struct addrinfo *list;
    int on = 1, fd = -1, code = 0;
    if (resolve(s, at_port, keyed, &list, e))
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
        return err_set(e, ERR_IO, "cannot listen on %.100s port %u: %s", s->host, (unsigned)at_port,
                       strerror(code ? code : errno));
    struct sockaddr_storage at;
    socklen_t n = sizeof at;
    if (getsockname(fd, (struct sockaddr *)&at, &n) == 0)
        *port = ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port
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
    if (http_load_tls(sv, e) || http_listen(s, s->port, auth_required(sv->auth), &fd, &sv->port, e))
        return e->code;
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)tls_callback()},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (char *)(uintptr_t)tls_priorities},
        {MHD_OPTION_END, 0, NULL}};
    bool secure = s->tls_cert[0];
    sv->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | (secure ? MHD_USE_TLS : 0),
        0, NULL, NULL, http_on_request, sv, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, (unsigned)s->max_connections,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)timeout, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)s->header_limit, MHD_OPTION_NOTIFY_CONNECTION, on_connection, sv,
        MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, sv, MHD_OPTION_URI_LOG_CALLBACK,
        http_on_request_line, sv, MHD_OPTION_ARRAY, secure ? tls : &tls[2], MHD_OPTION_END);
    if (!sv->daemon) {
        close(fd);
        tls_unload();
        return err_set(e, ERR_IO, "cannot start the HTTP server");
    }
    return ERR_OK;
}

void http_stop(struct server *sv)
{
    sv->stopping = true;
    for (struct call *c = sv->calls; c; c = c->next) {
        http_stop_watch(c);
        c->gone = true;
        generation_cancel(c);
        http_wake(c); /* stopping a daemon with sleepers is not allowed */
    }
    if (sv->daemon) {
        MHD_run(sv->daemon);
        MHD_stop_daemon(sv->daemon);
        tls_unload();
    }
    streams_close(sv);
    sv->daemon = NULL;
}
