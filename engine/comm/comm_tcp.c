/* comm_tcp.c - the "tcp" body of comm.h: ranks of one or several processes over host memory.
 *
 * Each pair of ranks has a connection, and every call is one exchange: to each peer a head that
 * names the call, then its bytes; from each peer the same. All of it moves at once, by the rank's
 * own thread, which waits in poll() for whatever can move. Sums are made here, in rank order: small
 * ones from the parts of all, large ones a slice on each rank, which is then handed to all.
 *
 * For nodes without GPUs; on one machine threads (comm_threads.c) are faster.
 */
#include "comm/body.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"
#include "comm/line.h"
#include "comm/sum.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { SMALL_BYTES = 16 << 10, TURN_MS = 100 };

/* What a rank says of a call before its bytes. */
struct head {
    uint64_t bytes, n; /* that follow; elements of the call, or bytes */
    uint32_t op, seq, root, dtype;
};

/* One direction of an exchange with one peer. */
struct flow {
    struct head head;
    unsigned char *at; /* of the bytes; only read from where they are sent */
    size_t moved;      /* of head and bytes */
    bool checked;      /* in: the head is what this rank expects */
};

struct tcp_comm {
    struct comm base;
    int line[COMM_MAX_RANKS]; /* [n_ranks]; the own one is -1 */
    unsigned char *scratch;   /* parts that are summed */
    struct flow out[COMM_MAX_RANKS], in[COMM_MAX_RANKS];
    struct pollfd poll[COMM_MAX_RANKS];
    pthread_mutex_t lock;
    _Atomic bool broken;
    struct err why; /* under lock */
};

static struct tcp_comm *of(struct comm *c)
{
    return (struct tcp_comm *)c;
}

/* Any thread: calls under way end, since their lines do. The first reason stays. */
static void abort_group(struct comm *c, const char *why)
{
    struct tcp_comm *t = of(c);
    mutex_lock(&t->lock);
    if (!t->why.code)
        err_set(&t->why, ERR_COMM, "%s", why);
    mutex_unlock(&t->lock);
    atomic_store(&t->broken, true);
    for (uint32_t r = 0; r < c->n_ranks; r++)
        if (t->line[r] >= 0)
            line_shut(t->line[r]);
}

static enum err_code error(struct comm *c, struct err *e)
{
    struct tcp_comm *t = of(c);
    mutex_lock(&t->lock);
    *e = t->why;
    mutex_unlock(&t->lock);
    return e->code;
}

/* ---- an exchange ---- */

static bool flow_done(const struct flow *f)
{
    return f->moved >= sizeof f->head && f->moved == sizeof f->head + f->head.bytes;
}

/* The piece that comes next of a flow. */
static size_t next_piece(struct flow *f, unsigned char **at)
{
    if (f->moved < sizeof f->head) {
        *at = (unsigned char *)&f->head + f->moved;
        return sizeof f->head - f->moved;
    }
    *at = f->at + (f->moved - sizeof f->head);
    return sizeof f->head + f->head.bytes - f->moved;
}

