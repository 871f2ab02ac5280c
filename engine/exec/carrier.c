/* carrier.c - see carrier.h. */
#include "exec/carrier.h"

#include "base/fault.h"
#include "comm/launch.h"
#include "comm/line.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { END_MS = 2000 };
static const char order_door[] = "moves"; /* process 0's; each process has one for pages, too */

enum {
    KIND_MOVE = 0x65766F6D,
    KIND_DONE = 0x656E6F64,
    KIND_END = 0x21646E65,
    KIND_READY = 0x79647261,
    KIND_PARCEL = 0x6C637270
};
struct order { /* from process 0; for KIND_MOVE the ids follow: from[n_pages], to[n_pages] */
    uint32_t kind, source, target, n_pages;
    uint64_t number;
};
struct report { /* back; sums follow: sum_from[n_pages], sum_to[n_pages] */
    uint32_t kind, n_pages;
    uint64_t number;
    struct err err;
};
struct ready {
    uint32_t kind, rank;
    uint64_t number;
};
struct parcel { /* n pages follow */
    uint32_t kind, first, n, spare;
    uint64_t number;
    struct err err;
};

struct carrier {
    uint32_t process, n_processes, n_here; /* n_here: ranks of a process */
    uint32_t n_groups, n_prefill, n_ranks, group;
    int order[LAUNCH_MAX_PROCESSES]; /* -1: none; elsewhere [0] is to process 0 */
    int pages[LAUNCH_MAX_PROCESSES]; /* to or from that process */
    uint64_t number;                 /* of the move */
    uint32_t n_pages, max_pages;
    bool told_end;
    uint32_t *id;  /* [2 * max_pages] from and to */
    uint64_t *sum; /* [2 * max_pages] */
};

/* ---- who has what ---- */

uint32_t carrier_process(const struct carrier *c, uint32_t rank)
{
    return rank / c->n_here;
}

static bool has_group(const struct carrier *c, uint32_t process, uint32_t group)
{
    uint32_t first = process * c->n_here, last = first + c->n_here - 1;
    return first < (group + 1) * c->n_ranks && last >= group * c->n_ranks;
}

static bool has_part(const struct carrier *c, uint32_t process)
{
    bool has = has_group(c, process, c->group);
    for (uint32_t g = c->n_prefill; g < c->n_groups; g++)
        has = has || has_group(c, process, g);
    return has;
}

/* Whether some rank of the group in `from` gives to one in `to`: in its place of a group that
 * decodes. */
static bool gives(const struct carrier *c, uint32_t from, uint32_t to)
{
    for (uint32_t g = c->n_prefill; g < c->n_groups; g++)
        for (uint32_t r = 0; r < c->n_ranks; r++)
            if (carrier_process(c, c->group * c->n_ranks + r) == from &&
                carrier_process(c, g * c->n_ranks + r) == to)
                return from != to;
    return false;
}

static enum err_code gone(const struct carrier *c, uint32_t process, const char *how, struct err *e)
{
    return err_set(e, ERR_COMM, "process %u of %u %s", process, c->n_processes, how);
}

static const char ended[] = "is gone: the line of its moves ended";
static const char deaf[] = "takes no more moves";

/* Another process's error, whose file means nothing here. */
static struct err foreign(const struct carrier *c, uint32_t process, const struct err *sent)
{
    struct err e = *sent;
    e.file = "";
    e.msg[sizeof e.msg - 1] = '\0';
    if (e.code)
        err_prefix(&e, "process %u of %u", process, c->n_processes);
    return e;
}

/* ---- what is said ---- */

enum err_code carrier_tell(struct carrier *c, const struct page_move *m, struct err *e)
{
    struct order o = {KIND_MOVE, m->source, m->target, m->n_pages, ++c->number};
    size_t bytes = m->n_pages * sizeof *m->from;
    assert(m->n_pages <= c->max_pages);
    for (uint32_t p = 1; p < c->n_processes; p++) {
        if (c->order[p] < 0 || (!has_group(c, p, m->source) && !has_group(c, p, m->target)))
            continue;
        if (!line_send(c->order[p], &o, sizeof o) || !line_send(c->order[p], m->from, bytes) ||
            !line_send(c->order[p], m->to, bytes))
            return gone(c, p, deaf, e);
    }
    return ERR_OK;
}

enum err_code carrier_hear(struct carrier *c, struct page_move *m, struct err *e)
{
    for (uint32_t p = 1; p < c->n_processes; p++) {
        struct report r;
        if (c->order[p] < 0 || (!has_group(c, p, m->source) && !has_group(c, p, m->target)))
            continue;
        if (!line_receive(c->order[p], &r, sizeof r))
            return gone(c, p, ended, e);
        if (r.kind != KIND_DONE || r.number != c->number || r.n_pages != m->n_pages)
            return gone(c, p, "told of another move", e);
        if (!line_receive(c->order[p], c->sum, 2 * r.n_pages * sizeof *c->sum))
            return gone(c, p, ended, e);
        for (uint32_t i = 0; i < r.n_pages; i++) {
            m->sum_from[i] += c->sum[i];
            m->sum_to[i] += c->sum[r.n_pages + i];
        }
        if (!m->err.code)
            m->err = foreign(c, p, &r.err);
    }
    return ERR_OK;
}

