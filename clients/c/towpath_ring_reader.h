/* SPDX-License-Identifier: Apache-2.0
 *
 * The reader's handle: its control page, the sources it reads, and where it begins in each. (Reading: _read.h. Holding:
 * _hold.h. Waiting: _reader_wait.h.)
 *
 * A handle belongs to one thread at a time, except that tpr_reader_wait_sleep() touches only the snapshot that
 * tpr_reader_wait_begin() made, the sleeping word and the spin; and tpr_reader_notify() may come from anywhere.
 */
#ifndef TOWPATH_RING_READER_H
#define TOWPATH_RING_READER_H

#include "towpath_ring_memfd.h"
#include "towpath_ring_record.h"
#include "towpath_ring_wait.h"

#include <stdlib.h>

enum tpr_source_state {
    TPR_SOURCE_LIVE,
    TPR_SOURCE_FINISHED, /* the writer is gone; there may be more to read */
    /* From here on nothing more is read. */
    TPR_SOURCE_DRAINED,  /* read to the end */
    TPR_SOURCE_VIOLATED, /* its ring breaks the rules */
    TPR_SOURCE_DETACHED  /* the writer waits for us no more, and has overwritten what we had not read */
};

/* A ring that is mapped, for as long as somebody looks at it: its source, and what is held of it (towpath_ring_hold.h). */
struct tpr_mapping {
    const void *page;
    uint64_t bytes;
    uint64_t users;
};

/* One ring being read. */
struct tpr_source {
    uint64_t source;
    struct tpr_mapping *mapping;
    const struct tpr_ring_page *page;
    const uint8_t *data, *slab;
    uint64_t capacity, slab_bytes;
    struct tpr_control_page *control; /* the reader's */
    uint64_t cursor;         /* end of the last record consumed */
    uint64_t committed;      /* what the slot says */
    uint64_t tail_word;      /* as last loaded */
    uint64_t end_word;       /* FINISHED: the tail when that was said; nothing after it is read */
    uint64_t next_seq;       /* 0: any */
    uint64_t missed;         /* lost before the next message, not told yet */
    uint64_t catch_up_until; /* before it we may be lapped although the writer waits for readers (history) */
    struct tpr_slot *slot;
    uint32_t slot_index;
    uint32_t is_drop;
    uint32_t is_lapped; /* the next record may leave a gap of seqs */
    uint32_t resumes;   /* since the last message taken */
    uint32_t is_tired;  /* lapped again and again: enough for this pass */
    enum tpr_source_state state;
    int doorbell;          /* of its writer; a duplicate of ours, or -1 */
    const char *violation; /* when violated: what was wrong */
    uint32_t is_told;      /* the caller's: it knows that this source is at its end */
    void *tag;             /* the caller's */
};

struct tpr_reader {
    struct tpr_memory memory;
    struct tpr_control_page *page;
    struct tpr_held *held;  /* the held table */
    struct tpr_hold **hold; /* what each entry stands for; NULL: free */
    uint32_t held_max, held_count, held_until, held_from; /* none before held_from is free */
    uint64_t loans_copied; /* loaned messages that there was no entry for */
    uint64_t reader, epoch;
    uint32_t slots;
    struct tpr_source **source;
    uint32_t count, room;
    uint64_t lost;         /* messages missed, of all sources there ever were */
    uint32_t turn, left;   /* the pass: whose turn, how many sources are still to visit */
    uint32_t has_news;     /* a source came to its end and nobody asked yet */
    uint32_t wake_word;    /* private futex: tpr_reader_notify() */
    uint32_t is_waiting, is_armed;
    uint64_t *exclude; /* origins whose messages are passed over, in ascending order */
    uint32_t exclude_count, exclude_room;
    /* Snapshot for the sleeper. */
    const uint64_t **tail;
    uint64_t *tail_seen;
    uint32_t tail_count, tail_room, window;
    uint32_t wake_seen;
    struct tpr_source *deferred; /* released when the sleeper is back */
    uint32_t deferred_count;
    struct tpr_spin spin;
};

/* Make a control page with `slots` (1..4096) slots for the subscription `reader`, and `held_max` (0..65536) entries for
 * loaned messages that are held. Returns TPR_OK, TPR_E_SLOTS, TPR_E_HELD, TPR_E_SYSTEM. */
