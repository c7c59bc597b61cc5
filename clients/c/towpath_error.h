/* SPDX-License-Identifier: Apache-2.0
 *
 * What a call can fail with: the numbers of protos/towpath/v1/error.proto, negative, and words for people.
 *
 * Not here: what gRPC, errno and the CLI make of them (towpath/errors.py); the ring's own codes (towpath_ring_layout.h).
 */
#ifndef TOWPATH_ERROR_H
#define TOWPATH_ERROR_H

#include "towpath_ring_layout.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    /* The caller asked for something that cannot be asked for. */
    TOWPATH_E_INVALID_ARGUMENT = -10,
    TOWPATH_E_INVALID_NAME = -11,
    TOWPATH_E_MESSAGE_TOO_LARGE = -12,
    TOWPATH_E_NOT_SUPPORTED = -13,
    /* The thing named is not there, or is there and differs. */
    TOWPATH_E_CHANNEL_NOT_FOUND = -20,
    TOWPATH_E_CHANNEL_CONFLICT = -22,
    TOWPATH_E_CHANNEL_IN_USE = -23,
    TOWPATH_E_CHANNEL_UNDECLARED = -24,
    TOWPATH_E_SOURCE_NOT_FOUND = -26,
    TOWPATH_E_SUBSCRIPTION_NOT_FOUND = -27,
    /* Not allowed, or too much. */
    TOWPATH_E_PERMISSION_DENIED = -30,
    TOWPATH_E_QUOTA_EXCEEDED = -32,
    TOWPATH_E_LIMIT_EXCEEDED = -33,
    TOWPATH_E_QUEUE_FULL = -34,
    TOWPATH_E_STORE_FULL = -35,
    TOWPATH_E_SUBSCRIPTION_IN_USE = -36,
    /* Time and availability; trying again may help. */
    TOWPATH_E_TIMEOUT = -40,
    TOWPATH_E_CANCELLED = -41, /* a signal handler ran while a call waited */
    TOWPATH_E_UNAVAILABLE = -42,
    TOWPATH_E_CONNECTION_LOST = -43,
    TOWPATH_E_SLOW_CONSUMER = -44,
    /* The other side broke the protocol. */
    TOWPATH_E_PROTOCOL_VIOLATION = -50,
    TOWPATH_E_VERSION_MISMATCH = -51,
    TOWPATH_E_BAD_DESCRIPTOR = -52,
    TOWPATH_E_CORRUPT_RING = -53,
    TOWPATH_E_INTERNAL = -90
};

struct towpath_error {
    int code; /* TOWPATH_E_x; one that is not listed here comes from a newer daemon */
    int is_retryable;
    char message[256]; /* one sentence saying what happened */
    char hint[256];    /* one sentence saying what to do about it; may be empty */
};

/* The code's name, as the other languages print it; never NULL. */
static inline const char *towpath_error_name(int code) {
    switch (code) {
    case TOWPATH_E_INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case TOWPATH_E_INVALID_NAME: return "INVALID_NAME";
    case TOWPATH_E_MESSAGE_TOO_LARGE: return "MESSAGE_TOO_LARGE";
    case TOWPATH_E_NOT_SUPPORTED: return "NOT_SUPPORTED";
    case TOWPATH_E_CHANNEL_NOT_FOUND: return "CHANNEL_NOT_FOUND";
    case TOWPATH_E_CHANNEL_CONFLICT: return "CHANNEL_CONFLICT";
    case TOWPATH_E_CHANNEL_IN_USE: return "CHANNEL_IN_USE";
    case TOWPATH_E_CHANNEL_UNDECLARED: return "CHANNEL_UNDECLARED";
    case TOWPATH_E_SOURCE_NOT_FOUND: return "SOURCE_NOT_FOUND";
    case TOWPATH_E_SUBSCRIPTION_NOT_FOUND: return "SUBSCRIPTION_NOT_FOUND";
    case TOWPATH_E_PERMISSION_DENIED: return "PERMISSION_DENIED";
    case TOWPATH_E_QUOTA_EXCEEDED: return "QUOTA_EXCEEDED";
    case TOWPATH_E_LIMIT_EXCEEDED: return "LIMIT_EXCEEDED";
    case TOWPATH_E_QUEUE_FULL: return "QUEUE_FULL";
    case TOWPATH_E_STORE_FULL: return "STORE_FULL";
    case TOWPATH_E_SUBSCRIPTION_IN_USE: return "SUBSCRIPTION_IN_USE";
    case TOWPATH_E_TIMEOUT: return "TIMEOUT";
    case TOWPATH_E_CANCELLED: return "CANCELLED";
    case TOWPATH_E_UNAVAILABLE: return "UNAVAILABLE";
    case TOWPATH_E_CONNECTION_LOST: return "CONNECTION_LOST";
    case TOWPATH_E_SLOW_CONSUMER: return "SLOW_CONSUMER";
    case TOWPATH_E_PROTOCOL_VIOLATION: return "PROTOCOL_VIOLATION";
    case TOWPATH_E_VERSION_MISMATCH: return "VERSION_MISMATCH";
    case TOWPATH_E_BAD_DESCRIPTOR: return "BAD_DESCRIPTOR";
    case TOWPATH_E_CORRUPT_RING: return "CORRUPT_RING";
    case TOWPATH_E_INTERNAL: return "INTERNAL";
    default: return code < 0 ? "ERROR" : "OK";
    }
}

/* Fill in an error; returns its code. */
__attribute__((format(printf, 4, 5))) static inline int towpath_fail_(struct towpath_error *error, int code,
                                                                      const char *hint, const char *format, ...) {
    va_list arguments;
    error->code = code;
    error->is_retryable = code <= TOWPATH_E_TIMEOUT && code > TOWPATH_E_PROTOCOL_VIOLATION;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    snprintf(error->hint, sizeof error->hint, "%s", hint);
    return code;
}

/* The same for a system call that failed: errno says what. */
static inline int towpath_fail_system_(struct towpath_error *error, const char *what) {
    int is_limit = errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
    return towpath_fail_(error, is_limit ? TOWPATH_E_LIMIT_EXCEEDED : TOWPATH_E_INTERNAL,
                         is_limit ? "raise the limit of open files or of memory (ulimit -n)" : "", "%s: %s", what,
                         strerror(errno));
}

/* The same for what the ring said. */
static inline int towpath_fail_ring_(struct towpath_error *error, int ring_code, const char *what) {
    if (ring_code == TPR_E_SYSTEM)
        return towpath_fail_system_(error, what);
    int code = ring_code == TPR_E_FORKED      ? TOWPATH_E_CONNECTION_LOST
               : ring_code == TPR_E_TOO_LARGE ? TOWPATH_E_MESSAGE_TOO_LARGE
               : ring_code == TPR_E_LIMIT     ? TOWPATH_E_LIMIT_EXCEEDED
                                              : TOWPATH_E_CORRUPT_RING;
    return towpath_fail_(error, code, "", "%s: %s", what, tpr_error_text(ring_code));
}

#endif
