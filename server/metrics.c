/* metrics.c - GET /metrics: Prometheus text. vLLM's names where they fit, so that dashboards and
 * gateways written for it work; what is our own begins with gaze_.
 */
#include "api.h"
#include "base/clock.h"
#include "grammar/cache.h"
#include "guide.h"
#include "http.h"
#include "metrics_parts.h"
#include "stream.h"
#include "tls.h"

#include <stdlib.h>
#include <string.h>

static void one(struct buf *b, const struct server *sv, const char *name, const char *type,
                const char *help, double v)
{
    metrics_head(b, name, type, help);
    buf_fmt(b, "%s{model_name=\"%s\"} %.17g\n", name, sv->label, v);
}

static void hist(struct buf *b, const struct server *sv, const char *name, const char *help,
                 const struct engine_hist *h, const double *bound)
{
    uint64_t sum = 0;
    metrics_head(b, name, "histogram", help);
    for (int i = 0; i < ENGINE_HIST_BUCKETS - 1; i++) {
        sum += h->count[i];
        buf_fmt(b, "%s_bucket{model_name=\"%s\",le=\"%.9g\"} %llu\n", name, sv->label, bound[i],
                (unsigned long long)sum);
    }
    buf_fmt(b, "%s_bucket{model_name=\"%s\",le=\"+Inf\"} %llu\n", name, sv->label,
            (unsigned long long)h->n);
    buf_fmt(b, "%s_sum{model_name=\"%s\"} %.17g\n", name, sv->label, h->sum);
    buf_fmt(b, "%s_count{model_name=\"%s\"} %llu\n", name, sv->label, (unsigned long long)h->n);
}

/* Dashboards of vLLM ask for them. */
static void speculation(struct buf *b, const struct server *sv)
{
    static const char *const name[] = {"vllm:spec_decode_num_drafts_total",
                                       "vllm:spec_decode_num_draft_tokens_total",
                                       "vllm:spec_decode_num_accepted_tokens_total"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++)
        one(b, sv, name[i], "counter", "Always 0: no tokens are drafted.", 0);
}

static void requests(struct buf *b, const struct server *sv, const struct engine_stats *s)
{
    one(b, sv, "vllm:num_requests_running", "gauge", "Sequences running.", s->running);
    one(b, sv, "vllm:num_requests_waiting", "gauge", "Requests waiting.", s->waiting);
    one(b, sv, "vllm:num_preemptions_total", "counter", "Always 0: admission is by worst case.", 0);
    one(b, sv, "vllm:prompt_tokens_total", "counter", "Prompt tokens.", (double)s->prompt_tokens);
    one(b, sv, "vllm:generation_tokens_total", "counter", "Generated tokens.",
        (double)s->generation_tokens);
    one(b, sv, "gaze_forced_tokens_total", "counter",
        "Generated tokens that a grammar left no choice about.", (double)s->forced_tokens);
    metrics_head(b, "vllm:request_success_total", "counter", "Finished requests.");
    buf_fmt(b, "vllm:request_success_total{model_name=\"%s\",finished_reason=\"stop\"} %llu\n",
            sv->label, (unsigned long long)s->finished_stop);
    buf_fmt(b, "vllm:request_success_total{model_name=\"%s\",finished_reason=\"length\"} %llu\n",
            sv->label, (unsigned long long)s->finished_length);
    buf_fmt(b, "vllm:request_success_total{model_name=\"%s\",finished_reason=\"abort\"} %llu\n",
            sv->label, (unsigned long long)s->cancelled);
    one(b, sv, "gaze_requests_failed_total", "counter", "Requests ended by an error.",
        (double)s->failed);
    metrics_head(b, "gaze_requests_refused_total", "counter", "Requests refused at the door.");
    buf_fmt(b, "gaze_requests_refused_total{model_name=\"%s\",why=\"queue_full\"} %llu\n",
            sv->label, (unsigned long long)s->refused_busy);
    buf_fmt(b, "gaze_requests_refused_total{model_name=\"%s\",why=\"too_large\"} %llu\n", sv->label,
            (unsigned long long)s->refused_size);
    one(b, sv, "gaze_queue_limit", "gauge", "Requests that may wait.",
        (double)sv->settings->max_queued);
}

