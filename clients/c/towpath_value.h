/* SPDX-License-Identifier: Apache-2.0
 *
 * The value page: the newest value of a state channel in shared memory. One process writes it (the core), any number of
 * others read it, without a system call and without waiting for anybody. C11 (and C++), header-only; link with -pthread.
 *
 *     struct tpr_value_writer w;                          struct tpr_value_reader r;
 *     tpr_value_open(&w, 65536);                          tpr_value_map(&r, fd);
 *     int fd = tpr_value_share(&w);                       do {
 *     tpr_value_write(&w, &about, headers, payload);          code = tpr_value_begin(&r, &view);
 *                                                             copy(view.data, view.about...);
 *                                                         } while (code == TPR_OK && !tpr_value_end(&r, &view));
 *
 *   page                                              buffer, two of them
 *   0    magic version value_bytes_max                0    version changed_at_ns
 *   64   begun    <- what the writer is writing       16   headers_bytes payload_bytes flags
 *   128  current  <- what is there to be read         64   data[value_bytes_max]: headers, then payload
 *   256  buffer 0, buffer 1
 *
 * THEORY OF OPERATION. Writes are numbered from 1; write n goes to buffer n & 1. The writer stores begun = n, then (release
 * fence) the buffer, then (release) current = n. So the buffer that `current` names is not touched before begun says
 * current + 2. A reader loads current (acquire), copies that buffer, then (acquire fence) loads begun: if it is not beyond
 * current + 1, nothing of the copy is from a later write. Whoever has read a byte that was written after the release fence
 * sees the `begun` before it, so nothing torn is ever taken for whole.
 *
 * DEATH. A writer killed in the middle leaves begun = current + 1: readers go on with what current names, for ever, and
 * nobody waits. STARVATION. A reader tries again only if two writes began while it copied once; it gives up after
 * TPR_VALUE_TRIES (then its shell asks the core), so a writer that never stops makes nobody spin.
 *
 * HOSTILE PAGES. Whatever is loaded from the page is loaded once and checked before it is used: lengths against the
 * page's size as it was mapped, which cannot change (it is sealed). A page of nonsense gives nonsense bytes, or
 * TPR_E_FIELD, and nothing else.
 *
 * A value that does not fit has TPR_VALUE_ELSEWHERE and no bytes: the core is to be asked.
 *
 * Not here: who may read, compare-and-set, waiting for a change (the core).
 */
#ifndef TOWPATH_VALUE_H
#define TOWPATH_VALUE_H

#include "towpath_ring_memfd.h"

#define TPR_VALUE_MAGIC UINT64_C(0x554C415650574F54) /* "TOWPVALU" */
#define TPR_VALUE_VERSION 1u
#define TPR_VALUE_BYTES_MAX (UINT32_C(1) << 28)
#define TPR_VALUE_TRIES 64u

#define TPR_VALUE_SET 1u       /* there is a value; without it, none was ever set, or it was deleted */
#define TPR_VALUE_ELSEWHERE 2u /* it is larger than the page takes */

/* A test may look, or die, around each store to the page. */
#ifndef TOWPATH_VALUE_ON_STEP
#define TOWPATH_VALUE_ON_STEP(step) ((void)0)
#endif
/* A build with -DTOWPATH_VALUE_FAULT=n does one thing wrong: tests/ring/test_value.py shows that the tests find it. */
#ifdef TOWPATH_VALUE_FAULT
#define TPR_VALUE_FAULT_(number) (TOWPATH_VALUE_FAULT == (number))
#else
#define TPR_VALUE_FAULT_(number) 0
#endif

enum tpr_value_step {
    TPR_VALUE_BEGUN,
    TPR_VALUE_HEADER,
    TPR_VALUE_HEADERS,
    TPR_VALUE_PAYLOAD_HALF,
    TPR_VALUE_PAYLOAD,
    TPR_VALUE_CURRENT,
    TPR_VALUE_STEP_COUNT
};

struct tpr_value_about {
    uint64_t version; /* of the value; 0: nothing was ever set */
    uint64_t changed_at_ns;
    uint32_t headers_bytes, payload_bytes;
    uint32_t flags;
    uint32_t unused;
};

struct tpr_value_page {
    uint64_t magic;
    uint32_t version;
    uint32_t value_bytes_max;
    uint8_t unused_a[48];
    uint64_t begun;
    uint8_t unused_b[56];
    uint64_t current;
    uint8_t unused_c[120];
};

