/* metrics_parts.c - see metrics_parts.h. */
#include "metrics_parts.h"

#include "version.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

void metrics_head(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_fmt(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

const char *metrics_label(char *out, size_t bytes, const char *value)
{
    size_t n = 0;
    for (; *value && n + 3 < bytes; value++) {
        if (*value == '\\' || *value == '"' || *value == '\n')
            out[n++] = '\\';
        out[n++] = *value == '\n' ? 'n' : *value;
    }
    out[n] = 0;
    return out;
}

/* By expert over all layers, and by layer how much more than its share the busiest one has: all
 * pairs would be thousands of series. */
void metrics_experts(struct buf *b, const char *label, const struct model_config *m,
                     const uint64_t *rows)
{
    metrics_head(b, "gaze_expert_rows_total", "counter",
                 "Rows that each expert was given, in all layers.");
    for (uint32_t x = 0; x < m->n_experts; x++) {
        uint64_t sum = 0;
        for (uint32_t l = 0; l < m->n_layers; l++)
            sum += rows[(size_t)l * m->n_experts + x];
        buf_fmt(b, "gaze_expert_rows_total{model_name=\"%s\",expert=\"%u\"} %llu\n", label, x,
                (unsigned long long)sum);
    }
    metrics_head(b, "gaze_expert_imbalance_ratio", "gauge",
                 "Rows of the layer's busiest expert, by the mean of all; 0 without any.");
    for (uint32_t l = 0; l < m->n_layers; l++) {
        uint64_t sum = 0, most = 0;
        for (uint32_t x = 0; x < m->n_experts; x++) {
            uint64_t k = rows[(size_t)l * m->n_experts + x];
            sum += k;
            most = k > most ? k : most;
        }
        if (l >= m->n_dense_layers)
            buf_fmt(b, "gaze_expert_imbalance_ratio{model_name=\"%s\",layer=\"%u\"} %.4f\n", label,
                    l, sum ? (double)most * m->n_experts / (double)sum : 0.0);
    }
}

void metrics_selections(struct buf *b, const char *label, const struct model_config *m,
                        const struct reuse_count *count)
{
    for (int again = 0; again < 2; again++) {
        const char *name = again ? "gaze_selections_reused_total" : "gaze_selections_sampled_total";
        metrics_head(
            b, name, "counter",
            again ? "Of the sampled positions those that the step before had selected, too."
                  : "Positions selected in decode steps that were compared with the step before.");
        for (uint32_t l = 0; l < m->n_layers; l++) {
            int i = reuse_layer(m, l);
            if (i >= 0)
                buf_fmt(b, "%s{model_name=\"%s\",layer=\"%u\"} %llu\n", name, label, l,
                        (unsigned long long)(again ? count[i].again : count[i].selected));
        }
    }
}

void metrics_memory_plan(struct buf *b, const char *label, const struct engine_plan *p)
{
    uint64_t page_tokens = p->n_pages ? p->kv_tokens / p->n_pages : 0;
    metrics_head(b, "vllm:cache_config_info", "gauge",
                 "Always 1: tokens of a KV page, and how many.");
    buf_fmt(
        b,
        "vllm:cache_config_info{model_name=\"%s\",block_size=\"%llu\",num_gpu_blocks=\"%u\"} 1\n",
        label, (unsigned long long)page_tokens, p->n_pages);
    const struct {
        const char *part;
        size_t bytes;
    } parts[] = {{"weights", p->weight_bytes},
                 {"kv", p->kv_bytes},
                 {"workspace", p->workspace_bytes},
                 {"tokenizer", p->tokenizer_bytes},
                 {"program", p->program_bytes}};
    metrics_head(b, "gaze_planned_memory_bytes", "gauge", "The memory plan made at the start.");
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        buf_fmt(b, "gaze_planned_memory_bytes{model_name=\"%s\",part=\"%s\"} %zu\n", label,
                parts[i].part, parts[i].bytes);
    if (p->device < 0)
        return;
    metrics_head(b, "gaze_device_memory_bytes", "gauge",
                 "Of each rank's GPU: what the plan takes, and what was free when it was made.");
    buf_fmt(b, "gaze_device_memory_bytes{model_name=\"%s\",kind=\"planned\"} %zu\n", label,
            p->device_bytes);
    buf_fmt(b, "gaze_device_memory_bytes{model_name=\"%s\",kind=\"free_at_start\"} %zu\n", label,
            p->device_free_bytes);
}

static unsigned count_fds(void)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    if (!d)
        return 0;
    while (readdir(d))
        n++;
    closedir(d);
    return n > 3 ? n - 3 : 0; /* ".", "..", and the folder itself */
}

void metrics_process(struct buf *b, uint64_t began_s)
{
    struct rusage u;
    unsigned long size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%lu %lu", &size, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    getrusage(RUSAGE_SELF, &u);
    metrics_head(b, "process_resident_memory_bytes", "gauge", "Resident memory.");
    buf_fmt(b, "process_resident_memory_bytes %lu\n",
            resident * (unsigned long)sysconf(_SC_PAGESIZE));
    metrics_head(b, "process_cpu_seconds_total", "counter", "User and system time.");
    buf_fmt(b, "process_cpu_seconds_total %.3f\n",
            (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6);
    metrics_head(b, "process_open_fds", "gauge", "Open descriptors.");
    buf_fmt(b, "process_open_fds %u\n", count_fds());
    metrics_head(b, "process_virtual_memory_bytes", "gauge", "Address space.");
    buf_fmt(b, "process_virtual_memory_bytes %lu\n", size * (unsigned long)sysconf(_SC_PAGESIZE));
    struct rlimit fds = {0};
    getrlimit(RLIMIT_NOFILE, &fds);
    metrics_head(b, "process_max_fds", "gauge", "Most descriptors it may open.");
    buf_fmt(b, "process_max_fds %llu\n", (unsigned long long)fds.rlim_cur);
    metrics_head(b, "process_start_time_seconds", "gauge", "When the process began.");
    buf_fmt(b, "process_start_time_seconds %llu\n", (unsigned long long)began_s);
}

void metrics_build(struct buf *b)
{
    metrics_head(b, "gaze_build_info", "gauge", "Always 1.");
    buf_fmt(b, "gaze_build_info{version=\"%s\",commit=\"%s\",backends=\"%s\"} 1\n", version_number,
            version_commit, engine_backends());
}
