/* follower_port.c - see follower_port.h. */
#include "follower_port.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "errors.h"
#include "http_impl.h"
#include "metrics_parts.h"

#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS = 64, KEPT = 48, TIMEOUT_S = 10, LABEL = 256, LOST_US = 700000 };

struct follower_port {
    const struct settings *settings;
    uint32_t process, n_processes;
    uint64_t began_s;
    char label[LABEL];
    struct MHD_Daemon *daemon;
    /* The daemon's thread's: connections as they came, the first ones of which were ended. */
    int fd[CONNECTIONS];
    uint32_t n_fds, n_ended;
    pthread_mutex_t lock;       /* guards what follows */
    struct engine_follower *of; /* NULL: it loads, or ends */
    bool loaded;
    struct err lost; /* ERR_OK: nobody is */
};

static void answer_error(struct buf *b, int *status, int code, const char *name, const char *what)
{
    struct api_error ae;
    *status = code;
    api_fail(&ae, code, NULL, name, "%s", what);
    api_error_json(b, &ae);
}

/* With the lock held. */
static void answer_health(const struct follower_port *p, struct buf *b, int *status)
{
    char what[sizeof p->lost.msg + 32];
    struct jo j = {.b = b};
    const char *why = p->lost.code ? p->lost.msg : !p->loaded ? "loading" : "ending";
    snprintf(what, sizeof what, "Not ready: %s.", why);
    if (p->lost.code || !p->of) {
        answer_error(b, status, 503, p->lost.code ? "engine_lost" : why, what);
        return;
    }
    jo_obj(&j);
    jo_kstr(&j, "status", "ok");
    jo_ku64(&j, "process", p->process);
    jo_ku64(&j, "processes", p->n_processes);
    jo_end(&j, '}');
}

/* With the lock held, so that the follower does not end meanwhile. */
static void answer_metrics(const struct follower_port *p, struct buf *b)
{
    metrics_build(b);
    metrics_process(b, p->began_s);
    if (!p->of || p->lost.code)
        return;
    const struct model_config *m = engine_follower_model(p->of);
    size_t n = (size_t)m->n_layers * m->n_experts;
    uint64_t *rows = n ? malloc(n * sizeof *rows) : NULL;
    struct reuse_count count[REUSE_LAYERS];
    if (rows) {
        engine_follower_expert_rows(p->of, rows);
        metrics_experts(b, p->label, m, rows);
    }
    b->failed = b->failed || (n && !rows);
    free(rows);
    engine_follower_selection_reuse(p->of, count);
    metrics_selections(b, p->label, m, count);
    metrics_memory_plan(b, p->label, engine_follower_plan(p->of));
}

static bool asks_for_keys(const struct settings *s)
{
    return s->key_file[0] || s->api_key[0];
}

static void answer_path(struct follower_port *p, const char *path, struct buf *b, int *status)
{
    if (!strcmp(path, "/health") || !strcmp(path, "/health/ready")) {
        mutex_lock(&p->lock);
        answer_health(p, b, status);
        mutex_unlock(&p->lock);
    } else if (strcmp(path, "/metrics") != 0) {
        answer_error(b, status, 404, "not_found",
                     "This process works for process 0, which answers clients; here are /health "
                     "and /metrics.");
    } else if (asks_for_keys(p->settings) && !p->settings->open_metrics) {
        answer_error(b, status, 401, "invalid_api_key",
                     "This process knows no keys: its /metrics is there with --open-metrics.");
    } else {
        mutex_lock(&p->lock);
        answer_metrics(p, b);
        mutex_unlock(&p->lock);
    }
}

/* More than KEPT connections, and the oldest one ends: who opens many and says little keeps no
 * probe from coming in. */
