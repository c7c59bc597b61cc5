/* SPDX-License-Identifier: Apache-2.0
 *
 * What lies in shared memory, byte for byte, and the codes every function answers with.
 *
 * Three kinds of memfd exist; each has exactly one process that writes it, everyone else maps it read-only.
 * All numbers are little-endian. Positions count bytes ever written to a ring: they only grow, and are
 * multiples of 8, so their low three bits carry flags. `position & (capacity - 1)` is the place in the data.
 *
 *   ring (written by its writer)                     control page (written by its reader)
 *   0    magic version header_bytes                  0    magic version slots
 *        capacity source created_ns                  16   reader load
 *        overflow history base_seq slab_bytes
 *   128  tail | closed bit  <- readers sleep here    128  sleeping = epoch << 2 | mode
 *        last_seq (for who counts; not for readers)       held_until released <- who wants a loan sleeps here
 *   256  writer_waits_for | doorbell bit             256  slot 0: cursor | 1  <- its writer sleeps here
 *        loans_wanted                                         source taken
 *   384  oldest_pos                                  320  slot 1 ...
 *   512  anchor[2] history_pos                       ...  held table: `held_max` times seq source
 *   4096 data[capacity]
 *   ...  slab[slab_bytes]
 *
 *   generation table (written by the core)           record (8-aligned, never wraps)
 *   0    magic version cells                         0    record_bytes u32   flags u32
 *   64   cell 0: generation  <- writers sleep here   8    seq u64
 *   128  cell 1 ...                                  16   time_ns u64
 *                                                    24   headers_bytes u32  payload_bytes u32
 *                                                    32   with TPR_RECORD_ORIGIN: source u64, seq u64
 *                                                         with TPR_RECORD_LOAN: the payload, namely its place in
 *                                                         the slab: offset u64, bytes u64
 *                                                         headers, payload, 0..7 bytes of padding
 *
 * A padding record fills the data up to its end when the next record would not fit there; only its first
 * 8 bytes exist. Words that different processes watch lie 128 bytes apart, because the adjacent-line
 * prefetcher of x86 moves cache lines in pairs. By that rule the ring's words are grouped: readers look at `tail`
 * all the time; at writer_waits_for when they have moved a cursor; at oldest_pos after each copy (it changes 64
 * times per turn of the ring); at the last group, which changes with each batch, only when they begin or were lapped.
 *
 * Not here: how these words are used (towpath_ring.h tells that, and where the proofs are).
 */
#ifndef TOWPATH_RING_LAYOUT_H
#define TOWPATH_RING_LAYOUT_H

#ifndef _GNU_SOURCE /* memfd_create, CPU_COUNT */
#define _GNU_SOURCE 1
#endif

#include <stddef.h>
#include <stdint.h>

#if defined(__GLIBC__) && !defined(__USE_GNU)
#error "include this before any system header, or define _GNU_SOURCE"
#endif

#if !defined(__linux__) || !defined(__LP64__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the ring is for 64-bit little-endian Linux"
#endif

#ifdef __cplusplus
#define TPR_STATIC_ASSERT static_assert
#else
#define TPR_STATIC_ASSERT _Static_assert
#endif

#define TPR_RING_MAGIC UINT64_C(0x474E495250574F54)    /* "TOWPRING" */
#define TPR_CONTROL_MAGIC UINT64_C(0x4C52544350574F54) /* "TOWPCTRL" */
#define TPR_TABLE_MAGIC UINT64_C(0x534E454750574F54)   /* "TOWPGENS" */
#define TPR_VERSION 3u