#define TPR_VALUE_BUFFER_HEADER 64u

TPR_STATIC_ASSERT(sizeof(struct tpr_value_about) == 32, "about");
TPR_STATIC_ASSERT(sizeof(struct tpr_value_page) == 256, "value page");
TPR_STATIC_ASSERT(offsetof(struct tpr_value_page, begun) == 64, "begun");
TPR_STATIC_ASSERT(offsetof(struct tpr_value_page, current) == 128, "current");

static inline uint64_t tpr_value_buffer_bytes_(uint32_t value_bytes_max) {
    return (TPR_VALUE_BUFFER_HEADER + (uint64_t)value_bytes_max + 127) & ~UINT64_C(127);
}

static inline uint64_t tpr_value_page_bytes_(uint32_t value_bytes_max) {
    return (sizeof(struct tpr_value_page) + 2 * tpr_value_buffer_bytes_(value_bytes_max) + 4095) & ~UINT64_C(4095);
}

/* ---- the writer ---- */

struct tpr_value_writer {
    struct tpr_memory memory;
    struct tpr_value_page *page;
    uint32_t value_bytes_max;
    uint64_t current;
};

/* Make a page for values of at most `value_bytes_max` (1 to TPR_VALUE_BYTES_MAX) bytes, headers included. It holds version
 * 0, not set. TPR_OK, TPR_E_CAPACITY, TPR_E_SYSTEM. */
static inline int tpr_value_open(struct tpr_value_writer *writer, uint32_t value_bytes_max) {
    if (value_bytes_max < 1 || value_bytes_max > TPR_VALUE_BYTES_MAX)
        return TPR_E_CAPACITY;
    int code = tpr_memory_make_(&writer->memory, "towpath-value", tpr_value_page_bytes_(value_bytes_max));
    if (code != TPR_OK)
        return code;
    writer->page = (struct tpr_value_page *)writer->memory.page;
    writer->value_bytes_max = value_bytes_max;
    writer->current = 0;
    writer->page->version = TPR_VALUE_VERSION;
    writer->page->value_bytes_max = value_bytes_max;
    writer->page->magic = TPR_VALUE_MAGIC;
    return TPR_OK;
}

/* A new O_RDONLY descriptor, owned by the caller; or TPR_E_SYSTEM, TPR_E_FORKED. */
static inline int tpr_value_share(const struct tpr_value_writer *writer) {
    return tpr_memory_share_(&writer->memory);
}

static inline void tpr_value_copy_(uint8_t *to, const void *from, uint64_t bytes) {
    TOWPATH_RING_MEMCPY(to, from, bytes / 2);
    TOWPATH_VALUE_ON_STEP(TPR_VALUE_PAYLOAD_HALF);
    TOWPATH_RING_MEMCPY(to + bytes / 2, (const uint8_t *)from + bytes / 2, bytes - bytes / 2);
}

/* Show a value. `about` has its lengths; what does not fit is shown as being elsewhere. TPR_OK, TPR_E_FORKED. */
static inline int tpr_value_write(struct tpr_value_writer *writer, const struct tpr_value_about *about,
                                  const void *headers, const void *payload) {
    struct tpr_value_about shown = *about;
    if (tpr_is_forked_(&writer->memory))
        return TPR_E_FORKED;
    if ((uint64_t)about->headers_bytes + about->payload_bytes > writer->value_bytes_max) {
        shown.flags |= TPR_VALUE_ELSEWHERE;
        shown.headers_bytes = shown.payload_bytes = 0;
    }
    uint64_t next = writer->current + 1;
    uint64_t half = TPR_VALUE_FAULT_(3) ? 0 : next & 1; /* 3: there is one buffer */
    uint8_t *buffer = (uint8_t *)(writer->page + 1) + half * tpr_value_buffer_bytes_(writer->value_bytes_max);
    if (!TPR_VALUE_FAULT_(1)) /* does not say that it writes */
        TOWPATH_RING_STORE(&writer->page->begun, next, __ATOMIC_RELAXED);
    if (TPR_VALUE_FAULT_(2)) /* shows it, then writes it */
        TOWPATH_RING_STORE(&writer->page->current, next, __ATOMIC_RELEASE);
    TOWPATH_VALUE_ON_STEP(TPR_VALUE_BEGUN);
    tpr_fence_release_(); /* with the reader's acquire fence: who sees what follows sees `begun` */
    TOWPATH_RING_MEMCPY(buffer, &shown, sizeof shown);
    TOWPATH_VALUE_ON_STEP(TPR_VALUE_HEADER);
    if (shown.headers_bytes)
        TOWPATH_RING_MEMCPY(buffer + TPR_VALUE_BUFFER_HEADER, headers, shown.headers_bytes);
    TOWPATH_VALUE_ON_STEP(TPR_VALUE_HEADERS);
    if (shown.payload_bytes)
        tpr_value_copy_(buffer + TPR_VALUE_BUFFER_HEADER + shown.headers_bytes, payload, shown.payload_bytes);
    TOWPATH_VALUE_ON_STEP(TPR_VALUE_PAYLOAD);
    TOWPATH_RING_STORE(&writer->page->current, next, __ATOMIC_RELEASE); /* with the reader's acquire load */
    TOWPATH_VALUE_ON_STEP(TPR_VALUE_CURRENT);
    writer->current = next;
    return TPR_OK;
}