static void on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct follower_port *p = cls;
    int fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    (void)socket_context; /* stays NULL: refusals.c */
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        assert(p->n_fds < CONNECTIONS);
        p->fd[p->n_fds++] = fd;
        if (p->n_fds - p->n_ended > KEPT)
            (void)shutdown(p->fd[p->n_ended++], SHUT_RDWR);
        return;
    }
    uint32_t i = 0;
    while (i < p->n_fds && p->fd[i] != fd)
        i++;
    assert(i < p->n_fds);
    p->n_ended -= i < p->n_ended;
    p->n_fds--;
    memmove(p->fd + i, p->fd + i + 1, (p->n_fds - i) * sizeof *p->fd);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *path,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_bytes, void **con_cls)
{
    static int seen;
    struct buf b = {0};
    int status = 200;
    (void)version;
    (void)upload;
    if (!*con_cls) { /* the headers alone */
        *con_cls = &seen;
        return MHD_YES;
    }
    if (*upload_bytes) { /* a body that nobody reads */
        *upload_bytes = 0;
        return MHD_YES;
    }
    if (!strcmp(method, "GET") || !strcmp(method, "HEAD"))
        answer_path(cls, path, &b, &status);
    else
        answer_error(&b, &status, 405, "method_not_allowed", "Only GET and HEAD are allowed here.");
    if (b.failed || !b.s) {
        buf_free(&b);
        return MHD_NO; /* no memory: the connection ends */
    }
    bool text = status == 200 && !strcmp(path, "/metrics");
    struct MHD_Response *r = MHD_create_response_from_buffer(b.n, b.s, MHD_RESPMEM_MUST_COPY);
    buf_free(&b);
    if (!r)
        return MHD_NO;
    (void)MHD_add_response_header(
        r, "Content-Type", text ? "text/plain; version=0.0.4; charset=utf-8" : "application/json");
    if (status == 405)
        (void)MHD_add_response_header(r, "Allow", "GET, HEAD");
    enum MHD_Result queued = http_queue(mhd, (unsigned)status, r);
    MHD_destroy_response(r);
    return queued;
}

enum err_code follower_port_open(struct follower_port **out, const struct settings *s,
                                 uint32_t process, uint32_t n_processes, struct err *e)
{
    struct follower_port *p = calloc(1, sizeof *p);
    char name[LABEL / 2];
    uint16_t port = 0;
    int fd = -1;
    if (!p)
        return err_set(e, ERR_NOMEM, "a port for probes");
    settings_model_name(s, name, sizeof name);
    metrics_label(p->label, sizeof p->label, name);
    p->settings = s;
    p->process = process;
    p->n_processes = n_processes;
    p->began_s = clock_unix_s();
    pthread_mutex_init(&p->lock, NULL);
    if (http_listen(s, s->health_port, asks_for_keys(s), &fd, &port, e)) {
        follower_port_close(p);
        return e->code;
    }
    p->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, on_request, p, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)TIMEOUT_S, MHD_OPTION_NOTIFY_CONNECTION, on_connection, p, MHD_OPTION_END);
    if (!p->daemon) {
        close(fd);
        follower_port_close(p);
        return err_set(e, ERR_IO, "cannot start the HTTP server of port %u", port);
    }
    log_info("follower", "health_port=%u", port);
    *out = p;
    return ERR_OK;
}

void follower_port_close(struct follower_port *p)
{
    if (!p)
        return;
    if (p->daemon)
        MHD_stop_daemon(p->daemon);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

void follower_port_ready(struct follower_port *p, struct engine_follower *f)
{
    mutex_lock(&p->lock);
    p->of = f;
    p->loaded = true;
    mutex_unlock(&p->lock);
}

void follower_port_ending(struct follower_port *p)
{
    mutex_lock(&p->lock);
    p->of = NULL;
    mutex_unlock(&p->lock);
}

void follower_port_lose(struct follower_port *p, const struct err *why)
{
    mutex_lock(&p->lock);
    p->lost = *why;
    mutex_unlock(&p->lock);
    usleep(LOST_US);
}
