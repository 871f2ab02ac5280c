/* launch.c - see launch.h. */
#include "comm/launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct launcher {
    const char *by, *process, *n_processes, *local, *n_local;
    const char *one_node; /* a number of nodes; NULL: n_local says it */
};

static const struct launcher launchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", NULL},
    {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", NULL},
    {"PMI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", NULL},
    {"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL,
     "SLURM_STEP_NUM_NODES"}};

/* The number in variable name, below end; if it is not there, *out stays as it is. */
static enum err_code read_number(uint32_t *out, const char *name, uint32_t end, struct err *e)
{
    const char *text = name ? getenv(name) : NULL;
    char *rest;
    if (!text)
        return ERR_OK;
    unsigned long n = strtoul(text, &rest, 10);
    if (*text < '0' || *text > '9' || *rest || n >= end)
        return err_set(e, ERR_INVALID, "%s: \"%.40s\" is no number below %u", name, text, end);
    *out = (uint32_t)n;
    return ERR_OK;
}

enum err_code launch_first_host(char *out, size_t room, const char *list, struct err *e)
{
    size_t n = strcspn(list, ",["), first = 0;
    if (list[n] == '[')
        first = strcspn(list + n + 1, "-,]");
    if (n + first == 0 || n + first >= room ||
        (list[n] == '[' && (!first || !strchr(list + n, ']'))))
        return err_set(e, ERR_INVALID, "hosts: \"%.60s\" is not a list of them", list);
    memcpy(out, list, n);
    memcpy(out + n, list + n + 1, first);
    out[n + first] = '\0';
    return ERR_OK;
}

static enum err_code find_host(struct launch *l, const struct launcher *by, struct err *e)
{
    const char *host = getenv("MASTER_ADDR"), *list = getenv("SLURM_STEP_NODELIST");
    uint32_t n_local = 0, n_nodes = 0, port = LAUNCH_PORT;
    if (read_number(&port, "MASTER_PORT", 65536, e) ||
        read_number(&n_local, by->n_local, LAUNCH_MAX_PROCESSES + 1, e) ||
        read_number(&n_nodes, by->one_node, LAUNCH_MAX_PROCESSES + 1, e))
        return e->code;
    l->port = (uint16_t)port;
    if (!port)
        return err_set(e, ERR_INVALID, "MASTER_PORT: 0 is no port that others could know");
    if (host) {
        if (!*host || strlen(host) >= sizeof l->host)
            return err_set(e, ERR_INVALID, "MASTER_ADDR: \"%.40s\" is no host", host);
        memcpy(l->host, host, strlen(host) + 1);
        return ERR_OK;
    }
    if (n_nodes == 1 || (n_local && n_local == l->n_processes)) {
        memcpy(l->host, "127.0.0.1", 10);
        return ERR_OK;
    }
    if (by->one_node && list)
        return launch_first_host(l->host, sizeof l->host, list, e)
                   ? err_prefix(e, "SLURM_STEP_NODELIST")
                   : ERR_OK;
    return err_set(e, ERR_INVALID,
                   "MASTER_ADDR is not set: the host of process 0, for the %u that %s started",
                   l->n_processes, l->by);
}

enum err_code launch_read(struct launch *out, struct err *e)
{
    struct launch l = {.by = "nobody", .n_processes = 1};
    const struct launcher *by = NULL;
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers && !by; i++)
        if (getenv(launchers[i].process) && getenv(launchers[i].n_processes))
            by = &launchers[i];
    if (by) {
        l.by = by->by;
        if (read_number(&l.n_processes, by->n_processes, LAUNCH_MAX_PROCESSES + 1, e))
            return e->code;
        if (!l.n_processes)
            return err_set(e, ERR_INVALID, "%s: 0 processes", by->n_processes);
        if (read_number(&l.process, by->process, l.n_processes, e) ||
            read_number(&l.local, by->local, l.n_processes, e) ||
            (l.n_processes > 1 && find_host(&l, by, e)))
            return e->code;
    }
    *out = l;
    return ERR_OK;
}
