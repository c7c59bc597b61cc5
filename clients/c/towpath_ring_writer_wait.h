/* SPDX-License-Identifier: Apache-2.0
 *
 * How a writer waits for room: it names the position that the slowest cursor must reach, and sleeps on that cursor, or
 * has its doorbell rung by who reaches it; and how it judges that a reader has stopped.
 *
 * Three steps, so that a caller may let go of its locks for the middle one: tpr_writer_wait_begin() looks whether there
 * is room and, if not, writes down what to wait for; tpr_room_wait_sleep() spins and sleeps on that alone; then begin
 * again. tpr_writer_wait_room() is all of it in one. tpr_writer_arm_room() is for event loops.
 *
 * By the same steps it waits until something was read: up to a position (TPR_READ_TO + position instead of the bytes of a
 * message), or everything (TPR_ALL_READ). Whoever wants to know of what it has published itself waits for a position: with
 * others that go on publishing, everything may never be read.
 *
 * A reader is stuck while the ring is full because of it and its cursor does not move. That counts by the time between
 * two looks of the writer, but by TPR_STALL_STEP_NS at most: so a writer that was itself stopped, or did something else
 * for an hour, does not blame its readers for that.
 */
#ifndef TOWPATH_RING_WRITER_WAIT_H
#define TOWPATH_RING_WRITER_WAIT_H

#include "towpath_ring_attach.h"

/* Instead of the bytes of a message: until every reader that counts has read up to the position that this is added to, or
 * up to the tail, if that is less. */
#define TPR_READ_TO (UINT64_C(1) << 63)
#define TPR_ALL_READ UINT64_MAX

/* The spin before a wait for the room for a message of `bytes`, or for what was published to be read: where that is stored
 * first, it takes as long as a disk does. */
static inline struct tpr_spin *tpr_writer_spin_(struct tpr_writer *writer, uint64_t bytes) {
    return bytes >= TPR_READ_TO ? &writer->stored_spin : &writer->spin;
}

/* Everything that a sleeping writer looks at, so that it needs nothing else of the handle. */
struct tpr_room_wait {
    uint64_t *waits_for;
    const uint64_t *cursor; /* of the slowest reader */
    uint64_t cursor_word;   /* what it was */
    uint64_t needed;        /* the position it has to reach */
    const uint64_t *generation_cell;
    uint64_t generation;
    const uint32_t *wake_word;
    uint32_t wake_seen;
    struct tpr_spin *spin;
};

/* The writer cannot go on to `full_until`: whose cursor is it that does not move, and for how long? O(readers). */
static inline void tpr_writer_note_stuck_(struct tpr_writer *writer) {
    uint64_t now_ns = tpr_monotonic_ns(), cursor = 0, step_ns = now_ns - writer->looked_ns;
    if (step_ns > TPR_STALL_STEP_NS)
        step_ns = TPR_STALL_STEP_NS;
    writer->looked_ns = now_ns;
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct tpr_peer *peer = &writer->peer[i];
        int was_stuck = peer->is_stuck;
        peer->is_stuck = tpr_peer_cursor_(writer, peer, &cursor) == TPR_COUNTS_ && cursor + writer->capacity < writer->full_until;
        peer->stuck_ns = was_stuck && peer->word == peer->stuck_word ? peer->stuck_ns + step_ns : 0;
        peer->stuck_word = peer->word;
    }
}

/* The reader that has held the ring full for `stall_ns` or longer, without moving its cursor; 0 when there is none, else
 * 1. The writer must look at least once a second meanwhile: by this, tpr_writer_wait_begin() or tpr_writer_arm_room().
 * O(readers). */
static inline int tpr_writer_stalled(struct tpr_writer *writer, uint64_t stall_ns, uint64_t *reader) {
    tpr_writer_note_stuck_(writer);
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        if (writer->peer[i].is_stuck && writer->peer[i].stuck_ns >= stall_ns) {
            *reader = writer->peer[i].reader;
            return 1;
        }
    }
    return 0;
}

/* Is there room for a message of `bytes` (headers and payload), or, from TPR_READ_TO on, was so much read? Returns TPR_OK
 * (so it is), TPR_NEEDS_READERS, TPR_E_TOO_LARGE, TPR_E_FORKED, or TPR_FULL: then `wait` is filled in for
 * tpr_room_wait_sleep().
 *
 * Asks for an eighth of the ring more than the message needs, where readers can give that, so that a writer
 * woken once writes for a while. */
static inline int tpr_writer_wait_begin(struct tpr_writer *writer, uint64_t bytes, struct tpr_room_wait *wait) {
    uint64_t lowest;
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    int is_read = bytes >= TPR_READ_TO;
    uint64_t read_to = bytes - TPR_READ_TO;
    wait->spin = tpr_writer_spin_(writer, bytes);
    if (!is_read && bytes > tpr_message_bytes_max(writer->capacity))
        return TPR_E_TOO_LARGE;
    /* Read before the look at the cursors: a notify() from here on ends the sleep. */
    wait->wake_seen = __atomic_load_n(&writer->wake_word, __ATOMIC_ACQUIRE);
    tpr_writer_flush(writer);
    if (!tpr_writer_is_current_(writer))
        return TPR_NEEDS_READERS;
    if (read_to > writer->tail)
        read_to = writer->tail;
    bytes = is_read ? 0 : tpr_record_bytes(0, bytes);
    bytes += tpr_writer_padding_(writer, bytes);
    if (!is_read && tpr_writer_has_room_(writer, bytes))
        return TPR_OK;
    struct tpr_peer *slowest = tpr_writer_scan_(writer, &lowest);
    if (!slowest || (is_read ? lowest >= read_to : writer->position + bytes <= lowest + writer->capacity))
        return TPR_OK;
    wait->waits_for = &writer->page->writer_waits_for;
    wait->cursor = &slowest->slot->cursor;
    wait->cursor_word = slowest->word; /* as it was when there was no room: any other ends the sleep */
    wait->needed = writer->position + bytes - writer->capacity + writer->capacity / TPR_BATCH_FRACTION;
    if (wait->needed > writer->tail)
        wait->needed = writer->tail;
    if (is_read)
        wait->needed = read_to;
    wait->generation_cell = writer->generation_cell;
    wait->generation = writer->generation;
    wait->wake_word = &writer->wake_word;
    if (!is_read) {
        writer->full_until = writer->position + bytes;
        tpr_writer_note_stuck_(writer);
    }
    return TPR_FULL;
}

