/* SPDX-License-Identifier: Apache-2.0
 *
 * Going on with a ring, or a control page, whose process has died. The core does that with its own: somebody who
 * outlives it keeps a descriptor of each (keep), from which its successor takes them up (recover).
 *
 * A ring needs nothing repaired: the tail says what is published, and what was not is lost, as it was never seen. What
 * the dead writer knew besides is found again: the newest seq by walking the newest batch, which one of the two anchors
 * begins (a batch's anchor is stored before the tail that publishes it, into the slot that the batch before did not
 * use); where older records begin by walking those that history and drop promise. Readers are attached again by the
 * caller, before anything is published; until then nothing is overwritten that the dead writer had not given up.
 *
 * Loans are not gone on with: a ring taken up again has no slab to loan from, and what a dead reader held it holds until
 * its page is withdrawn. (The core neither loans nor holds.)
 *
 * A control page says where its reader stood in each ring: tpr_reader_add(... TPR_START_CURSOR ...) goes on there.
 *
 * Not here: that only one process does this, and only when the old one is dead. That is the caller's to know.
 */
#ifndef TOWPATH_RING_RECOVER_H
#define TOWPATH_RING_RECOVER_H

#include "towpath_ring_read.h"
#include "towpath_ring_writer_wait.h"

/* A new descriptor for tpr_writer_recover(), open for writing too: only for who is trusted like this process itself.
 * Owned by the caller; TPR_E_SYSTEM, TPR_E_FORKED. */
static inline int tpr_writer_keep(const struct tpr_writer *writer) {
    return tpr_memory_keep_(&writer->memory);
}

/* The same for tpr_reader_recover(). */
static inline int tpr_reader_keep(const struct tpr_reader *reader) {
    return tpr_memory_keep_(&reader->memory);
}

/* Note where the records begin that are still there, as far back as anybody may ask for them. */
static inline void tpr_writer_recover_positions_(struct tpr_writer *writer) {
    struct tpr_positions *positions = writer->positions;
    uint64_t last_seq = writer->last_seq, at = writer->oldest;
    struct tpr_view view;
    if (!positions)
        return;
    if (writer->overflow == TPR_OVERFLOW_BLOCK)
        at = tpr_load_relaxed_(&writer->page->history_pos); /* oldest_pos need not be the start of a record */
    positions->first_seq = last_seq + 1;
    while (at < writer->tail && !tpr_record_read_(writer->data, writer->capacity, at, writer->tail - at, &view)) {
        if (view.payload) {
            if (positions->first_seq > view.seq)
                positions->first_seq = view.seq;
            writer->position = at;
            writer->last_seq = view.seq - 1;
            tpr_positions_note_(writer);
        }
        at = view.end;
    }
    writer->position = writer->tail;
    writer->last_seq = last_seq;
    if (at != writer->tail) /* that was no run of records: begin anew */
        positions->first_seq = last_seq + 1;
    positions->history_pos = tpr_load_relaxed_(&writer->page->history_pos);
    positions->before_batch = positions->after_batch = positions->history_pos;
}

/* What the header and the newest batch say. */
static inline int tpr_writer_recover_state_(struct tpr_writer *writer) {
    struct tpr_ring_page *page = writer->page;
    uint64_t word = tpr_load_acquire_(&page->tail), tail = word & ~TPR_TAIL_FLAGS;
    uint64_t at = tpr_newest_batch_(page, tail);
    struct tpr_view newest;
    writer->oldest = tpr_load_acquire_(&page->oldest_pos);
    if (word & TPR_TAIL_CLOSED)
        return TPR_E_CLOSED;
    if (word != tail || writer->oldest % 8 || writer->oldest > tail || tail - writer->oldest > writer->capacity ||
        !tpr_walk_(writer->data, writer->capacity, at, tail, TPR_BATCH_COUNT * 2, &newest) || (tail && !newest.seq))
        return TPR_E_RECORDS;
    writer->tail = writer->position = tail;
    writer->previous_tail = writer->oldest; /* a reader not begun yet may stand anywhere from there on */
    writer->room_until = writer->room_limit = writer->oldest + writer->capacity;
    writer->last_seq = tail ? newest.seq : tpr_load_relaxed_(&page->base_seq);
    writer->next_anchor = tpr_load_relaxed_(&page->anchor[0]) == at ? 1 : 0;
    if (newest.origin_source) {
        writer->origin.source = newest.origin_source;
        writer->origin.seq = newest.origin_seq;
        writer->origin.time_ns = newest.time_ns;
        writer->origin_at = newest.seq;
    }
    return TPR_OK;
}

