/* SPDX-License-Identifier: Apache-2.0
 *
 * How a reader waits for messages: asleep on the tails of all its sources at once, or by doorbell for event loops.
 *
 * Two steps, so that a caller may let go of its locks for the second: tpr_reader_wait_begin() takes a snapshot of what
 * has been seen, tpr_reader_wait_sleep() spins and sleeps until something differs. tpr_reader_wait() is both.
 */
#ifndef TOWPATH_RING_READER_WAIT_H
#define TOWPATH_RING_READER_WAIT_H

#include "towpath_ring_read.h"

/* Take the snapshot that the sleep needs. */
static inline int tpr_reader_wait_begin(struct tpr_reader *reader) {
    if (tpr_is_forked_(&reader->memory))
        return TPR_E_FORKED;
    if (reader->tail_room < reader->count) {
        uint32_t room = reader->room;
        const uint64_t **tail = (const uint64_t **)malloc(room * sizeof *tail);
        uint64_t *seen = (uint64_t *)malloc(room * sizeof *seen);
        if (!tail || !seen) {
            free((void *)tail);
            free(seen);
            return TPR_E_SYSTEM;
        }
        free((void *)reader->tail);
        free(reader->tail_seen);
        reader->tail = tail;
        reader->tail_seen = seen;
        reader->tail_room = room;
    }
    reader->tail_count = 0;
    for (uint32_t i = 0; i < reader->count; i++) {
        struct tpr_source *source = reader->source[i];
        if (source->state > TPR_SOURCE_FINISHED)
            continue;
        /* What a pass still has to see must end the sleep as news would: records not consumed, or that the source
         * has just been read to its end. No tail equals this. */
        int is_due = source->cursor != source->tail_word || source->state == TPR_SOURCE_FINISHED;
        reader->tail[reader->tail_count] = &source->page->tail;
        reader->tail_seen[reader->tail_count++] = is_due ? UINT64_MAX : source->tail_word;
    }
    return TPR_OK;
}

static inline int tpr_reader_wait_is_over_(const struct tpr_reader *reader) {
    for (uint32_t i = 0; i < reader->tail_count; i++)
        if (tpr_load_acquire_(reader->tail[i]) != reader->tail_seen[i])
            return 1;
    return __atomic_load_n(&reader->wake_word, __ATOMIC_ACQUIRE) != reader->wake_seen;
}

/* Has any tail moved since the last pass? Looks `looks` times, for a caller to whom letting go of its locks for a sleep would
 * cost more than that. 1: a pass may find something. Where spinning has not paid it does not look at all. */
static inline int tpr_reader_glance(const struct tpr_reader *reader, uint32_t looks) {
    if (!reader->spin.budget_ns || reader->spin.yields_first)
        return 0;
    for (; looks; looks--) {
        for (uint32_t i = 0; i < reader->count; i++) {
            const struct tpr_source *source = reader->source[i];
            if (source->state < TPR_SOURCE_FINISHED && tpr_load_acquire_(&source->page->tail) != source->tail_word)
                return 1;
        }
        tpr_relax_();
    }
    return 0;
}

/* One sleep on the snapshot's tails. More than 127 do not fit one futex_waitv: then a window of them, another one
 * each TPR_SLICE_NS. */
static inline int tpr_reader_doze_(struct tpr_reader *reader, uint64_t deadline_ns) {
    struct tpr_waitv_ entry[TPR_WAITV_MAX];
    uint32_t most = TPR_WAITV_MAX - 1, count = 0;
    uint32_t tails = reader->tail_count < most ? reader->tail_count : most;
    int is_window = reader->tail_count > most;
    for (uint32_t i = 0; i < tails; i++) {
        uint32_t at = is_window ? (reader->window + i) % reader->tail_count : i;
        entry[count++] = tpr_waitv_entry_(reader->tail[at], reader->tail_seen[at], 0);
    }
    entry[count++] = tpr_waitv_entry_(&reader->wake_word, reader->wake_seen, 1);
    if (!is_window)
        return tpr_wait_any_(entry, count, deadline_ns);
    reader->window = (reader->window + tails) % reader->tail_count;
    uint64_t slice_end_ns = tpr_monotonic_ns() + TPR_SLICE_NS;
    int code = tpr_wait_any_(entry, count, slice_end_ns < deadline_ns ? slice_end_ns : deadline_ns);
    return code == TPR_TIMEOUT && slice_end_ns < deadline_ns ? TPR_OK : code;
}

