/* SPDX-License-Identifier: Apache-2.0
 *
 * Making, checking and mapping the memfds, noticing fork(2); and the doorbells, which are descriptors too.
 *
 * Making: sealed against any change of size, mode 0600 (a memfd is born 0777, so that any uid could reopen a
 * read-only descriptor of it for writing through /proc), mapped read-write here, and kept only as an O_RDONLY
 * descriptor, which is what others get a duplicate of.
 *
 * Checking trusts nothing: access mode, file system (a hugetlb memfd may fault where pages are short), seals,
 * size, then the header's fields, copied once by pread(2), all before anything is mapped. What passes can
 * neither shrink (SIGBUS) nor be changed by whoever checked it.
 *
 * fork: a forked child must not write its parent's pages. A handler installed once per process counts forks,
 * every handle remembers the count it was made at, and the writable mappings are not inherited at all.
 */
#ifndef TOWPATH_RING_MEMFD_H
#define TOWPATH_RING_MEMFD_H

#include "towpath_ring_steps.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#define TPR_TMPFS_MAGIC 0x01021994
#define TPR_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* Tests under ThreadSanitizer put both sides on one mapping through these. */
#ifndef TOWPATH_RING_MMAP
#define TOWPATH_RING_MMAP mmap
#define TOWPATH_RING_MUNMAP munmap
#endif

/* One counter for all the files of a program or library that include this: a handle may be made in one of them and used
 * in another. */
#define TPR_SHARED_ __attribute__((weak, visibility("hidden")))
TPR_SHARED_ uint32_t tpr_forks_ = 0;
TPR_SHARED_ pthread_once_t tpr_forks_watched_ = PTHREAD_ONCE_INIT;

static inline void tpr_count_fork_(void) {
    tpr_forks_++;
}

static inline void tpr_watch_forks_(void) {
    pthread_atfork(NULL, NULL, tpr_count_fork_);
}

/* How often this process is the child of a fork, counted since the first handle was made. */
static inline uint32_t tpr_fork_count_(void) {
    pthread_once(&tpr_forks_watched_, tpr_watch_forks_);
    return tpr_forks_;
}

/* A memfd of one's own: mapped read-write, descriptor read-only. */
struct tpr_memory {
    void *page;
    uint64_t bytes;
    int fd;
    uint32_t forks;
};

static inline int tpr_is_forked_(const struct tpr_memory *memory) {
    return memory->forks != tpr_forks_;
}

/* A duplicate of a doorbell (-1: none); TPR_E_DOORBELL when it is not what it must be, so that ringing it can
 * neither block nor write into somebody's file. */
