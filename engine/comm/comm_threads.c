/* comm_threads.c - ranks as threads of one process over host memory.
 *
 * A call has two doors. At the first each rank leaves what it brings in its place and waits for
 * all; then each does its own part of the work, reading and writing the others' buffers directly;
 * at the second it waits until all have done theirs. A sum is cut into a slice for each rank, who
 * reads the slice of all inputs and writes it to all outputs: no element has two readers when it is
 * written, so sums in place need no copy.
 *
 * Only the first door has a time-out, and only there a group breaks: behind it everybody is at work
 * that ends by itself, and nobody may leave while another still reads his buffers.
 */
#include "comm/body.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/rng.h"
#include "base/thread.h"
#include "comm/meeting.h"
#include "comm/sum.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a rank brings to a call. */
struct place {
    bool here; /* at the first door, or behind it */
    enum comm_op op;
    uint32_t seq, root;
    enum comm_dtype dtype;
    size_t n; /* elements, or bytes */
    const unsigned char *in;
    unsigned char *out;
    struct comm_parts send;
};

struct group {
    struct group *next;
    uint64_t id;
    uint32_t n_ranks, holders;
    pthread_mutex_t lock;
    pthread_cond_t moved;
    uint32_t n_here, n_done;
    uint64_t turn, done_turn; /* calls that all have entered, and left */
    struct place place[COMM_MAX_RANKS];
    bool broken;
    struct err why;
};

struct threads_comm {
    struct comm base;
    struct group *group;
};

/* All groups of this process: a note names one by its id, so that a rank that comes too late finds
 * nothing. */
static pthread_mutex_t groups_lock = PTHREAD_MUTEX_INITIALIZER;
static struct group *groups;
static uint64_t last_id;

