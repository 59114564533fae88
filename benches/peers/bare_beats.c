/* bare_beats: how many datagrams a core can receive when it does nothing with them.
 *
 *   bare_beats UDP_PORT SECONDS
 *
 * One thread, one socket, blocking recvmmsg of up to 64 datagrams. Starts counting at the first
 * datagram and prints one line after SECONDS: datagrams, bytes, elapsed and CPU seconds. No GRO, no
 * MAC, no look-up: the limit of the socket layer. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, DATAGRAM_BYTES = 1472 };

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu_s(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s UDP_PORT SECONDS\n", argv[0]);
        return 2;
    }
    double seconds = atof(argv[2]);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    int bytes = 8 << 20;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    struct timeval tick = {.tv_usec = 100000}; /* so that the end is noticed without traffic */
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof tick);
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0) {
        perror("bind");
        return 1;
    }
    static char data[BATCH][DATAGRAM_BYTES];
    static struct iovec parts[BATCH];
    static struct mmsghdr messages[BATCH];
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){data[i], DATAGRAM_BYTES};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
    }
    printf("listening udp=127.0.0.1:%s\n", argv[1]);
    fflush(stdout);
    unsigned long long datagrams = 0, total_bytes = 0;
    double start = 0, cpu_start = 0;
    while (!start || now_s() < start + seconds) {
        int n = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        if (n <= 0) continue;
        if (!start) start = now_s(), cpu_start = cpu_s();
        datagrams += n;
        for (int i = 0; i < n; i++) total_bytes += messages[i].msg_len;
    }
    double elapsed = now_s() - start, cpu = cpu_s() - cpu_start;
    printf("datagrams=%llu bytes=%llu elapsed_s=%.3f cpu_s=%.3f "
           "datagrams_per_s=%.0f cpu_us_per_datagram=%.3f\n", datagrams,
           total_bytes, elapsed, cpu, datagrams / elapsed, cpu * 1e6 / datagrams);
    return 0;
}
