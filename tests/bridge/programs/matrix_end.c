/* matrix_end send MECHANISM PLACE COUNT, matrix_end receive MECHANISM PLACE COUNT FILE: one end of a mechanism, of a
 * program that knows nothing of Towpath. Sends the numbers from 0 to COUNT - 1, each as 32 characters (or as a signal's
 * value); or writes what it receives into FILE, a line each, until the last number or SIGTERM.
 *
 *   lines       PLACE is a FIFO, or - for standard input and output
 *   mq, sysv    a queue's name, or key
 *   signal      NUMBER:PID to send to; receiving, NUMBER: alone. One that is not realtime sends the last again and again
 *   shm         a segment that it makes, with semaphores PLACE-ready and PLACE-free: each message waits for its reader
 *   latest      a segment that it makes, with a count of changes (a seqlock): whoever looks sees the latest
 *   stream, seqpacket, dgram   a UNIX socket to connect to; a dgram receiver makes it
 *
 * Except with - it says "ready" when the other side may come; a sender begins when it is told a line. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mqueue.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { TEXT = 32, TOTAL = 4096, REGION = 64 };

static const char *place;
static long count;
static FILE *record;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void check(int holds, const char *what) {
    if (!holds)
        fail(what);
}

/* Says that the other side may come; a sender waits for its word. */
static void ready(int sends) {
    puts("ready");
    fflush(stdout);
    check(!sends || getchar() != EOF, "standard input");
}

static const char *text_of(long number) {
    static char text[TEXT + 2];
    snprintf(text, sizeof text, "%-*ld", TEXT, number);
    return text;
}

/* Writes down what was received; returns whether that was the last. */
static int note(const char *text, size_t size) {
    fprintf(record, "%.*s\n", (int)size, text);
    return strtol(text, NULL, 10) == count - 1;
}

static void lines(int sends) {
    int is_given = strcmp(place, "-") == 0;
    if (!is_given)
        ready(sends);
    FILE *stream = is_given ? (sends ? stdout : stdin) : fopen(place, sends ? "w" : "r");
    check(stream != NULL, place);
    if (sends) {
        for (long i = 0; i < count; i++)
            check(fprintf(stream, "%s\n", text_of(i)) > 0, "write");
        check(fclose(stream) == 0, "close");
        return;
    }
    char line[256];
    while (fgets(line, sizeof line, stream) && !note(line, strcspn(line, "\n")))
        ;
}

static void mq(int sends) {
    ready(sends);
    mqd_t queue = mq_open(place, sends ? O_WRONLY : O_RDONLY);
    check(queue != (mqd_t)-1, place);
    static char buffer[1 << 16];
    for (long i = 0; sends && i < count; i++)
        check(mq_send(queue, text_of(i), TEXT, 0) == 0, "mq_send");
    for (ssize_t size = 0; !sends;) {
        check((size = mq_receive(queue, buffer, sizeof buffer, NULL)) >= 0, "mq_receive");
        if (note(buffer, (size_t)size))
            return;
    }
}

static void sysv(int sends) {
    ready(sends);
    int queue = msgget((key_t)strtoul(place, NULL, 0), 0);
    check(queue >= 0, place);
    struct {
        long type;
        char text[8192];
    } message = {.type = 1};
    for (long i = 0; sends && i < count; i++) {
        memcpy(message.text, text_of(i), TEXT);
        check(msgsnd(queue, &message, TEXT, 0) == 0, "msgsnd");
    }
    for (ssize_t size = 0; !sends;) {
        check((size = msgrcv(queue, &message, sizeof message.text, 0, 0)) >= 0, "msgrcv");
        if (note(message.text, (size_t)size))
            return;
    }
}

static void queue_signal(pid_t pid, int number, long value) {
    while (sigqueue(pid, number, (union sigval){.sival_ptr = (void *)value}) != 0) {
        check(errno == EAGAIN, "sigqueue");
        usleep(200);
    }
}

static void send_signals(void) {
    int number = atoi(place), is_realtime = number >= SIGRTMIN;
    pid_t pid = atoi(strchr(place, ':') + 1);
    ready(1);
    for (long i = 0; i < count; i++)
        queue_signal(pid, number, i);
    while (!is_realtime) {
        usleep(1000);
        queue_signal(pid, number, count - 1);
    }
}

static void receive_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, atoi(place));
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    ready(0);
    for (;;) {
        siginfo_t info;
        char text[TEXT];
        int number = sigwaitinfo(&set, &info);
        if (number == SIGTERM) {
            return;
        }
        check(number > 0, "sigwaitinfo");
        if (note(text, (size_t)snprintf(text, sizeof text, "%ld", (long)info.si_value.sival_ptr)))
            return;
    }
}

