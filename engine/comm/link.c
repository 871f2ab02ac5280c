/* link.c - see link.h. Every message has one size, so that a reader needs no parser. */
#include "comm/link.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/thread.h"
#include "comm/comm.h"
#include "comm/launch.h"
#include "comm/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAGIC = 0x657A6167, /* "gaze" */
    VERSION = 1,
    PING_MS = 1000,
    RETRY_US = 50000 /* between attempts to reach process 0 */
};

enum kind { HELLO, WELCOME, PIN, PING, FAILED, BYE };

struct message {
    uint32_t magic, version;
    uint32_t kind, process, n_processes, bytes;
    char name[MEETING_NAME_BYTES]; /* a note's; HELLO, WELCOME: the host's */
    unsigned char data[MEETING_NOTE_BYTES];
};

/* A connection: to process 0, or on process 0 to one of the others. */
struct peer {
    int fd; /* -1: none */
    uint32_t process;
    char host[MEETING_NAME_BYTES];
    struct message in;
    size_t have; /* bytes of it */
    uint64_t heard_us;
};

struct link {
    struct launch launch;
    struct link_options o;
    struct peer *peer; /* [n_peers] */
    uint32_t n_peers;
    int wake[2];                   /* a pipe that ends the thread's poll */
    pthread_mutex_t lock;          /* of sends, and of what follows */
    struct err lost;               /* ERR_OK: all are there */
    _Atomic bool closing, parting; /* parting: the others may leave */
    bool started;
    pthread_t thread;
};

/* ---- messages ---- */

static struct message message_of(const struct link *k, enum kind kind)
{
    return (struct message){.magic = MAGIC,
                            .version = VERSION,
                            .kind = kind,
                            .process = k->launch.process,
                            .n_processes = k->launch.n_processes};
}

static struct message text_of(const struct link *k, enum kind kind, const char *text)
{
    struct message m = message_of(k, kind);
    snprintf((char *)m.data, sizeof m.data, "%s", text);
    return m;
}

static bool send_to(int fd, const struct message *m)
{
    return socket_send(fd, m, sizeof *m);
}

/* A peer that does not take it is found by its silence, or by the end of its connection. */
static void send_all(struct link *k, const struct message *m, const struct peer *but)
{
    mutex_lock(&k->lock);
    for (uint32_t i = 0; i < k->n_peers; i++)
        if (k->peer[i].fd >= 0 && &k->peer[i] != but)
            (void)send_to(k->peer[i].fd, m);
    mutex_unlock(&k->lock);
}

