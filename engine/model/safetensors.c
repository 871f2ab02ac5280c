/* safetensors.c - see safetensors.h.
 *
 * The format: 8 bytes of header length (little-endian), a JSON object {name: {dtype, shape,
 * data_offsets}}, then the data that the offsets count from. A real checkpoint is 163 such files
 * with 92,425 tensors, so nothing here looks a name up by walking a list: headers are read member
 * by member, and one sorted table serves all look-ups.
 */
#include "model/safetensors.h"

#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_HEADER_BYTES = 100 << 20,
    MAX_HEADER_DEPTH = 16, /* a tensor needs three */
    MAX_SHARDS = 10000,    /* each is a mapping, and a process may have 65530 of those */
    MAX_DIMS = 8,          /* struct tensor's */
    MAX_PATH = 4096
};
/* Numbers of JSON are doubles: whole up to here. */
#define MAX_WHOLE 9007199254740992.0

struct shard {
    char *path;
    const unsigned char *map;
    size_t bytes;
};

struct entry {
    struct tensor t; /* first: safetensors_find() gives its address */
    uint32_t shard;
};

struct safetensors {
    struct shard *shard;
    size_t n_shards;
    struct entry *entry; /* by name, once open */
    size_t n_entries, max_entries;
    size_t payload_bytes;
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [DT_F32] = {"F32", 4},         [DT_F16] = {"F16", 2},         [DT_BF16] = {"BF16", 2},
    [DT_F8_E4M3] = {"F8_E4M3", 1}, [DT_F8_E8M0] = {"F8_E8M0", 1}, [DT_I64] = {"I64", 8},
    [DT_I32] = {"I32", 4},         [DT_I16] = {"I16", 2},         [DT_I8] = {"I8", 1},
    [DT_U8] = {"U8", 1},           [DT_BOOL] = {"BOOL", 1},       [DT_F64] = {"F64", 8},
};
enum { N_DTYPES = sizeof dtypes / sizeof *dtypes };

size_t dtype_bytes(enum dtype t)
{
    return dtypes[t].bytes;
}

const char *dtype_name(enum dtype t)
{
    return dtypes[t].name;
}

static bool whole(const cJSON *m, uint64_t *out)
{
    if (!cJSON_IsNumber(m) || !(m->valuedouble >= 0 && m->valuedouble <= MAX_WHOLE))
        return false;
    *out = (uint64_t)m->valuedouble;
    return (double)*out == m->valuedouble;
}

static enum err_code read_dtype(struct tensor *t, const cJSON *m, struct err *e)
{
    if (!cJSON_IsString(m))
        return err_set(e, ERR_INVALID, "dtype must be a string");
    for (size_t i = 0; i < N_DTYPES; i++) {
        if (strcmp(m->valuestring, dtypes[i].name) == 0) {
            t->dtype = (enum dtype)i;
            return ERR_OK;
        }
    }
    return err_set(e, ERR_INVALID, "dtype \"%.20s\" is not known", m->valuestring);
}

/* Gives the bytes that dtype and shape ask for. */
static enum err_code read_shape(struct tensor *t, const cJSON *m, uint64_t *bytes, struct err *e)
{
    if (!cJSON_IsArray(m))
        return err_set(e, ERR_INVALID, "shape must be a list");
    *bytes = dtypes[t->dtype].bytes;
    for (const cJSON *d = m->child; d; d = d->next) {
        if (t->n_dims == MAX_DIMS)
            return err_set(e, ERR_INVALID, "shape has more than %d dimensions", (int)MAX_DIMS);
        if (!whole(d, &t->dim[t->n_dims]))
            return err_set(e, ERR_INVALID, "dimension %u of shape is no whole number", t->n_dims);
        if (__builtin_mul_overflow(*bytes, t->dim[t->n_dims], bytes))
            return err_set(e, ERR_INVALID, "shape has more than 2^64 bytes at dimension %u (%llu)",
                           t->n_dims, (unsigned long long)t->dim[t->n_dims]);
        t->n_dims++;
    }
    return ERR_OK;
}