static void let_go(struct group *g)
{
    mutex_lock(&groups_lock);
    bool last = --g->holders == 0;
    for (struct group **at = &groups; last && *at; at = &(*at)->next)
        if (*at == g) {
            *at = g->next;
            break;
        }
    mutex_unlock(&groups_lock);
    if (!last)
        return;
    pthread_cond_destroy(&g->moved);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

static struct group *hold(uint64_t id)
{
    mutex_lock(&groups_lock);
    struct group *g = groups;
    while (g && g->id != id)
        g = g->next;
    if (g)
        g->holders++;
    mutex_unlock(&groups_lock);
    return g;
}

static struct group *make(uint32_t n_ranks)
{
    struct group *g = FAULT("comm.group") ? NULL : calloc(1, sizeof *g);
    if (!g)
        return NULL;
    g->n_ranks = n_ranks;
    g->holders = 1;
    pthread_mutex_init(&g->lock, NULL);
    cond_init_monotonic(&g->moved);
    mutex_lock(&groups_lock);
    g->id = ++last_id;
    g->next = groups;
    groups = g;
    mutex_unlock(&groups_lock);
    return g;
}

/* The lock is held. The first reason stays. */
static void break_up(struct group *g, const struct err *why)
{
    if (g->broken)
        return;
    g->broken = true;
    g->why = *why;
    pthread_cond_broadcast(&g->moved);
}

static struct threads_comm *of(struct comm *c)
{
    return (struct threads_comm *)c;
}

/* Ranks that are not at the door, as "1, 3". */
static void name_missing(const struct group *g, char *text, size_t room)
{
    size_t at = 0;
    text[0] = '\0';
    for (uint32_t r = 0; r < g->n_ranks && at + 6 < room; r++)
        if (!g->place[r].here)
            at += (size_t)snprintf(text + at, room - at, "%s%u", at ? ", " : "", r);
}

/* The lock is held; what place[0] brings is what all must bring. */
static bool all_agree(struct group *g, struct comm *c)
{
    const struct place *a = &g->place[0];
    for (uint32_t r = 1; r < g->n_ranks; r++) {
        const struct place *b = &g->place[r];
        struct err why;
        if (b->op == a->op && b->seq == a->seq && b->n == a->n && b->dtype == a->dtype &&
            b->root == a->root)
            continue;
        err_set(&why, ERR_COMM, "comm %s: rank 0 came to %s %u of %zu, rank %u to %s %u of %zu",
                c->group, comm_op_name(a->op), a->seq, a->n, r, comm_op_name(b->op), b->seq, b->n);
        break_up(g, &why);
        return false;
    }
    return true;
}

/* The first door: returns once all ranks are here with the same call. */
static enum err_code enter(struct comm *c, struct place mine, struct err *e)
{
    struct group *g = of(c)->group;
    uint64_t end_us = clock_us() + (uint64_t)c->timeout_ms * 1000, now;
    mine.here = true;
    mine.seq = c->seq;
    mutex_lock(&g->lock);
    uint64_t turn = g->turn;
    g->place[c->rank] = mine;
    if (!g->broken && ++g->n_here == g->n_ranks && all_agree(g, c)) {
        g->n_here = 0;
        g->turn++;
        pthread_cond_broadcast(&g->moved);
    }
    while (g->turn == turn && !g->broken) {
        if ((now = clock_us()) >= end_us) {
            char missing[64];
            struct err why;
            name_missing(g, missing, sizeof missing);
            err_set(&why, ERR_COMM, "comm %s: rank %s of %u did not come to %s %u within %u ms",
                    c->group, missing, g->n_ranks, comm_op_name(mine.op), mine.seq, c->timeout_ms);
            break_up(g, &why);
            break;
        }
        cond_wait_us(&g->moved, &g->lock, (unsigned long)(end_us - now));
    }
    bool in = g->turn != turn;
    if (!in)
        *e = g->why;
    mutex_unlock(&g->lock);
    return in ? ERR_OK : e->code;
}

/* The second door. */
static enum err_code leave(struct comm *c)
{
    struct group *g = of(c)->group;
    mutex_lock(&g->lock);
    uint64_t turn = g->done_turn;
    g->place[c->rank].here = false;
    if (++g->n_done == g->n_ranks) {
        g->n_done = 0;
        g->done_turn++;
        pthread_cond_broadcast(&g->moved);
    }
    while (g->done_turn == turn)
        cond_wait_us(&g->moved, &g->lock, 0);
    mutex_unlock(&g->lock);
    return ERR_OK;
}

/* sum[n] = the ranks' in, from byte `at` on. */
static void sum_block(const struct group *g, size_t at, size_t n, enum comm_dtype t, float *sum)
{
    for (uint32_t r = 0; r < g->n_ranks; r++)
        comm_sum_add(sum, g->place[r].in + at, n, t, r == 0);
}

static enum err_code all_reduce(struct comm *c, const void *in, void *out, size_t n,
                                enum comm_dtype t, void *stream, struct err *e)
{
    struct group *g = of(c)->group;
    size_t size = comm_dtype_bytes(t);
    (void)stream;
    if (enter(c, (struct place){.op = COMM_ALL_REDUCE, .dtype = t, .n = n, .in = in, .out = out},
              e))
        return e->code;
    size_t end = n * (c->rank + 1) / c->n_ranks;
    float sum[COMM_SUM_BLOCK];
    for (size_t i = n * c->rank / c->n_ranks; i < end; i += COMM_SUM_BLOCK) {
        size_t m = end - i < COMM_SUM_BLOCK ? end - i : COMM_SUM_BLOCK;
        sum_block(g, i * size, m, t, sum);
        for (uint32_t r = 0; r < c->n_ranks; r++)
            comm_sum_store(g->place[r].out + i * size, sum, m, t);
    }
    return leave(c);
}

static enum err_code reduce_scatter(struct comm *c, const void *in, void *out, size_t n,
                                    enum comm_dtype t, void *stream, struct err *e)
{
    struct group *g = of(c)->group;
    size_t size = comm_dtype_bytes(t);
    (void)stream;
    if (enter(c, (struct place){.op = COMM_REDUCE_SCATTER, .dtype = t, .n = n, .in = in}, e))
        return e->code;
    float sum[COMM_SUM_BLOCK];
    for (size_t i = 0; i < n; i += COMM_SUM_BLOCK) {
        size_t m = n - i < COMM_SUM_BLOCK ? n - i : COMM_SUM_BLOCK;
        sum_block(g, (c->rank * n + i) * size, m, t, sum);
        comm_sum_store((unsigned char *)out + i * size, sum, m, t);
    }
    return leave(c);
}

static void copy(unsigned char *to, const unsigned char *from, size_t bytes)
{
    if (bytes && to != from)
        memcpy(to, from, bytes);
}

static enum err_code all_gather(struct comm *c, const void *in, void *out, size_t bytes,
                                void *stream, struct err *e)
{
    struct group *g = of(c)->group;
    (void)stream;
    if (enter(c, (struct place){.op = COMM_ALL_GATHER, .n = bytes, .in = in}, e))
        return e->code;
    for (uint32_t r = 0; r < c->n_ranks; r++)
        copy((unsigned char *)out + r * bytes, g->place[r].in, bytes);
    return leave(c);
}

static enum err_code all_to_allv(struct comm *c, const void *in, struct comm_parts send, void *out,
                                 struct comm_parts recv, void *stream, struct err *e)
{
    struct group *g = of(c)->group;
    struct err why = {0};
    (void)stream;
    if (enter(c, (struct place){.op = COMM_ALL_TO_ALLV, .in = in, .send = send}, e))
        return e->code;
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        const struct place *p = &g->place[r];
        if (p->send.bytes[c->rank] == recv.bytes[r])
            copy((unsigned char *)out + recv.at[r], p->in + p->send.at[c->rank], recv.bytes[r]);
        else
            err_set(&why, ERR_COMM,
                    "comm %s: all_to_allv %u: rank %u sends %zu bytes to rank %u, "
                    "who expects %zu",
                    c->group, c->seq, r, p->send.bytes[c->rank], c->rank, recv.bytes[r]);
    }
    if (why.code) { /* before the second door: all ranks see it there */
        mutex_lock(&g->lock);
        break_up(g, &why);
        mutex_unlock(&g->lock);
    }
    (void)leave(c);
    return c->body->error(c, e);
}