static inline int tpr_doorbell_dup_(int doorbell_fd, int *duplicate) {
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

/* Never waits: full means that unread bytes are there already; any other failure is the loss of who gave it. */
static inline void tpr_doorbell_ring_(int doorbell) {
    ssize_t ignored = doorbell < 0 ? 0 : send(doorbell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)ignored;
}

/* Returns TPR_OK, or TPR_E_SYSTEM with errno set and nothing left behind. */
static inline int tpr_memory_make_(struct tpr_memory *memory, const char *name, uint64_t bytes) {
    char path[64];
    void *page = MAP_FAILED;
    int shared = -1, saved, fd;

    memory->page = NULL;
    memory->bytes = bytes;
    memory->fd = -1;
    memory->forks = tpr_fork_count_();
    fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return TPR_E_SYSTEM;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (ftruncate(fd, (off_t)bytes) == 0 && fchmod(fd, 0600) == 0 && fcntl(fd, F_ADD_SEALS, TPR_SEALS) == 0 &&
        (shared = open(path, O_RDONLY | O_CLOEXEC)) >= 0)
        page = TOWPATH_RING_MMAP(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED && madvise(page, bytes, MADV_DONTFORK) != 0) {
        TOWPATH_RING_MUNMAP(page, bytes);
        page = MAP_FAILED;
    }
    saved = errno;
    close(fd);
    if (page == MAP_FAILED) {
        if (shared >= 0)
            close(shared);
        errno = saved;
        return TPR_E_SYSTEM;
    }
    memory->page = page;
    memory->fd = shared;
    return TPR_OK;
}

/* A new descriptor of one's own memory that is open for writing too, owned by the caller: who keeps it can go on with
 * this memory when this process has died. Works because the memfd is 0600 and ours. TPR_E_SYSTEM, TPR_E_FORKED. */
static inline int tpr_memory_keep_(const struct tpr_memory *memory) {
    char path[64];
    if (memory->forks != tpr_forks_)
        return TPR_E_FORKED;
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory->fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? TPR_E_SYSTEM : fd;
}

/* The memory behind such a descriptor (stays the caller's), which has been checked, becomes this process's own. */
static inline int tpr_memory_recover_(struct tpr_memory *memory, int fd, uint64_t bytes) {
    char path[64];
    memory->page = NULL;
    memory->bytes = bytes;
    memory->forks = tpr_fork_count_();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    memory->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (memory->fd < 0)
        return TPR_E_SYSTEM;
    void *page = TOWPATH_RING_MMAP(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED && madvise(page, bytes, MADV_DONTFORK) == 0) {
        memory->page = page;
        return TPR_OK;
    }
    int saved = errno;
    if (page != MAP_FAILED)
        TOWPATH_RING_MUNMAP(page, bytes);
    close(memory->fd);
    memory->fd = -1;
    errno = saved;
    return TPR_E_SYSTEM;
}

static inline void tpr_memory_free_(struct tpr_memory *memory) {
    /* In a forked child the range was never mapped; something else may live there by now. */
    if (memory->page && !tpr_is_forked_(memory))
        TOWPATH_RING_MUNMAP(memory->page, memory->bytes);
    if (memory->fd >= 0)
        close(memory->fd);
    memory->page = NULL;
    memory->fd = -1;
}

/* A new O_RDONLY descriptor, owned by the caller; or TPR_E_SYSTEM, TPR_E_FORKED. */
static inline int tpr_memory_share_(const struct tpr_memory *memory) {
    if (tpr_is_forked_(memory))
        return TPR_E_FORKED;
    int fd = fcntl(memory->fd, F_DUPFD_CLOEXEC, 0);
    return fd < 0 ? TPR_E_SYSTEM : fd;
}

struct tpr_ring_info {
    uint64_t source;
    uint64_t capacity;
    uint64_t slab_bytes;
    uint32_t overflow, history;
};

struct tpr_control_info {
    uint64_t reader;
    uint32_t slots, held_max;
};

static inline uint64_t tpr_control_bytes_(const struct tpr_control_info *info) {
    return (sizeof(struct tpr_control_page) + info->slots * sizeof(struct tpr_slot) +
            info->held_max * sizeof(struct tpr_held) + 4095) & ~UINT64_C(4095);
}

/* Where the held table begins. */
static inline uint64_t tpr_held_offset_(uint32_t slots) {
    return sizeof(struct tpr_control_page) + slots * sizeof(struct tpr_slot);
}

static inline uint64_t tpr_ring_bytes_(const struct tpr_ring_info *info) {
    return TPR_HEADER_BYTES + info->capacity + info->slab_bytes;
}

static inline int tpr_is_slab_(uint64_t slab_bytes) {
    return slab_bytes <= TPR_SLAB_MAX && slab_bytes % TPR_SLAB_GRAIN == 0;
}

static inline uint64_t tpr_table_bytes_(uint32_t cells) {
    return (sizeof(struct tpr_table_page) + cells * sizeof(struct tpr_cell) + 4095) & ~UINT64_C(4095);
}

static inline int tpr_is_capacity_(uint64_t capacity) {
    return capacity >= TPR_CAPACITY_MIN && capacity <= TPR_CAPACITY_MAX && (capacity & (capacity - 1)) == 0;
}

/* What holds for each of the three kinds; copies the first `bytes` bytes out. `access`: O_RDONLY for what comes from
 * others, O_RDWR for one's own. */
static inline int tpr_check_(int fd, int access, void *header, size_t bytes, uint64_t *file_bytes) {
    struct stat status;
    struct statfs system;
    int flags = fcntl(fd, F_GETFL), seals;

    if (flags < 0)
        return TPR_E_SYSTEM;
    if (flags & O_PATH)
        return TPR_E_NOT_MEMFD;
    if ((flags & O_ACCMODE) != access)
        return access == O_RDONLY ? TPR_E_WRITABLE : TPR_E_READ_ONLY;
    if (fstat(fd, &status) != 0 || fstatfs(fd, &system) != 0)
        return TPR_E_SYSTEM;
    seals = fcntl(fd, F_GET_SEALS);
    if (!S_ISREG(status.st_mode) || system.f_type != TPR_TMPFS_MAGIC || seals < 0)
        return TPR_E_NOT_MEMFD;
    if ((seals & TPR_SEALS) != TPR_SEALS)
        return TPR_E_SEALS;
    if (pread(fd, header, bytes, 0) != (ssize_t)bytes)
        return TPR_E_SIZE;
    *file_bytes = (uint64_t)status.st_size;
    return TPR_OK;
}

static inline int tpr_ring_check_(int fd, int access, struct tpr_ring_info *info) {
    struct {
        uint64_t magic;
        uint32_t version, header_bytes;
        uint64_t capacity, source, created_ns;
        uint32_t overflow, history;
        uint64_t base_seq, slab_bytes;
    } header;
    uint64_t bytes;
    int code = tpr_check_(fd, access, &header, sizeof header, &bytes);
    if (code != TPR_OK)
        return code;
    if (header.magic != TPR_RING_MAGIC)
        return TPR_E_MAGIC;
    if (header.version != TPR_VERSION)
        return TPR_E_VERSION;
    if (header.header_bytes != TPR_HEADER_BYTES || !tpr_is_capacity_(header.capacity) ||
        header.overflow > TPR_OVERFLOW_DROP || header.history > TPR_HISTORY_MAX || !tpr_is_slab_(header.slab_bytes))
        return TPR_E_FIELD;
    info->source = header.source;
    info->capacity = header.capacity;
    info->slab_bytes = header.slab_bytes;
    info->overflow = header.overflow;
    info->history = header.history;
    return bytes == tpr_ring_bytes_(info) ? TPR_OK : TPR_E_SIZE;
}

/* Is this a ring that may be mapped? Fills `info`; returns TPR_OK or the error. Does not map. */
static inline int tpr_ring_check(int fd, struct tpr_ring_info *info) {
    return tpr_ring_check_(fd, O_RDONLY, info);
}

static inline int tpr_control_check_(int fd, int access, struct tpr_control_info *info) {
    struct {
        uint64_t magic;
        uint32_t version, slots;
        uint64_t reader, load;
        uint32_t held_max, unused;
    } header;
    uint64_t bytes;
    int code = tpr_check_(fd, access, &header, sizeof header, &bytes);
    if (code != TPR_OK)
        return code;
    if (header.magic != TPR_CONTROL_MAGIC)
        return TPR_E_MAGIC;
    if (header.version != TPR_VERSION)
        return TPR_E_VERSION;
    if (header.slots < 1 || header.slots > TPR_SLOTS_MAX || header.held_max > TPR_HELD_MAX)
        return TPR_E_FIELD;
    info->reader = header.reader;
    info->slots = header.slots;
    info->held_max = header.held_max;
    return bytes == tpr_control_bytes_(info) ? TPR_OK : TPR_E_SIZE;
}

/* The same for a reader's control page. */
static inline int tpr_control_check(int fd, struct tpr_control_info *info) {
    return tpr_control_check_(fd, O_RDONLY, info);
}

/* The same for a generation table. */
static inline int tpr_table_check(int fd, uint32_t *cells) {
    struct {
        uint64_t magic;
        uint32_t version, cells;
    } header;
    uint64_t bytes;
    int code = tpr_check_(fd, O_RDONLY, &header, sizeof header, &bytes);
    if (code != TPR_OK)
        return code;
    if (header.magic != TPR_TABLE_MAGIC)
        return TPR_E_MAGIC;
    if (header.version != TPR_VERSION)
        return TPR_E_VERSION;
    if (header.cells < 1 || header.cells > TPR_CELLS_MAX)
        return TPR_E_FIELD;
    if (bytes != tpr_table_bytes_(header.cells))
        return TPR_E_SIZE;
    *cells = header.cells;
    return TPR_OK;
}

/* Map what one of the checks above has passed, read-only; NULL with errno set when that fails. */
static inline const void *tpr_map_(int fd, uint64_t bytes) {
    void *page = TOWPATH_RING_MMAP(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    return page == MAP_FAILED ? NULL : page;
}

static inline void tpr_unmap_(const void *page, uint64_t bytes) {
    if (page)
        TOWPATH_RING_MUNMAP((void *)(uintptr_t)page, bytes);
}

#endif
