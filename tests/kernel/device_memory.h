/* device_memory.h - device memory for tests: it waits for the device before it reads or writes. */
#ifndef GAZE_TEST_DEVICE_MEMORY_H
#define GAZE_TEST_DEVICE_MEMORY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif
void cuda_test_read(void *to, const void *device, size_t bytes);
void cuda_test_write(void *device, const void *from, size_t bytes);
void *cuda_test_alloc(size_t bytes); /* poisoned with NaN */
void cuda_test_free(void *device);
#ifdef __cplusplus
}
#endif
#endif
