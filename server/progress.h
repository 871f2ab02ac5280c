/* progress.h - how far the weights are, on standard error: a bar on a terminal, else a line now and
 * then.
 *
 * Thread: the loop's; the loader's thread writes the byte counts.
 */
#ifndef GAZE_SERVER_PROGRESS_H
#define GAZE_SERVER_PROGRESS_H

#include "server.h"

void progress_show(struct server *sv, uint64_t now_us); /* often; it keeps its own pace */
void progress_end(struct server *sv);                   /* the bar makes room */

#endif
