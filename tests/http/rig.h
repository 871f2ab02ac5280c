/* rig.h - for tests of the server: it runs in a thread over the fake engine, clients are bare
 * sockets. */
#ifndef GAZE_HTTP_RIG_H
#define GAZE_HTTP_RIG_H

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/thread.h"
#include "fake_engine.h"
#include "server/loop.h"
#include "test.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef GAZE_DEBUG
#define PATIENCE_US 90000000 /* sanitizer builds are slow */
#else
#define PATIENCE_US 10000000
#endif

struct rig {
    struct settings settings;
    struct server *sv;
    pthread_t thread;
    struct err err;
    int exit_code;
    uint16_t port;
};

static inline void *rig_main(void *arg)
{
    struct rig *r = arg;
    r->exit_code = server_run(r->sv, &r->err);
    server_close(r->sv);
    return NULL;
}

static inline void rig_prepare(struct rig *r)
{
    struct err e = {0};
    memset(r, 0, sizeof *r);
    log_set_level(getenv("V") ? LOG_DEBUG : LOG_OFF);
    settings_default(&r->settings);
    CHECK_OK(settings_set(&r->settings, "port", "0", &e), e);
    CHECK_OK(settings_set(&r->settings, "model", test_fixture("v32-bf16"), &e), e);
    CHECK_OK(settings_set(&r->settings, "served-name", "fake", &e), e);
    CHECK_OK(settings_set(&r->settings, "alias", "gpt-4o,other", &e), e);
}

static inline void rig_set(struct rig *r, const char *name, const char *value)
{
    struct err e = {0};
    CHECK_OK(settings_set(&r->settings, name, value, &e), e);
}

static inline char *rig_get(struct rig *r, const char *path);

static inline void rig_run_on(struct rig *r, const struct engine_api *api)
{
    struct err e = {0};
    CHECK_OK(server_open(&r->sv, &r->settings, api, &e), e);
    r->port = r->sv->port;
    CHECK_OK(thread_start(&r->thread, "server", rig_main, r, &e), e);
}

static inline void rig_run(struct rig *r)
{
    rig_run_on(r, &fake_engine_api);
}

static inline void rig_await(struct rig *r)
{
    for (int i = 0; i < 4000; i++) {
        char *a = rig_get(r, "/health");
        bool ok = strstr(a, " 200 ") != NULL;
        free(a);
        if (ok)
            return;
        usleep(5000);
    }
    CHECK(!"the server does not come up");
}

/* Up, with the fake model loaded. */
static inline void rig_start(struct rig *r)
{
    rig_run(r);
    rig_await(r);
}

/* Up, with the model of the settings in the real engine. */
static inline void rig_start_real(struct rig *r)
{
    rig_set(r, "max-context", "2048");
    rig_set(r, "max-seqs", "16");
    /* the same tests with the model cut over ranks, where they don't say themselves how */
    if (getenv("GAZE_TEST_TP") && r->settings.tp == 1)
        rig_set(r, "tp", getenv("GAZE_TEST_TP"));
#ifdef GAZE_DEBUG
    if (!r->settings.step_limit_s) /* sanitizer builds: slow steps are not lost ranks */
        rig_set(r, "step-limit", "90");
#endif
    rig_run_on(r, &engine_api_real);
    rig_await(r);
}

static inline void rig_stop(struct rig *r)
{
    kill(getpid(), SIGTERM);
    thread_join(r->thread);
    CHECK(r->exit_code == 0);
    settings_free(&r->settings);
}

/* --- a client --------------------------------------------------------------------------------- */

static inline int client_open(struct rig *r)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(r->port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(fd >= 0);
    CHECK(connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

static inline void client_send(int fd, const char *s, size_t n)
{
    while (n) {
        ssize_t k = send(fd, s, n, MSG_NOSIGNAL);
        if (k <= 0)
            return; /* the server has hung up: the answer tells */
        s += k;
        n -= (size_t)k;
    }
}

static inline void client_say(int fd, const char *s)
{
    client_send(fd, s, strlen(s));
}

/* What comes until `until` is in it (NULL: until the end), or for so many ms. malloc'ed. */
static inline char *client_read(int fd, const char *until, int ms)
{
    struct buf b = {0};
    char piece[65536];
    uint64_t end_us = clock_us() + (uint64_t)ms * 1000;
    buf_add(&b, "", 0);
    for (;;) {
        uint64_t now_us = clock_us();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if ((until && strstr(b.s, until)) || now_us >= end_us ||
            poll(&p, 1, (int)((end_us - now_us) / 1000) + 1) <= 0)
            break;
        ssize_t n = recv(fd, piece, sizeof piece, 0);
        if (n <= 0)
            break;
        buf_add(&b, piece, (size_t)n);
    }
    return b.s;
}

/* One answer with a Content-Length, and no byte more. */
static inline char *client_answer(int fd)
{
    struct buf b = {0};
    char c;
    size_t want = SIZE_MAX;
    buf_add(&b, "", 0);
    while (b.n < want) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, PATIENCE_US / 1000) <= 0 || recv(fd, &c, 1, 0) != 1)
            break;
        buf_add(&b, &c, 1);
        if (want == SIZE_MAX && b.n >= 4 && !memcmp(b.s + b.n - 4, "\r\n\r\n", 4)) {
            const char *length = strcasestr(b.s, "content-length:");
            want = b.n + (length ? strtoul(length + 15, NULL, 10) : 0);
        }
    }
    return b.s;
}

