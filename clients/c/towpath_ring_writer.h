/* SPDX-License-Identifier: Apache-2.0
 *
 * The writer's half of the ring: attach readers, put messages, publish batches. (Waiting: _writer_wait.h.)
 *
 * A batch lies between `tail` (what readers see) and `position` (where the next record goes). put() extends
 * it, flush() publishes it with one store. Room is judged by `room_until`, the lowest cursor seen at the last
 * scan plus the capacity; cursors only grow, so the slots are scanned again only when a record does not fit.
 *
 * Invariants: tail <= position <= room_until <= (lowest cursor of any reader that counts) + capacity;
 * position - tail <= capacity; seq grows by one per record, and is never used twice.
 *
 * A handle belongs to one thread at a time, except that tpr_room_wait_sleep() touches only its own struct and
 * `writer_waits_for`, so others may use the handle meanwhile, provided nothing is unmapped.
 */
#ifndef TOWPATH_RING_WRITER_H
#define TOWPATH_RING_WRITER_H

#include "towpath_ring_generation.h"

#include <stdlib.h>
#include <sys/socket.h>

/* One attached reader. */
struct tpr_peer {
    uint64_t reader;
    const struct tpr_control_page *control;
    const struct tpr_slot *slot;
    uint64_t control_bytes;
    uint64_t device, inode; /* tells whether the same page is attached again */
    uint64_t pin;           /* where it counts as standing while its cursor is unset */
    uint64_t rung;          /* the sleeping word it was last rung for */
    uint64_t word;          /* its cursor word at the last scan */
    int doorbell;           /* a duplicate of ours, or -1 */
    uint8_t has_left;       /* let go by itself: counts no more */
    uint8_t stale_left;     /* the slot said LEFT when attached: that is from before, not news */
    uint8_t is_violator;    /* its cursor was impossible: counts no more */
};

/* Where munmap(2) of a detached page happens; lets a caller with a sleeping thread put it off. */
struct tpr_unmapped {
    const void *page;
    uint64_t bytes;
};

struct tpr_writer {
    struct tpr_memory memory;
    struct tpr_ring_page *page;
    uint8_t *data;
    uint64_t source, capacity;
    uint64_t position, tail, previous_tail, room_until;
    uint64_t last_seq, batch_time_ns;
    uint32_t batch_count;
    uint32_t is_installed; /* has `generation` been set since the table was */
    uint32_t readers_changed; /* a batch went out while new readers may have been coming: attach them soon */
    uint64_t generation;
    const uint64_t *generation_cell; /* NULL: no table, never asks for readers */
    struct tpr_unmapped table;
    struct tpr_peer *peer;
    uint32_t peer_count, peer_room;
    uint32_t wake_word; /* private futex: tpr_writer_notify() */
    uint32_t is_waiting;
    struct tpr_unmapped *deferred; /* unmapped when the waiter is back */
    uint32_t deferred_count;
    struct tpr_spin spin;
};

/* Make a ring of `capacity` data bytes (power of two, 4096..2^30) for `source`.
 * Returns TPR_OK, TPR_E_CAPACITY, TPR_E_SYSTEM. */
static inline int tpr_writer_open(struct tpr_writer *writer, uint64_t source, uint64_t capacity) {
    struct tpr_ring_page *page;
    struct {
        uint64_t magic;
        uint32_t version, header_bytes;
        uint64_t capacity, source, created_ns;
    } header;
    memset(writer, 0, sizeof *writer);
    writer->memory.fd = -1;
    if (!tpr_is_capacity_(capacity))
        return TPR_E_CAPACITY;
    int code = tpr_memory_make_(&writer->memory, "towpath-ring", TPR_HEADER_BYTES + capacity);
    if (code != TPR_OK)
        return code;
    page = (struct tpr_ring_page *)writer->memory.page;
    header.magic = TPR_RING_MAGIC;
    header.version = TPR_VERSION;
    header.header_bytes = TPR_HEADER_BYTES;
    header.capacity = capacity;
    header.source = source;
    header.created_ns = tpr_clock_ns_(CLOCK_REALTIME);
    TPR_COPY(RING_HEADER, page, &header, sizeof header);
    writer->page = page;
    writer->data = (uint8_t *)writer->memory.page + TPR_HEADER_BYTES;
    writer->source = source;
    writer->capacity = capacity;
    writer->room_until = capacity;
    tpr_spin_init_(&writer->spin);
    return TPR_OK;
}

