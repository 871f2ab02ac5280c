/* comm.c - see comm.h: checks, counts, and calls the body. */
#include "comm/body.h"

#include "base/fault.h"
#include "base/thread.h"
#include "comm/meeting.h"

#include <stdlib.h>
#include <string.h>

size_t comm_dtype_bytes(enum comm_dtype t)
{
    return t == COMM_F32 ? 4 : 2;
}

const char *comm_op_name(enum comm_op op)
{
    static const char *const name[] = {"all_reduce",  "all_gather", "reduce_scatter", "all_to_all",
                                       "all_to_allv", "broadcast",  "barrier"};
    static_assert(sizeof name / sizeof *name == N_COMM_OPS, "a name for each operation");
    return name[op];
}

/* There only in a build with the GPU back end. */
#pragma weak comm_device_open
#pragma weak comm_nccl_open
#pragma weak comm_nccl_check

struct kind {
    const char *name;
    enum err_code (*open)(struct comm **out, const struct comm_config *cfg, struct err *e);
    bool meets; /* the ranks' first barrier is left to comm_open(): abort must find them by then */
};

static enum err_code find_kind(struct kind *out, const char *name, struct err *e)
{
    const struct kind all[] = {{"threads", comm_threads_open, false},
                               {"tcp", comm_tcp_open, true},
                               {"device", comm_device_open, false},
                               {"nccl", comm_nccl_open, false}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].open && !strcmp(all[i].name, name)) {
            *out = all[i];
            return ERR_OK;
        }
    return err_set(e, ERR_INVALID, "comm: \"%.40s\" is no kind of this build (threads, tcp%s%s)",
                   name, comm_device_open ? ", device" : "", comm_nccl_open ? ", nccl" : "");
}

enum err_code comm_kind_check(const char *name, struct err *e)
{
    struct kind kind;
    if (find_kind(&kind, name, e))
        return e->code;
    return kind.open == comm_nccl_open && comm_nccl_open ? comm_nccl_check(e) : ERR_OK;
}

/* All that are open in this process, so that ranks of one group can be told together. */
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static struct comm *all_open;

enum err_code comm_open(struct comm **out, const struct comm_config *given, struct err *e)
{
    struct comm_config cfg = *given;
    struct comm *c = NULL;
    struct kind kind;
    if (find_kind(&kind, cfg.kind, e))
        return e->code;
    if (cfg.n_ranks < 1 || cfg.n_ranks > COMM_MAX_RANKS || cfg.rank >= cfg.n_ranks)
        return err_set(e, ERR_INVALID, "comm %s: rank %u of %u (at most %d)", cfg.group, cfg.rank,
                       cfg.n_ranks, COMM_MAX_RANKS);
    if (!*cfg.group || strlen(cfg.group) > 48) /* a body may add to a name */
        return err_set(e, ERR_INVALID, "comm: a group's name has 1 to 40 letters: \"%.60s\"",
                       cfg.group);
    if (!cfg.timeout_ms)
        cfg.timeout_ms = COMM_TIMEOUT_MS;
    if (!cfg.open_ms)
        cfg.open_ms = COMM_OPEN_MS;
    if (FAULT("comm.open"))
        return err_set(e, ERR_COMM, "comm %s: rank %u of %u cannot join", cfg.group, cfg.rank,
                       cfg.n_ranks);
    char *name = strdup(cfg.group);
    if (!name)
        return err_set(e, ERR_NOMEM, "comm %s", cfg.group);
    if (kind.open(&c, &cfg, e)) {
        free(name);
        return e->code;
    }
    c->kind = kind.name;
    c->group = name;
    c->rank = cfg.rank;
    c->n_ranks = cfg.n_ranks;
    c->any_order = cfg.any_order;
    c->timeout_ms = cfg.open_ms;
    c->max_bytes = cfg.max_bytes;
    c->meeting = meeting_number(cfg.meeting);
    mutex_lock(&open_lock);
    c->next_open = all_open;
    all_open = c;
    mutex_unlock(&open_lock);
    if (kind.meets && c->body->barrier(c, NULL, e)) {
        comm_close(c);
        return e->code;
    }
    c->timeout_ms = cfg.timeout_ms;
    *out = c;
    return ERR_OK;
}

void comm_close(struct comm *c)
{
    if (!c)
        return;
    mutex_lock(&open_lock);
    struct comm **at = &all_open;
    while (*at != c)
        at = &(*at)->next_open;
    *at = c->next_open;
    mutex_unlock(&open_lock);
    char *name = (char *)c->group;
    c->body->close(c);
    free(name);
}

