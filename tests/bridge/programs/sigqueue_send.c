/* sigqueue_send PID SIGNAL COUNT: sends a realtime signal with the values 0 to COUNT-1, and waits where the queue is
 * full; a COUNT of -1 sends by kill(2), once. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    pid_t pid = atoi(argv[1]);
    int number = atoi(argv[2]), count = atoi(argv[3]);
    if (count < 0 && kill(pid, number) < 0)
        return 1;
    for (long i = 0; i < count;) {
        union sigval value = {.sival_ptr = (void *)i};
        if (sigqueue(pid, number, value) == 0)
            i++;
        else if (errno != EAGAIN)
            return 1;
        else
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    }
    return 0;
}
