/* progress.c - see progress.h. */
#include "progress.h"

#include "base/clock.h"
#include "base/log.h"

#include <unistd.h>

enum { BAR = 30, LINE_US = 3000000, BAR_US = 100000 };

static void draw(double part, double mb, double total_mb, double rate, double left_s)
{
    char bar[BAR + 1];
    for (int i = 0; i < BAR; i++)
        bar[i] = i < (int)(part * BAR) ? '#' : '.';
    bar[BAR] = 0;
    fprintf(stderr, "\rloading [%s] %3.0f %%  %.0f of %.0f MB  %.0f MB/s  %.0f s left \033[K", bar,
            part * 100, mb, total_mb, rate, left_s);
    fflush(stderr);
}

void progress_show(struct server *sv, uint64_t now_us)
{
    double done = (double)atomic_load(&sv->load_done_bytes) * 1e-6;
    double total = (double)atomic_load(&sv->load_total_bytes) * 1e-6;
    bool terminal = isatty(STDERR_FILENO) && log_get_level() <= LOG_INFO;
    double seconds = (double)(now_us - sv->load_begun_us) * 1e-6;
    if (total <= 0 || now_us - sv->load_said_us < (terminal ? BAR_US : LINE_US))
        return;
    if (!terminal && !sv->load_said_us) { /* a short load needs no line */
        sv->load_said_us = now_us;
        return;
    }
    sv->load_said_us = now_us;
    double rate = seconds > 0 ? done / seconds : 0, left = rate > 0 ? (total - done) / rate : 0;
    if (terminal)
        draw(done / total, done, total, rate, left);
    else
        log_info("load", "mb=%.0f of=%.0f mb_per_s=%.0f left_s=%.0f", done, total, rate, left);
}

void progress_end(struct server *sv)
{
    if (isatty(STDERR_FILENO) && sv->load_said_us)
        fprintf(stderr, "\r\033[K");
    log_info("load", "ready=%s seconds=%.2f", sv->name,
             (double)(clock_us() - sv->load_begun_us) * 1e-6);
}