static void cache(struct buf *b, const struct server *sv, const struct engine_stats *s)
{
    one(b, sv, "vllm:kv_cache_usage_perc", "gauge",
        "Part of the KV pages held by sequences, 0 to 1.",
        s->pages ? (double)s->pages_used / s->pages : 0);
    one(b, sv, "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up.",
        (double)s->prefix_queries);
    one(b, sv, "vllm:prefix_cache_hits_total", "counter", "Prompt tokens found.",
        (double)s->prefix_hits);
    metrics_head(b, "gaze_kv_pages", "gauge", "KV pages by state.");
    buf_fmt(b, "gaze_kv_pages{model_name=\"%s\",state=\"used\"} %u\n", sv->label, s->pages_used);
    buf_fmt(b, "gaze_kv_pages{model_name=\"%s\",state=\"cached\"} %u\n", sv->label,
            s->pages_cached);
    buf_fmt(b, "gaze_kv_pages{model_name=\"%s\",state=\"free\"} %u\n", sv->label,
            s->pages - s->pages_used - s->pages_cached);
}

static void steps(struct buf *b, const struct server *sv, const struct engine_stats *s)
{
    metrics_head(b, "gaze_steps_total", "counter", "Steps by lane.");
    buf_fmt(b, "gaze_steps_total{model_name=\"%s\",lane=\"prefill\"} %llu\n", sv->label,
            (unsigned long long)s->prefill_steps);
    buf_fmt(b, "gaze_steps_total{model_name=\"%s\",lane=\"decode\"} %llu\n", sv->label,
            (unsigned long long)s->decode_steps);
    metrics_head(b, "gaze_rows_total", "counter", "Tokens run, by attention path.");
    buf_fmt(b, "gaze_rows_total{model_name=\"%s\",path=\"dense\"} %llu\n", sv->label,
            (unsigned long long)s->rows_dense);
    buf_fmt(b, "gaze_rows_total{model_name=\"%s\",path=\"sparse\"} %llu\n", sv->label,
            (unsigned long long)s->rows_sparse);
    static const char *const lanes[N_LANES] = {"prefill", "decode"};
    metrics_head(b, "gaze_busy_seconds_total", "counter",
                 "Time of all steps by lane; requests' device_ms are shares of it.");
    for (int l = 0; l < N_LANES; l++)
        buf_fmt(b, "gaze_busy_seconds_total{model_name=\"%s\",lane=\"%s\"} %.6f\n", sv->label,
                lanes[l], (double)s->busy_us[l] * 1e-6);
    metrics_head(b, "gaze_phase_seconds_total", "counter", "Time of all steps by lane and part.");
    for (int l = 0; l < N_LANES; l++)
        for (int p = 0; p < N_PHASES; p++)
            buf_fmt(b,
                    "gaze_phase_seconds_total{model_name=\"%s\",lane=\"%s\",phase=\"%s\"} %.6f\n",
                    sv->label, lanes[l], forward_phase_names[p], (double)s->phase_us[l][p] * 1e-6);
    one(b, sv, "gaze_last_step_age_seconds", "gauge",
        "Since the oldest step that is out began, or the idle heartbeat.",
        (double)(clock_us() - s->last_step_us) * 1e-6);
}

/* A number of each attention group. */
static void each_group(struct buf *b, const struct server *sv, const struct engine_stats *s,
                       const char *name, const char *more, size_t offset, bool wide)
{
    for (uint32_t i = 0; i < s->n_groups; i++) {
        const char *at = (const char *)&s->group[i] + offset;
        uint32_t narrow;
        uint64_t v;
        memcpy(&narrow, at, sizeof narrow);
        if (wide)
            memcpy(&v, at, sizeof v);
        else
            v = narrow;
        buf_fmt(b, "%s{model_name=\"%s\",group=\"%u\",role=\"%s\"%s} %llu\n", name, sv->label, i,
                engine_role_names[s->group[i].role], more, (unsigned long long)v);
    }
}