static inline int tpr_reader_open_holding(struct tpr_reader *reader, uint64_t id, uint32_t slots, uint32_t held_max) {
    struct {
        uint64_t magic;
        uint32_t version, slots;
        uint64_t reader, load;
        uint32_t held_max, unused;
    } header = {TPR_CONTROL_MAGIC, TPR_VERSION, slots, id, 0, held_max, 0};
    struct tpr_control_info info = {id, slots, held_max};
    memset(reader, 0, sizeof *reader);
    reader->memory.fd = -1;
    if (slots < 1 || slots > TPR_SLOTS_MAX)
        return TPR_E_SLOTS;
    if (held_max > TPR_HELD_MAX)
        return TPR_E_HELD;
    reader->hold = held_max ? (struct tpr_hold **)calloc(held_max, sizeof *reader->hold) : NULL;
    if (held_max && !reader->hold)
        return TPR_E_SYSTEM;
    int code = tpr_memory_make_(&reader->memory, "towpath-control", tpr_control_bytes_(&info));
    if (code != TPR_OK) {
        free((void *)reader->hold);
        return code;
    }
    reader->page = (struct tpr_control_page *)reader->memory.page;
    reader->held = (struct tpr_held *)(void *)((uint8_t *)reader->memory.page + tpr_held_offset_(slots));
    reader->held_max = held_max;
    TPR_COPY(CONTROL_HEADER, reader->page, &header, sizeof header);
    reader->reader = id;
    reader->slots = slots;
    tpr_spin_init_(&reader->spin, TPR_SPIN_MAX_NS);
    return TPR_OK;
}

/* The same for a reader that copies loaned messages, as all others. */
static inline int tpr_reader_open(struct tpr_reader *reader, uint64_t id, uint32_t slots) {
    return tpr_reader_open_holding(reader, id, slots, 0);
}

static inline int tpr_reader_share(const struct tpr_reader *reader) {
    return tpr_memory_share_(&reader->memory);
}

/* Ends a sleep in tpr_reader_wait_sleep(), or the next one at once; from any thread of this process. */
static inline void tpr_reader_notify(struct tpr_reader *reader) {
    __atomic_fetch_add(&reader->wake_word, 1, __ATOMIC_SEQ_CST); /* private */
    tpr_futex_wake_(&reader->wake_word, 1);
}

/* ---- origins that are passed over ---- */