void carrier_end(struct carrier *c)
{
    const struct order o = {.kind = KIND_END};
    c->told_end = true;
    for (uint32_t p = 1; p < c->n_processes; p++)
        if (c->order[p] >= 0)
            (void)!line_send(c->order[p], &o, sizeof o); /* one that is gone needs no word */
}

enum err_code carrier_next(struct carrier *c, struct page_move *m, bool *end, struct err *e)
{
    struct order o;
    if (!line_receive(c->order[0], &o, sizeof o))
        return gone(c, 0, ended, e);
    *end = o.kind == KIND_END;
    if (*end)
        return ERR_OK;
    if (o.kind != KIND_MOVE || o.n_pages > c->max_pages || o.source != c->group ||
        o.target < c->n_prefill || o.target >= c->n_groups)
        return gone(c, 0, "sent something that is no move", e);
    if (!line_receive(c->order[0], c->id, 2 * o.n_pages * sizeof *c->id))
        return gone(c, 0, ended, e);
    for (uint32_t i = 0; i < 2 * o.n_pages; i++)
        if (c->id[i] >= c->n_pages)
            return gone(c, 0, "sent a move of pages that are none", e);
    c->number = o.number;
    *m = (struct page_move){.source = o.source,
                            .target = o.target,
                            .n_pages = o.n_pages,
                            .max_pages = c->max_pages,
                            .from = c->id,
                            .to = c->id + o.n_pages,
                            .sum_from = c->sum,
                            .sum_to = c->sum + o.n_pages};
    return ERR_OK;
}

enum err_code carrier_answer(struct carrier *c, const struct page_move *m, struct err *e)
{
    struct report r = {KIND_DONE, m->n_pages, c->number, m->err};
    if (!line_send(c->order[0], &r, sizeof r) ||
        !line_send(c->order[0], c->sum, 2 * m->n_pages * sizeof *c->sum))
        return gone(c, 0, deaf, e);
    return ERR_OK;
}

/* ---- pages ---- */

enum err_code carrier_await(struct carrier *c, uint32_t process, uint32_t rank, struct err *e)
{
    struct ready r;
    if (!line_receive(c->pages[process], &r, sizeof r))
        return gone(c, process, ended, e);
    if (r.kind != KIND_READY || r.rank != rank || r.number != c->number)
        return gone(c, process, "is ready for other pages", e);
    return ERR_OK;
}

enum err_code carrier_ready(struct carrier *c, uint32_t process, uint32_t rank, struct err *e)
{
    const struct ready r = {KIND_READY, rank, c->number};
    return line_send(c->pages[process], &r, sizeof r) ? ERR_OK : gone(c, process, deaf, e);
}

enum err_code carrier_give(struct carrier *c, uint32_t process, uint32_t first, uint32_t n,
                           const void *bytes, size_t page_bytes, const struct err *why,
                           struct err *e)
{
    struct parcel p = {KIND_PARCEL, first, n, 0, c->number, {0}};
    if (why)
        p.err = *why;
    if (!line_send(c->pages[process], &p, sizeof p) ||
        (n && !line_send(c->pages[process], bytes, n * page_bytes)))
        return gone(c, process, deaf, e);
    return ERR_OK;
}

enum err_code carrier_take(struct carrier *c, uint32_t process, uint32_t *first, uint32_t *n,
                           void *bytes, size_t page_bytes, uint32_t max_n, struct err *why,
                           struct err *e)
{
    struct parcel p;
    if (!line_receive(c->pages[process], &p, sizeof p))
        return gone(c, process, ended, e);
    if (p.kind != KIND_PARCEL || p.number != c->number || p.n > max_n)
        return gone(c, process, "sent something that is no page", e);
    if (p.n && !line_receive(c->pages[process], bytes, p.n * page_bytes))
        return gone(c, process, ended, e);
    *first = p.first;
    *n = p.n;
    *why = foreign(c, process, &p.err);
    return ERR_OK;
}

/* ---- life ---- */

static enum err_code create(struct carrier **out, const struct carriers_config *c, uint32_t group,
                            struct err *e)
{
    struct carrier *k = FAULT("carrier.create") ? NULL : calloc(1, sizeof *k);
    if (!k)
        return err_set(e, ERR_NOMEM, "a carrier");
    k->process = c->process;
    k->n_processes = c->n_processes;
    k->n_here = c->n_groups * c->n_ranks / c->n_processes;
    k->n_groups = c->n_groups;
    k->n_prefill = c->n_prefill;
    k->n_ranks = c->n_ranks;
    k->group = group;
    k->n_pages = c->n_pages;
    k->max_pages = c->max_pages;
    for (uint32_t p = 0; p < LAUNCH_MAX_PROCESSES; p++)
        k->order[p] = k->pages[p] = -1;
    *out = k;
    k->id = calloc(2 * (size_t)c->max_pages, sizeof *k->id);
    k->sum = calloc(2 * (size_t)c->max_pages, sizeof *k->sum);
    return k->id && k->sum ? ERR_OK : err_set(e, ERR_NOMEM, "moves of %u pages", c->max_pages);
}

