/* mq_send NAME COUNT [BYTES] [PRIORITY]: sends "0 ", "1 ", ... into a POSIX message queue, each padded with dots
 * to BYTES, waiting while it is full. Knows nothing of Towpath. The queue must be there. */
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    static char text[1 << 16];
    if (argc < 3) return 2;
    mqd_t queue = mq_open(argv[1], O_WRONLY);
    if (queue == (mqd_t)-1) { perror(argv[1]); return 1; }
    size_t bytes = argc > 3 ? strtoul(argv[3], 0, 10) : 16;
    unsigned priority = argc > 4 ? strtoul(argv[4], 0, 10) : 0;
    if (bytes > sizeof text) return 2;
    for (long number = 0; number < atol(argv[2]); number++) {
        memset(text, '.', bytes);
        int used = snprintf(text, sizeof text, "%ld ", number);
        text[used] = '.';
        if (mq_send(queue, text, bytes, priority) != 0) { perror("mq_send"); return 1; }
    }
    return 0;
}
