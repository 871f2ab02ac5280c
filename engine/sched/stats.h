/* stats.h - the counters behind engine_stats: totals, histograms, and who adds to them.
 *
 * finished_stop and finished_length count choices; cancelled and failed count requests. Token
 * totals are exact: prompt_tokens counts a request's prompt once, when it has been run;
 * generation_tokens every token that went out. Thread: the scheduler's; scheduler_get_stats() gives
 * a copy.
 */
#ifndef GAZE_SCHED_STATS_H
#define GAZE_SCHED_STATS_H

#include "engine.h"

void hist_add_seconds(struct engine_hist *h, uint64_t us);
void hist_add_tokens(struct engine_hist *h, uint64_t tokens);

#endif
