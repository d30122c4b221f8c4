/* Open-loop load: requests arrive at random times (Poisson) at a given rate, whatever the server does.

   open_loop PORT RATE SECONDS CONNECTIONS FILE

   FILE holds one whole HTTP/1.1 request. An arrival takes a connection that is free, or waits here for one; its
   latency runs from its arrival, so that a server that stalls is charged for everybody who came meanwhile. One
   thread, epoll, a timer of nanoseconds. Prints one line of name=value.
   Python cannot do this: at ten thousand requests a second its own pauses would be what is measured. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_MAX = 16384, PATIENCE_S = 10 };

typedef struct {
    int fd;
    double arrived;           /* of the request under way */
    size_t sent;              /* bytes of it */
    char head[HEAD_MAX + 1];  /* the answer's, as far as it has come */
    size_t have;
    long body_left;           /* -1: the head is not whole yet */
    int status;
} Connection;

static const char *request;
static size_t request_size;
static int epoll;
static struct sockaddr_in address;
static Connection *connections;
static int *free_list, free_count;
static double *waiting; /* arrivals without a connection, first in first out */
static size_t waiting_first, waiting_end;
static double *ok, *refused;
static size_t ok_count, ok_in_time, refused_count, failed, in_flight;
static double end; /* of the arrivals */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int index, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)index};
    if (epoll_ctl(epoll, how, connections[index].fd, &event)) die("epoll_ctl");
}

static void open_connection(int index) {
    Connection *c = &connections[index];
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    watch(index, EPOLLIN, EPOLL_CTL_ADD);
    free_list[free_count++] = index;
}

/* The answer, or the connection, is over: the connection is free, or another takes its place. */
static void finish(int index, int broken) {
    Connection *c = &connections[index];
    double t = now(), took = t - c->arrived;
    in_flight--;
    if (broken || (c->status != 200 && c->status != 429)) failed++;
    else if (c->status == 200) {
        ok[ok_count++] = took;
        ok_in_time += t <= end;
    }
    else refused[refused_count++] = took;
    if (broken || strcasestr(c->head, "\r\nconnection: close")) {
        close(c->fd);
        open_connection(index);
    } else {
        free_list[free_count++] = index;
    }
}

static int send_rest(int index) {
    Connection *c = &connections[index];
    while (c->sent < request_size) {
        ssize_t n = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(index, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return 0;
        }
        if (n < 0) return -1;
        c->sent += (size_t)n;
    }
    return 0;
}

static void begin(double arrived) {
    int index = free_list[--free_count];
    Connection *c = &connections[index];
    c->arrived = arrived;
    c->sent = c->have = 0;
    c->body_left = -1;
    c->status = 0;
    c->head[0] = 0;
    in_flight++;
    if (send_rest(index)) finish(index, 1);
}

static void receive(int index) {
    static char scratch[1 << 16];
    Connection *c = &connections[index];
    if (c->body_left < 0) {
        ssize_t n = recv(c->fd, c->head + c->have, HEAD_MAX - c->have, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0 || c->have + (size_t)n >= HEAD_MAX) {
            finish(index, 1);
            return;
        }
        c->have += (size_t)n;
        c->head[c->have] = 0;
        char *end = strstr(c->head, "\r\n\r\n"), *length = strcasestr(c->head, "\r\ncontent-length:");
        if (!end) return;
        c->status = atoi(c->head + 9);
        c->body_left = (length && length < end ? atol(length + 17) : 0) - (long)(c->head + c->have - end - 4);
        end[2] = 0;
    } else {
        ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            finish(index, 1);
            return;
        }
        c->body_left -= n;
    }
    if (c->body_left <= 0 && c->sent == request_size) finish(index, 0);
}

static int smaller(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile_ms(double *values, size_t count, double part) {
    qsort(values, count, sizeof *values, smaller);
    return count ? values[(size_t)((double)(count - 1) * part)] * 1e3 : 0.0;
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: open_loop PORT RATE SECONDS CONNECTIONS FILE\n");
        return 2;
    }
    double rate = atof(argv[2]), seconds = atof(argv[3]);
    int count = atoi(argv[4]);
    FILE *file = fopen(argv[5], "rb");
    if (!file) die(argv[5]);
    fseek(file, 0, SEEK_END);
    request_size = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(request_size);
    if (fread(bytes, 1, request_size, file) != request_size) die("fread");
    request = bytes;

    size_t most = (size_t)(rate * seconds * 2 + 10000);
    ok = malloc(most * sizeof *ok);
    refused = malloc(most * sizeof *refused);
    waiting = malloc(most * sizeof *waiting);
    connections = calloc((size_t)count, sizeof *connections);
    free_list = calloc((size_t)count, sizeof *free_list);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    epoll = epoll_create1(0);
    for (int i = 0; i < count; i++) open_connection(i);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);

    srand48(1);
    double began = now(), next = began, late = 0.0;
    end = began + seconds;
    size_t arrived = 0;
    for (;;) {
        double t = now();
        while (next <= t && next < end && arrived < most) {
            if (t - next > late) late = t - next;
            waiting[waiting_end++] = next;
            arrived++;
            next += -log(1.0 - drand48()) / rate;
        }
        while (free_count && waiting_first < waiting_end) begin(waiting[waiting_first++]);
        int over = next >= end || arrived >= most;
        if (over && ((!in_flight && waiting_first == waiting_end) || t > end + PATIENCE_S)) break;
        double wake = over ? end + PATIENCE_S : next;
        struct itimerspec at = {.it_value = {(time_t)wake, (long)((wake - floor(wake)) * 1e9) + 1}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
        struct epoll_event events[256];
        int n = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < n; i++) {
            uint32_t index = events[i].data.u32;
            if (index == UINT32_MAX) {
                uint64_t ticks;
                if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
                continue;
            }
            Connection *c = &connections[index];
            if (events[i].events & EPOLLOUT) {
                if (send_rest((int)index)) {
                    finish((int)index, 1);
                    continue;
                }
                if (c->sent == request_size) watch((int)index, EPOLLIN, EPOLL_CTL_MOD);
            }
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive((int)index);
        }
    }
    size_t unanswered = in_flight + (waiting_end - waiting_first);
    printf("FIGURES arrived=%zu ok=%zu ok_in_time=%zu refused=%zu failed=%zu unanswered=%zu seconds=%.3f p50_ms=%.3f p99_ms=%.3f "
           "refused_p99_ms=%.3f late_ms=%.3f\n",
           arrived, ok_count, ok_in_time, refused_count, failed, unanswered, seconds, percentile_ms(ok, ok_count, 0.5),
           percentile_ms(ok, ok_count, 0.99), percentile_ms(refused, refused_count, 0.99), late * 1e3);
    return 0;
}
