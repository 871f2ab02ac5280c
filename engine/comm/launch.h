/* launch.h - which process of how many this is, as the launcher says in the environment.
 *
 * One process per node is usual, with a rank thread per GPU; several on a node each have their own
 * GPUs. Asked in this order; the first whose variables are there decides:
 *   torchrun   RANK WORLD_SIZE [LOCAL_RANK]
 *   Open MPI   OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE [OMPI_COMM_WORLD_LOCAL_RANK]
 *   PMI        PMI_RANK PMI_SIZE [MPI_LOCALRANKID]            (MPICH, Intel MPI)
 *   Slurm      SLURM_PROCID SLURM_STEP_NUM_TASKS [SLURM_LOCALID]   (within srun)
 * Process 0 is at MASTER_ADDR, port MASTER_PORT (29500); without it at the first host of Slurm's
 * SLURM_STEP_NODELIST, or at 127.0.0.1 where the launcher says that all processes are on one host
 * (OMPI_COMM_WORLD_LOCAL_SIZE, MPI_LOCALNRANKS, SLURM_STEP_NUM_NODES=1).
 * Thread: any.
 */
#ifndef GAZE_COMM_LAUNCH_H
#define GAZE_COMM_LAUNCH_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { LAUNCH_PORT = 29500, LAUNCH_MAX_PROCESSES = 64 };

struct launch {
    const char *by; /* "torchrun" ..., or "nobody": one process */
    uint32_t process, n_processes;
    uint32_t local; /* of those on its node */
    char host[256]; /* where process 0 listens */
    uint16_t port;
};

/* ERR_INVALID: which variable is missing or is no number that it may be. */
MUST_CHECK enum err_code launch_read(struct launch *out, struct err *e);

/* The first host of a list as Slurm writes it: "gpu[03-07,12],login" -> "gpu03". ERR_INVALID. */
MUST_CHECK enum err_code launch_first_host(char *out, size_t room, const char *list, struct err *e);

#endif