/* 1: k->in is complete; 0: not yet; -1: the connection has ended. */
static int receive(struct peer *p)
{
    ssize_t n = recv(p->fd, (char *)&p->in + p->have, sizeof p->in - p->have, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return 0;
    if (n <= 0)
        return -1;
    p->have += (size_t)n;
    if (p->have < sizeof p->in)
        return 0;
    p->have = 0;
    p->in.name[sizeof p->in.name - 1] = '\0';
    if (p->in.kind == FAILED) /* a text */
        p->in.data[sizeof p->in.data - 1] = '\0';
    bool ours = p->in.magic == MAGIC && p->in.version == VERSION;
    return ours && p->in.bytes <= sizeof p->in.data ? 1 : -1;
}

static void hang_up(struct peer *p)
{
    if (p->fd >= 0)
        close(p->fd);
    p->fd = -1;
}

/* ---- watching ---- */

/* Once: all others are told, all groups of this process break, and its owner hears of it. */
static void lose(struct link *k, const struct peer *from, const char *why)
{
    mutex_lock(&k->lock);
    bool agreed = atomic_load(&k->closing) || atomic_load(&k->parting);
    bool first = !k->lost.code && !agreed;
    if (first)
        err_set(&k->lost, ERR_COMM, "%s", why);
    struct err lost = k->lost;
    mutex_unlock(&k->lock);
    if (!first)
        return;
    log_error("meeting", "lost=process error=\"%s\"", lost.msg);
    struct message m = text_of(k, FAILED, lost.msg);
    send_all(k, &m, from);
    comm_abort_all(lost.msg);
    if (k->o.watch.lost)
        k->o.watch.lost(k->o.watch.arg, &lost);
}

static void lose_peer(struct link *k, struct peer *p, const char *how)
{
    char why[200];
    snprintf(why, sizeof why, "process %u of %u (%s) %s", p->process, k->launch.n_processes,
             p->host, how);
    mutex_lock(&k->lock); /* others may be sending */
    hang_up(p);
    mutex_unlock(&k->lock);
    lose(k, p, why);
}

static void handle(struct link *k, struct peer *p)
{
    const struct message *m = &p->in;
    struct err e;
    char why[200];
    p->heard_us = clock_us();
    switch ((enum kind)m->kind) {
    case PIN:
        send_all(k, m, p);
        if (k->o.pinned(k->o.board, m->name, m->data, m->bytes, &e)) {
            snprintf(why, sizeof why, "process %u of %u keeps no note: %.100s", k->launch.process,
                     k->launch.n_processes, e.msg);
            lose(k, NULL, why); /* or somebody here waits for the note until the time is over */
        }
        return;
    case FAILED:
        lose(k, p, (const char *)m->data);
        return;
    case BYE:
        lose_peer(k, p, "has left");
        return;
    case HELLO:
    case WELCOME:
    case PING:
        return;
    }
    lose_peer(k, p, "sent a message of an unknown kind");
}

static void look_at(struct link *k, struct peer *p, bool readable, uint64_t now)
{
    char how[64];
    int got = 0;
    while (readable && p->fd >= 0 && (got = receive(p)) > 0)
        handle(k, p);
    if (p->fd >= 0 && got < 0) {
        lose_peer(k, p, "is gone: its connection ended");
    } else if (p->fd >= 0 && now > p->heard_us + k->o.watch.silence_ms * 1000ull) {
        snprintf(how, sizeof how, "was not heard for %u ms", k->o.watch.silence_ms);
        lose_peer(k, p, how);
    }
}

static void *link_main(void *arg)
{
    struct link *k = arg;
    struct pollfd fd[LAUNCH_MAX_PROCESSES + 1];
    uint64_t ping_us = 0;
    while (!atomic_load(&k->closing)) {
        uint64_t now = clock_us();
        if (now >= ping_us && !FAULT("meeting.ping")) {
            struct message m = message_of(k, PING);
            send_all(k, &m, NULL);
        }
        if (now >= ping_us)
            ping_us = now + PING_MS * 1000ull;
        for (uint32_t i = 0; i < k->n_peers; i++)
            fd[i] = (struct pollfd){.fd = k->peer[i].fd, .events = POLLIN};
        fd[k->n_peers] = (struct pollfd){.fd = k->wake[0], .events = POLLIN};
        int wait_ms = (int)((ping_us - now) / 1000) + 1;
        (void)poll(fd, k->n_peers + 1, wait_ms < 100 ? wait_ms : 100);
        now = clock_us();
        for (uint32_t i = 0; i < k->n_peers; i++)
            look_at(k, &k->peer[i], fd[i].revents != 0, now);
    }
    return NULL;
}

/* ---- opening ---- */

static uint64_t after_ms(uint32_t ms)
{
    return clock_us() + ms * 1000ull;
}

/* At the address that the others were given. */
static enum err_code listen_at(int *out, const struct launch *l, struct err *e)
{
    struct addrinfo *at;
    if (socket_resolve(&at, l->host, l->port, e))
        return e->code;
    e->code = ERR_OK;
    if (socket_listen(out, at->ai_addr, at->ai_addrlen, e))
        err_prefix(e, "meeting: %.100s", l->host);
    freeaddrinfo(at);
    return e->code;
}

/* What is wrong with a HELLO; NULL: nothing. */
static const char *refuse(const struct link *k, const struct message *m)
{
    if (m->kind != HELLO || m->n_processes != k->launch.n_processes)
        return "it has another number of processes";
    if (m->process < 1 || m->process >= k->launch.n_processes)
        return "there is no such process";
    return k->peer[m->process - 1].fd >= 0 ? "that process is here already" : NULL;
}

/* A caller that has said who he is becomes a peer. */
static void admit(struct link *k, struct peer *caller)
{
    const char *why = refuse(k, &caller->in);
    if (why) {
        struct message m = text_of(k, FAILED, why);
        (void)send_to(caller->fd, &m);
        hang_up(caller);
        return;
    }
    struct peer *p = &k->peer[caller->in.process - 1];
    *p = (struct peer){.fd = caller->fd, .process = caller->in.process};
    memcpy(p->host, caller->in.name, sizeof p->host);
    caller->fd = -1;
}

static uint32_t count_here(const struct link *k)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < k->n_peers; i++)
        n += k->peer[i].fd >= 0;
    return n;
}