/* Go on writing the ring behind `fd` (from tpr_writer_keep(); stays the caller's), whose writer is dead. Attach its
 * readers again before publishing.
 *
 * Returns TPR_OK; TPR_E_CLOSED; TPR_E_RECORDS; TPR_E_SYSTEM; or what is wrong with the descriptor. */
static inline int tpr_writer_recover(struct tpr_writer *writer, int fd) {
    struct tpr_ring_info info;
    memset(writer, 0, sizeof *writer);
    writer->memory.fd = -1;
    int code = tpr_ring_check_(fd, O_RDWR, &info);
    if (code != TPR_OK)
        return code;
    writer->source = info.source;
    writer->capacity = info.capacity;
    writer->overflow = info.overflow;
    writer->history = info.history;
    tpr_spin_init_(&writer->spin, TPR_SPIN_MAX_NS);
    tpr_spin_init_(&writer->stored_spin, TPR_SPIN_STORED_NS);
    code = tpr_positions_open_(writer);
    if (code == TPR_OK)
        code = tpr_memory_recover_(&writer->memory, fd, tpr_ring_bytes_(&info));
    if (code == TPR_OK) {
        writer->page = (struct tpr_ring_page *)writer->memory.page;
        writer->data = (uint8_t *)writer->memory.page + TPR_HEADER_BYTES;
        code = tpr_writer_recover_state_(writer);
    }
    if (code != TPR_OK) {
        tpr_positions_close_(writer);
        tpr_memory_free_(&writer->memory);
        return code;
    }
    tpr_writer_recover_positions_(writer);
    TPR_STORE(LAST_SEQ, &writer->page->last_seq, writer->last_seq, __ATOMIC_RELAXED);
    TPR_STORE(WAITS_CLEAR, &writer->page->writer_waits_for, UINT64_C(0), __ATOMIC_RELEASE);
    tpr_futex_wake_(&writer->page->tail, 0); /* the dead writer may not have come to that; doorbells: at the attach */
    return TPR_OK;
}

/* Who published the newest message first: 1, or 0 when it has no origin. Whatever a dead pump had published and not yet
 * moved the source's cursor past comes from that source, up to that seq: see tpr_reader_pass_over(). */
static inline int tpr_writer_last_origin(const struct tpr_writer *writer, struct tpr_origin *origin) {
    if (writer->last_seq == 0 || writer->origin_at != writer->last_seq)
        return 0;
    *origin = writer->origin;
    return 1;
}

/* Go on with the control page behind `fd` (from tpr_reader_keep(); stays the caller's), whose reader is dead. Its slots
 * say where it stood: add the sources again, with TPR_START_CURSOR.
 *
 * Returns TPR_OK; TPR_E_SYSTEM; or what is wrong with the descriptor. */
static inline int tpr_reader_recover(struct tpr_reader *reader, int fd) {
    struct tpr_control_info info;
    memset(reader, 0, sizeof *reader);
    reader->memory.fd = -1;
    int code = tpr_control_check_(fd, O_RDWR, &info);
    if (code == TPR_OK)
        code = tpr_memory_recover_(&reader->memory, fd, tpr_control_bytes_(&info));
    if (code != TPR_OK)
        return code;
    reader->page = (struct tpr_control_page *)reader->memory.page;
    reader->reader = info.reader;
    reader->slots = info.slots;
    reader->epoch = (reader->page->sleeping >> 2) + 1; /* no sleep that writers have heard of */
    TPR_STORE(SLEEP_AWAKE, &reader->page->sleeping, reader->epoch << 2 | TPR_MODE_AWAKE, __ATOMIC_RELEASE);
    tpr_spin_init_(&reader->spin, TPR_SPIN_MAX_NS);
    return TPR_OK;
}

/* The messages of `source` up to `seq` have been published by a pump that died: tpr_pump() passes over them. That is kept
 * in the control page, for as long as the source has its slot, so that it holds after the next death too. To be said
 * before anything else is published, with what tpr_writer_last_origin() says. 0: no slot is this source's. */
static inline int tpr_reader_pass_over(struct tpr_reader *reader, uint64_t source, uint64_t seq) {
    for (uint32_t i = 0; i < reader->slots; i++) {
        struct tpr_slot *slot = &reader->page->slot[i];
        if (slot->source != source || (slot->cursor & TPR_CURSOR_FLAGS) != TPR_CURSOR_SET)
            continue;
        if (seq > slot->taken)
            TPR_STORE(SLOT_TAKEN, &slot->taken, seq, __ATOMIC_RELEASE);
        return 1;
    }
    return 0;
}

#endif
