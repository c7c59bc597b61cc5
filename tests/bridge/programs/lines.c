/* lines write PATH: writes the lines 0, 1, 2, ... into a file, each of 32 bytes and by one write(2), until it is ended;
 * after SIGTERM it prints how many. lines read PATH: copies such lines to standard output, one by one, until the end of
 * the file. PATH - is standard output, or standard input. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 32 };

static volatile sig_atomic_t is_over;

static void end(int number) {
    (void)number;
    is_over = 1;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    int writes = strcmp(argv[1], "write") == 0, is_standard = strcmp(argv[2], "-") == 0;
    int file = is_standard ? writes : open(argv[2], writes ? O_WRONLY : O_RDONLY);
    char line[LINE + 1];
    if (file < 0)
        return 1;
    if (!writes) {
        ssize_t bytes;
        while ((bytes = read(file, line, LINE)) > 0)
            if (write(1, line, (size_t)bytes) != bytes)
                return 1;
        return bytes < 0;
    }
    sigaction(SIGTERM, &(struct sigaction){.sa_handler = end}, NULL);
    long number = 0;
    while (!is_over) {
        memset(line, '.', LINE);
        line[snprintf(line, LINE, "%ld ", number)] = '.';
        line[LINE - 1] = '\n';
        if (write(file, line, LINE) == LINE)
            number++;
        else if (errno != EINTR)
            return 1;
    }
    if (!is_standard)
        printf("%ld\n", number);
    return 0;
}
