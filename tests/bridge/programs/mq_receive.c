/* mq_receive NAME COUNT: prints what it takes from a POSIX message queue, a line each: PRIORITY BYTES TEXT, the text
 * up to the first blank. Knows nothing of Towpath. The queue must be there. */
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    if (argc != 3) return 2;
    mqd_t queue = mq_open(argv[1], O_RDONLY);
    if (queue == (mqd_t)-1) { perror(argv[1]); return 1; }
    struct mq_attr attributes;
    if (mq_getattr(queue, &attributes) != 0) return 1;
    char *text = malloc(attributes.mq_msgsize + 1);
    if (!text) return 1;
    for (long number = 0; number < atol(argv[2]); number++) {
        unsigned priority;
        ssize_t bytes = mq_receive(queue, text, attributes.mq_msgsize, &priority);
        if (bytes < 0) { perror("mq_receive"); return 1; }
        text[bytes] = 0;
        text[strcspn(text, " ")] = 0;
        printf("%u %zd %s\n", priority, bytes, text);
        fflush(stdout);
    }
    free(text);
    return 0;
}