static inline int tpr_room_wait_is_over_(const struct tpr_room_wait *wait) {
    uint64_t word = tpr_load_acquire_(wait->cursor);
    int is_short = (word & TPR_CURSOR_FLAGS) == TPR_CURSOR_SET && word - TPR_CURSOR_SET < wait->needed;
    if (word != wait->cursor_word && !is_short)
        return 1;
    return (wait->generation_cell && tpr_load_acquire_(wait->generation_cell) != wait->generation) ||
           __atomic_load_n(wait->wake_word, __ATOMIC_ACQUIRE) != wait->wake_seen;
}

/* Sleep until something changed that is worth another tpr_writer_wait_begin(), or the deadline.
 * Returns TPR_OK, TPR_TIMEOUT, TPR_INTERRUPTED, TPR_E_SYSTEM. */
static inline int tpr_room_wait_sleep(const struct tpr_room_wait *wait, uint64_t deadline_ns) {
    struct tpr_waitv_ entry[3];
    uint32_t count = 0;
    int code = TPR_OK;
    uint64_t began_ns = tpr_monotonic_ns();
    if (wait->spin->budget_ns) {
        struct tpr_spinning_ spinning;
        tpr_spin_begin_(wait->spin, &spinning, began_ns, deadline_ns);
        while (tpr_spin_goes_on_(&spinning)) {
            if (tpr_room_wait_is_over_(wait)) {
                tpr_spin_answered_(wait->spin, &spinning);
                return TPR_OK;
            }
        }
        tpr_spin_failed_(wait->spin);
    }
    TPR_STORE(WAITS_SET, wait->waits_for, wait->needed, __ATOMIC_RELEASE);
    TPR_FENCE(ROOM); /* with the reader's, between its cursor and its look at writer_waits_for */
    while (code == TPR_OK) {
        uint64_t word = tpr_load_acquire_(wait->cursor);
        count = 0;
        entry[count++] = tpr_waitv_entry_(wait->cursor, word, 0);
        if (wait->generation_cell)
            entry[count++] = tpr_waitv_entry_(wait->generation_cell, wait->generation, 0);
        entry[count++] = tpr_waitv_entry_(wait->wake_word, wait->wake_seen, 1);
        if (tpr_room_wait_is_over_(wait))
            break;
        code = tpr_wait_any_(entry, count, deadline_ns);
    }
    TPR_STORE(WAITS_CLEAR, wait->waits_for, UINT64_C(0), __ATOMIC_RELEASE);
    tpr_spin_slept_(wait->spin, tpr_monotonic_ns() - began_ns);
    return code;
}

/* Wait until a message of `bytes` fits, or so much was read. Returns TPR_OK, TPR_NEEDS_READERS, TPR_TIMEOUT, TPR_NOTIFIED,
 * TPR_INTERRUPTED, or an error. */
static inline int tpr_writer_wait_room(struct tpr_writer *writer, uint64_t bytes, uint64_t deadline_ns) {
    struct tpr_room_wait wait;
    for (;;) {
        int code = tpr_writer_wait_begin(writer, bytes, &wait);
        if (code != TPR_FULL)
            return code;
        code = tpr_room_wait_sleep(&wait, deadline_ns);
        if (code != TPR_OK)
            return code;
        if (__atomic_load_n(&writer->wake_word, __ATOMIC_ACQUIRE) != wait.wake_seen)
            return TPR_NOTIFIED;
    }
}

/* ---- event loops ---- */

/* No doorbell wanted any more. */
static inline void tpr_writer_disarm_room(struct tpr_writer *writer) {
    if (!writer->is_armed)
        return;
    writer->is_armed = 0;
    TPR_STORE(WAITS_CLEAR, &writer->page->writer_waits_for, UINT64_C(0), __ATOMIC_RELEASE);
}

/* Have the doorbell that the readers were given rung when a message of `bytes` may fit, by each reader that goes past
 * what is needed for that. Returns 0: armed; 1: there is room, or there are readers to attach (and it is not armed);
 * TPR_E_TOO_LARGE, TPR_E_FORKED. */
static inline int tpr_writer_arm_room(struct tpr_writer *writer, uint64_t bytes) {
    struct tpr_room_wait wait;
    uint64_t lowest;
    int code = tpr_writer_wait_begin(writer, bytes, &wait);
    if (code == TPR_FULL) {
        writer->is_armed = 1;
        TPR_STORE(WAITS_DOORBELL, wait.waits_for, wait.needed | TPR_WAITS_DOORBELL, __ATOMIC_RELEASE);
        TPR_FENCE(ROOM); /* with the reader's, between its cursor and its look at writer_waits_for */
        tpr_writer_scan_(writer, &lowest);
        if (lowest < wait.needed && tpr_writer_is_current_(writer))
            return 0;
    }
    tpr_writer_disarm_room(writer);
    return code < 0 ? code : 1;
}

#endif