static inline int tpr_writer_share(const struct tpr_writer *writer) {
    return tpr_memory_share_(&writer->memory);
}

static inline void tpr_writer_unmap_(struct tpr_writer *writer, const void *page, uint64_t bytes) {
    if (!page)
        return;
    if (writer->is_waiting) {
        void *grown = realloc(writer->deferred, (writer->deferred_count + 1) * sizeof *writer->deferred);
        if (grown) {
            writer->deferred = (struct tpr_unmapped *)grown;
            writer->deferred[writer->deferred_count].page = page;
            writer->deferred[writer->deferred_count++].bytes = bytes;
        } /* else: leak the mapping rather than pull it away under the sleeper */
        return;
    }
    tpr_unmap_(page, bytes);
}

/* Wakes a sleeping tpr_room_wait_sleep() of this process; from any thread. */
static inline void tpr_writer_notify(struct tpr_writer *writer) {
    __atomic_fetch_add(&writer->wake_word, 1, __ATOMIC_SEQ_CST); /* private */
    tpr_futex_wake_(&writer->wake_word, 1);
}

/* ---- generations ---- */

/* Use cell `index` of the core's table behind `fd` (stays the caller's). Replaces an earlier table; in either
 * case the next put answers TPR_NEEDS_READERS until tpr_writer_install(). State is unchanged on error. */
static inline int tpr_writer_set_table(struct tpr_writer *writer, int fd, uint32_t index) {
    uint32_t cells;
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    int code = tpr_table_check(fd, &cells);
    if (code != TPR_OK)
        return code;
    if (index >= cells)
        return TPR_E_CELL;
    uint64_t bytes = tpr_table_bytes_(cells);
    const struct tpr_table_page *page = (const struct tpr_table_page *)tpr_map_(fd, bytes);
    if (!page)
        return TPR_E_SYSTEM;
    tpr_writer_unmap_(writer, writer->table.page, writer->table.bytes);
    writer->table.page = page;
    writer->table.bytes = bytes;
    writer->generation_cell = &page->cell[index].generation;
    writer->is_installed = 0;
    tpr_writer_notify(writer);
    return TPR_OK;
}

/* The readers of `generation` are attached, all of them. */
static inline void tpr_writer_install(struct tpr_writer *writer, uint64_t generation) {
    writer->generation = generation;
    writer->is_installed = 1;
    writer->readers_changed = 0;
}

static inline int tpr_writer_is_current_(const struct tpr_writer *writer) {
    return !writer->generation_cell ||
           (writer->is_installed && tpr_load_acquire_(writer->generation_cell) == writer->generation);
}

/* ---- cursors ---- */

enum tpr_standing_ { TPR_COUNTS_, TPR_COUNTS_NOT_ };

/* Where does this reader stand? The page is the reader's, so the word may be anything. */
static inline enum tpr_standing_ tpr_peer_cursor_(const struct tpr_writer *writer, struct tpr_peer *peer,
                                                  uint64_t *cursor) {
    if (peer->has_left || peer->is_violator)
        return TPR_COUNTS_NOT_;
    /* The reader stores UNSET, then the source, then the cursor (each a release). Both loads of the source
     * agreeing therefore means that the cursor between them is of that source, not of a reuse of the slot. */
    uint64_t before = tpr_load_acquire_(&peer->slot->source);
    uint64_t word = tpr_load_acquire_(&peer->slot->cursor); /* with the reader's commit: its copies are done */
    uint64_t after = tpr_load_relaxed_(&peer->slot->source);
    peer->word = word;
    int is_ours = before == writer->source && after == writer->source;
    if (!is_ours || word == TPR_CURSOR_UNSET || (word == TPR_CURSOR_LEFT && peer->stale_left)) {
        *cursor = peer->pin;
        return TPR_COUNTS_;
    }
    peer->stale_left = 0;
    if (word == TPR_CURSOR_LEFT) {
        peer->has_left = 1;
        return TPR_COUNTS_NOT_;
    }
    *cursor = word & ~TPR_CURSOR_FLAGS;
    if ((word & TPR_CURSOR_FLAGS) != TPR_CURSOR_SET || *cursor > writer->tail ||
        writer->position - *cursor > writer->capacity) {
        peer->is_violator = 1;
        return TPR_COUNTS_NOT_;
    }
    return TPR_COUNTS_;
}

