/* SPDX-License-Identifier: Apache-2.0
 * Large payloads without a copy: frames CHANNEL publishes frames of 1 MiB; frames CHANNEL COUNT looks at that many. */
#include "towpath.h"

#define FRAME (1 << 20)
static int fail(const struct towpath_error *error) {
    fprintf(stderr, "frames: %s: %s\n", towpath_error_name(error->code), error->message);
    return 1;
}
int main(int argc, char **argv) {
    struct towpath_error error;
    struct towpath_message message;
    struct towpath_hold hold;
    struct towpath_loan loan;
    struct towpath *client = towpath_connect(NULL, "frames", &error);
    if (!client || argc < 2)
        return fail(&error);
    if (argc > 2) {
        struct towpath_subscription *subscription = towpath_subscribe(client, argv[1]);
        fprintf(stderr, "subscribed to %s\n", argv[1]);
        for (long left = atol(argv[2]); subscription && left > 0; left--) {
            if (towpath_receive_held(subscription, &message, &hold, -1) != 1)
                return fail(towpath_last_error(client));
            printf("%zu bytes of %d\n", message.payload_bytes, *(const unsigned char *)message.payload);
            towpath_release(&hold);
        }
    } else {
        struct towpath_publisher *publisher = towpath_publisher(client, argv[1]);
        for (int frame = 1; publisher && frame <= 100; frame++) {
            if (towpath_loan(publisher, FRAME, &loan, -1) < 0)
                return fail(towpath_last_error(client));
            memset(loan.data, frame, FRAME);
            if (towpath_publish_loan(publisher, &loan, NULL, -1) < 0)
                return fail(towpath_last_error(client));
        }
    }
    towpath_close(client);
    return 0;
}