static void destroy(struct carrier *k)
{
    for (uint32_t p = 0; p < LAUNCH_MAX_PROCESSES; p++) {
        line_close(k->order[p]);
        line_close(k->pages[p]);
    }
    free(k->id);
    free(k->sum);
    free(k);
}

static void name_door(char out[MEETING_NAME_BYTES], uint32_t process)
{
    snprintf(out, MEETING_NAME_BYTES, "pages/%u", process);
}

/* Those who get pages call those who give, and all call process 0. */
static enum err_code call_others(struct carriers *all, const struct carriers_config *c,
                                 struct err *e)
{
    char name[MEETING_NAME_BYTES];
    for (uint32_t g = 0; g < all->n; g++) {
        struct carrier *k = all->of[g];
        uint32_t who = g * c->n_processes + c->process;
        if (c->process && has_part(k, c->process) &&
            line_call(&k->order[0], c->meeting, order_door, who, c->open_ms, e))
            return e->code;
        for (uint32_t p = 0; p < c->n_processes; p++) {
            name_door(name, p);
            if (gives(k, p, c->process) &&
                line_call(&k->pages[p], c->meeting, name, who, c->open_ms, e))
                return e->code;
        }
    }
    return ERR_OK;
}

/* A caller's number is that of its group and process. */
static enum err_code take_calls(struct carriers *all, const struct carriers_config *c,
                                struct line_door *door, bool orders, struct err *e)
{
    uint32_t n_numbers = all->n * c->n_processes, n = 0;
    int *line = malloc(n_numbers * sizeof *line);
    if (!line)
        return err_set(e, ERR_NOMEM, "lines to %u processes", c->n_processes);
    for (uint32_t i = 0; i < n_numbers; i++) {
        const struct carrier *k = all->of[i / c->n_processes];
        uint32_t p = i % c->n_processes;
        line[i] = -1;
        n += orders ? p && has_part(k, p) : gives(k, c->process, p);
    }
    enum err_code code = line_answer(door, line, n_numbers, n, c->open_ms, e);
    for (uint32_t i = 0; i < n_numbers; i++)
        if (line[i] >= 0) {
            struct carrier *k = all->of[i / c->n_processes];
            (orders ? k->order : k->pages)[i % c->n_processes] = line[i];
        }
    free(line);
    return code;
}

/* A call waits for no answer, so all call first. */
static enum err_code open_lines(struct carriers *all, const struct carriers_config *c,
                                struct err *e)
{
    struct line_door orders = {.fd = -1}, pages = {.fd = -1};
    char name[MEETING_NAME_BYTES];
    name_door(name, c->process);
    enum err_code code = line_open_door(&pages, c->meeting, name, e);
    if (!code && !c->process)
        code = line_open_door(&orders, c->meeting, order_door, e);
    if (!code)
        code = call_others(all, c, e);
    if (!code && !c->process)
        code = take_calls(all, c, &orders, true, e);
    if (!code)
        code = take_calls(all, c, &pages, false, e);
    line_close_door(&orders);
    line_close_door(&pages);
    return code;
}

enum err_code carriers_open(struct carriers *out, const struct carriers_config *c, struct err *e)
{
    struct carriers all = {.n = c->n_prefill, .process = c->process, .n_processes = c->n_processes};
    assert(c->n_processes <= LAUNCH_MAX_PROCESSES && c->process < c->n_processes);
    assert(c->n_groups * c->n_ranks % c->n_processes == 0);
    all.of = calloc(all.n, sizeof(struct carrier *));
    if (!all.of)
        return err_set(e, ERR_NOMEM, "carriers");
    e->code = ERR_OK;
    for (uint32_t g = 0; g < all.n && !e->code; g++)
        (void)!create(&all.of[g], c, g, e);
    if (e->code || open_lines(&all, c, e)) {
        carriers_close(&all);
        return e->code;
    }
    for (uint32_t g = 0; g < all.n; g++)
        if (c->process && !has_part(all.of[g], c->process)) {
            destroy(all.of[g]);
            all.of[g] = NULL;
        }
    *out = all;
    return ERR_OK;
}

void carriers_shut(const struct carriers *all)
{
    for (uint32_t g = 0; g < all->n; g++)
        for (uint32_t p = 0; all->of[g] && p < all->n_processes; p++) {
            if (all->of[g]->order[p] >= 0)
                line_shut(all->of[g]->order[p]);
            if (all->of[g]->pages[p] >= 0)
                line_shut(all->of[g]->pages[p]);
        }
}

void carriers_close(struct carriers *all)
{
    for (uint32_t g = 0; all->of && g < all->n; g++) {
        struct carrier *k = all->of[g];
        for (uint32_t p = 1; k && k->told_end && p < k->n_processes; p++)
            if (k->order[p] >= 0)
                line_await_end(k->order[p], END_MS);
        if (k)
            destroy(k);
    }
    free(all->of);
    *all = (struct carriers){0};
}