/* Look at all slots anew; returns the slowest reader that counts, or NULL. O(readers). */
static inline struct tpr_peer *tpr_writer_scan_(struct tpr_writer *writer, uint64_t *lowest) {
    struct tpr_peer *slowest = NULL;
    *lowest = writer->tail;
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        uint64_t cursor = 0;
        if (tpr_peer_cursor_(writer, &writer->peer[i], &cursor) == TPR_COUNTS_ && (!slowest || cursor < *lowest)) {
            slowest = &writer->peer[i];
            *lowest = cursor;
        }
    }
    writer->room_until = *lowest + writer->capacity;
    return slowest;
}

/* Have all readers that count taken everything published? */
static inline int tpr_writer_is_drained(struct tpr_writer *writer) {
    uint64_t lowest;
    tpr_writer_scan_(writer, &lowest);
    return lowest == writer->tail;
}

/* The reader furthest behind; 0 when there is none that counts, else 1. */
static inline int tpr_writer_slowest(struct tpr_writer *writer, uint64_t *reader) {
    uint64_t lowest;
    struct tpr_peer *slowest = tpr_writer_scan_(writer, &lowest);
    if (slowest)
        *reader = slowest->reader;
    return slowest != NULL;
}

/* ---- publishing ---- */

/* Wake the readers that sleep. Nobody is rung twice for one sleep: the whole word, epoch and mode, is kept.
 *
 * A reader that is not attached yet may have seen the tail before this batch and gone to sleep; its page is
 * unknown here. But then the generation has changed by now (see "Attaching"), which is reason enough to wake
 * whoever sleeps on the tail; only its doorbell has to wait for the attach, hence `readers_changed`. */
