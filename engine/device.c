/* device.c - engine_device(): which device a name means, in builds with and without a GPU back end.
 */
#include "engine.h"

#include "base/log.h"
#include "comm/comm.h"
#include "cuda/cuda_ops.h"

#include <stdlib.h>
#include <string.h>

/* There only in a build with the GPU back end. */
#pragma weak cuda_device_check

void engine_prepare_ranks(void)
{
    comm_environment();
}

const char *engine_backends(void)
{
    return cuda_device_check ? "cpu cuda" : "cpu";
}

static enum err_code no_back_end(const char *name, struct err *e)
{
    return err_set(e, ERR_INVALID,
                   "device: %.20s: this build has no GPU back end (make cuda builds one); "
                   "--device cpu runs without",
                   name);
}

/* The GPU when there is a usable one; a GPU that cannot be used is worth a line. */
static int32_t whatever_is_there(void)
{
    struct err e = {0};
    if (!cuda_device_check)
        return -1;
    if (!cuda_device_check(0, &e))
        return 0;
    log_info("engine", "device=cpu because=\"%s\"", e.msg);
    return -1;
}

static enum err_code read_name(int32_t *out, const char *name, struct err *e)
{
    unsigned long n = 0;
    *out = -1;
    if (!strcmp(name, "cpu"))
        return ERR_OK;
    if (strcmp(name, "cuda") != 0) {
        char *end = NULL;
        if (strncmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9' ||
            (n = strtoul(name + 5, &end, 10), *end) || n > 255)
            return err_set(e, ERR_INVALID,
                           "device: \"%.40s\" is none of auto, cpu, cuda, cuda:0 ... cuda:255",
                           name);
    }
    if (!cuda_device_check)
        return no_back_end(name, e);
    *out = (int32_t)n;
    return ERR_OK;
}

enum err_code engine_device(int32_t *out, const char *name, struct err *e)
{
    if (!strcmp(name, "auto")) {
        *out = whatever_is_there();
        return ERR_OK;
    }
    if (read_name(out, name, e))
        return e->code;
    if (*out >= 0 && cuda_device_check((uint32_t)*out, e))
        return err_prefix(e, "device");
    return ERR_OK;
}

enum err_code engine_planned_device(int32_t *out, const char *name, struct err *e)
{
    if (strcmp(name, "auto") != 0)
        return read_name(out, name, e);
    *out = whatever_is_there();
    return ERR_OK;
}
