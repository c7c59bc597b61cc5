/* shm_peer ROLE FLAGS SEGMENT READY FREE COUNT: the other side of a region of shared memory.
 *
 * SEGMENT is /NAME or a System V key, READY and FREE are /NAME or KEY:INDEX, or - for none.
 * Roles: make (the segment, and the semaphores with 0 and 1), remove, write, read, half (a change is begun, not ended).
 * Flags: g the generation at 0 is counted; f the word at 4 is advanced and woken; b each message is SIZE bytes alike;
 * any other letter means nothing. Without b a message is "message NUMBER", its length at 8. The region begins at 64. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SIZE = 4000, TOTAL = 64 + SIZE };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int is_posix(const char *name) { return name[0] == '/'; }
static int is_none(const char *name) { return strcmp(name, "-") == 0; }
static key_t key_of(const char *name) { return (key_t)strtoul(name, NULL, 0); }

static char *segment(const char *name, int flags) {
    if (is_posix(name)) {
        int file = shm_open(name, O_RDWR | flags, 0600);
        if (file < 0 || (flags && ftruncate(file, TOTAL) < 0))
            fail(name);
        void *memory = mmap(NULL, TOTAL, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        return memory == MAP_FAILED ? (fail("mmap"), NULL) : memory;
    }
    int id = shmget(key_of(name), flags ? TOTAL : 0, flags ? IPC_CREAT | 0600 : 0);
    void *memory = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
    return memory == (void *)-1 ? (fail(name), NULL) : memory;
}

static void make_semaphore(const char *name, unsigned value) {
    if (is_none(name))
        return;
    if (is_posix(name)) {
        if (sem_open(name, O_CREAT, 0600, value) == SEM_FAILED)
            fail(name);
        return;
    }
    int id = semget(key_of(name), 2, IPC_CREAT | 0600), index = atoi(strchr(name, ':') + 1);
    if (id < 0 || semctl(id, index, SETVAL, (int)value) < 0)
        fail(name);
}

static void change(const char *name, int amount) {
    static const char *names[2];
    static sem_t *opened[2];
    if (is_none(name))
        return;
    if (is_posix(name)) {
        int at = names[0] && strcmp(names[0], name) != 0;
        if (!names[at]) {
            names[at] = name;
            opened[at] = sem_open(name, 0);
        }
        if (opened[at] == SEM_FAILED || (amount > 0 ? sem_post(opened[at]) : sem_wait(opened[at])) < 0)
            fail(name);
        return;
    }
    struct sembuf operation = {.sem_num = (unsigned short)atoi(strchr(name, ':') + 1), .sem_op = (short)amount};
    if (semop(semget(key_of(name), 0, 0), &operation, 1) < 0)
        fail(name);
}

static void drop(const char *name, int is_segment) {
    if (is_none(name))
        return;
    if (is_posix(name))
        is_segment ? shm_unlink(name) : sem_unlink(name);
    else if (is_segment)
        shmctl(shmget(key_of(name), 0, 0), IPC_RMID, NULL);
    else
        semctl(semget(key_of(name), 0, 0), 0, IPC_RMID);
}

int main(int argc, char **argv) {
    if (argc != 7)
        return 2;
    const char *role = argv[1], *flags = argv[2], *name = argv[3], *ready = argv[4], *free_ = argv[5];
    long count = atol(argv[6]);
    int is_counted = strchr(flags, 'g') != NULL, is_woken = strchr(flags, 'f') != NULL, is_big = strchr(flags, 'b') != NULL;
    if (strcmp(role, "remove") == 0) {
        drop(name, 1), drop(ready, 0), drop(free_, 0);
        return 0;
    }
    char *memory = segment(name, strcmp(role, "make") == 0 ? O_CREAT : 0);
    _Atomic uint32_t *generation = (void *)memory, *word = (void *)(memory + 4);
    uint32_t *length = (void *)(memory + 8);
    if (strcmp(role, "make") == 0) {
        make_semaphore(ready, 0), make_semaphore(free_, 1);
        return 0;
    }
    if (strcmp(role, "half") == 0) {
        atomic_fetch_add(generation, 1);
        return 0;
    }
    char text[64];
    for (long i = 0; i < count && strcmp(role, "write") == 0; i++) {
        change(free_, -1);
        if (is_counted) {
            if (!(atomic_load(generation) & 1))
                atomic_fetch_add(generation, 1);
            atomic_thread_fence(memory_order_seq_cst);
        }
        if (is_big) {
            memset(memory + 64, (int)(i % 255 + 1), SIZE);
        } else {
            *length = (uint32_t)snprintf(text, sizeof text, "message %06ld", i);
            memcpy(memory + 64, text, *length);
        }
        if (is_counted) {
            atomic_thread_fence(memory_order_seq_cst);
            atomic_fetch_add(generation, 1);
        }
        if (is_woken) {
            atomic_fetch_add(word, 1);
            syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
        }
        change(ready, 1);
    }
    for (long i = 0; i < count && strcmp(role, "read") == 0;) {
        uint32_t seen = atomic_load(word);
        if (is_woken && seen == (uint32_t)i) {
            syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
            continue;
        }
        change(ready, -1);
        uint32_t before = atomic_load(generation);
        fwrite(memory + 64, 1, *length, stdout);
        putchar('\n');
        if (is_counted && ((before & 1) || atomic_load(generation) != before))
            return 3;
        i++;
        change(free_, 1);
    }
    return 0;
}
