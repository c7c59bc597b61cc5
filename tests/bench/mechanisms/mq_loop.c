/* mq_loop FROM TO COUNT: takes COUNT messages from one POSIX message queue and sends them into another: what a bridge
 * between queues costs at least. mq_loop - TO COUNT BYTES only sends; mq_loop FROM - COUNT only takes. */
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    static char text[1 << 16];
    if (argc < 4) return 2;
    int takes = strcmp(argv[1], "-") != 0, sends = strcmp(argv[2], "-") != 0;
    mqd_t from = takes ? mq_open(argv[1], O_RDONLY) : 0, to = sends ? mq_open(argv[2], O_WRONLY) : 0;
    if (from == (mqd_t)-1 || to == (mqd_t)-1) { perror("mq_open"); return 1; }
    ssize_t bytes = argc > 4 ? atol(argv[4]) : 0;
    for (long left = atol(argv[3]); left > 0; left--) {
        unsigned priority = 0;
        if (takes && (bytes = mq_receive(from, text, sizeof text, &priority)) < 0) { perror("mq_receive"); return 1; }
        if (sends && mq_send(to, text, bytes, priority) != 0) { perror("mq_send"); return 1; }
    }
    return 0;
}
