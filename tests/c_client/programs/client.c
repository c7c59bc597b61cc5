/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of the C client have a C program do: `client COMMAND ARGUMENT ...`. Each command prints what came of it,
 * a line each, and ends with 0; what must not happen ends it with 1 and a line on standard error. */
#include "towpath.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

static struct towpath *client;

__attribute__((noreturn)) static void fail(const char *what) {
    fprintf(stderr, "client: %s\n", what);
    exit(1);
}

static const struct towpath_error *last(void) {
    return towpath_last_error(client);
}

__attribute__((noreturn)) static void refused(void) {
    fprintf(stderr, "client: %s: %s (%s)\n", towpath_error_name(last()->code), last()->message, last()->hint);
    exit(1);
}

static void say(const char *text) {
    puts(text);
    fflush(stdout);
}

static struct towpath_publisher *publisher_of(const char *channel) {
    struct towpath_publisher *publisher = towpath_publisher(client, channel);
    if (!publisher)
        refused();
    return publisher;
}

static struct towpath_subscription *subscription_to(const char *channel) {
    struct towpath_subscription *subscription = towpath_subscribe(client, channel);
    if (!subscription)
        refused();
    return subscription;
}

static void publish_text(struct towpath_publisher *publisher, const char *text) {
    if (towpath_publish(publisher, text, strlen(text), NULL, 20000) < 0)
        refused();
}

/* many CHANNEL COUNT BATCH: numbers, in batches. */
static void command_many(char **argument) {
    struct towpath_publisher *publisher = publisher_of(argument[0]);
    long count = atol(argument[1]), batch = atol(argument[2]);
    char text[256][16];
    struct towpath_bytes payload[256];
    for (long next = 0; next < count;) {
        size_t n = 0;
        for (; n < (size_t)batch && next < count; n++, next++) {
            payload[n].count = (size_t)snprintf(text[n], sizeof text[n], "%ld", next);
            payload[n].data = text[n];
        }
        size_t published = 0;
        if (towpath_publish_many(publisher, payload, n, NULL, 20000, &published) != next || published != n)
            refused();
    }
    if (towpath_wait_drained(publisher, 20000) < 0)
        refused();
    say("published");
}

/* count CHANNEL COUNT: as many numbers, in order; with drop, some missed. */
static void command_count(char **argument) {
    struct towpath_subscription *subscription = subscription_to(argument[0]);
    struct towpath_message message;
    long count = atol(argument[1]), next = 0;
    unsigned long long missed = 0;
    say("subscribed");
    while (next < count) {
        if (towpath_receive(subscription, &message, 20000) != 1)
            fail(last()->code ? last()->message : "nothing came");
        missed += message.missed;
        next += (long)message.missed;
        if (atol((const char *)message.payload) != next++)
            fail("a number is out of order");
    }
    if (towpath_lost(subscription) != missed)
        fail("the losses do not add up");
    printf("%ld numbers, %s\n", count, missed ? "some missed" : "none missed");
}

/* poll CHANNEL: sleeps on the descriptor alone; prints what comes until `end`. */
static void command_poll(char **argument) {
    struct towpath_subscription *subscription = subscription_to(argument[0]);
    struct towpath_message message;
    struct pollfd door = {towpath_fd(client), POLLIN, 0};
    int code;
    for (int is_first = 1;; is_first = 0) {
        while ((code = towpath_receive(subscription, &message, 0)) == 1) {
            say((const char *)message.payload);
            if (strcmp((const char *)message.payload, "end") == 0)
                return;
        }
        if (code < 0)
            refused();
        if (is_first)
            say("subscribed");
        if (poll(&door, 1, 20000) != 1)
            fail("the descriptor stayed silent");
    }
}

/* seqs CHANNEL: prints of what comes the seq, and how many before it were missed, until `end`. */
static void command_seqs(char **argument) {
    struct towpath_subscription *subscription = subscription_to(argument[0]);
    struct towpath_message message;
    say("subscribed");
    do {
        if (towpath_receive(subscription, &message, 20000) != 1)
            refused();
        printf("%llu %llu\n", (unsigned long long)message.seq, (unsigned long long)message.missed);
        fflush(stdout);
    } while (strcmp((const char *)message.payload, "end") != 0);
}