static inline void tpr_value_close(struct tpr_value_writer *writer) {
    tpr_memory_free_(&writer->memory);
    writer->page = NULL;
}

/* ---- the reader ---- */

struct tpr_value_reader {
    const struct tpr_value_page *page;
    uint64_t bytes;
    uint32_t value_bytes_max;
};

/* What is to be copied: `about` is a copy already, and checked. */
struct tpr_value_view {
    struct tpr_value_about about;
    const uint8_t *data;
    uint64_t current;
};

/* Map the page behind `fd` (stays the caller's), all checked. TPR_OK, TPR_E_SYSTEM, or what is wrong with it. */
static inline int tpr_value_map(struct tpr_value_reader *reader, int fd) {
    struct {
        uint64_t magic;
        uint32_t version, value_bytes_max;
    } header;
    uint64_t bytes;
    int code = tpr_check_(fd, O_RDONLY, &header, sizeof header, &bytes);
    if (code != TPR_OK)
        return code;
    if (header.magic != TPR_VALUE_MAGIC)
        return TPR_E_MAGIC;
    if (header.version != TPR_VALUE_VERSION)
        return TPR_E_VERSION;
    if (header.value_bytes_max < 1 || header.value_bytes_max > TPR_VALUE_BYTES_MAX)
        return TPR_E_FIELD;
    if (bytes != tpr_value_page_bytes_(header.value_bytes_max))
        return TPR_E_SIZE;
    reader->page = (const struct tpr_value_page *)tpr_map_(fd, bytes);
    if (!reader->page)
        return TPR_E_SYSTEM;
    reader->bytes = bytes;
    reader->value_bytes_max = header.value_bytes_max;
    return TPR_OK;
}

/* Find the newest value. TPR_OK: copy what `view` says, then ask tpr_value_end(). TPR_E_FIELD: the page is malformed. */
static inline int tpr_value_begin(const struct tpr_value_reader *reader, struct tpr_value_view *view) {
    view->current = tpr_load_acquire_(&reader->page->current);
    const uint8_t *buffer = (const uint8_t *)(reader->page + 1) +
                            (TPR_VALUE_FAULT_(3) ? 0 : view->current & 1) * tpr_value_buffer_bytes_(reader->value_bytes_max);
    TOWPATH_RING_MEMCPY(&view->about, buffer, sizeof view->about);
    view->data = buffer + TPR_VALUE_BUFFER_HEADER;
    if ((uint64_t)view->about.headers_bytes + view->about.payload_bytes <= reader->value_bytes_max)
        return TPR_OK;
    view->about.headers_bytes = view->about.payload_bytes = 0;
    return TPR_E_FIELD; /* or torn: tpr_value_end() tells */
}

/* Whether what was copied since tpr_value_begin() is one value; else begin again. */
static inline int tpr_value_end(const struct tpr_value_reader *reader, const struct tpr_value_view *view) {
    if (TPR_VALUE_FAULT_(4)) /* takes what it copied as it is */
        return 1;
    tpr_fence_acquire_(); /* with the writer's release fence */
    return tpr_load_relaxed_(&reader->page->begun) - view->current <= 1;
}

static inline void tpr_value_unmap(struct tpr_value_reader *reader) {
    tpr_unmap_(reader->page, reader->bytes);
    reader->page = NULL;
}

#endif