static inline char *rig_ask(struct rig *r, const char *request)
{
    int fd = client_open(r);
    client_say(fd, request);
    char *a = client_answer(fd);
    close(fd);
    return a;
}

static inline char *rig_get(struct rig *r, const char *path)
{
    char request[512];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);
    return rig_ask(r, request);
}

static inline void client_post(int fd, const char *path, const char *body)
{
    char head[256];
    snprintf(head, sizeof head,
             "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\n\r\n",
             path, strlen(body));
    client_say(fd, head);
    client_say(fd, body);
}

static inline char *rig_post(struct rig *r, const char *path, const char *body)
{
    int fd = client_open(r);
    client_post(fd, path, body);
    char *a = client_answer(fd);
    close(fd);
    return a;
}

/* Takes the sizes of the chunks out of a whole answer, in its place. */
static inline void join_chunks(char *answer)
{
    char *to = strstr(answer, "\r\n\r\n"), *from, *line;
    if (!to)
        return;
    to += 4;
    for (from = to; (line = strstr(from, "\r\n")) != NULL;) {
        size_t n = strtoul(from, NULL, 16);
        if (!n || strlen(line + 2) < n + 2)
            break;
        memmove(to, line + 2, n);
        to += n;
        from = line + 2 + n + 2;
    }
    *to = 0;
}

/* A whole stream; the events' JSON in order, "[DONE]" as the last. Chunk sizes are taken out. */
static inline char *rig_stream(struct rig *r, const char *path, const char *body)
{
    int fd = client_open(r);
    client_post(fd, path, body);
    char *a = client_read(fd, "\r\n0\r\n\r\n", PATIENCE_US / 1000);
    close(fd);
    if (strcasestr(a, "transfer-encoding: chunked"))
        join_chunks(a);
    return a;
}

static inline int status_of(const char *answer)
{
    return strlen(answer) > 12 ? atoi(answer + 9) : 0;
}

/* The body as JSON; the caller deletes it. */
static inline cJSON *body_of(const char *answer)
{
    const char *b = strstr(answer, "\r\n\r\n");
    cJSON *v = NULL;
    struct err e = {0};
    CHECK_MSG(b && !json_parse(&v, b + 4, strlen(b + 4), 64, &e), "no JSON in: %.300s (%s)", answer,
              e.msg);
    return v;
}

/* Walks "choices.0.message.content". */
static inline const cJSON *at(const cJSON *v, const char *path)
{
    char key[64];
    while (v && *path) {
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        v = cJSON_IsArray(v) ? cJSON_GetArrayItem(v, atoi(key)) : json_get(v, key);
        path += n + (path[n] == '.');
    }
    return v;
}

static inline const char *text_at(const cJSON *v, const char *path)
{
    const cJSON *t = at(v, path);
    return cJSON_IsString(t) ? t->valuestring : "(no string)";
}

static inline double number_at(const cJSON *v, const char *path)
{
    const cJSON *t = at(v, path);
    return cJSON_IsNumber(t) ? t->valuedouble : -12345;
}

/* The stream's events, parsed; returns how many; `done` says whether [DONE] came last. */
static inline int events_of(const char *stream, cJSON **out, int max, bool *done)
{
    int n = 0;
    *done = false;
    for (const char *s = stream; (s = strstr(s, "data: ")); s += 6) {
        const char *end = strstr(s, "\n\n");
        struct err e = {0};
        if (!end)
            break;
        *done = !strncmp(s, "data: [DONE]", 12);
        if (*done)
            continue;
        CHECK(n < max);
        CHECK_MSG(!json_parse(&out[n], s + 6, (size_t)(end - s - 6), 64, &e), "%s: %.200s", e.msg,
                  s);
        n++;
    }
    return n;
}

static inline int count_fds(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d))
        n++;
    if (d)
        closedir(d);
    return n;
}

/* A value of /metrics. The question itself is one connection and one call. */
static inline double gauge(struct rig *r, const char *name)
{
    char line[100], *a = rig_get(r, "/metrics");
    snprintf(line, sizeof line, "\n%s ", name);
    const char *v = strstr(a, line);
    double value = v ? strtod(v + strlen(line), NULL) : -1;
    free(a);
    return value;
}

static inline bool is_draining(struct rig *r)
{
    char *a = rig_get(r, "/health");
    bool yes = strstr(a, "\"draining\"") != NULL;
    free(a);
    return yes;
}

/* Waits until cond holds; fails after some seconds. */
#define EVENTUALLY(cond)                                                                           \
    do {                                                                                           \
        uint64_t end_us_ = clock_us() + PATIENCE_US;                                               \
        while (!(cond)) {                                                                          \
            CHECK_MSG(clock_us() < end_us_, "never: %s", #cond);                                   \
            usleep(2000);                                                                          \
        }                                                                                          \
    } while (0)

#endif