/* Moves what can be moved now; false: the line has ended. */
static bool move(int line, struct flow *f, bool out)
{
    unsigned char *at;
    size_t left = next_piece(f, &at);
    if (!left)
        return true;
    ssize_t n = out ? send(line, at, left, MSG_DONTWAIT | MSG_NOSIGNAL)
                    : recv(line, at, left, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return true;
    if (n <= 0)
        return false;
    f->moved += (size_t)n;
    return true;
}

static enum err_code fail(struct comm *c, const char *why, struct err *e)
{
    comm_abort(c, why);
    return error(c, e);
}

/* Whether rank r came to the call that this rank is in, with the bytes that it expects. */
static enum err_code check_head(struct comm *c, uint32_t r, const struct head *mine, size_t bytes,
                                struct err *e)
{
    const struct head *h = &of(c)->in[r].head;
    char why[220];
    if (h->op != mine->op || h->seq != mine->seq || h->n != mine->n || h->root != mine->root ||
        h->dtype != mine->dtype)
        snprintf(why, sizeof why,
                 "comm %s: rank %u came to %s %u of %llu, rank %u to %s %u of %llu", c->group,
                 c->rank, comm_op_name((enum comm_op)mine->op), mine->seq,
                 (unsigned long long)mine->n, r,
                 h->op < N_COMM_OPS ? comm_op_name((enum comm_op)h->op) : "nothing known", h->seq,
                 (unsigned long long)h->n);
    else if (h->bytes != bytes)
        snprintf(why, sizeof why,
                 "comm %s: %s %u: rank %u sends %llu bytes to rank %u, who expects %zu", c->group,
                 comm_op_name((enum comm_op)mine->op), mine->seq, r, (unsigned long long)h->bytes,
                 c->rank, bytes);
    else
        return ERR_OK;
    return fail(c, why, e);
}

/* Those whose part has not come, as "1, 3". */
static void name_missing(const struct tcp_comm *t, char *text, size_t room)
{
    size_t at = 0;
    text[0] = '\0';
    for (uint32_t r = 0; r < t->base.n_ranks && at + 6 < room; r++)
        if (r != t->base.rank && (!flow_done(&t->in[r]) || !flow_done(&t->out[r])))
            at += (size_t)snprintf(text + at, room - at, "%s%u", at ? ", " : "", r);
}

static enum err_code late(struct comm *c, const struct head *h, uint32_t timeout_ms, struct err *e)
{
    char missing[64], why[220];
    name_missing(of(c), missing, sizeof missing);
    snprintf(why, sizeof why, "comm %s: rank %s of %u did not come to %s %u within %u ms", c->group,
             missing, c->n_ranks, comm_op_name((enum comm_op)h->op), h->seq, timeout_ms);
    return fail(c, why, e);
}

/* Moves what one peer's line is ready for. */
static enum err_code serve(struct comm *c, uint32_t r, const struct head *h, size_t expected,
                           short ready, struct err *e)
{
    struct tcp_comm *t = of(c);
    char why[160];
    bool alive = true;
    if (ready & (POLLOUT | POLLERR | POLLHUP))
        alive = move(t->line[r], &t->out[r], true);
    if (alive && ready & (POLLIN | POLLERR | POLLHUP))
        alive = move(t->line[r], &t->in[r], false);
    if (!alive) {
        if (atomic_load(&t->broken))
            return error(c, e);
        snprintf(why, sizeof why, "comm %s: rank %u of %u is gone: it hung up in %s %u", c->group,
                 r, c->n_ranks, comm_op_name((enum comm_op)h->op), h->seq);
        return fail(c, why, e);
    }
    if (!t->in[r].checked && t->in[r].moved >= sizeof *h) {
        t->in[r].checked = true;
        return check_head(c, r, h, expected, e);
    }
    return ERR_OK;
}

/* from.bytes[r] at in + from.at[r] go to rank r, to.bytes[r] of rank r come to out + to.at[r]. The
 * own part is copied. */
static enum err_code exchange(struct comm *c, struct head h, const void *in, struct comm_parts from,
                              void *out, struct comm_parts to, struct err *e)
{
    struct tcp_comm *t = of(c);
    uint64_t end_us = clock_us() + c->timeout_ms * 1000ull;
    uint32_t own = c->rank, left = 0;
    const unsigned char *src = in;
    unsigned char *dst = out;
    if (atomic_load(&t->broken))
        return error(c, e);
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        h.bytes = from.bytes[r];
        t->out[r] = (struct flow){.head = h, .at = (unsigned char *)(uintptr_t)src + from.at[r]};
        t->in[r] = (struct flow){.at = dst + to.at[r]};
        left += r != own;
    }
    if (from.bytes[own] != to.bytes[own])
        return fail(c, "a rank sends itself another size than it expects", e);
    if (from.bytes[own] && dst + to.at[own] != src + from.at[own])
        memmove(dst + to.at[own], src + from.at[own], from.bytes[own]);
    while (left) {
        left = 0;
        for (uint32_t r = 0; r < c->n_ranks; r++) {
            bool sent = flow_done(&t->out[r]), got = flow_done(&t->in[r]);
            short want = (short)((sent ? 0 : POLLOUT) | (got ? 0 : POLLIN));
            t->poll[r] = (struct pollfd){.fd = want ? t->line[r] : -1, .events = want};
            left += want && r != own;
        }
        if (!left)
            break;
        if (atomic_load(&t->broken))
            return error(c, e);
        if (clock_us() > end_us)
            return late(c, &h, c->timeout_ms, e);
        (void)poll(t->poll, c->n_ranks, TURN_MS);
        for (uint32_t r = 0; r < c->n_ranks; r++)
            if (t->poll[r].fd >= 0 && t->poll[r].revents &&
                serve(c, r, &h, to.bytes[r], t->poll[r].revents, e))
                return e->code;
    }
    return ERR_OK;
}