/* One member of a header. data is where its offsets count from, with data_bytes behind it. */
static enum err_code read_tensor(struct tensor *t, const cJSON *m, const unsigned char *data,
                                 size_t data_bytes, struct err *e)
{
    const cJSON *dtype = NULL, *shape = NULL, *offsets = NULL;
    if (!cJSON_IsObject(m))
        return err_set(e, ERR_INVALID, "must be an object");
    for (const cJSON *f = m->child; f; f = f->next) {
        const cJSON **slot = strcmp(f->string, "dtype") == 0          ? &dtype
                             : strcmp(f->string, "shape") == 0        ? &shape
                             : strcmp(f->string, "data_offsets") == 0 ? &offsets
                                                                      : NULL;
        if (slot && *slot)
            return err_set(e, ERR_INVALID, "%s is given twice", f->string);
        if (slot)
            *slot = f;
    }
    uint64_t begin = 0, end = 0, bytes = 0;
    if (read_dtype(t, dtype, e) || read_shape(t, shape, &bytes, e))
        return e->code;
    const cJSON *first = cJSON_IsArray(offsets) ? offsets->child : NULL;
    const cJSON *second = first ? first->next : NULL;
    if (!whole(first, &begin) || !whole(second, &end) || second->next)
        return err_set(e, ERR_INVALID, "data_offsets must be two whole numbers");
    if (begin > end || end > data_bytes)
        return err_set(e, ERR_INVALID, "data_offsets [%llu, %llu] are outside %zu bytes of data",
                       (unsigned long long)begin, (unsigned long long)end, data_bytes);
    if (end - begin != bytes)
        return err_set(e, ERR_INVALID, "shape has %llu bytes as %s, data_offsets have %llu",
                       (unsigned long long)bytes, dtypes[t->dtype].name,
                       (unsigned long long)(end - begin));
    t->data = data + begin;
    t->bytes = (size_t)bytes;
    return ERR_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->t.data != y->t.data)
        return (uintptr_t)x->t.data < (uintptr_t)y->t.data ? -1 : 1;
    return x->t.bytes < y->t.bytes ? -1 : x->t.bytes > y->t.bytes; /* the empty ones first */
}

static int by_name(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    return strcmp(x->t.name, y->t.name);
}

static enum err_code make_room(struct safetensors *st, size_t more, struct err *e)
{
    if (st->max_entries - st->n_entries >= more)
        return ERR_OK;
    size_t max =
        st->n_entries + more > 2 * st->max_entries ? st->n_entries + more : 2 * st->max_entries;
    struct entry *p = FAULT("safetensors.table") ? NULL : realloc(st->entry, max * sizeof *p);
    if (!p)
        return err_set(e, ERR_NOMEM, "a table of %zu tensors", max);
    st->entry = p;
    st->max_entries = max;
    return ERR_OK;
}

/* Reads a header's members into the table, as entries of `shard`. */
static enum err_code read_members(struct safetensors *st, uint32_t shard, const cJSON *tree,
                                  const unsigned char *data, size_t data_bytes, struct err *e)
{
    size_t n = 0, first = st->n_entries;
    for (const cJSON *m = tree->child; m; m = m->next)
        n++;
    if (make_room(st, n, e))
        return e->code;
    for (const cJSON *m = tree->child; m; m = m->next) {
        if (strcmp(m->string, "__metadata__") == 0)
            continue;
        struct entry *x = &st->entry[st->n_entries];
        *x = (struct entry){.shard = shard};
        if (read_tensor(&x->t, m, data, data_bytes, e))
            return err_prefix(e, "tensor %.120s", m->string); /* it may be "" */
        x->t.name = FAULT("safetensors.name") ? NULL : strdup(m->string);
        if (!x->t.name)
            return err_set(e, ERR_NOMEM, "a tensor's name");
        st->n_entries++;
    }
    n = st->n_entries - first;
    if (n)
        qsort(st->entry + first, n, sizeof *st->entry, by_place);
    for (size_t i = first + 1; i < st->n_entries; i++) {
        const struct tensor *a = &st->entry[i - 1].t, *b = &st->entry[i].t;
        if ((const unsigned char *)a->data + a->bytes > (const unsigned char *)b->data)
            return err_set(e, ERR_INVALID, "%.80s and %.80s share bytes from %zu on", a->name,
                           b->name, (size_t)((const unsigned char *)b->data - data));
    }
    return ERR_OK;
}

