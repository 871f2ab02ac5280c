/* safetensors.h - named tensors in memory-mapped files: one file, or shards with an index.
 *
 * Every offset, shape and size in a header is checked against the file before anything is read
 * through it, so a tensor that was found can be read without fear.
 * Headers are refused when they lie: more bytes than the file has, a shape that does not fit its
 * offsets, two tensors that share bytes, an index that names what is not there.
 * Thread: one until the tensors were found (find marks), then any reads. The bytes are the file's,
 *         read-only, valid until close, and aligned only as well as the file aligns them.
 */
#ifndef GAZE_MODEL_SAFETENSORS_H
#define GAZE_MODEL_SAFETENSORS_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DT_F32,
    DT_F16,
    DT_BF16,
    DT_F8_E4M3,
    DT_F8_E8M0,
    DT_I64,
    DT_I32,
    DT_I16,
    DT_I8,
    DT_U8,
    DT_BOOL,
    DT_F64
};
size_t dtype_bytes(enum dtype t);
const char *dtype_name(enum dtype t); /* as the format spells it: "BF16" */

struct tensor {
    const char *name;
    enum dtype dtype;
    uint32_t n_dims;
    uint64_t dim[8];
    const void *data;
    size_t bytes;
    bool used; /* set by safetensors_find(): what nobody asked for can be listed */
};

struct safetensors; /* opaque */

/* Opens dir/model.safetensors, or the shards that dir/model.safetensors.index.json lists. ERR_IO,
 * ERR_INVALID: the file, the tensor and the two numbers that do not agree. */
MUST_CHECK enum err_code safetensors_open_dir(struct safetensors **out, const char *dir,
                                              struct err *e);
MUST_CHECK enum err_code safetensors_open_file(struct safetensors **out, const char *path,
                                               struct err *e);
/* Checks a header as it stands in memory (file_bytes in all); for fuzzing. */
MUST_CHECK enum err_code safetensors_check(const void *bytes, size_t file_bytes, struct err *e);
void safetensors_close(struct safetensors *st);

/* NULL: none. Marks the tensor used. O(log n). */
struct tensor *safetensors_find(struct safetensors *st, const char *name);
size_t safetensors_count(const struct safetensors *st);
const struct tensor *safetensors_at(const struct safetensors *st, size_t i); /* order of names */
size_t safetensors_bytes(const struct safetensors *st); /* payload of all tensors */
/* Asks the kernel for the pages of [data, data + bytes) of a tensor ahead of use. */
void safetensors_prefetch(const void *data, size_t bytes);

#endif