#define GROUP_AT(member) offsetof(struct engine_group_stats, member)
static void groups(struct buf *b, const struct server *sv, const struct engine_stats *s)
{
    static const struct {
        const char *name, *type, *help;
        const struct {
            const char *more;
            size_t offset;
            bool wide;
        } part[3];
    } table[] = {
        {"gaze_group_sequences",
         "gauge",
         "Sequences that are in the attention group, or promised to it.",
         {{"", GROUP_AT(running), false}}},
        {"gaze_group_kv_pages",
         "gauge",
         "KV pages of the group, by state.",
         {{",state=\"all\"", GROUP_AT(pages), false},
          {",state=\"used\"", GROUP_AT(pages_used), false},
          {",state=\"cached\"", GROUP_AT(pages_cached), false}}},
        {"gaze_group_steps_total",
         "counter",
         "Steps of the group by lane.",
         {{",lane=\"prefill\"", GROUP_AT(prefill_steps), true},
          {",lane=\"decode\"", GROUP_AT(decode_steps), true}}},
        {"gaze_group_moves_total",
         "counter",
         "Sequences whose pages went to a group that decodes; moves that failed, and of these "
         "those "
         "after which a page had another sum.",
         {{",result=\"arrived\"", GROUP_AT(moves), true},
          {",result=\"failed\"", GROUP_AT(moves_failed), true},
          {",result=\"corrupt\"", GROUP_AT(moves_corrupt), true}}},
        {"gaze_group_moved_pages_total",
         "counter",
         "Pages that arrived.",
         {{"", GROUP_AT(moved_pages), true}}},
        {"gaze_group_moved_bytes_total",
         "counter",
         "Their bytes.",
         {{"", GROUP_AT(moved_bytes), true}}},
        {"gaze_group_move_microseconds_total",
         "counter",
         "Time that these moves took, sums and all.",
         {{"", GROUP_AT(move_us), true}}},
        {"gaze_group_recomputed_total",
         "counter",
         "Prompts run again because their pages would not go over.",
         {{"", GROUP_AT(recomputed), true}}},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        metrics_head(b, table[i].name, table[i].type, table[i].help);
        for (size_t k = 0; k < 3 && table[i].part[k].more; k++)
            each_group(b, sv, s, table[i].name, table[i].part[k].more, table[i].part[k].offset,
                       table[i].part[k].wide);
    }
}

static void histograms(struct buf *b, const struct server *sv, const struct engine_stats *s)
{
    const double *t = engine_hist_seconds, *n = engine_hist_tokens;
    hist(b, sv, "vllm:time_to_first_token_seconds", "Submitted to first token.", &s->ttft_s, t);
    hist(b, sv, "vllm:inter_token_latency_seconds", "Between two tokens.", &s->inter_token_s, t);
    hist(b, sv, "vllm:e2e_request_latency_seconds", "Submitted to the end.", &s->e2e_s, t);
    hist(b, sv, "vllm:request_queue_time_seconds", "Waiting.", &s->queue_s, t);
    hist(b, sv, "vllm:request_prefill_time_seconds", "First chunk to first token.", &s->prefill_s,
         t);
    hist(b, sv, "vllm:request_decode_time_seconds", "First token to the last.", &s->decode_s, t);
    hist(b, sv, "vllm:request_prompt_tokens", "Prompt length.", &s->prompt_len, n);
    hist(b, sv, "vllm:request_generation_tokens", "Answer length.", &s->generation_len, n);
    hist(b, sv, "vllm:iteration_tokens_total", "Tokens of a step.", &s->step_tokens, n);
}

