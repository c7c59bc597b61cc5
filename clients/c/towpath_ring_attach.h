/* SPDX-License-Identifier: Apache-2.0
 *
 * Readers that come and go, as their writer sees it; and the writer's own end.
 *
 * Not here: who may be a reader, and when one has been waited for long enough (the core).
 */
#ifndef TOWPATH_RING_ATTACH_H
#define TOWPATH_RING_ATTACH_H

#include "towpath_ring_publish.h"

static inline struct tpr_peer *tpr_writer_find_(struct tpr_writer *writer, uint64_t reader) {
    for (uint32_t i = 0; i < writer->peer_count; i++)
        if (writer->peer[i].reader == reader)
            return &writer->peer[i];
    return NULL;
}

static inline void tpr_writer_drop_(struct tpr_writer *writer, struct tpr_peer *peer) {
    if (peer->doorbell >= 0)
        close(peer->doorbell);
    tpr_writer_unmap_(writer, peer->control, peer->control_bytes);
    *peer = writer->peer[--writer->peer_count];
}

/* Detach a reader that is gone, or too slow; 0 when it was not attached. A sleeping waiter wakes.
 *
 * It may be alive, stopped in the middle of a copy even: what it reads from now on it finds overwritten only after
 * oldest_pos has said so, so it never takes a torn message for a whole one (it is TPR_SOURCE_DETACHED, or, with drop,
 * lapped like any other). */
static inline int tpr_writer_detach(struct tpr_writer *writer, uint64_t reader) {
    struct tpr_peer *peer = tpr_writer_find_(writer, reader);
    if (!peer)
        return 0;
    tpr_writer_drop_(writer, peer);
    tpr_writer_notify(writer);
    return 1;
}

/* Wait for this reader no more, which is too slow: but it lives, and what it holds of loaned messages stays as it is until
 * it lets go, or is detached (it is gone) or attached again. 0 when it was not attached. */
static inline int tpr_writer_part(struct tpr_writer *writer, uint64_t reader) {
    struct tpr_peer *peer = tpr_writer_find_(writer, reader);
    if (!peer || !writer->slab)
        return tpr_writer_detach(writer, reader);
    peer->has_left = peer->is_parted = 1;
    tpr_writer_notify(writer);
    return 1;
}

/* Map the page behind `fd` into `peer`, all checked. */
static inline int tpr_peer_map_(struct tpr_peer *peer, uint64_t reader, int fd, uint32_t slot) {
    struct tpr_control_info info;
    int code = tpr_control_check(fd, &info);
    if (code != TPR_OK)
        return code;
    if (info.reader != reader)
        return TPR_E_OTHER_READER;
    if (slot >= info.slots)
        return TPR_E_SLOT;
    peer->reader = reader;
    peer->control_bytes = tpr_control_bytes_(&info);
    peer->held_max = info.held_max;
    peer->control = (const struct tpr_control_page *)tpr_map_(fd, peer->control_bytes);
    if (!peer->control)
        return TPR_E_SYSTEM;
    peer->slot = &peer->control->slot[slot];
    peer->held = (const struct tpr_held *)(const void *)((const uint8_t *)peer->control + tpr_held_offset_(info.slots));
    return TPR_OK;
}

/* Where a reader that begins at `start` may stand, at the earliest, while its cursor is unset. What lies before oldest
 * is lost to it anyhow; for all but history it cannot lie there (see "Attaching" and "History" in towpath_ring.h). */
static inline uint64_t tpr_writer_pin_(const struct tpr_writer *writer, enum tpr_start start) {
    uint64_t pin = start == TPR_START_BEGIN ? 0 : writer->previous_tail;
    if (start == TPR_START_HISTORY && writer->history)
        pin = writer->positions->before_batch;
    return pin > writer->oldest ? pin : writer->oldest;
}