static enum err_code read_header(struct safetensors *st, uint32_t shard, const unsigned char *map,
                                 size_t bytes, struct err *e)
{
    uint64_t header_bytes = 0;
    if (bytes < 8)
        return err_set(e, ERR_INVALID, "%zu bytes are too few for a safetensors file", bytes);
    for (int i = 0; i < 8; i++)
        header_bytes |= (uint64_t)map[i] << (8 * i);
    if (header_bytes > MAX_HEADER_BYTES)
        return err_set(e, ERR_INVALID, "a header of %llu bytes is more than %d",
                       (unsigned long long)header_bytes, (int)MAX_HEADER_BYTES);
    if (header_bytes > bytes - 8)
        return err_set(e, ERR_INVALID, "the header has %llu bytes, the file %zu after its length",
                       (unsigned long long)header_bytes, bytes - 8);
    cJSON *tree = NULL;
    size_t n = (size_t)header_bytes;
    if (json_parse(&tree, (const char *)map + 8, n, MAX_HEADER_DEPTH, e))
        return err_prefix(e, "header");
    enum err_code code = cJSON_IsObject(tree)
                             ? read_members(st, shard, tree, map + 8 + n, bytes - 8 - n, e)
                             : err_set(e, ERR_INVALID, "the header is no JSON object");
    cJSON_Delete(tree);
    return code;
}

/* Sorts the table and counts; a name must be there once. */
static enum err_code finish_table(struct safetensors *st, struct err *e)
{
    if (st->n_entries)
        qsort(st->entry, st->n_entries, sizeof *st->entry, by_name);
    for (size_t i = 0; i < st->n_entries; i++) {
        const struct entry *x = &st->entry[i];
        st->payload_bytes += x->t.bytes;
        if (i == 0 || strcmp(x[-1].t.name, x->t.name) != 0)
            continue;
        if (st->shard && x->shard != x[-1].shard)
            return err_set(e, ERR_INVALID, "%.80s is in both %.60s and %.60s", x->t.name,
                           st->shard[x[-1].shard].path, st->shard[x->shard].path);
        return err_set(e, ERR_INVALID, "%.120s is there twice", x->t.name);
    }
    return ERR_OK;
}

enum err_code safetensors_check(const void *bytes, size_t file_bytes, struct err *e)
{
    struct safetensors st = {0};
    enum err_code code = read_header(&st, 0, bytes, file_bytes, e);
    if (!code)
        code = finish_table(&st, e);
    for (size_t i = 0; i < st.n_entries; i++)
        free((char *)(uintptr_t)st.entry[i].t.name);
    free(st.entry);
    return code;
}

static enum err_code map_file(struct shard *s, struct err *e)
{
    int fd = open(s->path, O_RDONLY | O_CLOEXEC);
    struct stat sb;
    if (fd < 0)
        return err_set(e, ERR_IO, "%s: %s", s->path, strerror(errno));
    if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode)) {
        err_set(e, ERR_IO, "%s: not a plain file", s->path);
        goto close_fd;
    }
    if (sb.st_size < 8) {
        err_set(e, ERR_INVALID, "%s: %lld bytes are too few for a safetensors file", s->path,
                (long long)sb.st_size);
        goto close_fd;
    }
    void *p = MAP_FAILED;
    if (FAULT("safetensors.map"))
        errno = ENOMEM;
    else
        p = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) {
        err_set(e, errno == ENOMEM ? ERR_NOMEM : ERR_IO, "%s: mapping %lld bytes: %s", s->path,
                (long long)sb.st_size, strerror(errno));
        goto close_fd;
    }
    s->map = p;
    s->bytes = (size_t)sb.st_size;
    e->code = ERR_OK;
close_fd:
    close(fd);
    return e->code;
}

/* Opens n files of dir (dir NULL: names are paths) into a new table that is sorted, nothing more.
 */