static enum err_code broadcast(struct comm *c, void *buf, size_t bytes, uint32_t root, void *stream,
                               struct err *e)
{
    struct group *g = of(c)->group;
    (void)stream;
    if (enter(c, (struct place){.op = COMM_BROADCAST, .n = bytes, .root = root, .in = buf}, e))
        return e->code;
    copy(buf, g->place[root].in, bytes);
    return leave(c);
}

static enum err_code barrier(struct comm *c, void *stream, struct err *e)
{
    (void)stream;
    return enter(c, (struct place){.op = COMM_BARRIER}, e) ? e->code : leave(c);
}

static void abort_group(struct comm *c, const char *text)
{
    struct group *g = of(c)->group;
    struct err why;
    err_set(&why, ERR_COMM, "%s", text);
    mutex_lock(&g->lock);
    break_up(g, &why);
    mutex_unlock(&g->lock);
}

static enum err_code error(struct comm *c, struct err *e)
{
    struct group *g = of(c)->group;
    mutex_lock(&g->lock);
    e->code = ERR_OK;
    if (g->broken)
        *e = g->why;
    mutex_unlock(&g->lock);
    return e->code;
}

static enum err_code wait_done(struct comm *c, void *stream, struct err *e)
{
    (void)stream;
    return error(c, e);
}

static void close_comm(struct comm *c)
{
    let_go(of(c)->group);
    free(c);
}

static const struct comm_body body = {all_reduce, all_gather, reduce_scatter, all_to_allv,
                                      broadcast,  barrier,    wait_done,      abort_group,
                                      error,      close_comm};

/* What rank 0 pins for the others. */
struct note {
    uint64_t process, id;
    uint64_t n_ranks;
};

static enum err_code find_group(struct group **out, const struct comm_config *cfg, struct err *e)
{
    char name[MEETING_NAME_BYTES];
    struct note note = {meeting_process(), 0, cfg->n_ranks};
    snprintf(name, sizeof name, "threads/%s", cfg->group);
    if (cfg->rank == 0) {
        struct group *g = make(cfg->n_ranks);
        if (!g)
            return err_set(e, ERR_NOMEM, "comm %s: a group of %u", cfg->group, cfg->n_ranks);
        note.id = g->id;
        if (meeting_pin(cfg->meeting, name, &note, sizeof note, e)) {
            let_go(g);
            return e->code;
        }
        *out = g;
        return ERR_OK;
    }
    if (meeting_read(cfg->meeting, name, &note, sizeof note, cfg->open_ms, e))
        return err_prefix(e, "comm %s: rank %u: rank 0 did not come", cfg->group, cfg->rank);
    if (note.process != meeting_process())
        return err_set(e, ERR_INVALID,
                       "comm %s: rank %u: rank 0 is in another process, which "
                       "threads cannot reach",
                       cfg->group, cfg->rank);
    if (note.n_ranks != cfg->n_ranks)
        return err_set(e, ERR_INVALID, "comm %s: rank %u has %u ranks, rank 0 has %u", cfg->group,
                       cfg->rank, cfg->n_ranks, (unsigned)note.n_ranks);
    *out = hold(note.id);
    if (!*out)
        return err_set(e, ERR_COMM, "comm %s: rank %u came after the group had ended", cfg->group,
                       cfg->rank);
    return ERR_OK;
}

enum err_code comm_threads_open(struct comm **out, const struct comm_config *cfg, struct err *e)
{
    struct threads_comm *c = FAULT("comm.threads") ? NULL : calloc(1, sizeof *c);
    if (!c)
        return err_set(e, ERR_NOMEM, "comm %s: rank %u", cfg->group, cfg->rank);
    if (find_group(&c->group, cfg, e)) {
        free(c);
        return e->code;
    }
    /* all of them meet before anybody returns: a first barrier, of number 0 */
    c->base = (struct comm){.group = cfg->group,
                            .rank = cfg->rank,
                            .n_ranks = cfg->n_ranks,
                            .timeout_ms = cfg->open_ms,
                            .body = &body};
    if (barrier(&c->base, NULL, e)) {
        close_comm(&c->base);
        return e->code;
    }
    *out = &c->base;
    return ERR_OK;
}
