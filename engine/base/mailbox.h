/* mailbox.h - messages from any thread to one owner, who takes them all at once.
 *
 * A message embeds a struct mail as its first member; putting it in gives ownership away. Order is
 * kept. Whoever owns the mailbox is told how to wake itself by mailbox_put()'s result: it is true
 * when the box was empty, so the owner may be asleep.
 *
 * Thread: put from any, take from the owner's.
 * Bound:  none here; the senders' own bounds (queue limits, batches in flight) hold.
 */
#ifndef GAZE_BASE_MAILBOX_H
#define GAZE_BASE_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>

struct mail {
    struct mail *next;
};

struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    struct mail *head, **tail;
    bool kicked; /* mailbox_kick() came since the last wait */
};

void mailbox_init(struct mailbox *box);
void mailbox_destroy(struct mailbox *box); /* asserts that it is empty */

bool mailbox_put(struct mailbox *box, struct mail *m);
struct mail *mailbox_take(struct mailbox *box); /* all, oldest first; NULL when empty */

/* Takes all; sleeps first while there is nothing, until a message, a kick or timeout_us (0: no
 * limit). */
struct mail *mailbox_wait(struct mailbox *box, unsigned long timeout_us);
void mailbox_kick(struct mailbox *box); /* ends the owner's present or next wait */

#endif