/* Counts a call; the place of fault of each operation is "comm.<name>". */
static enum err_code begin(struct comm *c, enum comm_op op, size_t bytes, bool fault, struct err *e)
{
    c->seq++;
    c->op = op;
    if (bytes > c->max_bytes)
        err_set(e, ERR_INVALID, "comm %s: rank %u: %s %u of %zu bytes: the bound is %zu", c->group,
                c->rank, comm_op_name(op), c->seq, bytes, c->max_bytes);
    else if (fault)
        err_set(e, ERR_COMM, "comm %s: rank %u: %s %u failed", c->group, c->rank, comm_op_name(op),
                c->seq);
    else
        e->code = ERR_OK;
    if (e->code) {
        comm_abort(c, e->msg);
        return e->code;
    }
    c->n_calls[op]++;
    c->n_bytes[op] += bytes;
    return ERR_OK;
}

enum err_code comm_all_reduce(struct comm *c, const void *in, void *out, size_t n,
                              enum comm_dtype t, void *stream, struct err *e)
{
    if (begin(c, COMM_ALL_REDUCE, n * comm_dtype_bytes(t), FAULT("comm.all_reduce"), e))
        return e->code;
    return c->body->all_reduce(c, in, out, n, t, stream, e);
}

enum err_code comm_all_gather(struct comm *c, const void *in, void *out, size_t bytes, void *stream,
                              struct err *e)
{
    if (begin(c, COMM_ALL_GATHER, bytes, FAULT("comm.all_gather"), e))
        return e->code;
    return c->body->all_gather(c, in, out, bytes, stream, e);
}

enum err_code comm_reduce_scatter(struct comm *c, const void *in, void *out, size_t n,
                                  enum comm_dtype t, void *stream, struct err *e)
{
    size_t bytes = n * c->n_ranks * comm_dtype_bytes(t);
    if (begin(c, COMM_REDUCE_SCATTER, bytes, FAULT("comm.reduce_scatter"), e))
        return e->code;
    return c->body->reduce_scatter(c, in, out, n, t, stream, e);
}

enum err_code comm_all_to_all(struct comm *c, const void *in, void *out, size_t bytes, void *stream,
                              struct err *e)
{
    size_t at[COMM_MAX_RANKS], each[COMM_MAX_RANKS];
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        at[r] = r * bytes;
        each[r] = bytes;
    }
    struct comm_parts parts = {at, each};
    if (begin(c, COMM_ALL_TO_ALL, c->n_ranks * bytes, FAULT("comm.all_to_all"), e))
        return e->code;
    return c->body->all_to_allv(c, in, parts, out, parts, stream, e);
}

static size_t sum_of(const size_t *bytes, uint32_t n)
{
    size_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += bytes[i];
    return sum;
}

enum err_code comm_all_to_allv(struct comm *c, const void *in, struct comm_parts send, void *out,
                               struct comm_parts recv, void *stream, struct err *e)
{
    size_t sent = sum_of(send.bytes, c->n_ranks), got = sum_of(recv.bytes, c->n_ranks);
    if (begin(c, COMM_ALL_TO_ALLV, sent > got ? sent : got, FAULT("comm.all_to_allv"), e))
        return e->code;
    return c->body->all_to_allv(c, in, send, out, recv, stream, e);
}

enum err_code comm_broadcast(struct comm *c, void *buf, size_t bytes, uint32_t root, void *stream,
                             struct err *e)
{
    assert(root < c->n_ranks);
    if (begin(c, COMM_BROADCAST, bytes, FAULT("comm.broadcast"), e))
        return e->code;
    return c->body->broadcast(c, buf, bytes, root, stream, e);
}

enum err_code comm_barrier(struct comm *c, void *stream, struct err *e)
{
    if (begin(c, COMM_BARRIER, 0, FAULT("comm.barrier"), e))
        return e->code;
    return c->body->barrier(c, stream, e);
}

enum err_code comm_wait(struct comm *c, void *stream, struct err *e)
{
    if (FAULT("comm.wait")) {
        err_set(e, ERR_COMM, "comm %s: rank %u: waiting for call %u failed", c->group, c->rank,
                c->seq);
        comm_abort(c, e->msg);
        return e->code;
    }
    return c->body->wait(c, stream, e);
}

void comm_abort(struct comm *c, const char *why)
{
    mutex_lock(&open_lock);
    for (struct comm *o = all_open; o; o = o->next_open)
        if (o->body == c->body && o->meeting == c->meeting && !strcmp(o->group, c->group))
            o->body->abort(o, why);
    mutex_unlock(&open_lock);
}

void comm_abort_all(const char *why)
{
    mutex_lock(&open_lock);
    for (struct comm *o = all_open; o; o = o->next_open)
        o->body->abort(o, why);
    mutex_unlock(&open_lock);
}

enum err_code comm_error(struct comm *c, struct err *e)
{
    return c->body->error(c, e);
}

void comm_environment(void)
{
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
}
