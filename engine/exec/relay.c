/* relay.c - see relay.h. */
#include "exec/relay.h"

#include "base/fault.h"
#include "comm/launch.h"
#include "comm/line.h"

#include <stdlib.h>
#include <string.h>

enum { END_MS = 2000, MAX_BYTES = 1 << 30 };
static const char door_name[] = "steps";

enum { KIND_ROUND = 0x70657473, KIND_ANSWER = 0x6F736C61, KIND_END = 0x646E6521 };
struct head {
    uint32_t kind, n_parts;
    uint64_t round, bytes;
};

struct relay {
    uint32_t process, n_processes, n_here;   /* n_here: ranks of a process */
    uint32_t first_group, n_groups, n_ranks; /* of the team; ranks of a group */
    int line[LAUNCH_MAX_PROCESSES];          /* -1: none; elsewhere [0] is to process 0 */
    uint64_t round;
    bool ended; /* the others were told of the end */
    struct wire_limits limits;
    struct wire message;
    struct wire_room *room; /* [n_groups] of one that follows; NULL on process 0 */
};

/* ---- who has what ---- */

static bool has_group(const struct relay *r, uint32_t process, uint32_t group)
{
    uint32_t first = process * r->n_here, last = first + r->n_here - 1;
    return first < (group + 1) * r->n_ranks && last >= group * r->n_ranks;
}

static bool has_any(const struct relay *r, uint32_t process)
{
    for (uint32_t g = 0; g < r->n_groups; g++)
        if (has_group(r, process, r->first_group + g))
            return true;
    return false;
}

static bool chooses(const struct relay *r, uint32_t process, uint32_t group)
{
    return group * r->n_ranks / r->n_here == process;
}

/* ---- messages ---- */

static enum err_code gone(const struct relay *r, uint32_t process, const char *how, struct err *e)
{
    return err_set(e, ERR_COMM, "process %u of %u %s", process, r->n_processes, how);
}

static enum err_code send_message(struct relay *r, uint32_t to, uint32_t kind, uint32_t n_parts,
                                  struct err *e)
{
    struct head h = {kind, n_parts, r->round, r->message.n};
    if (r->message.failed)
        return err_set(e, ERR_NOMEM, "a round for process %u: %zu bytes", to, r->message.n);
    if (!line_send(r->line[to], &h, sizeof h) || !line_send(r->line[to], r->message.at, h.bytes))
        return gone(r, to, "takes no more steps", e);
    return ERR_OK;
}

static enum err_code receive_message(struct relay *r, uint32_t from, struct head *h, struct err *e)
{
    if (!line_receive(r->line[from], h, sizeof *h))
        return gone(r, from, "is gone: the line of its steps ended", e);
    if (h->bytes > MAX_BYTES)
        return gone(r, from, "sent something that is no message", e);
    if (!wire_reserve(&r->message, h->bytes))
        return err_set(e, ERR_NOMEM, "a message of %llu bytes", (unsigned long long)h->bytes);
    if (h->bytes && !line_receive(r->line[from], r->message.at, h->bytes))
        return gone(r, from, "is gone: the line of its steps ended", e);
    return ERR_OK;
}

/* ---- process 0 ---- */

enum err_code relay_tell(struct relay *r, const struct step *step, struct err *e)
{
    r->round++;
    for (uint32_t p = 1; p < r->n_processes; p++) {
        uint32_t n = 0;
        if (r->line[p] < 0)
            continue;
        wire_clear(&r->message);
        for (uint32_t g = 0; g < r->n_groups; g++)
            if (has_group(r, p, r->first_group + g)) {
                wire_put_step(&r->message, &step[g], chooses(r, p, r->first_group + g),
                              r->limits.vocab);
                n++;
            }
        if (send_message(r, p, KIND_ROUND, n, e))
            return e->code;
    }
    return ERR_OK;
}

/* Of several errors the one that does not only say that others did not come. */
static void keep(struct err *kept, const struct err *e)
{
    if (e->code && (!kept->code || (kept->code == ERR_COMM && e->code != ERR_COMM)))
        *kept = *e;
}

enum err_code relay_hear(struct relay *r, const struct step *step, struct err *err, struct err *e)
{
    for (uint32_t p = 1; p < r->n_processes; p++) {
        struct head h;
        if (r->line[p] < 0)
            continue;
        if (receive_message(r, p, &h, e))
            return e->code;
        if (h.kind != KIND_ANSWER || h.round != r->round)
            return gone(r, p, "answered another round", e);
        for (uint32_t g = 0; g < r->n_groups; g++) {
            struct err why;
            if (!has_group(r, p, r->first_group + g))
                continue;
            if (!wire_get_result(&r->message, &step[g], chooses(r, p, r->first_group + g), &why))
                return gone(r, p, "sent something that is no answer", e);
            keep(&err[g], &why);
        }
    }
    return ERR_OK;
}

void relay_end(struct relay *r)
{
    struct err e;
    wire_clear(&r->message);
    r->ended = true;
    for (uint32_t p = 1; p < r->n_processes; p++)
        if (r->line[p] >= 0)
            (void)!send_message(r, p, KIND_END, 0, &e); /* one that is gone needs no word */
}

/* ---- the others ---- */

enum err_code relay_next(struct relay *r, struct step *step, bool *end, struct err *e)
{
    struct head h;
    uint32_t n = 0;
    if (receive_message(r, 0, &h, e))
        return e->code;
    *end = h.kind == KIND_END;
    if (*end)
        return ERR_OK;
    for (uint32_t g = 0; g < r->n_groups; g++) {
        step[g] = (struct step){0};
        if (!has_group(r, r->process, r->first_group + g))
            continue;
        n++;
        if (wire_get_step(&r->message, &step[g], &r->room[g], &r->limits, e))
            return e->code;
    }
    if (h.kind != KIND_ROUND || h.n_parts != n || h.round != r->round + 1)
        return gone(r, 0, "sent something that is no round", e);
    r->round = h.round;
    return ERR_OK;
}

