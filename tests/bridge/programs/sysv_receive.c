/* sysv_receive KEY COUNT [TYPE]: prints what it takes from a System V message queue, a line each: TYPE BYTES TEXT, the
 * text up to the first blank. Knows nothing of Towpath. The queue must be there. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>

struct message {
    long type;
    char text[8193];
};

int main(int argc, char **argv)
{
    static struct message message;
    if (argc < 3) return 2;
    int queue = msgget((key_t)strtoul(argv[1], 0, 0), 0);
    if (queue < 0) { perror(argv[1]); return 1; }
    for (long number = 0; number < atol(argv[2]); number++) {
        ssize_t bytes = msgrcv(queue, &message, sizeof message.text - 1, argc > 3 ? atol(argv[3]) : 0, 0);
        if (bytes < 0) { perror("msgrcv"); return 1; }
        message.text[bytes] = 0;
        message.text[strcspn(message.text, " ")] = 0;
        printf("%ld %zd %s\n", message.type, bytes, message.text);
        fflush(stdout);
    }
    return 0;
}
