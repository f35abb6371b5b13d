/* Ticks from the feeder's ZeroMQ socket in C, without the gateway. Tells what is missing.
 *
 *   cc -O2 -Wall -o zeromq zeromq.c -lzmq      Debian: libzmq3-dev
 *   ./zeromq [CODE ...]                        ticks of these codes (600519.SH 000001.SZ)
 *
 * QMT_BRIDGE_MARKET is the address (tcp://127.0.0.1:5555). It needs no key; between machines it has CURVE keys, see
 * docs/wire.md. Tried with libzmq 4.3.4 and gcc 12.
 * Lines: `tick CODE EPOCH SEQ BODY`, the body in JSON, and `gap ...`. libzmq connects again by itself; what was
 * published meanwhile is a gap, which the store has: node-zeromq.mjs reads it from there. This program does not: an
 * answer of the store is JSON with the messages in it, so that filling a gap needs a JSON parser, which C lacks. A
 * message of the feeder needs none, because its position and its body are apart.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

enum { STAMP = 32, LONGEST_TOPIC = 8192 };

typedef struct {
    const char *code;
    uint64_t epoch, seq; /* of the newest message; an epoch of 0 is none */
} topic;

static volatile sig_atomic_t stopping;

static void stop(int signal) {
    (void)signal;
    stopping = 1;
}

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, zmq_strerror(zmq_errno()));
    exit(1);
}

static void set(void *socket, int option, int value) {
    if (zmq_setsockopt(socket, option, &value, sizeof value)) die("zmq_setsockopt");
}

static uint64_t big_endian(const unsigned char *bytes) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value << 8 | bytes[i];
    return value;
}

/* Returns the entry of `quote/<code>/tick/`, or NULL. */
static topic *find(topic *topics, int count, const char *name, size_t length) {
    char expected[LONGEST_TOPIC];
    for (int i = 0; i < count; i++) {
        int size = snprintf(expected, sizeof expected, "quote/%s/tick/", topics[i].code);
        if ((size_t)size == length && !memcmp(expected, name, length)) return &topics[i];
    }
    return NULL;
}

static void take(topic *topic, const unsigned char *stamp, zmq_msg_t *body) {
    uint64_t epoch = big_endian(stamp), seq = big_endian(stamp + 8);
    if (topic->epoch && epoch != topic->epoch)
        printf("gap %s restart\n", topic->code); /* of the feeder: what it published last is unknown */
    else if (topic->epoch && seq != topic->seq + 1)
        printf("gap %s %" PRIu64 "\n", topic->code, seq - topic->seq - 1);
    printf("tick %s %" PRIu64 " %" PRIu64 " %.*s\n", topic->code, epoch, seq, (int)zmq_msg_size(body),
           (const char *)zmq_msg_data(body));
    fflush(stdout);
    topic->epoch = epoch;
    topic->seq = seq;
}

int main(int argc, char **argv) {
    static const char *usual[] = {"600519.SH", "000001.SZ"};
    const char *const *codes = argc > 1 ? (const char *const *)argv + 1 : usual;
    int count = argc > 1 ? argc - 1 : 2;
    const char *address = getenv("QMT_BRIDGE_MARKET");
    topic *topics = calloc((size_t)count, sizeof *topics);
    if (!topics) abort();

    struct sigaction action = {.sa_handler = stop}; /* without SA_RESTART: a call that waits ends with EINTR */
    sigaction(SIGINT, &action, NULL);

    void *context = zmq_ctx_new();
    void *socket = context ? zmq_socket(context, ZMQ_SUB) : NULL;
    if (!socket) die("zmq_socket");
    set(socket, ZMQ_SNDHWM, 0); /* else a burst of thousands of subscriptions loses some of them */
    set(socket, ZMQ_RECONNECT_IVL, 500); /* ms; libzmq doubles it up to the next, and adds a random part */
    set(socket, ZMQ_RECONNECT_IVL_MAX, 30000);
    set(socket, ZMQ_TCP_KEEPALIVE, 1); /* a feeder whose machine has lost its power sends no end */
    set(socket, ZMQ_TCP_KEEPALIVE_IDLE, 10); /* s */
    set(socket, ZMQ_TCP_KEEPALIVE_INTVL, 5);
    set(socket, ZMQ_TCP_KEEPALIVE_CNT, 3);
    if (zmq_connect(socket, address ? address : "tcp://127.0.0.1:5555")) die("zmq_connect");
    for (int i = 0; i < count; i++) {
        char name[LONGEST_TOPIC];
        int size = snprintf(name, sizeof name, "quote/%s/tick/", codes[i]);
        topics[i].code = codes[i];
        if (size >= LONGEST_TOPIC || zmq_setsockopt(socket, ZMQ_SUBSCRIBE, name, (size_t)size)) die(codes[i]);
    }

    zmq_msg_t head, body;
    zmq_msg_init(&head);
    zmq_msg_init(&body);
    while (!stopping) {
        /* The parts of a message come together: the second one never waits. */
        if (zmq_msg_recv(&head, socket, 0) < 0 || !zmq_msg_more(&head) || zmq_msg_recv(&body, socket, 0) < 0) {
            if (errno == EINTR) continue;
            die("zmq_msg_recv");
        }
        size_t size = zmq_msg_size(&head);
        if (size < STAMP) continue;
        const unsigned char *data = zmq_msg_data(&head);
        topic *found = find(topics, count, (const char *)data, size - STAMP);
        if (found) take(found, data + size - STAMP, &body);
    }
    zmq_msg_close(&head);
    zmq_msg_close(&body);
    zmq_close(socket);
    zmq_ctx_term(context);
    free(topics);
    return 0;
}
