/* SPDX-License-Identifier: Apache-2.0
 * Prints what is published, one line a message: consumer CHANNEL-OR-PATTERN [COUNT] */
#include "towpath.h"

static int fail(const struct towpath_error *error) {
    fprintf(stderr, "consumer: %s: %s\n", towpath_error_name(error->code), error->message);
    return 1;
}

int main(int argc, char **argv) {
    struct towpath_message message;
    struct towpath_error error;
    struct towpath_bytes type = {"", 0};
    long left = argc > 2 ? atol(argv[2]) : -1;
    if (argc < 2)
        return 2;
    struct towpath *client = towpath_connect(NULL, "consumer", &error);
    if (!client)
        return fail(&error);
    struct towpath_subscription *subscription = towpath_subscribe(client, argv[1]);
    if (!subscription)
        return fail(towpath_last_error(client));
    fprintf(stderr, "subscribed to %s\n", argv[1]);
    for (; left != 0; left--) {
        if (towpath_receive(subscription, &message, -1) != 1)
            return fail(towpath_last_error(client));
        if (!towpath_headers_get(message.headers, TOWPATH_CONTENT_TYPE, &type))
            type.count = 0;
        printf("%s %llu [%.*s] %s\n", message.channel, (unsigned long long)message.seq, (int)type.count,
               (const char *)type.data, (const char *)message.payload);
        fflush(stdout);
    }
    towpath_close(client);
    return 0;
}
