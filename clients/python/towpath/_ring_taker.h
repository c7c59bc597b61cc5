/* SPDX-License-Identifier: Apache-2.0
 *
 * What Reader.hand_on() hands messages to: C code of another extension, in a capsule of this name. The functions are called
 * under the GIL, by the thread that is in hand_on(). They neither wait nor call Python, and they touch no memory of a ring:
 * what they are given is a copy.
 */
#ifndef TOWPATH_RING_TAKER_H
#define TOWPATH_RING_TAKER_H

#include <stdint.h>

#define TP_TAKER "towpath._ring.taker"
#define TP_TAKER_BYTES_MAX 64

struct tp_taker {
    void *self;
    uint32_t bytes_max; /* of a payload's first bytes, as many are copied, and shown; at most TP_TAKER_BYTES_MAX */
    /* There is a message. 1: hand it over; 0: do not, something else is to be done first. */
    int (*begin)(void *self);
    /* One message: 1: it is taken; 0: it is not, and stays in its ring. */
    int (*take)(void *self, const uint8_t *bytes, uint32_t payload_bytes, uint32_t headers_bytes);
};

#endif