static struct head head_of(const struct comm *c, enum comm_op op, uint64_t n)
{
    return (struct head){.op = (uint32_t)op, .seq = c->seq, .n = n};
}

/* ---- the operations ---- */

/* Where each rank's part begins, and its size. */
struct cuts {
    size_t at[COMM_MAX_RANKS], bytes[COMM_MAX_RANKS];
};

static struct comm_parts parts_of(const struct cuts *k)
{
    return (struct comm_parts){k->at, k->bytes};
}

static struct cuts same_parts(uint32_t n_ranks, size_t at, size_t step, size_t bytes)
{
    struct cuts k = {{0}, {0}};
    for (uint32_t r = 0; r < n_ranks; r++) {
        k.at[r] = at + r * step;
        k.bytes[r] = bytes;
    }
    return k;
}

/* The first of the n elements that rank r sums. */
static size_t slice_begin(const struct comm *c, uint32_t r, size_t n)
{
    return n * r / c->n_ranks;
}

/* The sum of all ranks' slices of `own` elements, which come from what `give` hands out of in. */
static enum err_code sum_slices(struct comm *c, struct head h, const void *in, size_t own,
                                const struct cuts *give, void *out, enum comm_dtype t,
                                struct err *e)
{
    struct tcp_comm *k = of(c);
    size_t bytes = own * comm_dtype_bytes(t);
    struct cuts take = same_parts(c->n_ranks, 0, bytes, bytes);
    float sum[COMM_SUM_BLOCK];
    if (exchange(c, h, in, parts_of(give), k->scratch, parts_of(&take), e))
        return e->code;
    for (size_t i = 0; i < own; i += COMM_SUM_BLOCK) {
        size_t n = own - i < COMM_SUM_BLOCK ? own - i : COMM_SUM_BLOCK,
               at = i * comm_dtype_bytes(t);
        for (uint32_t r = 0; r < c->n_ranks; r++)
            comm_sum_add(sum, k->scratch + r * bytes + at, n, t, r == 0);
        comm_sum_store((unsigned char *)out + at, sum, n, t);
    }
    return ERR_OK;
}

static enum err_code all_reduce(struct comm *c, const void *in, void *out, size_t n,
                                enum comm_dtype t, void *stream, struct err *e)
{
    size_t size = comm_dtype_bytes(t), bytes = n * size;
    struct head h = head_of(c, COMM_ALL_REDUCE, n);
    h.dtype = (uint32_t)t;
    (void)stream;
    if (bytes <= SMALL_BYTES) {
        struct cuts give = same_parts(c->n_ranks, 0, 0, bytes);
        return sum_slices(c, h, in, n, &give, out, t, e);
    }
    size_t first = slice_begin(c, c->rank, n), own = slice_begin(c, c->rank + 1, n) - first;
    struct cuts give, take = same_parts(c->n_ranks, first * size, 0, own * size);
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        give.at[r] = slice_begin(c, r, n) * size;
        give.bytes[r] = slice_begin(c, r + 1, n) * size - give.at[r];
    }
    if (sum_slices(c, h, in, own, &give, (unsigned char *)out + first * size, t, e))
        return e->code;
    return exchange(c, h, out, parts_of(&take), out, parts_of(&give), e);
}

static enum err_code reduce_scatter(struct comm *c, const void *in, void *out, size_t n,
                                    enum comm_dtype t, void *stream, struct err *e)
{
    size_t bytes = n * comm_dtype_bytes(t);
    struct head h = head_of(c, COMM_REDUCE_SCATTER, n);
    struct cuts give = same_parts(c->n_ranks, 0, bytes, bytes);
    h.dtype = (uint32_t)t;
    (void)stream;
    return sum_slices(c, h, in, n, &give, out, t, e);
}

static enum err_code all_gather(struct comm *c, const void *in, void *out, size_t bytes,
                                void *stream, struct err *e)
{
    struct cuts give = same_parts(c->n_ranks, 0, 0, bytes);
    struct cuts take = same_parts(c->n_ranks, 0, bytes, bytes);
    (void)stream;
    return exchange(c, head_of(c, COMM_ALL_GATHER, bytes), in, parts_of(&give), out,
                    parts_of(&take), e);
}