/* The round's bytes are read no more: its steps are over. */
enum err_code relay_answer(struct relay *r, const struct step *step, const struct err *err,
                           struct err *e)
{
    uint32_t n = 0;
    wire_clear(&r->message);
    for (uint32_t g = 0; g < r->n_groups; g++)
        if (has_group(r, r->process, r->first_group + g)) {
            wire_put_result(&r->message, &step[g], chooses(r, r->process, r->first_group + g),
                            &err[g]);
            n++;
        }
    return send_message(r, 0, KIND_ANSWER, n, e);
}

/* ---- life ---- */

static enum err_code create(struct relay **out, const struct relays_config *c, uint32_t index,
                            struct err *e)
{
    struct relay *r = FAULT("relay.create") ? NULL : calloc(1, sizeof *r);
    uint32_t groups = c->joined ? c->n_groups : 1;
    if (!r)
        return err_set(e, ERR_NOMEM, "a relay");
    r->process = c->process;
    r->n_processes = c->n_processes;
    r->n_here = c->n_groups * c->n_ranks / c->n_processes;
    r->first_group = c->joined ? 0 : index / N_LANES;
    r->n_groups = groups;
    r->n_ranks = c->n_ranks;
    r->limits = c->limits[index % N_LANES];
    for (uint32_t p = 0; p < LAUNCH_MAX_PROCESSES; p++)
        r->line[p] = -1;
    *out = r;
    if (!c->process)
        return ERR_OK;
    r->room = calloc(groups, sizeof *r->room);
    if (!r->room)
        return err_set(e, ERR_NOMEM, "a relay");
    for (uint32_t g = 0; g < groups; g++)
        if (has_group(r, r->process, r->first_group + g) &&
            wire_room_create(&r->room[g], &r->limits, e))
            return e->code;
    return ERR_OK;
}

static void destroy(struct relay *r)
{
    for (uint32_t p = 0; p < LAUNCH_MAX_PROCESSES; p++)
        line_close(r->line[p]);
    for (uint32_t g = 0; r->room && g < r->n_groups; g++)
        wire_room_free(&r->room[g]);
    free(r->room);
    wire_free(&r->message);
    free(r);
}

/* A caller's number is that of its team and process. */
static enum err_code take_lines(struct relays *all, const struct relays_config *c, struct err *e)
{
    uint32_t n_numbers = all->n * c->n_processes, n = 0;
    int *line = malloc(n_numbers * sizeof *line);
    struct line_door door = {.fd = -1};
    if (!line)
        return err_set(e, ERR_NOMEM, "lines to %u processes", c->n_processes);
    for (uint32_t i = 0; i < n_numbers; i++) {
        line[i] = -1;
        n += i % c->n_processes && has_any(all->team[i / c->n_processes], i % c->n_processes);
    }
    enum err_code code = line_open_door(&door, c->meeting, door_name, e);
    if (!code)
        code = line_answer(&door, line, n_numbers, n, c->open_ms, e);
    line_close_door(&door);
    for (uint32_t i = 0; i < n_numbers; i++)
        all->team[i / c->n_processes]->line[i % c->n_processes] = line[i];
    free(line);
    return code;
}

static enum err_code call_first(struct relays *all, const struct relays_config *c, struct err *e)
{
    for (uint32_t i = 0; i < all->n; i++)
        if (has_any(all->team[i], c->process) &&
            line_call(&all->team[i]->line[0], c->meeting, door_name,
                      i * c->n_processes + c->process, c->open_ms, e))
            return err_prefix(e, "process %u of %u", c->process, c->n_processes);
    return ERR_OK;
}

static bool has_line(const struct relay *r)
{
    for (uint32_t p = 0; p < r->n_processes; p++)
        if (r->line[p] >= 0)
            return true;
    return false;
}

enum err_code relays_open(struct relays *out, const struct relays_config *c, struct err *e)
{
    struct relays all = {.n = (c->joined ? 1 : c->n_groups) * N_LANES};
    assert(c->n_processes <= LAUNCH_MAX_PROCESSES && c->process < c->n_processes);
    assert(c->n_groups * c->n_ranks % c->n_processes == 0);
    all.team = calloc(all.n, sizeof(struct relay *));
    if (!all.team)
        return err_set(e, ERR_NOMEM, "relays");
    e->code = ERR_OK;
    for (uint32_t i = 0; i < all.n && !e->code; i++)
        (void)!create(&all.team[i], c, i, e);
    if (e->code || (c->process ? call_first(&all, c, e) : take_lines(&all, c, e))) {
        relays_close(&all);
        return e->code;
    }
    for (uint32_t i = 0; i < all.n; i++)
        if (!has_line(all.team[i])) {
            destroy(all.team[i]);
            all.team[i] = NULL;
        }
    *out = all;
    return ERR_OK;
}

void relays_shut(struct relays *all)
{
    for (uint32_t i = 0; i < all->n; i++)
        for (uint32_t p = 0; all->team[i] && p < all->team[i]->n_processes; p++)
            if (all->team[i]->line[p] >= 0)
                line_shut(all->team[i]->line[p]);
}

void relays_close(struct relays *all)
{
    for (uint32_t i = 0; all->team && i < all->n; i++) {
        struct relay *r = all->team[i];
        for (uint32_t p = 1; r && r->ended && p < r->n_processes; p++)
            if (r->line[p] >= 0)
                line_await_end(r->line[p], END_MS);
        if (r)
            destroy(r);
    }
    free(all->team);
    *all = (struct relays){0};
}
