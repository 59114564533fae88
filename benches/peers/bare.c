/* bare: what the kernel alone costs.
 *
 * One thread, level-triggered epoll, one int of user memory per stream, canned bytes, one send()
 * per delivery. Owns no presence: it never parses JSON, keeps no state of a publisher and decides
 * nothing. It is the denominator of the ratios in docs/PERFORMANCE.md.
 *
 *   bare HTTP_PORT UDP_PORT [BATCH_MS [PING_MS]]
 *
 * HTTP  GET or POST /v1/stream.. -> stream head, hello, snapshot; the connection becomes a watcher
 *       anything else     -> 200 with a canned presence record, keep-alive, one answer per blank
 *                            line read (pipelining)
 *       POST ../beat      -> 204
 * With PING_MS > 0 each watcher is sent a ping in each such interval, evenly.
 *
 * UDP   a datagram's payload, as it is, is sent to every watcher. A payload that starts with '#'
 *       and a decimal number N and a line feed goes, without it, to the first N watchers only.
 * With BATCH_MS > 0 payloads for all watchers are collected for that long and share one send() per
 * watcher.
 *
 * Limits that a product may not have: a request head must arrive in one read, and a send that would
 * block is dropped (counted; the count is printed on SIGTERM). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS_MAX = 512, READ_BYTES = 65536, BATCH_BYTES = 1 << 20, WATCHERS_MAX = 1 << 20 };

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    "Cache-Control: no-store, no-transform\r\n"
    "X-Accel-Buffering: no\r\nConnection: close\r\n\r\n"
    "event: hello\nretry: 3417\n"
    "data: {\"stream\":\"0.1.0123456789abcdef\",\"watching\":1,\"server_time\":1764009600123,"
    "\"beat_interval_ms\":10000,\"offline_after_ms\":25000,\"keep_alive_ms\":15000}\n\n"
    "event: snapshot\nid: 1764009600123\n"
    "data: {\"presence\":[{\"user\":\"gbare00000000000\",\"status\":\"offline\",\"online\":false,"
    "\"since\":null,\"last_active\":null}]}\n\n";
static const char ANSWER[] =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    "{\"user\":\"bob\",\"status\":\"online\",\"online\":true,\"since\":1764009600123,"
    "\"last_active\":1764009631000}    ";

static int *watchers; /* the int per stream */
static int watcher_count;
static unsigned long long sends, blocked;
static volatile sig_atomic_t stopping;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void stop(int signal) {
    (void)signal;
    stopping = 1;
}

static int listening_socket(int type, int port) {
    int one = 1, bytes = 64 << 20;
    int fd = socket(AF_INET, type | SOCK_NONBLOCK, 0);
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (type == SOCK_DGRAM) { /* a burst waits in the socket while 10,000 sends are made */
        if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    }
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0) die("bind");
    if (type == SOCK_STREAM && listen(fd, 65535) < 0) die("listen");
    return fd;
}