static void front_end(struct buf *b, const struct server *sv)
{
    metrics_build(b);
    metrics_head(b, "http_requests_total", "counter", "Requests answered.");
    for (uint32_t i = 0; i < sv->n_counters; i++) {
        const struct http_counter *k = &sv->counter[i];
        buf_fmt(b, "http_requests_total{handler=\"%s\",method=\"%s\",status=\"%d\"} %llu\n",
                k->handler, k->method, k->status, (unsigned long long)k->count);
    }
    metrics_head(b, "gaze_reloads_total", "counter", "SIGHUPs, and parts that could not be read.");
    buf_fmt(b, "gaze_reloads_total{result=\"all\"} %llu\n", (unsigned long long)sv->n_reloads);
    buf_fmt(b, "gaze_reloads_total{result=\"failed\"} %llu\n",
            (unsigned long long)sv->n_reloads_failed);
    if (tls_expires_s()) {
        metrics_head(b, "gaze_tls_certificate_expiry_seconds", "gauge", "Unix time when it ends.");
        buf_fmt(b, "gaze_tls_certificate_expiry_seconds %lld\n", (long long)tls_expires_s());
    }
    metrics_head(b, "gaze_connections", "gauge", "Open connections.");
    buf_fmt(b, "gaze_connections %u\n", sv->n_conns);
    metrics_head(b, "gaze_calls", "gauge", "Requests under way, this one included.");
    buf_fmt(b, "gaze_calls %u\n", sv->n_calls);
    metrics_head(b, "gaze_engine_requests", "gauge", "Requests inside the engine.");
    buf_fmt(b, "gaze_engine_requests %u\n", sv->n_engine_requests);
    uint32_t n_alone, n_streams = streams_count(sv, &n_alone);
    metrics_head(b, "gaze_resumable_streams", "gauge", "Streams that can be gone on with.");
    buf_fmt(b, "gaze_resumable_streams %u\n", n_streams);
    metrics_head(b, "gaze_detached_streams", "gauge",
                 "Of those, answers under way without a client.");
    buf_fmt(b, "gaze_detached_streams %u\n", n_alone);
    metrics_head(b, "gaze_client_disconnects_total", "counter",
                 "Clients that left before their answer.");
    buf_fmt(b, "gaze_client_disconnects_total %llu\n", (unsigned long long)sv->n_disconnects);
    metrics_head(b, "gaze_clients_cut_off_total", "counter", "Slow clients cut off.");
    buf_fmt(b, "gaze_clients_cut_off_total %llu\n", (unsigned long long)sv->n_cut_off);
    metrics_head(b, "gaze_loop_lag_seconds", "gauge", "How late the loop's last timer was.");
    buf_fmt(b, "gaze_loop_lag_seconds %.6f\n", sv->loop_lag_s);
    metrics_head(b, "gaze_loop_lag_max_seconds", "gauge", "The latest it has ever been.");
    buf_fmt(b, "gaze_loop_lag_max_seconds %.6f\n", sv->loop_lag_max_s);
}

static void spans(struct buf *b, const struct server *sv)
{
    if (!sv->otlp)
        return;
    struct otlp_counts n = otlp_get_counts(sv->otlp);
    metrics_head(b, "gaze_trace_spans_total", "counter", "Spans by what became of them.");
    buf_fmt(b, "gaze_trace_spans_total{result=\"sent\"} %llu\n", (unsigned long long)n.sent);
    buf_fmt(b, "gaze_trace_spans_total{result=\"failed\"} %llu\n", (unsigned long long)n.failed);
    buf_fmt(b, "gaze_trace_spans_total{result=\"dropped\"} %llu\n", (unsigned long long)n.dropped);
}

static void each_key(struct buf *b, const struct server *sv, const char *name, const char *kind,
                     size_t offset)
{
    uint32_t n;
    const struct auth_key *k = auth_keys(sv->auth, &n);
    for (uint32_t i = 0; i < n; i++, k++) {
        uint64_t v;
        if (!k->name[0])
            continue;
        memcpy(&v, (const char *)k + offset, sizeof v);
        buf_fmt(b, "%s{key=\"%s\"%s} %llu\n", name, k->name, kind, (unsigned long long)v);
    }
}

