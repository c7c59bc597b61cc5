/* SPDX-License-Identifier: Apache-2.0
 *
 * The load: one number in a reader's control page that says how busy the reader is, for writers that choose between
 * readers. A service's server tells how many requests it works on; a caller asks the least busy one.
 *
 * It is a hint: nothing is ordered by it, and a reader that lies gets more work, or less, and harms nobody else. So its
 * store needs no fence.
 */
#ifndef TOWPATH_RING_LOAD_H
#define TOWPATH_RING_LOAD_H

#include "towpath_ring_attach.h"
#include "towpath_ring_reader.h"

/* Tell the writers. TPR_OK, TPR_E_FORKED. */
static inline int tpr_reader_set_load(struct tpr_reader *reader, uint64_t load) {
    if (tpr_is_forked_(&reader->memory))
        return TPR_E_FORKED;
    TPR_STORE(LOAD, &reader->page->load, load, __ATOMIC_RELAXED);
    return TPR_OK;
}

/* What an attached reader tells. TPR_OK; TPR_TIMEOUT while it has not begun to read (it has no cursor yet: what is
 * published now may lie before the place where it will begin); TPR_NOTIFIED when it has left, or is not attached;
 * TPR_E_FORKED. */
static inline int tpr_writer_load(struct tpr_writer *writer, uint64_t reader, uint64_t *load) {
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    const struct tpr_peer *peer = tpr_writer_find_(writer, reader);
    if (!peer)
        return TPR_NOTIFIED;
    if (tpr_load_relaxed_(&peer->slot->source) != writer->source)
        return TPR_TIMEOUT;
    uint64_t cursor = tpr_load_acquire_(&peer->slot->cursor);
    if (cursor == TPR_CURSOR_LEFT)
        return peer->stale_left ? TPR_TIMEOUT : TPR_NOTIFIED;
    if (!(cursor & TPR_CURSOR_SET))
        return TPR_TIMEOUT;
    *load = tpr_load_relaxed_(&peer->control->load);
    return TPR_OK;
}

#endif
