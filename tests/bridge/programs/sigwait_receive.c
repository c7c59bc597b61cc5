/* sigwait_receive SIGNAL COUNT PIDFILE: takes so many signals and writes each value and its sender's pid. The pid file
 * ("" for none) is written when it is ready; a line "ready" too. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, atoi(argv[1]));
    sigprocmask(SIG_BLOCK, &set, NULL);
    if (argv[3][0]) {
        FILE *file = fopen(argv[3], "w");
        if (!file || fprintf(file, "%d\n", (int)getpid()) < 0 || fclose(file) != 0)
            return 1;
    }
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    for (int left = atoi(argv[2]); left > 0; left--) {
        siginfo_t info;
        if (sigwaitinfo(&set, &info) < 0)
            return 1;
        printf("%lu %d\n", (unsigned long)(size_t)info.si_value.sival_ptr, (int)info.si_pid);
    }
    return 0;
}
