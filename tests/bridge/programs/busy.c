/* busy COUNT: COUNT processes each that compute, that touch 64 MiB again and again, and that pass a byte to and fro
 * through pipes, until standard input ends or we are gone. What stress-ng(1) does, where that is not there. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static void begin(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == 1)
        _exit(0);
}

static void touch(void) {
    size_t bytes = 64 << 20;
    volatile char *memory = malloc(bytes);
    for (char value = 0; memory; value++)
        for (size_t i = 0; i < bytes; i += 64)
            memory[i] = value;
}

static void pass(int from, int to) {
    char byte = 0;
    while (read(from, &byte, 1) == 1 && write(to, &byte, 1) == 1) {
    }
}

int main(int argc, char **argv) {
    volatile unsigned long number = 0;
    for (int left = argc > 1 ? atoi(argv[1]) : 1; left > 0; left--) {
        int there[2], back[2];
        if (pipe(there) < 0 || pipe(back) < 0 || write(there[1], "", 1) != 1)
            return 1;
        for (int what = 0; what < 4; what++) {
            if (fork() != 0)
                continue;
            begin();
            if (what == 0)
                for (;;)
                    number++;
            if (what == 1)
                touch();
            if (what == 2)
                pass(there[0], back[1]);
            pass(back[0], there[1]);
            _exit(0);
        }
    }
    char byte;
    return read(0, &byte, 1) == 0 ? 0 : 1;
}