static enum err_code all_to_allv(struct comm *c, const void *in, struct comm_parts send, void *out,
                                 struct comm_parts recv, void *stream, struct err *e)
{
    (void)stream;
    return exchange(c, head_of(c, COMM_ALL_TO_ALLV, 0), in, send, out, recv, e);
}

static enum err_code broadcast(struct comm *c, void *buf, size_t bytes, uint32_t root, void *stream,
                               struct err *e)
{
    struct cuts give = same_parts(c->n_ranks, 0, 0, c->rank == root ? bytes : 0);
    struct cuts take = same_parts(c->n_ranks, 0, 0, 0);
    struct head h = head_of(c, COMM_BROADCAST, bytes);
    h.root = root;
    take.bytes[root] = bytes;
    (void)stream;
    return exchange(c, h, buf, parts_of(&give), buf, parts_of(&take), e);
}

static enum err_code barrier(struct comm *c, void *stream, struct err *e)
{
    struct cuts none = same_parts(c->n_ranks, 0, 0, 0);
    (void)stream;
    return exchange(c, head_of(c, COMM_BARRIER, 0), of(c)->scratch, parts_of(&none), of(c)->scratch,
                    parts_of(&none), e);
}

static enum err_code wait_done(struct comm *c, void *stream, struct err *e)
{
    (void)stream;
    return error(c, e);
}

static void close_comm(struct comm *c)
{
    struct tcp_comm *t = of(c);
    for (uint32_t r = 0; r < COMM_MAX_RANKS; r++)
        line_close(t->line[r]);
    pthread_mutex_destroy(&t->lock);
    free(t->scratch);
    free(t);
}

static const struct comm_body body = {all_reduce, all_gather, reduce_scatter, all_to_allv,
                                      broadcast,  barrier,    wait_done,      abort_group,
                                      error,      close_comm};

/* A line to each other rank: the lower ones are called, the higher ones call. */
static enum err_code open_lines(struct tcp_comm *t, const struct comm_config *cfg, struct err *e)
{
    char name[MEETING_NAME_BYTES];
    struct line_door door;
    snprintf(name, sizeof name, "tcp/%s/%u", cfg->group, cfg->rank);
    if (line_open_door(&door, cfg->meeting, name, e))
        return e->code;
    e->code = ERR_OK;
    for (uint32_t r = 0; r < cfg->rank && !e->code; r++) {
        snprintf(name, sizeof name, "tcp/%s/%u", cfg->group, r);
        if (line_call(&t->line[r], cfg->meeting, name, cfg->rank, cfg->open_ms, e))
            err_prefix(e, "comm %s: rank %u: rank %u did not come", cfg->group, cfg->rank, r);
        else
            e->code = ERR_OK;
    }
    uint32_t higher = cfg->n_ranks - 1 - cfg->rank;
    if (!e->code && line_answer(&door, t->line, cfg->n_ranks, higher, cfg->open_ms, e))
        err_prefix(e, "comm %s: rank %u", cfg->group, cfg->rank);
    line_close_door(&door);
    return e->code;
}

enum err_code comm_tcp_open(struct comm **out, const struct comm_config *cfg, struct err *e)
{
    struct tcp_comm *t = FAULT("comm.tcp") ? NULL : calloc(1, sizeof *t);
    if (!t)
        return err_set(e, ERR_NOMEM, "comm %s: rank %u", cfg->group, cfg->rank);
    pthread_mutex_init(&t->lock, NULL);
    for (uint32_t r = 0; r < COMM_MAX_RANKS; r++)
        t->line[r] = -1;
    t->base.body = &body;
    size_t small = cfg->n_ranks * (size_t)SMALL_BYTES;
    size_t most = cfg->max_bytes + cfg->n_ranks * sizeof(float); /* slices are rounded up */
    t->scratch = malloc(most > small ? most : small);
    if (!t->scratch)
        err_set(e, ERR_NOMEM, "comm %s: %zu bytes", cfg->group, most);
    else
        e->code = ERR_OK;
    if (e->code || open_lines(t, cfg, e)) {
        close_comm(&t->base);
        return e->code;
    }
    *out = &t->base;
    return ERR_OK;
}