static inline int tpr_writer_make_room_for_peer_(struct tpr_writer *writer) {
    if (writer->peer_count >= TPR_READERS_MAX)
        return TPR_E_LIMIT;
    if (writer->peer_count < writer->peer_room)
        return TPR_OK;
    uint32_t room = writer->peer_room ? writer->peer_room * 2 : 4;
    void *grown = realloc(writer->peer, room * sizeof *writer->peer);
    if (!grown)
        return TPR_E_SYSTEM;
    writer->peer = (struct tpr_peer *)grown;
    writer->peer_room = room;
    return TPR_OK;
}

/* Attach a reader: from now on it is waited for (overflow = block) and woken. Descriptors stay the caller's; the
 * doorbell (a UNIX socket, or -1) is duplicated. Attaching a reader again replaces what was known of it.
 *
 * `start` is what the reader was told, or will be; until its cursor is set it is taken to stand at the first place that
 * it may begin at.
 *
 * Returns TPR_OK; TPR_E_LATE; TPR_E_LIMIT; TPR_E_FORKED; TPR_E_SYSTEM; or what is wrong with the descriptor.
 * State is unchanged on error. */
static inline int tpr_writer_attach(struct tpr_writer *writer, uint64_t reader, int control_fd, uint32_t slot,
                                    int doorbell_fd, enum tpr_start start) {
    struct tpr_peer peer;
    memset(&peer, 0, sizeof peer);
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    tpr_writer_flush(writer);
    if (start == TPR_START_BEGIN && writer->oldest > 0 && writer->overflow == TPR_OVERFLOW_BLOCK)
        return TPR_E_LATE;
    struct tpr_peer *known = tpr_writer_find_(writer, reader);
    int code = known ? TPR_OK : tpr_writer_make_room_for_peer_(writer);
    if (code == TPR_OK)
        code = tpr_peer_map_(&peer, reader, control_fd, slot);
    if (code != TPR_OK)
        return code;
    code = tpr_doorbell_dup_(doorbell_fd, &peer.doorbell);
    if (code != TPR_OK) {
        tpr_unmap_(peer.control, peer.control_bytes);
        return code;
    }
    peer.pin = tpr_writer_pin_(writer, start);
    peer.stale_left = tpr_load_acquire_(&peer.slot->cursor) == TPR_CURSOR_LEFT;
    if (known)
        tpr_writer_drop_(writer, known);
    writer->peer[writer->peer_count++] = peer;
    if (writer->room_limit > peer.pin + writer->capacity)
        writer->room_limit = peer.pin + writer->capacity; /* room_until is not beyond: the pin is not before oldest */
    tpr_writer_wake_(writer); /* it may sleep already, having missed the newest batch */
    tpr_writer_notify(writer);
    return TPR_OK;
}

/* ---- the end ---- */

/* Unmap what was detached during a sleep; the sleeper is back. */
static inline void tpr_writer_reap(struct tpr_writer *writer) {
    for (uint32_t i = 0; i < writer->deferred_count; i++)
        tpr_unmap_(writer->deferred[i].page, writer->deferred[i].bytes);
    free(writer->deferred);
    writer->deferred = NULL;
    writer->deferred_count = 0;
}

/* Release everything; nothing is stored in shared memory. */
static inline void tpr_writer_release_(struct tpr_writer *writer) {
    while (writer->peer_count)
        tpr_writer_drop_(writer, &writer->peer[0]);
    free(writer->peer);
    writer->peer = NULL;
    tpr_unmap_(writer->table.page, writer->table.bytes);
    tpr_writer_reap(writer);
    tpr_positions_close_(writer);
    free(writer->slab);
    writer->slab = NULL;
    tpr_memory_free_(&writer->memory);
}

/* Publish what is pending, mark the end, wake readers, release everything. Nobody may be asleep in it. */
static inline void tpr_writer_close(struct tpr_writer *writer) {
    if (!writer->memory.page)
        return;
    if (!tpr_is_forked_(&writer->memory)) {
        tpr_writer_flush(writer);
        /* The mark is a bit of the word that readers sleep on, so that none can fall asleep past it. */
        TPR_STORE(TAIL_CLOSED, &writer->page->tail, writer->tail | TPR_TAIL_CLOSED, __ATOMIC_RELEASE);
        tpr_writer_wake_(writer);
    }
    tpr_writer_release_(writer);
}

#endif