static enum err_code open_shards(struct safetensors **out, const char *dir, const char *const *name,
                                 size_t n, struct err *e)
{
    struct safetensors *st = FAULT("safetensors.open") ? NULL : calloc(1, sizeof *st);
    if (!st)
        return err_set(e, ERR_NOMEM, "safetensors");
    st->shard = FAULT("safetensors.shards") ? NULL : calloc(n, sizeof *st->shard);
    if (!st->shard) {
        err_set(e, ERR_NOMEM, "a table of %zu files", n);
        goto close;
    }
    for (size_t i = 0; i < n; i++) {
        char path[MAX_PATH];
        int len = snprintf(path, sizeof path, "%s%s%s", dir ? dir : "", dir ? "/" : "", name[i]);
        if (len >= MAX_PATH) {
            err_set(e, ERR_IO, "a path of %d bytes is too long", len);
            goto close;
        }
        struct shard *s = &st->shard[i];
        s->path = FAULT("safetensors.path") ? NULL : strdup(path);
        if (!s->path) {
            err_set(e, ERR_NOMEM, "a file's path");
            goto close;
        }
        st->n_shards = i + 1;
        if (map_file(s, e))
            goto close;
        if (read_header(st, (uint32_t)i, s->map, s->bytes, e)) {
            err_prefix(e, "%s", s->path);
            goto close;
        }
    }
    if (finish_table(st, e)) {
        if (n == 1)
            err_prefix(e, "%s", st->shard[0].path);
        goto close;
    }
    *out = st;
    return ERR_OK;
close:
    safetensors_close(st);
    return e->code;
}

enum err_code safetensors_open_file(struct safetensors **out, const char *path, struct err *e)
{
    return open_shards(out, NULL, &path, 1, e);
}

/* A line of the index: tensor and file. Strings are the JSON tree's. */
struct place {
    const char *tensor, *file;
    uint32_t shard;
};

static int place_by_tensor(const void *a, const void *b)
{
    return strcmp(((const struct place *)a)->tensor, ((const struct place *)b)->tensor);
}

static int place_by_file(const void *a, const void *b)
{
    return strcmp(((const struct place *)a)->file, ((const struct place *)b)->file);
}

/* Lists the weight_map, numbers its files; *places [*n] and *files [*n_files] are the caller's. */
static enum err_code read_weight_map(const cJSON *tree, struct place **places, size_t *n,
                                     const char ***files, size_t *n_files, struct err *e)
{
    const cJSON *map = json_get(tree, "weight_map");
    if (!cJSON_IsObject(map) || !map->child)
        return err_set(e, ERR_INVALID, "weight_map: must be an object with members");
    for (const cJSON *m = map->child; m; m = m->next)
        ++*n;
    *places = FAULT("safetensors.index") ? NULL : malloc(*n * sizeof **places);
    *files = FAULT("safetensors.index") ? NULL : malloc(*n * sizeof **files);
    if (!*places || !*files)
        return err_set(e, ERR_NOMEM, "an index of %zu tensors", *n);
    size_t i = 0;
    for (const cJSON *m = map->child; m; m = m->next) {
        /* A plain name: an index must not lead us out of its folder. */
        if (!cJSON_IsString(m) || !m->valuestring[0] || strchr(m->valuestring, '/'))
            return err_set(e, ERR_INVALID, "weight_map: %.120s: must name a file of this folder",
                           m->string);
        (*places)[i++] = (struct place){.tensor = m->string, .file = m->valuestring};
    }
    qsort(*places, *n, sizeof **places, place_by_file);
    for (i = 0; i < *n; i++) {
        struct place *p = &(*places)[i];
        if (i == 0 || strcmp(p[-1].file, p->file) != 0)
            (*files)[(*n_files)++] = p->file;
        p->shard = (uint32_t)(*n_files - 1);
    }
    if (*n_files > MAX_SHARDS)
        return err_set(e, ERR_INVALID, "weight_map: %zu files are more than %d", *n_files,
                       (int)MAX_SHARDS);
    qsort(*places, *n, sizeof **places, place_by_tensor);
    return ERR_OK;
}

/* Every tensor of the index must be where it says. Tensors that it leaves out are usable all the
 * same: some published indexes lack their scales. */
