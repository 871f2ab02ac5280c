/* pool.h - fork-join inside one op, shared by the two lanes.
 *
 * pool_run() cuts work into n_chunks and calls fn(arg, chunk, worker) for each, on the caller's
 * thread and on whatever pool threads are awake; it returns when all are done. Chunks are taken
 * from a counter, so a thread that the machine has put aside delays nothing but its own chunk.
 * Waiting threads spin for some microseconds, then sleep.
 *
 * Two lanes may run at once. While both have a step under way each has half of the threads (decode
 * the larger half, and what prefill's leave undone), so that a decode step takes at most twice its
 * time however long the other's chunks are. Which thread runs a chunk must not matter to its
 * result. Thread: pool_run() from one thread per lane. `worker` is in
 * [0, pool_n_workers()): scratch indexed by it is not used by two chunks at a time, whatever the
 * lane.
 */
#ifndef GAZE_CPU_POOL_H
#define GAZE_CPU_POOL_H

#include "model/ops.h"

struct pool;
typedef void pool_fn(void *arg, uint32_t chunk, uint32_t worker);

/* n_threads >= 1: the caller and n_threads - 1 pool threads compute. */
MUST_CHECK enum err_code pool_create(struct pool **out, uint32_t n_threads, struct err *e);
void pool_destroy(struct pool *p);
void pool_run(struct pool *p, enum lane l, uint32_t n_chunks, pool_fn *fn, void *arg);
/* A step of the lane begins or ends. Thread: the lane's. */
void pool_in_step(struct pool *p, enum lane l, bool is);
uint32_t pool_n_workers(const struct pool *p); /* pool threads plus one caller per lane */
uint32_t pool_n_threads(const struct pool *p);

#endif