/* Limits. Reaching one is a documented error, never silence. */
#define TPR_HEADER_BYTES 4096u
#define TPR_CAPACITY_MIN UINT64_C(4096)
#define TPR_CAPACITY_MAX (UINT64_C(1) << 30)
#define TPR_RECORD_HEADER_BYTES 32u
#define TPR_ORIGIN_BYTES 16u
#define TPR_SLOTS_DEFAULT 255u
#define TPR_SLOTS_MAX 4096u
#define TPR_CELLS_MAX 65536u
#define TPR_READERS_MAX 4096u  /* readers attached to one writer */
#define TPR_BATCH_COUNT 256u   /* messages that one store of the tail publishes, at most */
#define TPR_BATCH_FRACTION 8u  /* ... and their bytes: a new batch begins after capacity / 8 */
#define TPR_MARKS 64u          /* steps, per turn of the ring, in which a writer takes leave to overwrite */
#define TPR_HISTORY_MAX 65536u /* messages that a late reader may ask for */
#define TPR_EXCLUDES_MAX 1024u /* origins that one reader leaves out */
#define TPR_RESUMES_MAX 4u     /* a lapped reader's attempts at one source before it looks at the others */
#define TPR_SLAB_MAX (UINT64_C(1) << 32) /* bytes of a writer's slab */
#define TPR_SLAB_GRAIN UINT64_C(4096)    /* each loan has pages of its own */
#define TPR_LOANS_MAX 1024u              /* loans of one writer that are out, or published and not free again */
#define TPR_HELD_DEFAULT 1024u           /* loaned messages that one reader holds at a time; what comes then is copied */
#define TPR_HELD_MAX 65536u
#define TPR_PLACE_BYTES 16u
#define TPR_STALL_STEP_NS UINT64_C(1000000000) /* the most that one look adds to the time a reader held the ring */

/* What a writer does when the ring is full. */
#define TPR_OVERFLOW_BLOCK 0u /* waits for the slowest reader */
#define TPR_OVERFLOW_DROP 1u  /* overwrites the oldest; readers learn how many they missed */

/* Where a reader begins in a ring. Writer and reader must be told the same. */
enum tpr_start {
    TPR_START_TAIL,    /* with what is published from now on */
    TPR_START_BEGIN,   /* at position 0; for a source that is new */
    TPR_START_HISTORY, /* at the writer's `history`-th last message, or the oldest that is still there */
    TPR_START_CURSOR   /* reader alone, after tpr_reader_recover(): where its slot says it is */
};
/* No position: the tail when a reader was announced is not known. */
#define TPR_TAIL_UNKNOWN UINT64_MAX

/* Record kinds (`flags`). Others are refused by readers. */
#define TPR_RECORD_DATA 1u
#define TPR_RECORD_PADDING 2u
#define TPR_RECORD_ORIGIN 4u /* with DATA: who published it first, on a channel that the core orders */
#define TPR_RECORD_LOAN 8u   /* with DATA: the payload lies in the slab, and the record says where */

/* Low bits of the tail word. */
#define TPR_TAIL_CLOSED UINT64_C(1) /* the writer closed the ring: this tail is the last */
#define TPR_TAIL_FLAGS UINT64_C(7)

/* Low bit of writer_waits_for. */
#define TPR_WAITS_DOORBELL UINT64_C(1) /* the writer does not sleep on the cursor; ring its doorbell */

/* What loans_wanted says. */
#define TPR_LOANS_WANTED_NOT UINT64_C(0)
#define TPR_LOANS_WANTED_FUTEX UINT64_C(1)    /* the writer sleeps on `released` */
#define TPR_LOANS_WANTED_DOORBELL UINT64_C(2) /* ring its doorbell */

/* A slot's cursor word: position | TPR_CURSOR_SET, or one of the two others. */
#define TPR_CURSOR_SET UINT64_C(1)
#define TPR_CURSOR_UNSET UINT64_C(0)    /* a fresh page is all zero: no slot of it needs touching */
#define TPR_CURSOR_LEFT UINT64_MAX      /* the reader let go of this source */
#define TPR_CURSOR_FLAGS UINT64_C(7)

/* Modes of the sleeping word: epoch << 2 | mode. */
#define TPR_MODE_AWAKE UINT64_C(0)
#define TPR_MODE_FUTEX UINT64_C(1)
#define TPR_MODE_DOORBELL UINT64_C(2)
#define TPR_MODE_MASK UINT64_C(3)

