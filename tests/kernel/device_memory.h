/* device_memory.h - device memory for tests: it waits for the device before it reads or writes.
 *
 * Where several ranks share a device that would wait for kernels that wait for the caller: a rank
 * takes an area and a stream of its own, and moves bytes on that stream alone.
 */
#ifndef GAZE_TEST_DEVICE_MEMORY_H
#define GAZE_TEST_DEVICE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
void cuda_test_read(void *to, const void *device, size_t bytes);
void cuda_test_write(void *device, const void *from, size_t bytes);
void *cuda_test_alloc(size_t bytes); /* poisoned with NaN */
void cuda_test_free(void *device);
void cuda_test_profile(bool on); /* what a profiler that was told to wait sees */

struct device_rank; /* a rank's area and stream; of the thread that opened it */
void *device_rank_open(uint32_t device, size_t bytes); /* poisoned with NaN */
unsigned char *device_rank_area(void *self);
void *device_rank_stream(void *self);
void device_rank_put(void *self, void *to, const void *from, size_t bytes);
void device_rank_get(void *self, void *to, const void *from, size_t bytes);
void device_rank_close(void *self); /* when nothing runs on any rank */
/* Records what is queued from begin to end; launch() queues it. false: this device cannot. */
bool device_rank_record(void *self);
void device_rank_recorded(void *self);
void device_rank_launch(void *self);
void device_rank_forget(void *self); /* the record; before the groups whose calls it holds close */
/* Microseconds that `run`, which queues work, takes on the stream. */
double device_rank_time_us(void *self, void (*run)(void *arg), void *arg);
void device_rank_name(char *text, size_t room); /* of the first GPU, and the driver's version */
/* Bytes a second of a copy from one GPU to another; the best of five. 0: they are not both there.
 */
double device_link_rate(uint32_t from, uint32_t to, size_t bytes);
#ifdef __cplusplus
}
#endif
#endif