static enum err_code compare_index(struct safetensors *st, const struct place *p, size_t n,
                                   struct err *e)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (i && strcmp(p[i - 1].tensor, p[i].tensor) == 0)
            return err_set(e, ERR_INVALID, "weight_map: %.120s is there twice", p[i].tensor);
        while (k < st->n_entries && strcmp(st->entry[k].t.name, p[i].tensor) < 0)
            k++;
        if (k == st->n_entries || strcmp(st->entry[k].t.name, p[i].tensor) != 0)
            return err_set(e, ERR_INVALID, "weight_map: %.100s is not in %.80s", p[i].tensor,
                           p[i].file);
        if (st->entry[k].shard != p[i].shard)
            return err_set(e, ERR_INVALID, "weight_map: %.80s is in %.60s, not in %.60s",
                           p[i].tensor, strrchr(st->shard[st->entry[k].shard].path, '/') + 1,
                           p[i].file);
    }
    if (st->n_entries > n)
        log_debug("safetensors", "tensors_not_in_index=%zu", st->n_entries - n);
    return ERR_OK;
}

static enum err_code open_index(struct safetensors **out, const char *dir, const char *index_path,
                                struct err *e)
{
    cJSON *tree = NULL;
    struct place *places = NULL;
    const char **files = NULL;
    size_t n = 0, n_files = 0;
    struct safetensors *st = NULL;
    enum err_code code = json_parse_file(&tree, index_path, e);
    if (code)
        return code;
    code = read_weight_map(tree, &places, &n, &files, &n_files, e);
    if (code)
        err_prefix(e, "%s", index_path);
    if (!code)
        code = open_shards(&st, dir, files, n_files, e);
    if (!code && (code = compare_index(st, places, n, e))) {
        err_prefix(e, "%s", index_path);
        safetensors_close(st);
    }
    if (!code)
        *out = st;
    free(places);
    free(files);
    cJSON_Delete(tree);
    return code;
}

enum err_code safetensors_open_dir(struct safetensors **out, const char *dir, struct err *e)
{
    char path[MAX_PATH];
    int len = snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    if (len >= MAX_PATH)
        return err_set(e, ERR_IO, "a path of %d bytes is too long", len);
    bool has_index = access(path, F_OK) == 0;
    path[len - (int)strlen(".index.json")] = '\0';
    if (access(path, F_OK) == 0)
        return safetensors_open_file(out, path, e);
    if (!has_index)
        return err_set(e, ERR_IO,
                       "%s: neither model.safetensors nor model.safetensors.index.json is there",
                       dir);
    path[strlen(path)] = '.'; /* the rest of the index's name is still behind it */
    return open_index(out, dir, path, e);
}

void safetensors_close(struct safetensors *st)
{
    if (!st)
        return;
    for (size_t i = 0; i < st->n_entries; i++)
        free((char *)(uintptr_t)st->entry[i].t.name);
    for (size_t i = 0; i < st->n_shards; i++) {
        if (st->shard[i].map)
            munmap((void *)(uintptr_t)st->shard[i].map, st->shard[i].bytes);
        free(st->shard[i].path);
    }
    free(st->entry);
    free(st->shard);
    free(st);
}

struct tensor *safetensors_find(struct safetensors *st, const char *name)
{
    size_t lo = 0, hi = st->n_entries;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int order = strcmp(st->entry[mid].t.name, name);
        if (order == 0) {
            st->entry[mid].t.used = true;
            return &st->entry[mid].t;
        }
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

size_t safetensors_count(const struct safetensors *st)
{
    return st->n_entries;
}

const struct tensor *safetensors_at(const struct safetensors *st, size_t i)
{
    assert(i < st->n_entries);
    return &st->entry[i].t;
}

size_t safetensors_bytes(const struct safetensors *st)
{
    return st->payload_bytes;
}

void safetensors_prefetch(const void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)data & ~(page - 1);
    if (bytes) /* advice: when it is not taken, the pages come when touched */
        (void)madvise((void *)begin, (uintptr_t)data + bytes - begin, MADV_WILLNEED);
}