/* headers CHANNEL: publishes one with every header; prints those of the next that somebody else publishes. */
static void command_headers(char **argument) {
    struct towpath_headers headers = TOWPATH_HEADERS_NONE;
    struct towpath_subscription *subscription = subscription_to(argument[1]);
    struct towpath_publisher *publisher = publisher_of(argument[0]);
    struct towpath_message message;
    struct towpath_bytes value;
    towpath_headers_text(&headers, TOWPATH_CONTENT_TYPE, "text/plain");
    towpath_headers_text(&headers, TOWPATH_REPLY_TO, "answers.here");
    towpath_headers_text(&headers, TOWPATH_MESSAGE_ID, "id-1");
    towpath_headers_key(&headers, "k\0y", 3);
    towpath_headers_priority(&headers, 7);
    towpath_headers_user(&headers, "machine", "M7");
    towpath_headers_user(&headers, "empty", "");
    if (towpath_publish(publisher, "x", 1, &headers, -1) != 1)
        refused();
    if (towpath_receive(subscription, &message, 20000) != 1)
        fail("nothing came");
    if (towpath_headers_get(message.headers, TOWPATH_CONTENT_TYPE, &value))
        printf("type %.*s\n", (int)value.count, (const char *)value.data);
    if (towpath_headers_get(message.headers, TOWPATH_KEY, &value))
        printf("key of %zu\n", value.count);
    if (towpath_headers_get_user(message.headers, "from", &value))
        printf("from %.*s\n", (int)value.count, (const char *)value.data);
    printf("no such header: %d\n", towpath_headers_get_user(message.headers, "none", &value));
    printf("priority %u\n", towpath_headers_get_priority(message.headers));
    towpath_headers_priority(&headers, 32);
    if (towpath_publish(publisher, "x", 1, &headers, -1) != TOWPATH_E_INVALID_ARGUMENT)
        fail("a priority of 32 was published");
    say(last()->message);
    towpath_headers_free(&headers);
}

/* full CHANNEL: what happens when nobody reads; and that nothing is lost for it. */
static void command_full(char **argument) {
    struct towpath_subscription *subscription = subscription_to(argument[0]);
    struct towpath_publisher *publisher = publisher_of(argument[0]);
    struct towpath_message message;
    char block[512];
    int64_t published = 0, seq, received = 0;
    memset(block, 'x', sizeof block);
    while ((seq = towpath_publish(publisher, block, sizeof block, NULL, 0)) > 0)
        published = seq;
    printf("%s: %s\n", towpath_error_name((int)seq), last()->message);
    if (towpath_wait_drained(publisher, 10) != TOWPATH_E_TIMEOUT)
        fail("drained without a reader");
    while (towpath_receive(subscription, &message, 0) == 1)
        if ((int64_t)message.seq != ++received)
            fail("a message is missing");
    printf("%s\n", published == received && published > 4 ? "all there" : "some lost");
    if (towpath_publish(publisher, block, sizeof block, NULL, 0) != published + 1)
        refused();
    printf("%s\n", towpath_error_name((int)towpath_publish(publisher, block, 1 << 20, NULL, 0)));
}

/* stalled CHANNEL: a subscriber that stopped holds up a publisher for stall_ms_max alone. */
static void command_stalled(char **argument) {
    struct towpath_publisher *publisher = publisher_of(argument[0]);
    char block[512] = "";
    say("publishing");
    for (int i = 0; i < 64; i++)
        if (towpath_publish(publisher, block, sizeof block, NULL, 20000) < 0)
            refused();
    say("went on without it");
}

