/* sysv_send KEY COUNT [TYPE] [BYTES]: sends "0 ", "1 ", ... into a System V message queue, each padded with dots to
 * BYTES, waiting while it is full. Knows nothing of Towpath. The queue must be there. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>

struct message {
    long type;
    char text[8192];
};

int main(int argc, char **argv)
{
    static struct message message;
    if (argc < 3) return 2;
    int queue = msgget((key_t)strtoul(argv[1], 0, 0), 0);
    if (queue < 0) { perror(argv[1]); return 1; }
    message.type = argc > 3 ? atol(argv[3]) : 1;
    size_t bytes = argc > 4 ? strtoul(argv[4], 0, 10) : 16;
    if (bytes > sizeof message.text) return 2;
    for (long number = 0; number < atol(argv[2]); number++) {
        memset(message.text, '.', bytes);
        int used = snprintf(message.text, sizeof message.text, "%ld ", number);
        message.text[used] = '.';
        if (msgsnd(queue, &message, bytes, 0) != 0) { perror("msgsnd"); return 1; }
    }
    return 0;
}
