/* meeting.c - see meeting.h. */
#include "comm/meeting.h"

#include "comm/link.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/rng.h"
#include "base/thread.h"
#include "comm/launch.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct note {
    struct note *next;
    char name[MEETING_NAME_BYTES];
    size_t bytes;
    unsigned char data[MEETING_NOTE_BYTES];
};

struct meeting {
    pthread_mutex_t lock;
    pthread_cond_t pinned;
    struct note *notes;
    uint64_t number;
    struct link *link; /* to the other processes; NULL: there are none */
    struct meeting_watch watch;
    struct err lost; /* ERR_OK: all processes are there */
};

enum err_code meeting_create(struct meeting **out, struct err *e)
{
    struct meeting *m = FAULT("meeting.create") ? NULL : calloc(1, sizeof *m);
    if (!m)
        return err_set(e, ERR_NOMEM, "meeting");
    static _Atomic uint64_t last_number;
    pthread_mutex_init(&m->lock, NULL);
    cond_init_monotonic(&m->pinned);
    m->number = atomic_fetch_add(&last_number, 1) + 1;
    *out = m;
    return ERR_OK;
}

uint64_t meeting_number(const struct meeting *m)
{
    return m->number;
}

void meeting_destroy(struct meeting *m)
{
    if (!m)
        return;
    link_close(m->link);
    for (struct note *n = m->notes, *next; n; n = next) {
        next = n->next;
        free(n);
    }
    pthread_cond_destroy(&m->pinned);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static const struct note *find(const struct meeting *m, const char *name)
{
    for (const struct note *n = m->notes; n; n = n->next)
        if (!strcmp(n->name, name))
            return n;
    return NULL;
}

static enum err_code pin_here(struct meeting *m, const char *name, const void *data, size_t bytes,
                              struct err *e)
{
    if (strlen(name) >= MEETING_NAME_BYTES || bytes > MEETING_NOTE_BYTES)
        return err_set(e, ERR_INVALID, "meeting: note \"%.80s\" of %zu bytes is too large", name,
                       bytes);
    struct note *n = FAULT("meeting.pin") ? NULL : calloc(1, sizeof *n);
    if (!n)
        return err_set(e, ERR_NOMEM, "meeting: note %s", name);
    memcpy(n->name, name, strlen(name) + 1);
    memcpy(n->data, data, bytes);
    n->bytes = bytes;
    mutex_lock(&m->lock);
    bool taken = find(m, name) != NULL;
    if (!taken) {
        n->next = m->notes;
        m->notes = n;
        pthread_cond_broadcast(&m->pinned);
    }
    mutex_unlock(&m->lock);
    if (taken) {
        free(n);
        return err_set(e, ERR_INVALID, "meeting: there is a note %s already", name);
    }
    return ERR_OK;
}

enum err_code meeting_pin(struct meeting *m, const char *name, const void *data, size_t bytes,
                          struct err *e)
{
    if (pin_here(m, name, data, bytes, e))
        return e->code;
    if (m->link)
        link_pin(m->link, name, data, bytes);
    return ERR_OK;
}

/* The link's thread: another process's note. */
static enum err_code pin_theirs(void *arg, const char *name, const void *data, size_t bytes,
                                struct err *e)
{
    return pin_here(arg, name, data, bytes, e);
}

/* The link's thread: whoever waits for a note waits in vain. */
static void lose(void *arg, const struct err *why)
{
    struct meeting *m = arg;
    mutex_lock(&m->lock);
    m->lost = *why;
    pthread_cond_broadcast(&m->pinned);
    mutex_unlock(&m->lock);
    if (m->watch.lost)
        m->watch.lost(m->watch.arg, why);
}

enum err_code meeting_join(struct meeting **out, const struct launch *l,
                           const struct meeting_watch *w, struct err *e)
{
    struct meeting *m;
    struct link_options o = {{w->open_ms, w->silence_ms, lose, NULL}, pin_theirs, NULL};
    if (meeting_create(&m, e))
        return e->code;
    m->watch = *w;
    o.board = o.watch.arg = m;
    if (l->n_processes > 1 && link_open(&m->link, l, &o, e)) {
        meeting_destroy(m);
        return e->code;
    }
    *out = m;
    return ERR_OK;
}

void meeting_fail(struct meeting *m, const char *why)
{
    if (m->link)
        link_fail(m->link, why);
}

void meeting_part(struct meeting *m)
{
    if (m->link)
        link_part(m->link);
}

enum err_code meeting_lost(struct meeting *m, struct err *why)
{
    mutex_lock(&m->lock);
    *why = m->lost;
    mutex_unlock(&m->lock);
    return why->code;
}

struct link *meeting_link(struct meeting *m)
{
    return m->link;
}

enum err_code meeting_read(struct meeting *m, const char *name, void *data, size_t bytes,
                           uint32_t timeout_ms, struct err *e)
{
    uint64_t end_us = clock_us() + (uint64_t)timeout_ms * 1000, now;
    const struct note *n;
    mutex_lock(&m->lock);
    while (!(n = find(m, name)) && !m->lost.code && (now = clock_us()) < end_us)
        cond_wait_us(&m->pinned, &m->lock, (unsigned long)(end_us - now));
    *e = m->lost;
    mutex_unlock(&m->lock); /* a note stays as it is */
    if (!n && e->code)
        return e->code;
    if (!n)
        return err_set(e, ERR_COMM, "meeting: nobody pinned %s within %u ms", name, timeout_ms);
    if (n->bytes != bytes)
        return err_set(e, ERR_INVALID, "meeting: note %s has %zu bytes, %zu are expected", name,
                       n->bytes, bytes);
    memcpy(data, n->data, bytes);
    return ERR_OK;
}

static uint64_t process;

static void choose_process(void)
{
    process = rng_entropy();
}

uint64_t meeting_process(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, choose_process);
    return process;
}
