/* line.c - see line.h. */
#include "comm/line.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/rng.h"
#include "comm/link.h"
#include "comm/socket.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

enum { TURN_MS = 50, HELLO_MS = 1000 };

/* Where a door is, as it stands on the board. */
struct place {
    uint64_t key;
    uint32_t process, size; /* size: of at */
    struct sockaddr_storage at;
};
static_assert(sizeof(struct place) <= MEETING_NOTE_BYTES, "a place is a note");

struct hello {
    uint64_t key, who;
};

static void own_address(struct meeting *m, struct sockaddr_storage *at, socklen_t *size)
{
    struct link *k = meeting_link(m);
    struct sockaddr_in loopback = {.sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (k && link_address(k, true, at, size))
        return;
    memcpy(at, &loopback, sizeof loopback);
    *size = sizeof loopback;
}

enum err_code line_open_door(struct line_door *out, struct meeting *m, const char *name,
                             struct err *e)
{
    struct line_door d = {.fd = -1, .key = rng_entropy(), .meeting = m};
    struct link *k = meeting_link(m);
    struct place p = {.key = d.key, .process = k ? link_process(k) : 0};
    struct sockaddr_storage bound;
    socklen_t size, n = sizeof bound;
    if (strlen(name) >= sizeof d.name)
        return err_set(e, ERR_INVALID, "line: the name \"%.80s\" is too long", name);
    memcpy(d.name, name, strlen(name) + 1);
    own_address(m, &p.at, &size);
    socket_set_port(&p.at, 0);
    if (socket_listen(&d.fd, (struct sockaddr *)&p.at, size, e))
        return err_prefix(e, "line %s", name);
    if (getsockname(d.fd, (struct sockaddr *)&bound, &n)) {
        err_set(e, ERR_IO, "line %s: its port: %s", name, strerror(errno));
        close(d.fd);
        return e->code;
    }
    socket_set_port(&p.at, socket_port(&bound));
    p.size = (uint32_t)size;
    if (meeting_pin(m, name, &p, sizeof p, e)) {
        close(d.fd);
        return e->code;
    }
    *out = d;
    return ERR_OK;
}

/* A caller's number, or -1: it is a stranger. */
static int64_t who_calls(const struct line_door *d, int fd, const int *line, uint32_t n_numbers)
{
    struct timeval limit = {.tv_sec = HELLO_MS / 1000}, none = {0};
    struct hello h;
    socket_set_options(fd);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (!line_receive(fd, &h, sizeof h) || h.key != d->key || h.who >= n_numbers ||
        line[h.who] >= 0)
        return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    return (int64_t)h.who;
}

enum err_code line_answer(struct line_door *d, int *line, uint32_t n_numbers, uint32_t n,
                          uint32_t timeout_ms, struct err *e)
{
    uint64_t end_us = clock_us() + timeout_ms * 1000ull;
    uint32_t here = 0;
    while (here < n) {
        struct pollfd p = {.fd = d->fd, .events = POLLIN};
        if (meeting_lost(d->meeting, e))
            return e->code;
        if (clock_us() > end_us)
            return err_set(e, ERR_COMM, "line %s: %u of %u have come within %u ms", d->name, here,
                           n, timeout_ms);
        if (poll(&p, 1, TURN_MS) < 1)
            continue;
        int fd = accept4(d->fd, NULL, NULL, SOCK_CLOEXEC);
        int64_t who = fd >= 0 ? who_calls(d, fd, line, n_numbers) : -1;
        if (who >= 0) {
            line[who] = fd;
            here++;
        } else if (fd >= 0) {
            close(fd);
        }
    }
    return ERR_OK;
}

void line_close_door(struct line_door *d)
{
    if (d->fd >= 0)
        close(d->fd);
    d->fd = -1;
}

enum err_code line_call(int *out, struct meeting *m, const char *name, uint32_t who,
                        uint32_t timeout_ms, struct err *e)
{
    struct link *k = meeting_link(m);
    struct place p;
    struct sockaddr_storage first;
    socklen_t size;
    if (meeting_read(m, name, &p, sizeof p, timeout_ms, e))
        return e->code;
    if (k && p.process == 0 && link_process(k)) { /* as it was reached before */
        if (!link_address(k, false, &first, &size))
            return err_set(e, ERR_COMM, "line %s: process 0 is gone", name);
        socket_set_port(&first, socket_port(&p.at));
        p.at = first;
        p.size = (uint32_t)size;
    }
    int fd = socket_call((struct sockaddr *)&p.at, p.size, timeout_ms);
    if (fd < 0)
        return err_set(e, ERR_COMM, "line %s: process %u cannot be reached: %s", name, p.process,
                       strerror(errno));
    socket_set_options(fd);
    struct hello h = {p.key, who};
    if (!line_send(fd, &h, sizeof h)) {
        close(fd);
        return err_set(e, ERR_COMM, "line %s: process %u hung up", name, p.process);
    }
    *out = fd;
    return ERR_OK;
}

bool line_send(int line, const void *bytes, size_t n)
{
    return !FAULT("line.send") && socket_send(line, bytes, n);
}

bool line_receive(int line, void *bytes, size_t n_bytes)
{
    char *at = bytes;
    while (n_bytes) {
        ssize_t n = FAULT("line.receive") ? 0 : recv(line, at, n_bytes, MSG_WAITALL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        n_bytes -= (size_t)n;
    }
    return true;
}

void line_await_end(int line, uint32_t timeout_ms)
{
    uint64_t end_us = clock_us() + timeout_ms * 1000ull;
    char rest[256];
    for (;;) {
        uint64_t now = clock_us();
        struct pollfd p = {.fd = line, .events = POLLIN};
        if (now >= end_us || poll(&p, 1, (int)((end_us - now) / 1000) + 1) < 1)
            return;
        if (recv(line, rest, sizeof rest, MSG_DONTWAIT) <= 0)
            return;
    }
}

void line_shut(int line)
{
    (void)shutdown(line, SHUT_RDWR);
}

void line_close(int line)
{
    if (line >= 0)
        close(line);
}