/* Names of keys are letters, digits and a few signs: nothing to escape. */
static void keys(struct buf *b, const struct server *sv)
{
    if (!auth_required(sv->auth))
        return;
    metrics_head(b, "gaze_key_requests_total", "counter", "Requests for the engine by API key.");
    each_key(b, sv, "gaze_key_requests_total", "", offsetof(struct auth_key, n_requests));
    metrics_head(b, "gaze_key_refused_total", "counter", "Requests over a limit of their key.");
    each_key(b, sv, "gaze_key_refused_total", "", offsetof(struct auth_key, n_refused));
    metrics_head(b, "gaze_key_tokens_total", "counter", "Tokens charged to the key.");
    each_key(b, sv, "gaze_key_tokens_total", ",kind=\"prompt\"",
             offsetof(struct auth_key, n_prompt_tokens));
    each_key(b, sv, "gaze_key_tokens_total", ",kind=\"generation\"",
             offsetof(struct auth_key, n_answer_tokens));
}

static void grammars(struct buf *b, const struct server *sv)
{
    struct grammar_cache_counts n = guides_counts(sv->guides);
    metrics_head(b, "gaze_grammars_total", "counter", "Forms of answers that were asked for.");
    buf_fmt(b, "gaze_grammars_total{result=\"cached\"} %llu\n", (unsigned long long)n.hits);
    buf_fmt(b, "gaze_grammars_total{result=\"compiled\"} %llu\n",
            (unsigned long long)(n.misses - n.refused));
    buf_fmt(b, "gaze_grammars_total{result=\"refused\"} %llu\n", (unsigned long long)n.refused);
    metrics_head(b, "gaze_grammar_compile_seconds_total", "counter", "Time spent compiling them.");
    buf_fmt(b, "gaze_grammar_compile_seconds_total %.6f\n", (double)n.make_us * 1e-6);
    metrics_head(b, "gaze_grammar_cache_evictions_total", "counter",
                 "Compiled ones that were forgotten.");
    buf_fmt(b, "gaze_grammar_cache_evictions_total %llu\n", (unsigned long long)n.evicted);
    metrics_head(b, "gaze_grammar_cache_entries", "gauge", "Compiled ones that are kept.");
    buf_fmt(b, "gaze_grammar_cache_entries %u\n", n.entries);
    metrics_head(b, "gaze_grammar_cache_bytes", "gauge", "Their memory.");
    buf_fmt(b, "gaze_grammar_cache_bytes %zu\n", n.bytes);
}

static void model_parts(struct buf *b, const struct server *sv)
{
    const struct model_config *m = sv->api->model(sv->engine);
    size_t n = (size_t)m->n_layers * m->n_experts;
    uint64_t *rows = n ? malloc(n * sizeof *rows) : NULL;
    struct reuse_count count[REUSE_LAYERS];
    if (rows) {
        sv->api->get_expert_rows(sv->engine, rows);
        metrics_experts(b, sv->label, m, rows);
    }
    b->failed = b->failed || (n && !rows);
    free(rows);
    sv->api->get_selection_reuse(sv->engine, count);
    metrics_selections(b, sv->label, m, count);
}

void api_metrics(struct call *c)
{
    struct server *sv = c->sv;
    struct engine_stats s = {0};
    struct buf *b = &c->answer;
    metrics_label(sv->label, sizeof sv->label, sv->name);
    if (sv->engine) {
        sv->api->get_stats(sv->engine, &s);
        requests(b, sv, &s);
        speculation(b, sv);
        cache(b, sv, &s);
        steps(b, sv, &s);
        groups(b, sv, &s);
        model_parts(b, sv);
        histograms(b, sv, &s);
        metrics_memory_plan(b, sv->label, sv->api->get_plan(sv->engine));
    }
    front_end(b, sv);
    grammars(b, sv);
    keys(b, sv);
    spans(b, sv);
    metrics_process(b, sv->created_s);
    http_text(c, 200, "text/plain; version=0.0.4; charset=utf-8");
}