/* fork CHANNEL: the child's handles are void, and it may connect for itself; the parent's are as they were. */
static void command_fork(char **argument) {
    struct towpath_subscription *subscription = subscription_to(argument[0]);
    struct towpath_publisher *publisher = publisher_of(argument[0]);
    struct towpath_message message;
    int status;
    publish_text(publisher, "before");
    pid_t child = fork();
    if (child == 0) {
        if (towpath_publish(publisher, "x", 1, NULL, -1) != TOWPATH_E_CONNECTION_LOST ||
            towpath_receive(subscription, &message, -1) != TOWPATH_E_CONNECTION_LOST ||
            towpath_wait_drained(publisher, -1) != TOWPATH_E_CONNECTION_LOST ||
            towpath_process(client) != TOWPATH_E_CONNECTION_LOST || towpath_publisher(client, argument[0]) ||
            towpath_subscribe(client, argument[0]) || towpath_declare(client, argument[0], NULL) >= 0)
            fail("the parent's client works in the child");
        towpath_close(client);
        client = towpath_connect(NULL, "child", NULL);
        if (!client)
            fail("the child cannot connect");
        publish_text(publisher_of(argument[0]), "child");
        towpath_close(client);
        exit(0);
    }
    if (waitpid(child, &status, 0) != child || status != 0)
        fail("the child failed");
    publish_text(publisher, "after");
    for (int i = 0; i < 3; i++) {
        if (towpath_receive(subscription, &message, 20000) != 1)
            fail("nothing came");
        say((const char *)message.payload);
    }
}

static volatile sig_atomic_t rang;

static void ring(int number) {
    (void)number;
    rang = 1;
}

/* signal CHANNEL: a handler ends a wait. */
static void command_signal(char **argument) {
    struct towpath_subscription *subscription = subscription_to(argument[0]);
    struct towpath_message message;
    signal(SIGUSR1, ring);
    say("waiting");
    int code = towpath_receive(subscription, &message, 20000);
    printf("%s %d\n", towpath_error_name(code), (int)rang);
}

/* echo IN OUT: publishes on OUT what comes on IN, until `end`. */
static void command_echo(char **argument) {
    struct towpath_subscription *subscription = subscription_to(argument[0]);
    struct towpath_publisher *publisher = publisher_of(argument[1]);
    struct towpath_message message;
    say("ready");
    do {
        if (towpath_receive(subscription, &message, 60000) != 1)
            fail(last()->message);
        publish_text(publisher, (const char *)message.payload);
    } while (strcmp((const char *)message.payload, "end") != 0);
    if (towpath_wait_drained(publisher, 20000) < 0)
        refused();
    say("ended");
}

/* errors CHANNEL: what is refused, and how. */
static void command_errors(char **argument) {
    struct towpath_options options = TOWPATH_OPTIONS_ANY;
    struct towpath_error error;
    char name[400];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    if (towpath_connect("/nowhere/towpath.sock", "", &error))
        fail("connected to nowhere");
    say(towpath_error_name(error.code));
    if (towpath_connect(name, "", &error))
        fail("connected to nowhere");
    say(towpath_error_name(error.code));
    if (towpath_publisher(client, "no.such"))
        fail("a publisher of nothing");
    say(towpath_error_name(last()->code));
    if (towpath_subscribe(client, name))
        fail("a subscription to nothing");
    say(towpath_error_name(last()->code));
    options.kind = TOWPATH_TOPIC;
    options.ring_bytes = 65536;
    options.history = 0;
    options.order = TOWPATH_ORDER_TOTAL;
    if (towpath_declare(client, argument[0], &options) != 0 || towpath_declare(client, argument[0], NULL) != 0)
        refused();
    options.ring_bytes = 4096;
    say(towpath_error_name(towpath_declare(client, argument[0], &options)));
    options.ring_bytes = 5000;
    say(towpath_error_name(towpath_declare(client, argument[0], &options)));
}

/* undeclared CHANNEL: what publisher and subscription say of it. */
static void command_undeclared(char **argument) {
    struct towpath_subscription *subscription = subscription_to(argument[0]);
    struct towpath_publisher *publisher = publisher_of(argument[0]);
    struct towpath_message message;
    publish_text(publisher, "last words");
    say("ready");
    int code = towpath_receive(subscription, &message, 20000);
    say(code == 1 ? (const char *)message.payload : towpath_error_name(code));
    say(towpath_error_name(towpath_receive(subscription, &message, 20000)));
    say(towpath_error_name((int)towpath_publish(publisher, "x", 1, NULL, 0)));
}