/* Whoever calls; strangers are dropped, and hold nobody up. */
static void take_callers(struct link *k, int listener, uint64_t end_us)
{
    enum { CALLERS = 2 * LAUNCH_MAX_PROCESSES };
    struct peer *caller = calloc(CALLERS, sizeof *caller);
    struct pollfd fd[CALLERS + 1];
    uint32_t n = 0;
    while (caller && count_here(k) < k->n_peers && clock_us() < end_us) {
        for (uint32_t i = 0; i < n; i++)
            fd[i] = (struct pollfd){.fd = caller[i].fd, .events = POLLIN};
        fd[n] = (struct pollfd){.fd = listener, .events = POLLIN};
        (void)poll(fd, n + 1, 50);
        bool new = fd[n].revents != 0;
        for (uint32_t i = 0; i < n; i++) {
            int got = fd[i].revents ? receive(&caller[i]) : 0;
            if (got > 0)
                admit(k, &caller[i]);
            else if (got < 0)
                hang_up(&caller[i]);
        }
        uint32_t left = 0;
        for (uint32_t i = 0; i < n; i++)
            if (caller[i].fd >= 0)
                caller[left++] = caller[i];
        n = left;
        int call = new ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (call >= 0 && n == CALLERS)
            hang_up(&caller[--n]); /* the newest stranger makes room */
        if (call >= 0) {
            socket_set_options(call);
            caller[n++] = (struct peer){.fd = call};
        }
    }
    for (uint32_t i = 0; i < n; i++)
        hang_up(&caller[i]);
    free(caller);
}

static enum err_code gather(struct link *k, struct err *e)
{
    int listener = -1;
    if (listen_at(&listener, &k->launch, e))
        return e->code;
    take_callers(k, listener, after_ms(k->o.watch.open_ms));
    close(listener);
    for (uint32_t i = 0; i < k->n_peers; i++)
        if (k->peer[i].fd < 0) {
            err_set(e, ERR_COMM, "meeting: process %u of %u did not come to %.100s:%u within %u ms",
                    i + 1, k->launch.n_processes, k->launch.host, k->launch.port,
                    k->o.watch.open_ms);
            struct message m = text_of(k, FAILED, e->msg);
            send_all(k, &m, NULL);
            return e->code;
        }
    struct message m = message_of(k, WELCOME);
    (void)gethostname(m.name, sizeof m.name - 1);
    send_all(k, &m, NULL);
    return ERR_OK;
}

static enum err_code call_first(struct link *k, uint64_t end_us, struct err *e)
{
    struct peer *p = &k->peer[0];
    struct addrinfo *all;
    int wrong = ETIMEDOUT;
    if (socket_resolve(&all, k->launch.host, k->launch.port, e))
        return e->code;
    while (p->fd < 0 && clock_us() < end_us) {
        for (struct addrinfo *at = all; at && p->fd < 0; at = at->ai_next)
            p->fd = socket_call(at->ai_addr, at->ai_addrlen, 1000);
        wrong = errno;
        if (p->fd < 0)
            usleep(RETRY_US);
    }
    freeaddrinfo(all);
    if (p->fd < 0)
        return err_set(e, ERR_COMM, "meeting: process 0 is not at %.100s:%u after %u ms: %s",
                       k->launch.host, k->launch.port, k->o.watch.open_ms, strerror(wrong));
    socket_set_options(p->fd);
    return ERR_OK;
}

