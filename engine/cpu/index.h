/* index.h - the lightning indexer's part of the op table is in index.c; see ops.h, index_select.
 *
 * Scores and selection of a row are those of the row alone: a score is made from one query and one
 * key, whoever shares the page's tile, and topk.h's answer is a function of the scores.
 *
 * - many rows: up to INDEX_BLOCK_ROWS rows of a sequence share each page's tile; one chunk scores
 *   and selects.
 * - fewer such blocks than threads: a block's pages are split over the pool, then its rows. Short
 *   contexts, which are not worth that, are cut into blocks of one row.
 */
#ifndef GAZE_CPU_INDEX_H
#define GAZE_CPU_INDEX_H

#include "cpu/backend.h"

enum { INDEX_BLOCK_ROWS = 8, INDEX_SPLIT_PAGES = 16 };

#endif
