/* unix_peer TYPE listen|connect send|receive PATH COUNT [BYTES]: one end of a UNIX socket; TYPE is stream, dgram or
 * seqpacket, PATH may be @NAME. Sends "0 ", "1 ", ... padded with dots to BYTES, as lines (stream) or packets; or
 * prints the number that each begins with, and how long it was. Knows nothing of Towpath.
 * A listening one says "ready" first and takes one connection. */
#define _POSIX_C_SOURCE 200809L
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char text[1 << 17];

static int fail(const char *what)
{
    perror(what);
    return 1;
}

static int send_all(int end, int is_stream, long count, size_t bytes)
{
    for (long number = 0; number < count; number++) {
        memset(text, '.', bytes);
        int used = snprintf(text, sizeof text, "%ld ", number);
        text[used] = '.';
        size_t size = bytes < (size_t)used ? (size_t)used : bytes;
        if (is_stream) text[size++] = '\n';
        for (size_t done = 0; done < size;) {
            ssize_t sent = send(end, text + done, size - done, MSG_NOSIGNAL);
            if (sent < 0) return fail("send");
            done += (size_t)sent;
        }
    }
    return 0;
}

static int receive_lines(int end, long count)
{
    FILE *lines = fdopen(end, "r");
    while (count-- > 0) {
        if (!fgets(text, sizeof text, lines)) return fail("fgets");
        printf("%ld %zu\n", atol(text), strlen(text) - 1);
    }
    return 0;
}

static int receive_packets(int end, long count)
{
    while (count-- > 0) {
        ssize_t size = recv(end, text, sizeof text - 1, 0);
        if (size < 0) return fail("recv");
        text[size] = 0;
        printf("%ld %zd\n", atol(text), size);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 6) return 2;
    int is_stream = strcmp(argv[1], "stream") == 0, is_dgram = strcmp(argv[1], "dgram") == 0;
    int end = socket(AF_UNIX, is_stream ? SOCK_STREAM : is_dgram ? SOCK_DGRAM : SOCK_SEQPACKET, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, argv[4], sizeof address.sun_path - 1);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(argv[4]) + 1);
    if (argv[4][0] == '@') {
        address.sun_path[0] = 0;
        size--;
    }
    if (strcmp(argv[2], "listen") == 0) {
        if (bind(end, (struct sockaddr *)&address, size) != 0) return fail("bind");
        if (!is_dgram && listen(end, 1) != 0) return fail("listen");
        puts("ready");
        fflush(stdout);
        if (!is_dgram && (end = accept(end, 0, 0)) < 0) return fail("accept");
    } else if (connect(end, (struct sockaddr *)&address, size) != 0) {
        return fail("connect");
    }
    long count = atol(argv[5]);
    if (strcmp(argv[3], "send") == 0) return send_all(end, is_stream, count, argc > 6 ? strtoul(argv[6], 0, 10) : 0);
    return is_stream ? receive_lines(end, count) : receive_packets(end, count);
}