static enum err_code join_first(struct link *k, struct err *e)
{
    /* process 0 waits for open_ms, perhaps from later on, and then says who is missing */
    uint64_t end_us = after_ms(k->o.watch.open_ms), answer_us = end_us + SOCKET_SEND_MS * 1000ull;
    struct peer *p = &k->peer[0];
    struct message hello = message_of(k, HELLO);
    if (call_first(k, end_us, e))
        return e->code;
    (void)gethostname(hello.name, sizeof hello.name - 1);
    int got = send_to(p->fd, &hello) ? 0 : -1;
    while (!got && clock_us() < answer_us) {
        struct pollfd fd = {.fd = p->fd, .events = POLLIN};
        if (poll(&fd, 1, 50) > 0)
            got = receive(p);
    }
    if (got > 0 && p->in.kind == WELCOME) {
        memcpy(p->host, p->in.name, sizeof p->host);
        return ERR_OK;
    }
    if (got > 0 && p->in.kind == FAILED)
        return err_set(e, ERR_COMM, "process %u of %u: process 0 says: %.180s", k->launch.process,
                       k->launch.n_processes, (char *)p->in.data);
    return err_set(e, ERR_COMM, "process %u of %u: process 0 at %.100s:%u %s", k->launch.process,
                   k->launch.n_processes, k->launch.host, k->launch.port,
                   got < 0 ? "hung up" : "gave no answer");
}

enum err_code link_open(struct link **out, const struct launch *l, const struct link_options *o,
                        struct err *e)
{
    struct link *k = FAULT("meeting.link") ? NULL : calloc(1, sizeof *k);
    if (!k)
        return err_set(e, ERR_NOMEM, "meeting of %u processes", l->n_processes);
    assert(l->n_processes <= LAUNCH_MAX_PROCESSES && l->process < l->n_processes);
    k->launch = *l;
    k->o = *o;
    k->o.watch.open_ms = o->watch.open_ms ? o->watch.open_ms : MEETING_OPEN_MS;
    k->o.watch.silence_ms = o->watch.silence_ms ? o->watch.silence_ms : MEETING_SILENCE_MS;
    k->n_peers = l->process ? 1 : l->n_processes - 1;
    k->wake[0] = k->wake[1] = -1;
    pthread_mutex_init(&k->lock, NULL);
    k->peer = calloc(k->n_peers, sizeof *k->peer);
    for (uint32_t i = 0; k->peer && i < k->n_peers; i++)
        k->peer[i].fd = -1;
    if (!k->peer) {
        k->n_peers = 0;
        err_set(e, ERR_NOMEM, "meeting of %u processes", l->n_processes);
    } else if (pipe2(k->wake, O_CLOEXEC)) {
        err_set(e, ERR_IO, "meeting: a pipe: %s", strerror(errno));
    } else {
        e->code = ERR_OK;
    }
    if (e->code || (l->process ? join_first(k, e) : gather(k, e)))
        goto fail;
    for (uint32_t i = 0; i < k->n_peers; i++)
        k->peer[i].heard_us = clock_us();
    if (thread_start(&k->thread, "meeting", link_main, k, e))
        goto fail;
    k->started = true;
    *out = k;
    return ERR_OK;
fail:
    link_close(k);
    return e->code;
}

void link_pin(struct link *k, const char *name, const void *note, size_t bytes)
{
    struct message m = message_of(k, PIN);
    m.bytes = (uint32_t)bytes;
    memcpy(m.name, name, strlen(name) + 1);
    memcpy(m.data, note, bytes);
    send_all(k, &m, NULL);
}

void link_fail(struct link *k, const char *why)
{
    struct message m = text_of(k, FAILED, why);
    send_all(k, &m, NULL);
}

void link_part(struct link *k)
{
    atomic_store(&k->parting, true);
}

bool link_address(struct link *k, bool own, struct sockaddr_storage *out, socklen_t *size)
{
    *size = sizeof *out;
    mutex_lock(&k->lock); /* the thread may be hanging up */
    int fd = k->peer[0].fd;
    int rc = own ? getsockname(fd, (struct sockaddr *)out, size)
                 : getpeername(fd, (struct sockaddr *)out, size);
    mutex_unlock(&k->lock);
    return !rc;
}

uint32_t link_process(const struct link *k)
{
    return k->launch.process;
}

void link_close(struct link *k)
{
    if (!k)
        return;
    atomic_store(&k->closing, true);
    if (k->started) {
        struct message m = message_of(k, BYE);
        send_all(k, &m, NULL);
        (void)!write(k->wake[1], "", 1);
        thread_join(k->thread);
    }
    for (uint32_t i = 0; i < k->n_peers; i++)
        hang_up(&k->peer[i]);
    for (int i = 0; i < 2; i++)
        if (k->wake[i] >= 0)
            close(k->wake[i]);
    pthread_mutex_destroy(&k->lock);
    free(k->peer);
    free(k);
}