static void deliver(const char *bytes, size_t length, int count) {
    if (count > watcher_count) count = watcher_count;
    for (int i = 0; i < count; i++) {
        if (send(watchers[i], bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) blocked++;
        sends++;
    }
}

static void drop_connection(int fd) {
    for (int i = 0; i < watcher_count; i++) {
        if (watchers[i] == fd) {
            watchers[i] = watchers[--watcher_count];
            break;
        }
    }
    close(fd);
}

static void handle_request(int fd) {
    static char in[READ_BYTES], out[READ_BYTES * 2];
    ssize_t n = recv(fd, in, sizeof in, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) drop_connection(fd);
        return;
    }
    static const char BEATEN[] = "HTTP/1.1 204 No Content\r\n\r\n";
    if (n > 5 && memcmp(in, "POST ", 5) == 0 && memmem(in, n < 128 ? n : 128, "/beat ", 6)) {
        if (send(fd, BEATEN, sizeof BEATEN - 1, MSG_NOSIGNAL) < 0) blocked++;
        return;
    }
    bool stream = n > 15 && (memcmp(in, "GET /v1/stream", 14) == 0 ||
                             memcmp(in, "POST /v1/stream", 15) == 0);
    if (stream && watcher_count < WATCHERS_MAX) {
        if (send(fd, STREAM_HEAD, sizeof STREAM_HEAD - 1, MSG_NOSIGNAL) < 0) blocked++;
        watchers[watcher_count++] = fd;
        return;
    }
    size_t length = 0;
    const char *at = in, *end = in + n, *blank;
    while ((blank = memmem(at, end - at, "\r\n\r\n", 4)) && length + sizeof ANSWER <= sizeof out) {
        memcpy(out + length, ANSWER, sizeof ANSWER - 1);
        length += sizeof ANSWER - 1;
        at = blank + 4;
    }
    if (length && send(fd, out, length, MSG_NOSIGNAL) < 0) blocked++;
}

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s HTTP_PORT UDP_PORT [BATCH_MS]\n", argv[0]);
        return 2;
    }
    int batch_ms = argc > 3 ? atoi(argv[3]) : 0;
    long long ping_us = argc > 4 ? atoi(argv[4]) * 1000LL : 0, round_us = 0;
    int pinged = 0; /* watchers that have had theirs in this round */
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    watchers = malloc(WATCHERS_MAX * sizeof *watchers); /* untouched pages cost nothing */
    int listener = listening_socket(SOCK_STREAM, atoi(argv[1]));
    int control = listening_socket(SOCK_DGRAM, atoi(argv[2]));
    int poll = epoll_create1(0);
    if (poll < 0 || !watchers) die("epoll_create1");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event) < 0) die("epoll_ctl");
    event.data.fd = control;
    if (epoll_ctl(poll, EPOLL_CTL_ADD, control, &event) < 0) die("epoll_ctl");
    printf("listening http=127.0.0.1:%s udp=127.0.0.1:%s\n", argv[1], argv[2]);
    fflush(stdout);

    static struct epoll_event events[EVENTS_MAX];
    static char batch[BATCH_BYTES];
    size_t batched = 0;
    long long batch_due = 0;
    while (!stopping) {
        int wait_ms = ping_us ? 10 : -1;
        if (batched) {
            long long left_us = batch_due - now_us();
            wait_ms = left_us > 0 ? (int)((left_us + 999) / 1000) : 0;
        }
        int ready = epoll_wait(poll, events, EVENTS_MAX, wait_ms);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int conn, one = 1;
                for (int k = 0; k < 64; k++) {
                    conn = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                    if (conn < 0) break;
                    setsockopt(conn, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    struct epoll_event added = {.events = EPOLLIN, .data.fd = conn};
                    if (epoll_ctl(poll, EPOLL_CTL_ADD, conn, &added) < 0) close(conn);
                }
            } else if (fd == control) {
                static char payload[2048];
                ssize_t n = recv(control, payload, sizeof payload - 1, 0);
                if (n <= 0) continue;
                payload[n] = 0;
                char *bytes = payload, *line;
                int count = watcher_count;
                if (payload[0] == '#' && (line = strchr(payload, '\n'))) {
                    count = atoi(payload + 1);
                    bytes = line + 1;
                }
                size_t length = payload + n - bytes;
                if (!batch_ms) {
                    deliver(bytes, length, count);
                } else {
                    if (batched + length > sizeof batch)
                        deliver(batch, batched, watcher_count), batched = 0;
                    if (!batched) batch_due = now_us() + batch_ms * 1000LL;
                    memcpy(batch + batched, bytes, length);
                    batched += length;
                }
            } else {
                handle_request(fd);
            }
        }
        if (batched && now_us() >= batch_due) {
            deliver(batch, batched, watcher_count);
            batched = 0;
        }
        if (ping_us) {
            static const char PING[] = "event: ping\ndata: 1764009619000\n\n";
            long long now = now_us();
            if (now - round_us >= ping_us) round_us = now, pinged = 0;
            int due = (int)((double)watcher_count * (now - round_us) / ping_us);
            for (; pinged < due; pinged++, sends++)
                if (send(watchers[pinged], PING, sizeof PING - 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
                    blocked++;
        }
    }
    printf("sends=%llu blocked=%llu watchers=%d\n", sends, blocked, watcher_count);
    return 0;
}