static inline void tpr_writer_wake_(struct tpr_writer *writer) {
    int is_futex_due = 0;
    tpr_fence_(); /* with the reader's, between its `sleeping` and its second look at the tail */
    if (!tpr_writer_is_current_(writer)) {
        writer->readers_changed = 1;
        is_futex_due = 1;
    }
    for (uint32_t i = 0; i < writer->peer_count; i++) {
        struct tpr_peer *peer = &writer->peer[i];
        uint64_t sleeping = tpr_load_relaxed_(&peer->control->sleeping);
        if ((sleeping & TPR_MODE_MASK) == TPR_MODE_AWAKE || sleeping == peer->rung || peer->has_left ||
            peer->is_violator)
            continue;
        peer->rung = sleeping;
        if ((sleeping & TPR_MODE_MASK) == TPR_MODE_FUTEX) {
            is_futex_due = 1;
        } else if (peer->doorbell >= 0) {
            /* Full means that unread bytes are there already; any other failure is the reader's own loss. */
            ssize_t ignored = send(peer->doorbell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
            (void)ignored;
        }
    }
    if (is_futex_due)
        tpr_futex_wake_(&writer->page->tail, 0);
}

/* Publish the batch: one store, then wake who sleeps. Without a batch nothing happens. */
static inline void tpr_writer_flush(struct tpr_writer *writer) {
    if (writer->batch_count == 0)
        return;
    writer->batch_count = 0;
    writer->previous_tail = writer->tail;
    writer->tail = writer->position;
    TPR_STORE(LAST_SEQ, &writer->page->last_seq, writer->last_seq, __ATOMIC_RELAXED);
    TPR_STORE(TAIL, &writer->page->tail, writer->tail, __ATOMIC_RELEASE); /* with the reader's load of tail */
    tpr_writer_wake_(writer);
}

static inline uint64_t tpr_writer_padding_(const struct tpr_writer *writer, uint64_t record_bytes) {
    uint64_t left = writer->capacity - (writer->position & (writer->capacity - 1));
    return left < record_bytes ? left : 0;
}

static inline int tpr_writer_has_room_(struct tpr_writer *writer, uint64_t bytes) {
    uint64_t lowest;
    if (writer->position + bytes <= writer->room_until)
        return 1;
    tpr_writer_scan_(writer, &lowest);
    return writer->position + bytes <= writer->room_until;
}

/* Add a message to the batch (flushing by itself when the batch is at its bounds). `headers` and `payload` are
 * copied; either may be NULL when its length is 0. On TPR_OK the message has seq `writer->last_seq`.
 *
 * Returns TPR_OK; TPR_FULL (everything before it is flushed); TPR_NEEDS_READERS; TPR_E_TOO_LARGE, TPR_E_FORKED.
 * The message is taken only on TPR_OK. */
static inline int tpr_writer_put(struct tpr_writer *writer, const void *headers, size_t headers_bytes,
                                 const void *payload, size_t payload_bytes) {
    uint64_t most = tpr_message_bytes_max(writer->capacity);
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    if (headers_bytes > most || payload_bytes > most - headers_bytes)
        return TPR_E_TOO_LARGE;
    uint64_t bytes = tpr_record_bytes(headers_bytes, payload_bytes);
    if (writer->batch_count &&
        (writer->batch_count >= TPR_BATCH_COUNT ||
         writer->position - writer->tail + bytes > writer->capacity / TPR_BATCH_FRACTION))
        tpr_writer_flush(writer);
    if (writer->batch_count == 0) {
        if (!tpr_writer_is_current_(writer))
            return TPR_NEEDS_READERS;
        writer->batch_time_ns = tpr_clock_ns_(CLOCK_REALTIME);
    }
    uint64_t padding = tpr_writer_padding_(writer, bytes);
    if (!tpr_writer_has_room_(writer, padding + bytes)) {
        tpr_writer_flush(writer);
        return TPR_FULL;
    }
    if (padding) {
        uint32_t pad[2] = {(uint32_t)padding, TPR_RECORD_PADDING};
        TPR_COPY(PADDING, writer->data + (writer->position & (writer->capacity - 1)), pad, sizeof pad);
        writer->position += padding;
    }
    uint8_t *at = writer->data + (writer->position & (writer->capacity - 1));
    struct tpr_record record = {(uint32_t)bytes,         TPR_RECORD_DATA,         writer->last_seq + 1,
                                writer->batch_time_ns,   (uint32_t)headers_bytes, (uint32_t)payload_bytes};
    TPR_COPY(RECORD_HEADER, at, &record, sizeof record);
    at += sizeof record;
    if (headers_bytes)
        TPR_COPY(RECORD_HEADERS, at, headers, headers_bytes);
    if (payload_bytes)
        TPR_COPY(RECORD_PAYLOAD, at + headers_bytes, payload, payload_bytes);
    writer->position += bytes;
    writer->last_seq++;
    writer->batch_count++;
    return TPR_OK;
}

/* put() and flush(): one message at once. */
static inline int tpr_writer_publish(struct tpr_writer *writer, const void *headers, size_t headers_bytes,
                                     const void *payload, size_t payload_bytes) {
    int code = tpr_writer_put(writer, headers, headers_bytes, payload, payload_bytes);
    if (code == TPR_OK)
        tpr_writer_flush(writer);
    return code;
}

/* ---- readers ---- */

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

/* Detach a reader that is gone, or too slow; 0 when it was not attached. A sleeping waiter wakes. */
static inline int tpr_writer_detach(struct tpr_writer *writer, uint64_t reader) {
    struct tpr_peer *peer = tpr_writer_find_(writer, reader);
    if (!peer)
        return 0;
    tpr_writer_drop_(writer, peer);
    tpr_writer_notify(writer);
    return 1;
}

/* A duplicate of the doorbell (-1: none); TPR_E_DOORBELL when it is not what it must be, so that ringing it can
 * neither block nor write into somebody's file. */
static inline int tpr_dup_doorbell_(int doorbell_fd, int *duplicate) {
    int domain = 0;
    socklen_t length = sizeof domain;
    *duplicate = -1;
    if (doorbell_fd < 0)
        return TPR_OK;
    if (getsockopt(doorbell_fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0 || domain != AF_UNIX)
        return TPR_E_DOORBELL;
    *duplicate = fcntl(doorbell_fd, F_DUPFD_CLOEXEC, 0);
    return *duplicate < 0 ? TPR_E_SYSTEM : TPR_OK;
}

/* Map the page behind `fd` into `peer`, all checked. */
static inline int tpr_peer_map_(struct tpr_peer *peer, uint64_t reader, int fd, uint32_t slot) {
    struct tpr_control_info info;
    struct stat status;
    int code = tpr_control_check(fd, &info);
    if (code != TPR_OK)
        return code;
    if (info.reader != reader)
        return TPR_E_OTHER_READER;
    if (slot >= info.slots)
        return TPR_E_SLOT;
    if (fstat(fd, &status) != 0)
        return TPR_E_SYSTEM;
    peer->reader = reader;
    peer->device = (uint64_t)status.st_dev;
    peer->inode = (uint64_t)status.st_ino;
    peer->control_bytes = tpr_control_bytes_(info.slots);
    peer->control = (const struct tpr_control_page *)tpr_map_(fd, peer->control_bytes);
    if (!peer->control)
        return TPR_E_SYSTEM;
    peer->slot = &peer->control->slot[slot];
    return TPR_OK;
}

/* Attach a reader: from now on it is waited for and woken. Descriptors stay the caller's; the doorbell (a UNIX
 * socket, or -1) is duplicated. Attaching a reader again replaces what was known of it.
 *
 * `from_start`: the reader will begin at position 0, else at the tail that it reads; until its cursor is
 * there it is taken to stand at 0, or at the beginning of the newest batch (see "Attaching").
 *
 * Returns TPR_OK; TPR_E_LATE; TPR_E_LIMIT; TPR_E_FORKED; TPR_E_SYSTEM; or what is wrong with the descriptor.
 * State is unchanged on error. */
static inline int tpr_writer_attach(struct tpr_writer *writer, uint64_t reader, int control_fd, uint32_t slot,
                                    int doorbell_fd, int from_start) {
    struct tpr_peer peer;
    memset(&peer, 0, sizeof peer);
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    tpr_writer_flush(writer);
    if (from_start && writer->position > writer->capacity)
        return TPR_E_LATE;
    struct tpr_peer *known = tpr_writer_find_(writer, reader);
    if (!known && writer->peer_count >= TPR_READERS_MAX)
        return TPR_E_LIMIT;
    if (!known && writer->peer_count == writer->peer_room) {
        uint32_t room = writer->peer_room ? writer->peer_room * 2 : 4;
        void *grown = realloc(writer->peer, room * sizeof *writer->peer);
        if (!grown)
            return TPR_E_SYSTEM;
        writer->peer = (struct tpr_peer *)grown;
        writer->peer_room = room;
    }
    int code = tpr_peer_map_(&peer, reader, control_fd, slot);
    if (code != TPR_OK)
        return code;
    code = tpr_dup_doorbell_(doorbell_fd, &peer.doorbell);
    if (code != TPR_OK) {
        tpr_unmap_(peer.control, peer.control_bytes);
        return code;
    }
    peer.pin = from_start ? 0 : writer->previous_tail;
    peer.stale_left = tpr_load_acquire_(&peer.slot->cursor) == TPR_CURSOR_LEFT;
    if (known)
        tpr_writer_drop_(writer, known);
    writer->peer[writer->peer_count++] = peer;
    if (writer->room_until > peer.pin + writer->capacity)
        writer->room_until = peer.pin + writer->capacity;
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
    while (writer->peer_count)
        tpr_writer_drop_(writer, &writer->peer[0]);
    free(writer->peer);
    writer->peer = NULL;
    tpr_unmap_(writer->table.page, writer->table.bytes);
    tpr_writer_reap(writer);
    tpr_memory_free_(&writer->memory);
}

#endif
