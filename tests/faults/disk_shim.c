/* SPDX-License-Identifier: Apache-2.0
 *
 * What a disk may do, for tests: preloaded (LD_PRELOAD), it sits between a program and its files under one directory.
 *
 *     TOWPATH_SHIM_DIRECTORY   files whose names begin with this are watched; others pass
 *     TOWPATH_SHIM_LOG         every write, truncation and sync of a watched file is appended there, in order
 *     TOWPATH_SHIM_KILL_FILE   as soon as this file is there, it says n: the process kills itself (SIGKILL) before the
 *                              n-th such operation since it first saw that
 *
 * shim_fail_at(n, error, stay): the n-th operation from now on fails with that errno, and with `stay` all that follow;
 * 0: none. shim_count(): operations so far.
 *
 * A record of the log: u32 kind (0 write, 1 truncate, 2 sync, 3 unlink), u32 bytes of the name, u64 offset (or length),
 * u64 bytes of the data; then the name and the data. Not watched: names ending in -shm (memory that is made anew after a
 * crash), what is mapped, and reads.
 */
#define _GNU_SOURCE 1
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE, TRUNCATE, SYNC, UNLINK };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long count, fail_at, kill_at, kill_n;
static int fail_errno, fail_stays, log_fd = -2;

void shim_fail_at(long n, int error, int stay) {
    pthread_mutex_lock(&lock);
    fail_at = n ? count + n : 0;
    fail_errno = error;
    fail_stays = stay;
    pthread_mutex_unlock(&lock);
}

long shim_count(void) {
    return count;
}

static int ends_with(const char *name, const char *end) {
    size_t a = strlen(name), b = strlen(end);
    return a >= b && strcmp(name + a - b, end) == 0;
}

static int is_watched_name(const char *name) {
    const char *directory = getenv("TOWPATH_SHIM_DIRECTORY");
    return directory && strncmp(name, directory, strlen(directory)) == 0 && !ends_with(name, "-shm");
}

/* The name of a watched file behind a descriptor; 0: it is none. */
static int watched(int fd, char *name) {
    char link[64];
    if (!getenv("TOWPATH_SHIM_DIRECTORY"))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, 4095);
    if (length < 0)
        return 0;
    name[length] = 0;
    return is_watched_name(name);
}

static void append(const void *data, size_t bytes) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "write");
    if (real(log_fd, data, bytes) != (ssize_t)bytes)
        abort();
}

/* What the file says: n, or 0 when there is none. */
static long told_to_kill(void) {
    const char *path = getenv("TOWPATH_SHIM_KILL_FILE");
    char text[32] = {0};
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    return length > 0 ? atol(text) : 0;
}

/* An operation is about to be done. 0, or -1 with errno: it is not. */
static int before(void) {
    long n = told_to_kill();
    int result = 0;
    pthread_mutex_lock(&lock);
    if (n != kill_n)
        kill_at = n ? count + n : 0;
    kill_n = n;
    count++;
    if (kill_at && count >= kill_at)
        raise(SIGKILL);
    if (fail_at && (count == fail_at || (fail_stays && count > fail_at))) {
        errno = fail_errno;
        result = -1;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* It was done. */
static void after(uint32_t kind, const char *name, uint64_t offset, const void *data, uint64_t bytes) {
    struct {
        uint32_t kind, name_bytes;
        uint64_t offset, bytes;
    } head = {kind, (uint32_t)strlen(name), offset, bytes};
    const char *path = getenv("TOWPATH_SHIM_LOG");
    int saved = errno;
    pthread_mutex_lock(&lock);
    if (log_fd == -2)
        log_fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (log_fd >= 0) {
        append(&head, sizeof head);
        append(name, head.name_bytes);
        if (bytes)
            append(data, bytes);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
}

#define REAL(type, name, ...)                                                                                 \
    static type (*real)(__VA_ARGS__);                                                                         \
    if (!real)                                                                                                \
    real = dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t bytes) {
    char name[4096];
    REAL(ssize_t, "write", int, const void *, size_t);
    if (!watched(fd, name))
        return real(fd, data, bytes);
    off_t offset = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    ssize_t done = before() ? -1 : real(fd, data, bytes);
    if (done > 0)
        after(WRITE, name, (uint64_t)offset, data, (uint64_t)done);
    return done;
}

static ssize_t write_at(int fd, const void *data, size_t bytes, off64_t offset) {
    char name[4096];
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (!watched(fd, name))
        return real(fd, data, bytes, offset);
    ssize_t done = before() ? -1 : real(fd, data, bytes, offset);
    if (done > 0)
        after(WRITE, name, (uint64_t)offset, data, (uint64_t)done);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    return write_at(fd, data, bytes, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) {
    return write_at(fd, data, bytes, offset);
}

static int truncate_to(int fd, off64_t length) {
    char name[4096];
    REAL(int, "ftruncate64", int, off64_t);
    if (!watched(fd, name))
        return real(fd, length);
    int result = before() ? -1 : real(fd, length);
    if (result == 0)
        after(TRUNCATE, name, (uint64_t)length, NULL, 0);
    return result;
}

int ftruncate(int fd, off_t length) {
    return truncate_to(fd, length);
}

int ftruncate64(int fd, off64_t length) {
    return truncate_to(fd, length);
}

static int sync_by(const char *function, int fd) {
    char name[4096];
    int (*real)(int) = dlsym(RTLD_NEXT, function);
    if (!watched(fd, name))
        return real(fd);
    int result = before() ? -1 : real(fd);
    if (result == 0)
        after(SYNC, name, 0, NULL, 0);
    return result;
}

int fsync(int fd) {
    return sync_by("fsync", fd);
}

int fdatasync(int fd) {
    return sync_by("fdatasync", fd);
}

int unlink(const char *name) {
    REAL(int, "unlink", const char *);
    int result = real(name);
    if (result == 0 && is_watched_name(name))
        after(UNLINK, name, 0, NULL, 0);
    return result;
}