/* Sleep until a source has news, tpr_reader_notify() was called since `wake_seen` was set, or the deadline.
 * Returns TPR_OK, TPR_TIMEOUT, TPR_INTERRUPTED, TPR_E_SYSTEM. Leaves the doorbell disarmed. */
static inline int tpr_reader_wait_sleep(struct tpr_reader *reader, uint64_t deadline_ns) {
    uint64_t began_ns = tpr_monotonic_ns();
    int code = TPR_OK;
    if (reader->spin.budget_ns) {
        struct tpr_spinning_ spinning;
        tpr_spin_begin_(&reader->spin, &spinning, began_ns, deadline_ns);
        while (tpr_spin_goes_on_(&spinning)) {
            if (tpr_reader_wait_is_over_(reader)) {
                tpr_spin_answered_(&reader->spin, &spinning);
                return TPR_OK;
            }
        }
        tpr_spin_failed_(&reader->spin);
    }
    reader->is_armed = 0;
    for (;;) {
        /* A new epoch for each sleep: a writer that rang the last one must ring this one as well. */
        uint64_t sleeping = ++reader->epoch << 2 | TPR_MODE_FUTEX;
        TPR_STORE(SLEEP_FUTEX, &reader->page->sleeping, sleeping, __ATOMIC_RELEASE);
        TPR_FENCE(SLEEP); /* with the writer's, between its tail and its look at `sleeping` */
        if (tpr_reader_wait_is_over_(reader))
            break;
        code = tpr_reader_doze_(reader, deadline_ns);
        if (code != TPR_OK)
            break;
    }
    TPR_STORE(SLEEP_AWAKE, &reader->page->sleeping, reader->epoch << 2 | TPR_MODE_AWAKE, __ATOMIC_RELEASE);
    tpr_spin_slept_(&reader->spin, tpr_monotonic_ns() - began_ns);
    return code;
}

/* Wait until a pass may find something. Returns TPR_OK, TPR_NOTIFIED, TPR_TIMEOUT, TPR_INTERRUPTED, an error. */
static inline int tpr_reader_wait(struct tpr_reader *reader, uint64_t deadline_ns) {
    int code = tpr_reader_wait_begin(reader);
    if (code == TPR_OK)
        code = tpr_reader_wait_sleep(reader, deadline_ns);
    if (code != TPR_OK)
        return code;
    uint32_t word = __atomic_load_n(&reader->wake_word, __ATOMIC_ACQUIRE);
    code = word != reader->wake_seen ? TPR_NOTIFIED : TPR_OK;
    reader->wake_seen = word;
    return code;
}

/* Event loops: ask for the doorbell to be rung at the next message. 0: armed; 1: there is something already, and
 * it is not armed. Rung once at most; arm again after each pass that found nothing. */
static inline int tpr_reader_arm(struct tpr_reader *reader) {
    uint64_t sleeping = ++reader->epoch << 2 | TPR_MODE_DOORBELL;
    TPR_STORE(SLEEP_DOORBELL, &reader->page->sleeping, sleeping, __ATOMIC_RELEASE);
    TPR_FENCE(SLEEP); /* with the writer's, between its tail and its look at `sleeping` */
    reader->is_armed = 1;
    for (uint32_t i = 0; i < reader->count; i++) {
        const struct tpr_source *source = reader->source[i];
        if (source->state > TPR_SOURCE_FINISHED)
            continue;
        /* A closed ring, or a finished one, is news too until a pass has marked it drained. */
        if (tpr_load_acquire_(&source->page->tail) != source->cursor || source->state == TPR_SOURCE_FINISHED)
            reader->is_armed = 0;
    }
    if (!reader->is_armed)
        TPR_STORE(SLEEP_AWAKE, &reader->page->sleeping, reader->epoch << 2 | TPR_MODE_AWAKE, __ATOMIC_RELEASE);
    return !reader->is_armed;
}

/* No doorbell wanted any more. */
static inline void tpr_reader_disarm(struct tpr_reader *reader) {
    if (!reader->is_armed)
        return;
    reader->is_armed = 0;
    TPR_STORE(SLEEP_AWAKE, &reader->page->sleeping, reader->epoch << 2 | TPR_MODE_AWAKE, __ATOMIC_RELEASE);
}

#endif
