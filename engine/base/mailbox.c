/* mailbox.c - see mailbox.h. */
#include "base/mailbox.h"

#include "base/thread.h"

#include <assert.h>
#include <stddef.h>

void mailbox_init(struct mailbox *box)
{
    pthread_mutex_init(&box->lock, NULL);
    cond_init_monotonic(&box->filled);
    box->head = NULL;
    box->tail = &box->head;
    box->kicked = false;
}

void mailbox_destroy(struct mailbox *box)
{
    assert(!box->head);
    pthread_cond_destroy(&box->filled);
    pthread_mutex_destroy(&box->lock);
}

bool mailbox_put(struct mailbox *box, struct mail *m)
{
    m->next = NULL;
    mutex_lock(&box->lock);
    bool was_empty = !box->head;
    *box->tail = m;
    box->tail = &m->next;
    if (was_empty)
        pthread_cond_signal(&box->filled);
    mutex_unlock(&box->lock);
    return was_empty;
}

static struct mail *take_locked(struct mailbox *box)
{
    struct mail *all = box->head;
    box->head = NULL;
    box->tail = &box->head;
    return all;
}

struct mail *mailbox_take(struct mailbox *box)
{
    mutex_lock(&box->lock);
    struct mail *all = take_locked(box);
    mutex_unlock(&box->lock);
    return all;
}

struct mail *mailbox_wait(struct mailbox *box, unsigned long timeout_us)
{
    mutex_lock(&box->lock);
    if (!box->head && !box->kicked)
        cond_wait_us(&box->filled, &box->lock, timeout_us);
    /* A wait without a limit may end early by chance; its caller loops anyway. */
    box->kicked = false;
    struct mail *all = take_locked(box);
    mutex_unlock(&box->lock);
    return all;
}

void mailbox_kick(struct mailbox *box)
{
    mutex_lock(&box->lock);
    box->kicked = true;
    pthread_cond_signal(&box->filled);
    mutex_unlock(&box->lock);
}
