/* SPDX-License-Identifier: Apache-2.0
 * Publishes each line of its standard input: producer CHANNEL [CONTENT-TYPE] */
#include "towpath.h"

static int fail(const struct towpath_error *error) {
    fprintf(stderr, "producer: %s: %s\n", towpath_error_name(error->code), error->message);
    return 1;
}

int main(int argc, char **argv) {
    struct towpath_headers headers = TOWPATH_HEADERS_NONE;
    struct towpath_publisher *publisher;
    struct towpath_error error;
    char *line = NULL;
    size_t room = 0;
    ssize_t count;
    if (argc < 2)
        return 2;
    struct towpath *client = towpath_connect(NULL, "producer", &error);
    if (!client)
        return fail(&error);
    if (towpath_declare(client, argv[1], NULL) < 0 || !(publisher = towpath_publisher(client, argv[1])))
        return fail(towpath_last_error(client));
    if (argc > 2)
        towpath_headers_text(&headers, TOWPATH_CONTENT_TYPE, argv[2]);
    while ((count = getline(&line, &room, stdin)) > 0) {
        size_t bytes = (size_t)count - (line[count - 1] == '\n');
        if (towpath_publish(publisher, line, bytes, &headers, -1) < 0)
            return fail(towpath_last_error(client));
    }
    if (towpath_wait_drained(publisher, 10000) < 0)
        return fail(towpath_last_error(client));
    towpath_headers_free(&headers);
    free(line);
    towpath_close(client);
    return 0;
}