static char *make_segment(void) {
    int file = shm_open(place, O_RDWR | O_CREAT, 0600);
    check(file >= 0 && ftruncate(file, TOTAL) == 0, place);
    char *memory = mmap(NULL, TOTAL, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    check(memory != MAP_FAILED, "mmap");
    return memory;
}

static sem_t *make_semaphore(const char *suffix, unsigned value) {
    char name[NAME_MAX];
    snprintf(name, sizeof name, "%s-%s", place, suffix);
    sem_t *semaphore = sem_open(name, O_CREAT, 0600, value);
    check(semaphore != SEM_FAILED, name);
    return semaphore;
}

static void shm(int sends) {
    char *memory = make_segment();
    uint32_t *length = (void *)(memory + 8);
    sem_t *is_ready = make_semaphore("ready", 0), *is_free = make_semaphore("free", 1);
    ready(sends);
    for (long i = 0; sends && i < count; i++) {
        check(sem_wait(is_free) == 0, "sem_wait");
        memcpy(memory + REGION, text_of(i), *length = TEXT);
        sem_post(is_ready);
    }
    for (int is_last = 0; !sends && !is_last; sem_post(is_free)) {
        check(sem_wait(is_ready) == 0, "sem_wait");
        is_last = note(memory + REGION, *length);
    }
}

static void latest(int sends) {
    char *memory = make_segment();
    _Atomic uint32_t *generation = (void *)memory;
    uint32_t *length = (void *)(memory + 8);
    ready(sends);
    for (long i = 0; sends && i < count; i++) {
        atomic_fetch_add(generation, 1);
        memcpy(memory + REGION, text_of(i), *length = TEXT);
        atomic_fetch_add(generation, 1);
        usleep(50);
    }
    for (uint32_t seen = 0; !sends; usleep(50)) {
        char text[TOTAL];
        uint32_t before = atomic_load(generation), size = *length;
        if (before == seen || (before & 1) || size > TOTAL - REGION)
            continue;
        memcpy(text, memory + REGION, size);
        if (atomic_load(generation) != before)
            continue;
        seen = before;
        if (note(text, size))
            return;
    }
}

static void over_socket(int type, int sends) {
    int end = socket(AF_UNIX, type, 0), is_made = type == SOCK_DGRAM && !sends;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, place, sizeof address.sun_path - 1);
    if (is_made)
        check(bind(end, (void *)&address, sizeof address) == 0, place);
    ready(sends);
    if (!is_made)
        check(connect(end, (void *)&address, sizeof address) == 0, place);
    char text[TOTAL];
    for (long i = 0; sends && i < count; i++) {
        memcpy(text, text_of(i), TEXT);
        text[TEXT] = '\n';
        size_t size = type == SOCK_STREAM ? TEXT + 1 : TEXT;
        check(send(end, text, size, MSG_NOSIGNAL) == (ssize_t)size, "send");
    }
    if (sends)
        return;
    if (type == SOCK_STREAM) {
        FILE *stream = fdopen(end, "r");
        while (fgets(text, sizeof text, stream) && !note(text, strcspn(text, "\n")))
            ;
        return;
    }
    for (ssize_t size = 0;;) {
        check((size = recv(end, text, sizeof text - 1, 0)) >= 0, "recv");
        text[size] = 0;
        if (note(text, (size_t)size))
            return;
    }
}

int main(int argc, char **argv) {
    if (argc < 5)
        return 2;
    int sends = strcmp(argv[1], "send") == 0;
    const char *mechanism = argv[2];
    place = argv[3];
    count = atol(argv[4]);
    if (!sends)
        check(argc > 5 && (record = fopen(argv[5], "w")) != NULL, "FILE");
    if (strcmp(mechanism, "lines") == 0)
        lines(sends);
    else if (strcmp(mechanism, "mq") == 0)
        mq(sends);
    else if (strcmp(mechanism, "sysv") == 0)
        sysv(sends);
    else if (strcmp(mechanism, "signal") == 0)
        sends ? send_signals() : receive_signals();
    else if (strcmp(mechanism, "shm") == 0)
        shm(sends);
    else if (strcmp(mechanism, "latest") == 0)
        latest(sends);
    else
        over_socket(strcmp(mechanism, "stream") == 0 ? SOCK_STREAM
                    : strcmp(mechanism, "dgram") == 0 ? SOCK_DGRAM : SOCK_SEQPACKET, sends);
    return sends ? 0 : fclose(record) != 0;
}