struct tpr_ring_page {
    uint64_t magic;
    uint32_t version;
    uint32_t header_bytes; /* where the data begins */
    uint64_t capacity;     /* bytes of data, a power of two */
    uint64_t source;
    uint64_t created_ns; /* CLOCK_REALTIME */
    uint32_t overflow;   /* TPR_OVERFLOW_x */
    uint32_t history;    /* how many messages history_pos reaches back; 0: it is not kept */
    uint64_t base_seq;   /* the first message's seq is the one after it; 0 but for logs that were there before the ring */
    uint64_t slab_bytes; /* after the data; a multiple of TPR_SLAB_GRAIN, 0 for none */
    uint8_t unused_a[64];
    uint64_t tail; /* end of the newest record | TPR_TAIL_CLOSED */
    uint64_t last_seq; /* of the newest message, or of the batch that is about to be: to count by, not to read by */
    uint8_t unused_b[112];
    uint64_t writer_waits_for; /* 0, or the position every cursor must reach for the writer to go on */
    uint64_t loans_wanted;     /* TPR_LOANS_WANTED_x: tell the writer of each cursor moved, each hold released */
    uint8_t unused_c[112];
    uint64_t oldest_pos; /* what lies before it may be overwritten by now; with DROP the start of a record */
    uint8_t unused_d[120];
    uint64_t anchor[2];   /* where the newest batch begins, and the one before it or the one being published */
    uint64_t history_pos; /* where the `history`-th last message begins, or the oldest that is still there */
    uint8_t unused_e[TPR_HEADER_BYTES - 536];
};

struct tpr_record {
    uint32_t record_bytes; /* all of it: header, headers, payload, padding to 8 */
    uint32_t flags;
    uint64_t seq;
    uint64_t time_ns; /* CLOCK_REALTIME when its batch began */
    uint32_t headers_bytes;
    uint32_t payload_bytes;
};

struct tpr_slot {
    uint64_t cursor;
    uint64_t source; /* whose cursor it is: tells a slot that has been reused from one that is ours */
    uint64_t taken;  /* up to this seq a pump that died has published already; for its successor only */
    uint8_t unused[40];
};

/* A loaned message that the reader still looks at. */
struct tpr_held {
    uint64_t seq; /* 0: the entry is free */
    uint64_t source;
};

struct tpr_control_page {
    uint64_t magic;
    uint32_t version;
    uint32_t slots;
    uint64_t reader;
    uint64_t load; /* how busy the reader is: a hint (towpath_ring_load.h) */
    uint32_t held_max;
    uint8_t unused_a[92];
    uint64_t sleeping;
    uint64_t held_until; /* from this entry of the held table on all are free */
    uint64_t released;   /* moves when something was released that a writer wants to hear of */
    uint8_t unused_b[104];
    struct tpr_slot slot[]; /* `slots` of them; behind them `held_max` entries of the held table */
};

struct tpr_cell {
    uint64_t generation;
    uint8_t unused[56];
};

struct tpr_table_page {
    uint64_t magic;
    uint32_t version;
    uint32_t cells;
    uint8_t unused[48];
    struct tpr_cell cell[]; /* `cells` of them */
};

