/* fuzz_safetensors.c - a whole file of any bytes: refused, or every tensor in it can be read. */
#include "base/log.h"
#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned char sink;

static void read_all(struct safetensors *st)
{
    size_t bytes = 0;
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const struct tensor *t = safetensors_at(st, i);
        uint64_t product = dtype_bytes(t->dtype);
        assert(t->n_dims <= 8);
        for (uint32_t k = 0; k < t->n_dims; k++)
            product *= t->dim[k];
        assert(product == t->bytes);
        for (size_t at = 0; at < t->bytes; at++)
            sink = ((const unsigned char *)t->data)[at];
        assert(safetensors_find(st, t->name) == t && t->used);
        assert(i == 0 || strcmp(safetensors_at(st, i - 1)->name, t->name) < 0);
        bytes += t->bytes;
    }
    assert(bytes == safetensors_bytes(st));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err e = {0};
    struct safetensors *st = NULL;
    log_set_level(LOG_OFF);
    enum err_code in_memory = safetensors_check(data, size, &e);
    assert(in_memory == ERR_OK || e.msg[0]);
    /* The same through a file and its mapping. */
    char path[64];
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    assert(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    enum err_code in_file = safetensors_open_file(&st, path, &e);
    assert((in_memory == ERR_OK) == (in_file == ERR_OK));
    if (in_file == ERR_OK)
        read_all(st);
    safetensors_close(st);
    close(fd);
    return 0;
}
