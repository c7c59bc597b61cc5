/* Both ends of signals with values: signal_ends receive SIGNAL COUNT SKIPPED PID_FILE
 *                                   signal_ends send SIGNAL COUNT PAUSE_NS PID
 *                                   signal_ends publish CHANNEL COUNT PAUSE_NS SOCKET
 *
 * SIGNAL counts from SIGRTMIN. The value, or the message that becomes one, is the time (CLOCK_MONOTONIC, in nanoseconds) at which the sender was about to send. The receiver sleeps in
 * sigwaitinfo(2), takes COUNT signals, and prints one JSON object of how long they took, less the first SKIPPED: the median and
 * the 99th percentile. The sender sleeps PAUSE_NS before each, so that the receiver sleeps too. */
#define _GNU_SOURCE
#include "towpath.h"

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int ascending(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static int write_pid(const char *path) {
    char made[4096];
    snprintf(made, sizeof made, "%s.new", path);
    FILE *file = fopen(made, "w");
    if (!file) return 1;
    fprintf(file, "%d\n", (int)getpid());
    return fclose(file) || rename(made, path);
}

static int receive(int number, size_t count, size_t skipped, const char *pid_file) {
    uint64_t *took = calloc(count, sizeof *took);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    if (!took || skipped >= count || sigprocmask(SIG_BLOCK, &set, NULL) || write_pid(pid_file)) return 1;
    for (size_t i = 0; i < count; i++) {
        siginfo_t info;
        while (sigwaitinfo(&set, &info) < 0) {}
        took[i] = now_ns() - (uint64_t)(uintptr_t)info.si_value.sival_ptr;
    }
    took += skipped, count -= skipped;
    qsort(took, count, sizeof *took, ascending);
    printf("{\"p50_us\": %.3f, \"p99_us\": %.3f}\n", (double)took[count / 2] / 1e3, (double)took[count * 99 / 100] / 1e3);
    return 0;
}

static int sigqueue_all(int number, size_t count, uint64_t pause_ns, pid_t pid) {
    struct timespec pause = {(time_t)(pause_ns / 1000000000u), (long)(pause_ns % 1000000000u)};
    for (size_t i = 0; i < count; i++) {
        nanosleep(&pause, NULL);
        union sigval value = {.sival_ptr = (void *)(uintptr_t)now_ns()};
        if (sigqueue(pid, number, value)) return 1;
    }
    return 0;
}

static int publish_all(const char *channel, size_t count, uint64_t pause_ns, const char *socket) {
    struct timespec pause = {(time_t)(pause_ns / 1000000000u), (long)(pause_ns % 1000000000u)};
    struct towpath_error error;
    struct towpath *client = towpath_connect(socket, "signal_ends", &error);
    struct towpath_publisher *publisher = client ? towpath_publisher(client, channel) : NULL;
    if (!publisher) return 1;
    for (size_t i = 0; i < count; i++) {
        nanosleep(&pause, NULL);
        uint64_t now = now_ns();
        if (towpath_publish(publisher, &now, sizeof now, NULL, -1) < 0) return 1;
    }
    int is_late = towpath_wait_drained(publisher, 30000) < 0;
    towpath_close(client);
    return is_late;
}

int main(int count, char **arguments) {
    if (count != 6) return 2;
    size_t messages = strtoul(arguments[3], NULL, 10);
    uint64_t third = strtoull(arguments[4], NULL, 10);
    if (strcmp(arguments[1], "publish") == 0) return publish_all(arguments[2], messages, third, arguments[5]);
    int number = SIGRTMIN + atoi(arguments[2]);
    if (strcmp(arguments[1], "receive") == 0) return receive(number, messages, third, arguments[5]);
    return sigqueue_all(number, messages, third, (pid_t)atoi(arguments[5]));
}
