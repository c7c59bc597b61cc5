/* SPDX-License-Identifier: Apache-2.0
 *
 * Which parts of a writer's slab are loaned, published, or free. Private to the writer: none of this lies in shared memory,
 * and nobody else can break it.
 *
 * A block is a run of whole pages (TPR_SLAB_GRAIN). Its life:
 *
 *     free  --take-->  OUT (its program fills it)  --publish-->  PUBLISHED (readers may look at it)  --free-->  free
 *                       \--give back-----------------------------------------------------------------^
 *
 * The free extents are kept in order and whole (two never touch); the first that fits is taken, from its front, so that
 * the same pages are used again and again, and stay in the cache. At most TPR_LOANS_MAX blocks are not free, which bounds
 * everything here, the search too.
 *
 * Not here: when a published block may be used again (towpath_ring_loan.h).
 */
#ifndef TOWPATH_RING_SLAB_H
#define TOWPATH_RING_SLAB_H

#include "towpath_ring_layout.h"

#include <stdlib.h>
#include <string.h>

enum tpr_block_state { TPR_BLOCK_FREE, TPR_BLOCK_OUT, TPR_BLOCK_PUBLISHED };

struct tpr_block {
    uint64_t offset, bytes; /* whole pages */
    uint64_t seq, end;      /* PUBLISHED: of its message, and the position after its record */
    uint64_t serial;        /* grows with each use: tells an old handle */
    enum tpr_block_state state;
    uint32_t is_held; /* of the look that is being taken */
};

struct tpr_extent {
    uint64_t offset, bytes;
};

struct tpr_slab {
    uint64_t bytes, serial;
    uint64_t looked; /* entries of held tables at the last look that found something read */
    uint32_t unused_count, published_count, extent_count;
    uint32_t look_at; /* look who has read and holds what when so many are published (towpath_ring_loan.h) */
    uint32_t unused[TPR_LOANS_MAX];    /* blocks that are FREE */
    uint32_t published[TPR_LOANS_MAX]; /* in order of seq */
    struct tpr_block block[TPR_LOANS_MAX];
    struct tpr_extent extent[TPR_LOANS_MAX + 1];
};

/* A slab of which all is free; NULL with errno set when there is no memory. free() it. */
static inline struct tpr_slab *tpr_slab_new_(uint64_t bytes) {
    struct tpr_slab *slab = (struct tpr_slab *)calloc(1, sizeof *slab); /* touched as it is used */
    if (!slab)
        return NULL;
    slab->bytes = bytes;
    slab->unused_count = TPR_LOANS_MAX;
    for (uint32_t i = 0; i < TPR_LOANS_MAX; i++)
        slab->unused[i] = TPR_LOANS_MAX - 1 - i;
    slab->extent_count = 1;
    slab->extent[0].bytes = bytes;
    slab->look_at = 1;
    return slab;
}

static inline uint64_t tpr_block_bytes_(uint64_t bytes) {
    return bytes ? (bytes + TPR_SLAB_GRAIN - 1) & ~(TPR_SLAB_GRAIN - 1) : TPR_SLAB_GRAIN;
}

/* Take a block for `bytes`, which is OUT then; NULL: there is none. O(extents). */
static inline struct tpr_block *tpr_slab_take_(struct tpr_slab *slab, uint64_t bytes) {
    uint64_t needed = tpr_block_bytes_(bytes);
    if (!slab->unused_count)
        return NULL;
    for (uint32_t i = 0; i < slab->extent_count; i++) {
        struct tpr_extent *extent = &slab->extent[i];
        if (extent->bytes < needed)
            continue;
        struct tpr_block *block = &slab->block[slab->unused[--slab->unused_count]];
        block->offset = extent->offset;
        block->bytes = needed;
        block->serial = ++slab->serial;
        block->state = TPR_BLOCK_OUT;
        extent->offset += needed;
        extent->bytes -= needed;
        if (!extent->bytes) {
            slab->extent_count--;
            memmove(extent, extent + 1, (slab->extent_count - i) * sizeof *extent);
        }
        return block;
    }
    return NULL;
}

/* A block that is not FREE becomes it; of those published the caller keeps the list. O(extents). */
static inline void tpr_slab_free_(struct tpr_slab *slab, struct tpr_block *block) {
    uint64_t offset = block->offset, bytes = block->bytes;
    uint32_t i = 0;
    while (i < slab->extent_count && slab->extent[i].offset < offset)
        i++;
    int joins_before = i > 0 && slab->extent[i - 1].offset + slab->extent[i - 1].bytes == offset;
    int joins_after = i < slab->extent_count && offset + bytes == slab->extent[i].offset;
    if (joins_before && joins_after) {
        slab->extent[i - 1].bytes += bytes + slab->extent[i].bytes;
        slab->extent_count--;
        memmove(&slab->extent[i], &slab->extent[i + 1], (slab->extent_count - i) * sizeof *slab->extent);
    } else if (joins_before) {
        slab->extent[i - 1].bytes += bytes;
    } else if (joins_after) {
        slab->extent[i].offset = offset;
        slab->extent[i].bytes += bytes;
    } else {
        memmove(&slab->extent[i + 1], &slab->extent[i], (slab->extent_count - i) * sizeof *slab->extent);
        slab->extent_count++;
        slab->extent[i].offset = offset;
        slab->extent[i].bytes = bytes;
    }
    block->state = TPR_BLOCK_FREE;
    slab->unused[slab->unused_count++] = (uint32_t)(block - slab->block);
}

/* Of the first `count` published, the block of the message `seq`; NULL: none. O(log count). */
static inline struct tpr_block *tpr_slab_find_(struct tpr_slab *slab, uint32_t count, uint64_t seq) {
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        struct tpr_block *block = &slab->block[slab->published[middle]];
        if (block->seq == seq)
            return block;
        if (block->seq < seq)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

#endif