/* Where `origin` is among those excluded, or would be. O(log excluded). */
static inline uint32_t tpr_reader_exclude_at_(const struct tpr_reader *reader, uint64_t origin) {
    uint32_t low = 0, high = reader->exclude_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (reader->exclude[middle] < origin)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static inline int tpr_reader_excludes_(const struct tpr_reader *reader, uint64_t origin) {
    uint32_t at = tpr_reader_exclude_at_(reader, origin);
    return at < reader->exclude_count && reader->exclude[at] == origin;
}

/* Pass over messages that `origin` published first (see tpr_pump()). Returns TPR_OK, TPR_E_LIMIT or TPR_E_SYSTEM. */
static inline int tpr_reader_exclude(struct tpr_reader *reader, uint64_t origin) {
    if (tpr_reader_excludes_(reader, origin))
        return TPR_OK;
    if (reader->exclude_count == TPR_EXCLUDES_MAX)
        return TPR_E_LIMIT;
    if (reader->exclude_count == reader->exclude_room) {
        uint32_t room = reader->exclude_room ? reader->exclude_room * 2 : 4;
        void *grown = realloc(reader->exclude, room * sizeof *reader->exclude);
        if (!grown)
            return TPR_E_SYSTEM;
        reader->exclude = (uint64_t *)grown;
        reader->exclude_room = room;
    }
    uint32_t at = tpr_reader_exclude_at_(reader, origin);
    memmove(reader->exclude + at + 1, reader->exclude + at, (reader->exclude_count++ - at) * sizeof *reader->exclude);
    reader->exclude[at] = origin;
    return TPR_OK;
}

/* ---- sources ---- */

static inline struct tpr_source *tpr_reader_find(const struct tpr_reader *reader, uint64_t source) {
    for (uint32_t i = 0; i < reader->count; i++)
        if (reader->source[i]->source == source)
            return reader->source[i];
    return NULL;
}

/* The writer of `ring` waits for a piece of its slab, and something was let go of. */
static inline void tpr_control_tell_released_(const struct tpr_ring_page *ring, struct tpr_control_page *control,
                                              int doorbell) {
    TPR_STORE(RELEASED, &control->released, control->released + 1, __ATOMIC_RELEASE);
    tpr_fence_(); /* whoever is woken must find it moved, or would sleep on (the kernel has a barrier there, too) */
    if (tpr_load_relaxed_(&ring->loans_wanted) == TPR_LOANS_WANTED_DOORBELL)
        tpr_doorbell_ring_(doorbell);
    tpr_futex_wake_(&control->released, 0);
}

/* Wake the writer of a ring if it waits for the position that the cursor has just crossed. Only the store that
 * crosses it wakes: of the stores before, none is enough, and those after were preceded by one that did. */
static inline void tpr_source_wake_writer_(struct tpr_source *source, uint64_t before, uint64_t after) {
    TPR_FENCE(COMMIT); /* with the writer's, between writer_waits_for (loans_wanted) and its second look at the cursor */
    if (tpr_load_relaxed_(&source->page->loans_wanted) != TPR_LOANS_WANTED_NOT)
        tpr_control_tell_released_(source->page, source->control, source->doorbell);
    uint64_t word = tpr_load_relaxed_(&source->page->writer_waits_for), needed = word & ~UINT64_C(7);
    if (!needed || before >= needed || after < needed)
        return;
    if (word & TPR_WAITS_DOORBELL)
        tpr_doorbell_ring_(source->doorbell);
    else
        tpr_futex_wake_(&source->slot->cursor, 0);
}

/* Begin at the tail. The seq of the newest message is found too, so that whatever is lost from now on can be counted;
 * only a writer that is always two batches further by then, or whose ring is malformed, leaves it unknown. */
static inline void tpr_source_begin_at_tail_(struct tpr_source *source) {
    struct tpr_view newest;
    for (int i = 0; i < 16; i++) {
        source->cursor = tpr_load_acquire_(&source->page->tail) & ~TPR_TAIL_FLAGS;
        uint64_t at = tpr_newest_batch_(source->page, source->cursor);
        if (tpr_walk_(source->data, source->capacity, at, source->cursor, TPR_BATCH_COUNT * 2, &newest)) {
            tpr_fence_acquire_();
            if (tpr_load_relaxed_(&source->page->oldest_pos) <= at) {
                source->next_seq = (newest.seq ? newest.seq : tpr_load_relaxed_(&source->page->base_seq)) + 1;
                return;
            }
        }
    }
}

/* Begin where the tail was when the core announced us (R in "Attaching" of towpath_ring.h). 0 when that is the tail still,
 * cannot be it, or, with drop, is overwritten. */
static inline int tpr_source_begin_at_announced_(struct tpr_source *source, uint64_t announced) {
    struct tpr_view view;
    uint64_t tail = tpr_load_acquire_(&source->page->tail) & ~TPR_TAIL_FLAGS;
    if (announced % 8 || announced > tail || tail - announced > source->capacity)
        return 0;
    for (uint64_t at = announced; at != tail; at = view.end) {
        if (tpr_record_read_(source->data, source->capacity, at, tail - at, &view))
            return 0;
        if (!view.payload)
            continue; /* padding */
        tpr_fence_acquire_();
        if (tpr_load_relaxed_(&source->page->oldest_pos) > announced)
            return 0;
        source->cursor = at;
        source->next_seq = view.seq;
        return 1;
    }
    return 0;
}

/* Begin with the history, as far as it is there. It may be overwritten while we look, by a writer that does not know of
 * us yet ("History" in towpath_ring.h): then we shall see that when we read, and go on further ahead. With drop, what is
 * lost of it counts as missed, so its first seq is found here. */
static inline int tpr_source_begin_at_history_(struct tpr_source *source) {
    struct tpr_view view;
    for (int i = 0; i < 16 && !source->next_seq; i++) {
        uint64_t at = tpr_load_acquire_(&source->page->history_pos); /* before the tail: the writer has the other order */
        uint64_t tail = tpr_load_acquire_(&source->page->tail) & ~TPR_TAIL_FLAGS;
        if (at % 8 || at > tail)
            return TPR_E_TAIL;
        source->cursor = at;
        source->catch_up_until = tail;
        if (at == tail)
            tpr_source_begin_at_tail_(source);
        else if (!source->is_drop)
            return TPR_OK;
        else if (!tpr_record_read_(source->data, source->capacity, at, tail - at, &view) && view.payload) {
            tpr_fence_acquire_();
            if (tpr_load_relaxed_(&source->page->oldest_pos) <= at)
                source->next_seq = view.seq;
        }
    }
    return TPR_OK;
}

/* Where a source that has just been mapped is read from. */
static inline int tpr_source_begin_(struct tpr_source *source, enum tpr_start start, uint64_t announced,
                                    uint32_t history) {
    tpr_fence_(); /* after the core's bump, of which the caller knows; with the fence of the writer's flush */
    uint64_t tail_word = tpr_load_acquire_(&source->page->tail);
    uint64_t word = source->slot->cursor;
    if (tail_word & TPR_TAIL_FLAGS & ~TPR_TAIL_CLOSED)
        return TPR_E_TAIL;
    switch (start) {
    case TPR_START_BEGIN:
        source->next_seq = tpr_load_relaxed_(&source->page->base_seq) + 1;
        if (!source->is_drop && tpr_load_relaxed_(&source->page->oldest_pos))
            return TPR_E_LATE; /* with drop it is lapped, and counts what it missed */
        break;
    case TPR_START_CURSOR:
        if (source->slot->source != source->source || (word & TPR_CURSOR_FLAGS) != TPR_CURSOR_SET)
            return TPR_E_NO_CURSOR;
        source->cursor = word & ~TPR_CURSOR_FLAGS;
        break;
    case TPR_START_HISTORY:
        if (history)
            return tpr_source_begin_at_history_(source);
        /* fall through */
    default:
        if (!tpr_source_begin_at_announced_(source, announced))
            tpr_source_begin_at_tail_(source);
    }
    return TPR_OK;
}

/* Is there a place for this source, at this slot? Makes room in the table. */
static inline int tpr_reader_admit_(struct tpr_reader *reader, uint32_t slot, uint64_t source) {
    if (tpr_is_forked_(&reader->memory))
        return TPR_E_FORKED;
    if (slot >= reader->slots)
        return TPR_E_SLOT;
    for (uint32_t i = 0; i < reader->count; i++) {
        if (reader->source[i]->source == source)
            return TPR_E_SOURCE_TAKEN;
        if (reader->source[i]->slot_index == slot)
            return TPR_E_SLOT_TAKEN;
    }
    if (reader->count == reader->room) {
        uint32_t room = reader->room ? reader->room * 2 : 8;
        void *grown = realloc(reader->source, room * sizeof *reader->source);
        if (!grown)
            return TPR_E_SYSTEM;
        reader->source = (struct tpr_source **)grown;
        reader->room = room;
    }
    return TPR_OK;
}

static inline struct tpr_mapping *tpr_mapping_new_(int fd, uint64_t bytes) {
    struct tpr_mapping *mapping = (struct tpr_mapping *)malloc(sizeof *mapping);
    if (!mapping)
        return NULL;
    mapping->page = tpr_map_(fd, bytes);
    mapping->bytes = bytes;
    mapping->users = 1;
    if (mapping->page)
        return mapping;
    free(mapping);
    return NULL;
}

static inline void tpr_mapping_release_(struct tpr_mapping *mapping) {
    if (!mapping || --mapping->users)
        return;
    tpr_unmap_(mapping->page, mapping->bytes);
    free(mapping);
}

static inline void tpr_source_free_(struct tpr_source *source) {
    if (source->doorbell >= 0)
        close(source->doorbell);
    tpr_mapping_release_(source->mapping);
    free(source);
}

/* Map the ring behind `fd` (stays the caller's) and read it from `start` on, using slot `slot` of the control page
 * (assigned by the core). `doorbell_fd`: a UNIX socket to ring when its writer waits for room by doorbell, or -1;
 * duplicated. `tag` is kept for the caller. Only after the core has announced this reader (tpr_table_bump).
 *
 * `announced` is what the core found as the tail just after that, or TPR_TAIL_UNKNOWN: TPR_START_TAIL begins there.
 *
 * Returns TPR_OK; TPR_E_SLOT, TPR_E_SLOT_TAKEN, TPR_E_SOURCE_TAKEN, TPR_E_FORKED, TPR_E_SYSTEM, TPR_E_OTHER_SOURCE,
 * TPR_E_TAIL, TPR_E_LATE, TPR_E_NO_CURSOR, or what is wrong with a descriptor. State is unchanged on error. */
static inline int tpr_reader_add_from(struct tpr_reader *reader, int fd, uint32_t slot, uint64_t source,
                                      enum tpr_start start, uint64_t announced, int doorbell_fd, void *tag) {
    struct tpr_ring_info info;
    int code = tpr_reader_admit_(reader, slot, source);
    if (code == TPR_OK)
        code = tpr_ring_check(fd, &info);
    if (code != TPR_OK)
        return code;
    if (info.source != source)
        return TPR_E_OTHER_SOURCE;
    struct tpr_source *added = (struct tpr_source *)calloc(1, sizeof *added);
    if (!added)
        return TPR_E_SYSTEM;
    added->source = source;
    added->capacity = info.capacity;
    added->slab_bytes = info.slab_bytes;
    added->control = reader->page;
    added->is_drop = info.overflow == TPR_OVERFLOW_DROP;
    added->slot = &reader->page->slot[slot];
    added->slot_index = slot;
    added->tag = tag;
    code = tpr_doorbell_dup_(doorbell_fd, &added->doorbell);
    if (code == TPR_OK) {
        added->mapping = tpr_mapping_new_(fd, tpr_ring_bytes_(&info));
        code = added->mapping ? TPR_OK : TPR_E_SYSTEM;
    }
    if (code == TPR_OK) {
        added->page = (const struct tpr_ring_page *)added->mapping->page;
        added->data = (const uint8_t *)added->page + TPR_HEADER_BYTES;
        added->slab = added->data + info.capacity;
        code = tpr_source_begin_(added, start, announced, info.history);
    }
    if (code != TPR_OK) {
        int saved = errno;
        tpr_source_free_(added);
        errno = saved;
        return code;
    }
    added->committed = added->tail_word = added->cursor; /* peek() has still to see whether the ring is closed */
    if (start != TPR_START_CURSOR) {
        TPR_STORE(SLOT_RESET, &added->slot->cursor, TPR_CURSOR_UNSET, __ATOMIC_RELEASE);
        TPR_STORE(SLOT_TAKEN, &added->slot->taken, UINT64_C(0), __ATOMIC_RELAXED);
        TPR_STORE(SLOT_SOURCE, &added->slot->source, source, __ATOMIC_RELEASE);
        TPR_STORE(SLOT_START, &added->slot->cursor, added->cursor | TPR_CURSOR_SET, __ATOMIC_RELEASE);
    }
    tpr_source_wake_writer_(added, 0, UINT64_MAX); /* it may sleep on a cursor that was unset */
    reader->source[reader->count++] = added;
    tpr_reader_notify(reader);
    return TPR_OK;
}

/* The same, where the core did not say what the tail was: TPR_START_TAIL begins at the tail as it is now. */
static inline int tpr_reader_add(struct tpr_reader *reader, int fd, uint32_t slot, uint64_t source,
                                 enum tpr_start start, int doorbell_fd, void *tag) {
    return tpr_reader_add_from(reader, fd, slot, source, start, TPR_TAIL_UNKNOWN, doorbell_fd, tag);
}

/* Let go of a source; its slot is free for another, its writer does not wait for us any more. 1, or 0 when it is
 * not known, or TPR_E_FORKED. Returns the tag through `tag` when that is not NULL. */
static inline int tpr_reader_remove(struct tpr_reader *reader, uint64_t id, void **tag) {
    uint32_t i = 0;
    if (tpr_is_forked_(&reader->memory))
        return TPR_E_FORKED;
    while (i < reader->count && reader->source[i]->source != id)
        i++;
    if (i == reader->count)
        return 0;
    struct tpr_source *source = reader->source[i];
    reader->source[i] = reader->source[--reader->count];
    reader->turn = 0;
    reader->left = 0;
    if (tag)
        *tag = source->tag;
    TPR_STORE(SLOT_LEFT, &source->slot->cursor, TPR_CURSOR_LEFT, __ATOMIC_RELEASE);
    tpr_source_wake_writer_(source, 0, UINT64_MAX);
    if (reader->is_waiting) {
        void *grown = realloc(reader->deferred, (reader->deferred_count + 1) * sizeof *reader->deferred);
        if (grown) {
            reader->deferred = (struct tpr_source *)grown;
            reader->deferred[reader->deferred_count++] = *source;
        } /* else: leak the mapping rather than pull it away under the sleeper */
        source->mapping = NULL;
        tpr_reader_notify(reader);
    }
    tpr_source_free_(source);
    return 1;
}

/* The writer of this source is gone: read on to its tail as it is now, then it counts as drained; what a writer that was
 * ended and does not know it yet (or will not) publishes from now on is nobody's. 0 when it is not known. */
static inline int tpr_reader_finish(struct tpr_reader *reader, uint64_t id) {
    struct tpr_source *source = tpr_reader_find(reader, id);
    if (!source)
        return 0;
    if (source->state == TPR_SOURCE_LIVE) {
        source->end_word = tpr_load_acquire_(&source->page->tail);
        source->state = TPR_SOURCE_FINISHED;
    }
    tpr_reader_notify(reader);
    return 1;
}

/* The writer of this source was not gone after all: read on. 0 when it is not known, or its end has been read. */
static inline int tpr_reader_revive(struct tpr_reader *reader, uint64_t id) {
    struct tpr_source *source = tpr_reader_find(reader, id);
    if (!source || source->state > TPR_SOURCE_FINISHED)
        return 0;
    source->state = TPR_SOURCE_LIVE;
    return 1;
}

/* This source was read before, and let go of too early: `seq` came next then. What its writer published from there to
 * where we begin now counts as missed, before the next message of it. Ignored where it is not known, or not so far. */
static inline void tpr_reader_expect(struct tpr_reader *reader, uint64_t id, uint64_t seq) {
    struct tpr_source *source = tpr_reader_find(reader, id);
    if (source && (!source->next_seq || seq < source->next_seq)) {
        source->next_seq = seq;
        source->is_lapped = 1;
    }
}

/* Ring this doorbell (a UNIX socket, duplicated; or -1: none) from now on when the source's writer waits for room by
 * doorbell; if it does so now, at once, as the old one may have been rung in vain. Returns TPR_OK; TPR_E_DOORBELL,
 * TPR_E_SYSTEM: nothing is changed. 0 is TPR_OK also for a source that is not known. */
static inline int tpr_reader_set_doorbell(struct tpr_reader *reader, uint64_t id, int doorbell_fd) {
    struct tpr_source *source = tpr_reader_find(reader, id);
    int doorbell, code = tpr_doorbell_dup_(doorbell_fd, &doorbell);
    if (code != TPR_OK)
        return code;
    if (!source) {
        if (doorbell >= 0)
            close(doorbell);
        return TPR_OK;
    }
    if (source->doorbell >= 0)
        close(source->doorbell);
    source->doorbell = doorbell;
    tpr_source_wake_writer_(source, 0, source->committed);
    return TPR_OK;
}

/* The tail of a source, or where it was finished, whichever comes first. */
static inline uint64_t tpr_source_tail_(const struct tpr_source *source) {
    uint64_t word = tpr_load_acquire_(&source->page->tail); /* with the writer's flush: the records are there */
    if (source->state == TPR_SOURCE_FINISHED && (word & ~TPR_TAIL_FLAGS) > (source->end_word & ~TPR_TAIL_FLAGS) &&
        !TPR_FAULT_(NO_END))
        return source->end_word;
    return word;
}

/* Bytes of records published and not consumed, over all sources. */
static inline uint64_t tpr_reader_pending_bytes(const struct tpr_reader *reader) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < reader->count; i++) {
        const struct tpr_source *source = reader->source[i];
        uint64_t bytes = (tpr_source_tail_(source) & ~TPR_TAIL_FLAGS) - source->cursor;
        if (source->state <= TPR_SOURCE_FINISHED)
            sum += bytes > source->capacity ? source->capacity : bytes;
    }
    return sum;
}

/* ---- the end (tpr_reader_close(): towpath_ring_hold.h) ---- */

/* Unmap what was removed during a sleep; the sleeper is back. */
static inline void tpr_reader_reap(struct tpr_reader *reader) {
    for (uint32_t i = 0; i < reader->deferred_count; i++)
        tpr_mapping_release_(reader->deferred[i].mapping);
    free(reader->deferred);
    reader->deferred = NULL;
    reader->deferred_count = 0;
}

/* Release everything; nothing is stored in shared memory. */
static inline void tpr_reader_release_(struct tpr_reader *reader) {
    while (reader->count)
        tpr_source_free_(reader->source[--reader->count]);
    tpr_reader_reap(reader);
    free(reader->source);
    free(reader->exclude);
    free((void *)reader->hold);
    reader->hold = NULL;
    free((void *)reader->tail);
    free(reader->tail_seen);
    reader->source = NULL;
    reader->exclude = NULL;
    reader->exclude_count = reader->exclude_room = 0;
    reader->tail = NULL;
    reader->tail_seen = NULL;
    tpr_memory_free_(&reader->memory);
}

#endif