/* lines CHANNEL: publishes each line of standard input, and says its seq. */
static void command_lines(char **argument) {
    struct towpath_publisher *publisher = publisher_of(argument[0]);
    char line[256];
    say("ready");
    while (fgets(line, sizeof line, stdin)) {
        int64_t seq = towpath_publish(publisher, line, strcspn(line, "\n"), NULL, 20000);
        if (seq < 0 || towpath_wait_drained(publisher, 20000) < 0)
            refused();
        printf("%lld\n", (long long)seq);
        fflush(stdout);
    }
}

/* feed CHANNEL: publishes each line of standard input. */
static void command_feed(char **argument) {
    struct towpath_publisher *publisher = publisher_of(argument[0]);
    char line[256];
    while (fgets(line, sizeof line, stdin))
        if (towpath_publish(publisher, line, strcspn(line, "\n"), NULL, 60000) < 0)
            refused();
}

static void expect_refusal(int64_t code, int wanted, const char *what) {
    if (code != wanted || last()->code != wanted)
        fail(what);
}

/* What may be loaned of a topic (CHANNEL), of CHANNEL.durable and of CHANNEL.queue, and what not. */
static void command_loans(char **argument) {
    char name[256];
    struct towpath_loan loan, other;
    struct towpath_headers headers = TOWPATH_HEADERS_NONE;
    struct towpath_publisher *publisher = publisher_of(argument[0]);
    if (towpath_loan(publisher, 200 << 20, &loan, 0) < 0)
        refused();
    expect_refusal(towpath_loan(publisher, 100 << 20, &other, 1000), TOWPATH_E_LIMIT_EXCEEDED, "all was loaned");
    expect_refusal(towpath_loan(publisher, 300 << 20, &other, 0), TOWPATH_E_MESSAGE_TOO_LARGE, "too large");
    towpath_return_loan(publisher, &loan);
    towpath_return_loan(publisher, &loan);
    expect_refusal(towpath_publish_loan(publisher, &loan, NULL, 0), TOWPATH_E_INVALID_ARGUMENT, "returned");

    snprintf(name, sizeof name, "%s.durable", argument[0]);
    publisher = publisher_of(name);
    expect_refusal(towpath_loan(publisher, 993, &loan, 0), TOWPATH_E_MESSAGE_TOO_LARGE, "no message is so large");
    if (towpath_loan(publisher, 992, &loan, 0) < 0)
        refused();
    towpath_headers_key(&headers, "k", 1);
    expect_refusal(towpath_publish_loan(publisher, &loan, &headers, 0), TOWPATH_E_MESSAGE_TOO_LARGE, "with headers");
    loan.bytes = 900;
    memset(loan.data, 'd', loan.bytes);
    if (towpath_publish_loan(publisher, &loan, &headers, 10000) < 0 || towpath_wait_drained(publisher, 10000) < 0)
        refused();
    towpath_headers_free(&headers);

    snprintf(name, sizeof name, "%s.queue", argument[0]);
    publisher = publisher_of(name);
    if (towpath_loan(publisher, 900, &loan, 0) < 0)
        refused();
    memset(loan.data, 'q', loan.bytes);
    if (towpath_publish_loan(publisher, &loan, NULL, 10000) < 0)
        refused();
    say("ok");
}

static const struct {
    const char *name;
    void (*run)(char **argument);
} commands[] = {
    {"loans", command_loans},   {"many", command_many},     {"count", command_count},           {"poll", command_poll},   {"headers", command_headers},
    {"full", command_full},     {"stalled", command_stalled},       {"fork", command_fork},   {"signal", command_signal},
    {"errors", command_errors}, {"undeclared", command_undeclared}, {"lines", command_lines}, {"feed", command_feed}, {"seqs", command_seqs}, {"echo", command_echo},
};

int main(int argc, char **argv) {
    struct towpath_error error;
    for (size_t i = 0; argc > 2 && i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[1], commands[i].name) != 0)
            continue;
        client = towpath_connect(NULL, "", &error);
        if (!client)
            fail(error.message);
        commands[i].run(argv + 2);
        towpath_close(client);
        return 0;
    }
    fail("no such command");
}
