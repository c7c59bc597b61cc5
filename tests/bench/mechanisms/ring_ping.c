/* Round trips of 64 B over the very ring, both ends in C: ring_ping RUN_NS PAUSE_NS CORE.
 *
 * What is left of a round trip when nobody runs Python. Arguments and output are those of futex_ping.c. */
#include "towpath_ring.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { SAMPLES_MAX = 200000, SAMPLES_MIN = 20, PAYLOAD_BYTES = 64 };

static struct tpr_writer writer;
static struct tpr_reader reader;

static void check(int is_well, const char *what) {
    if (is_well) return;
    fprintf(stderr, "ring_ping: %s\n", what);
    exit(1);
}

/* This side's ring and control page; `id` is its number as source and as reader. */
static void make(uint64_t id, int fds[2]) {
    check(tpr_writer_open(&writer, id, 1 << 20) == TPR_OK && tpr_reader_open(&reader, id, 1) == TPR_OK, "open");
    fds[0] = tpr_writer_share(&writer);
    fds[1] = tpr_reader_share(&reader);
    check(fds[0] >= 0 && fds[1] >= 0, "share");
}

static void meet(uint64_t other, const int fds[2]) {
    check(tpr_reader_add(&reader, fds[0], 0, other, TPR_START_BEGIN, -1, NULL) == TPR_OK, "add");
    check(tpr_writer_attach(&writer, other, fds[1], 0, -1, TPR_START_BEGIN) == TPR_OK, "attach");
}

static void receive(uint8_t *payload) {
    struct tpr_view view;
    for (;;) {
        int is_there = 0;
        tpr_reader_begin(&reader);
        if (tpr_reader_peek(&reader, &view) && view.payload_bytes == PAYLOAD_BYTES) {
            memcpy(payload, view.payload, PAYLOAD_BYTES);
            is_there = tpr_reader_consume(&reader, &view);
        }
        tpr_reader_end(&reader);
        if (is_there) return;
        check(tpr_reader_wait(&reader, TPR_FOREVER) >= 0, "wait");
    }
}

static void send_(const uint8_t *payload) {
    check(tpr_writer_publish(&writer, NULL, 0, payload, PAYLOAD_BYTES) == TPR_OK, "publish");
}

static void echo(int pipe_fd, const int theirs[2], int core) {
    uint8_t payload[PAYLOAD_BYTES];
    int mine[2];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (core >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(core, &set);
        check(!sched_setaffinity(0, sizeof set, &set), "sched_setaffinity");
    }
    make(2, mine);
    meet(1, theirs);
    check(write(pipe_fd, mine, sizeof mine) == sizeof mine, "write");
    for (;;) {
        receive(payload);
        send_(payload);
    }
}

static int ascending(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    uint64_t run_ns = strtoull(arguments[1], NULL, 10), pause_ns = strtoull(arguments[2], NULL, 10);
    struct timespec pause = {(time_t)(pause_ns / 1000000000u), (long)(pause_ns % 1000000000u)};
    int mine[2], theirs[2], ready[2];
    make(1, mine);
    check(!pipe(ready), "pipe");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) echo(ready[1], mine, atoi(arguments[3]));
    close(ready[1]);
    check(read(ready[0], theirs, sizeof theirs) == sizeof theirs, "the other side did not come up");
    for (int i = 0; i < 2; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)child, theirs[i]);
        theirs[i] = open(path, O_RDONLY | O_CLOEXEC);
    }
    meet(2, theirs);
    static uint64_t times[SAMPLES_MAX];
    uint8_t payload[PAYLOAD_BYTES] = {1};
    uint64_t end_ns = tpr_monotonic_ns() + run_ns;
    uint32_t trips = 0;
    while ((tpr_monotonic_ns() < end_ns || trips < SAMPLES_MIN) && trips < SAMPLES_MAX) {
        if (pause_ns) nanosleep(&pause, NULL);
        uint64_t began_ns = tpr_monotonic_ns();
        send_(payload);
        receive(payload);
        times[trips++] = tpr_monotonic_ns() - began_ns;
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    qsort(times, trips, sizeof *times, ascending);
    printf("{\"p50_ns\": %llu, \"p99_ns\": %llu, \"trips\": %u}\n", (unsigned long long)times[trips / 2],
           (unsigned long long)times[trips * 99ull / 100], trips);
    return 0;
}