TPR_STATIC_ASSERT(sizeof(struct tpr_ring_page) == TPR_HEADER_BYTES, "ring header");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, version) == 8, "version");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, header_bytes) == 12, "header_bytes");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, capacity) == 16, "capacity");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, source) == 24, "source");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, created_ns) == 32, "created_ns");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, overflow) == 40, "overflow");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, history) == 44, "history");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, base_seq) == 48, "base_seq");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, slab_bytes) == 56, "slab_bytes");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, tail) == 128, "tail");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, last_seq) == 136, "last_seq");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, writer_waits_for) == 256, "writer_waits_for");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, loans_wanted) == 264, "loans_wanted");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, oldest_pos) == 384, "oldest_pos");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, anchor) == 512, "anchor");
TPR_STATIC_ASSERT(offsetof(struct tpr_ring_page, history_pos) == 528, "history_pos");
TPR_STATIC_ASSERT(sizeof(struct tpr_record) == TPR_RECORD_HEADER_BYTES, "record header");
TPR_STATIC_ASSERT(offsetof(struct tpr_record, flags) == 4, "flags");
TPR_STATIC_ASSERT(offsetof(struct tpr_record, seq) == 8, "seq");
TPR_STATIC_ASSERT(offsetof(struct tpr_record, time_ns) == 16, "time_ns");
TPR_STATIC_ASSERT(offsetof(struct tpr_record, headers_bytes) == 24, "headers_bytes");
TPR_STATIC_ASSERT(offsetof(struct tpr_record, payload_bytes) == 28, "payload_bytes");
TPR_STATIC_ASSERT(sizeof(struct tpr_slot) == 64, "slot");
TPR_STATIC_ASSERT(offsetof(struct tpr_slot, cursor) == 0, "cursor");
TPR_STATIC_ASSERT(offsetof(struct tpr_slot, source) == 8, "slot source");
TPR_STATIC_ASSERT(offsetof(struct tpr_slot, taken) == 16, "slot taken");
TPR_STATIC_ASSERT(offsetof(struct tpr_control_page, version) == 8, "control version");
TPR_STATIC_ASSERT(offsetof(struct tpr_control_page, slots) == 12, "slots");
TPR_STATIC_ASSERT(offsetof(struct tpr_control_page, reader) == 16, "reader");
TPR_STATIC_ASSERT(offsetof(struct tpr_control_page, load) == 24, "load");
TPR_STATIC_ASSERT(offsetof(struct tpr_control_page, held_max) == 32, "held_max");
TPR_STATIC_ASSERT(offsetof(struct tpr_control_page, sleeping) == 128, "sleeping");
TPR_STATIC_ASSERT(offsetof(struct tpr_control_page, held_until) == 136, "held_until");
TPR_STATIC_ASSERT(offsetof(struct tpr_control_page, released) == 144, "released");
TPR_STATIC_ASSERT(sizeof(struct tpr_held) == 16, "held");
TPR_STATIC_ASSERT(offsetof(struct tpr_held, source) == 8, "held source");
TPR_STATIC_ASSERT(offsetof(struct tpr_control_page, slot) == 256, "first slot");
TPR_STATIC_ASSERT(offsetof(struct tpr_table_page, version) == 8, "table version");
TPR_STATIC_ASSERT(offsetof(struct tpr_table_page, cells) == 12, "cells");
TPR_STATIC_ASSERT(offsetof(struct tpr_table_page, cell) == 64, "first cell");
TPR_STATIC_ASSERT(sizeof(struct tpr_cell) == 64, "cell");
TPR_STATIC_ASSERT(offsetof(struct tpr_cell, generation) == 0, "generation");
TPR_STATIC_ASSERT(TPR_CAPACITY_MAX / 4 <= UINT32_MAX, "a record's length fits its field");

/* What functions answer: 0 or more is an expected outcome, less than 0 an error. */
enum {
    TPR_OK = 0,
    TPR_FULL = 1,          /* no room until the slowest reader moves */
    TPR_NEEDS_READERS = 2, /* the generation changed: attach the new readers, install, try again */
    TPR_TIMEOUT = 3,
    TPR_NOTIFIED = 4,
    TPR_INTERRUPTED = 5, /* a signal handler ran */

    TPR_E_SYSTEM = -1, /* errno says what */
    TPR_E_FORKED = -2,
    TPR_E_CAPACITY = -3,
    TPR_E_SLOTS = -4,
    TPR_E_TOO_LARGE = -5,
    TPR_E_SLOT = -6,
    TPR_E_SLOT_TAKEN = -7,
    TPR_E_SOURCE_TAKEN = -8,
    TPR_E_LIMIT = -9,
    TPR_E_LATE = -10,
    TPR_E_CELL = -11,
    TPR_E_OVERFLOW = -12,
    TPR_E_HISTORY = -13,
    TPR_E_NO_CURSOR = -14,
    TPR_E_SLAB = -15,
    TPR_E_NO_SLAB = -16,
    TPR_E_LOAN = -17,
    TPR_E_LOANS = -18,
    TPR_E_HELD = -19,
    /* From here on: the descriptor, or what lies in it, breaks the rules. */
    TPR_E_WRITABLE = -20,
    TPR_E_NOT_MEMFD = -21,
    TPR_E_SEALS = -22,
    TPR_E_MAGIC = -23,
    TPR_E_VERSION = -24,
    TPR_E_FIELD = -25,
    TPR_E_SIZE = -26,
    TPR_E_OTHER_SOURCE = -27,
    TPR_E_OTHER_READER = -28,
    TPR_E_DOORBELL = -29,
    TPR_E_TAIL = -30,
    TPR_E_READ_ONLY = -31,
    TPR_E_CLOSED = -32,
    TPR_E_RECORDS = -33,
    TPR_E_PARCEL = -34,
};

