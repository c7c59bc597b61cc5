/* SPDX-License-Identifier: Apache-2.0
 *
 * Holding loaned messages: looking at them where they lie, for as long as one likes. The reader's half of
 * towpath_ring_loan.h, which has the theory.
 *
 *     tpr_reader_peek(r, &view)            as always; view.is_loan
 *     tpr_reader_hold(r, &view, &hold)     TPR_OK, or TPR_FULL: the table is; copy, as one does without holds
 *     tpr_reader_consume(r, &view)         0: it was taken back meanwhile: tpr_hold_release(), forget it
 *     ... look at hold.data, hold.bytes ...
 *     tpr_hold_release(&hold)
 *
 * A hold outlives its source (it has a share in the mapping), and its reader: when that is closed, what is still held is
 * copied into memory of this process's own, *at the very addresses where it is*, so that whoever looks at it notices
 * nothing; then the page that says so may go. In a forked child a hold is the parent's: its bytes may change at any time.
 *
 * A hold belongs to the thread of its reader.
 */
#ifndef TOWPATH_RING_HOLD_H
#define TOWPATH_RING_HOLD_H

#include "towpath_ring_read.h"

/* Where it is: the caller's memory, which must not move until it is released. */
struct tpr_hold {
    const uint8_t *data;
    uint64_t bytes;
    struct tpr_reader *reader; /* NULL: closed; the bytes are this process's own */
    struct tpr_mapping *mapping;
    uint64_t source;
    uint32_t index;
    uint32_t forks;
};

/* The first free entry; held_max: there is none. */
static inline uint32_t tpr_reader_free_entry_(struct tpr_reader *reader) {
    if (reader->held_count == reader->held_max)
        return reader->held_max;
    while (reader->hold[reader->held_from])
        reader->held_from++;
    return reader->held_from;
}

/* Hold the message that peek() showed (view->is_loan), before consume(). Returns TPR_OK: once consumed, `hold` says where it
 * lies; or TPR_FULL: the held table is (counted in reader->loans_copied): copy it. O(holds). */
static inline int tpr_reader_hold(struct tpr_reader *reader, const struct tpr_view *view, struct tpr_hold *hold) {
    struct tpr_source *source = view->from;
    uint32_t at = tpr_reader_free_entry_(reader);
    if (at == reader->held_max) {
        reader->loans_copied++;
        return TPR_FULL;
    }
    hold->data = view->payload;
    hold->bytes = view->payload_bytes;
    hold->reader = reader;
    hold->mapping = source->mapping;
    hold->source = source->source;
    hold->index = at;
    hold->forks = reader->memory.forks;
    hold->mapping->users++;
    reader->hold[at] = hold;
    reader->held_count++;
    if (at >= reader->held_until) {
        reader->held_until = at + 1;
        TPR_STORE(HELD_UNTIL, &reader->page->held_until, (uint64_t)reader->held_until, __ATOMIC_RELEASE);
    }
    TPR_STORE(HELD_SOURCE, &reader->held[at].source, source->source, __ATOMIC_RELAXED);
    TPR_STORE(HELD_SEQ, &reader->held[at].seq, view->seq, __ATOMIC_RELEASE); /* with the writer's load of it: source and until */
    TPR_FENCE(HOLD); /* with the writer's, between oldest_pos (consume() looks at it) and its look at who holds what */
    return TPR_OK;
}

/* Take the hold out of its reader's tables; the writer may have the bytes again. */
static inline void tpr_reader_forget_hold_(struct tpr_reader *reader, struct tpr_hold *hold) {
    uint32_t at = hold->index;
    struct tpr_source *source;
    reader->hold[at] = NULL;
    reader->held_count--;
    if (at < reader->held_from)
        reader->held_from = at;
    TPR_STORE(HELD_FREE, &reader->held[at].seq, UINT64_C(0), __ATOMIC_RELEASE); /* after all looks at the bytes */
    if (at + 1 == reader->held_until) {
        while (reader->held_until && !reader->hold[reader->held_until - 1])
            reader->held_until--;
        TPR_STORE(HELD_UNTIL, &reader->page->held_until, (uint64_t)reader->held_until, __ATOMIC_RELEASE);
    }
    TPR_FENCE(RELEASE); /* with the writer's, between loans_wanted and its second look at who holds what */
    const struct tpr_ring_page *ring = (const struct tpr_ring_page *)hold->mapping->page;
    if (tpr_load_relaxed_(&ring->loans_wanted) == TPR_LOANS_WANTED_NOT)
        return;
    source = tpr_reader_find(reader, hold->source);
    tpr_control_tell_released_(ring, reader->page, source ? source->doorbell : -1);
}

/* Look at it no more. Once for each hold. */
static inline void tpr_hold_release(struct tpr_hold *hold) {
    if (hold->reader && hold->forks == tpr_forks_)
        tpr_reader_forget_hold_(hold->reader, hold);
    hold->reader = NULL;
    tpr_mapping_release_(hold->mapping);
    hold->mapping = NULL;
}

/* Put a copy of what is held in its place, page by page; whoever looks at it meanwhile sees either, which are the same.
 * TPR_OK, or TPR_E_SYSTEM: there was no memory for it. */
static inline int tpr_hold_make_own_(const struct tpr_hold *hold) {
    uintptr_t from = (uintptr_t)hold->data & ~(uintptr_t)(TPR_SLAB_GRAIN - 1);
    uintptr_t until = ((uintptr_t)hold->data + hold->bytes + TPR_SLAB_GRAIN - 1) & ~(uintptr_t)(TPR_SLAB_GRAIN - 1);
    size_t bytes = until - from;
    if (!bytes)
        return TPR_OK;
    void *copy = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return TPR_E_SYSTEM;
    memcpy(copy, (const void *)from, bytes);
    if (mprotect(copy, bytes, PROT_READ) == 0 &&
        mremap(copy, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)from) != MAP_FAILED)
        return TPR_OK;
    munmap(copy, bytes);
    return TPR_E_SYSTEM;
}

/* The reader is about to be closed: what is held of it is this process's own from now on. Returns TPR_OK, or TPR_E_SYSTEM:
 * not all of it, for want of memory (call again, or close all the same: then the rest may change). */
static inline int tpr_reader_keep_holds(struct tpr_reader *reader) {
    int code = TPR_OK;
    for (uint32_t i = 0; i < reader->held_until; i++) {
        struct tpr_hold *hold = reader->hold[i];
        if (!hold)
            continue;
        if (tpr_hold_make_own_(hold) != TPR_OK) {
            code = TPR_E_SYSTEM;
            continue;
        }
        hold->reader = NULL;
        tpr_reader_forget_hold_(reader, hold);
    }
    return code;
}

/* Let go of all sources and release everything; what is still held stays as it is (tpr_reader_keep_holds()). Nobody may be
 * asleep in it. Tags are the caller's to free first. */
static inline void tpr_reader_close(struct tpr_reader *reader) {
    if (!reader->memory.page)
        return;
    if (!tpr_is_forked_(&reader->memory)) {
        tpr_reader_keep_holds(reader);
        while (reader->count)
            tpr_reader_remove(reader, reader->source[0]->source, NULL);
    }
    tpr_reader_release_(reader);
}

#endif