/* One sentence for an error code, with what to do about it; never NULL. */
static inline const char *tpr_error_text(int code) {
    switch (code) {
    case TPR_E_SYSTEM: return "a system call failed";
    case TPR_E_FORKED: return "this handle belongs to the process that forked; open one of its own here";
    case TPR_E_CAPACITY: return "ring_bytes must be a power of two from 4096 to 1073741824";
    case TPR_E_SLOTS: return "slots must be from 1 to 4096";
    case TPR_E_TOO_LARGE: return "headers and payload together exceed the ring's largest message; use a larger ring";
    case TPR_E_SLOT: return "the slot lies outside the control page";
    case TPR_E_SLOT_TAKEN: return "the slot is used by another source; remove that one first";
    case TPR_E_SOURCE_TAKEN: return "the source is already being read";
    case TPR_E_LIMIT: return "the limit of readers attached to one writer is reached";
    case TPR_E_LATE: return "the start of the ring was asked for, but is already overwritten";
    case TPR_E_CELL: return "the generation table has no such cell";
    case TPR_E_OVERFLOW: return "overflow must be block or drop";
    case TPR_E_HISTORY: return "history must be from 0 to 65536";
    case TPR_E_NO_CURSOR: return "the slot holds no cursor of this source to go on from";
    case TPR_E_SLAB: return "slab_bytes must be a multiple of 4096 up to 4294967296";
    case TPR_E_NO_SLAB: return "this writer was made without a slab to loan from";
    case TPR_E_LOAN: return "the loan was published or given back before";
    case TPR_E_LOANS: return "all of the slab is loaned out, or held by readers; publish, give back, or release";
    case TPR_E_HELD: return "held_max must be from 0 to 65536";
    case TPR_E_WRITABLE: return "the descriptor is open for writing; pass an O_RDONLY one";
    case TPR_E_NOT_MEMFD: return "the descriptor is not a memfd";
    case TPR_E_SEALS: return "the memfd lacks the seals SHRINK, GROW and SEAL";
    case TPR_E_MAGIC: return "the memfd holds something else (wrong magic)";
    case TPR_E_VERSION: return "the memfd has another layout version; update the older side";
    case TPR_E_FIELD: return "a field of the memfd's header is out of range";
    case TPR_E_SIZE: return "the memfd's size does not agree with its header";
    case TPR_E_OTHER_SOURCE: return "the ring belongs to another source";
    case TPR_E_OTHER_READER: return "the control page belongs to another reader";
    case TPR_E_DOORBELL: return "the doorbell is not a UNIX socket";
    case TPR_E_TAIL: return "the ring's tail is impossible";
    case TPR_E_READ_ONLY: return "the descriptor is not open for reading and writing; pass what keep() gave";
    case TPR_E_CLOSED: return "the ring was closed by its writer; there is nothing to go on with";
    case TPR_E_RECORDS: return "what the ring holds is no run of records; make a new one";
    case TPR_E_PARCEL: return "that is no parcel, or it is damaged";
    default: return "unknown ring error";
    }
}

/* Bytes that a message without origin takes in the ring, its record header and padding included. */
static inline uint64_t tpr_record_bytes(uint64_t headers_bytes, uint64_t payload_bytes) {
    return (TPR_RECORD_HEADER_BYTES + headers_bytes + payload_bytes + 7) & ~UINT64_C(7);
}

/* The most bytes that headers and payload together may have in a ring of this capacity. */
static inline uint64_t tpr_message_bytes_max(uint64_t capacity) {
    return capacity / 4 - TPR_RECORD_HEADER_BYTES;
}

#endif
