/* What the load generators share: connections to a server on this machine that carry the same request again and again,
   without waiting in send() or recv(). Each generator has its own idea of when a request begins. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_MAX = 16384 };

typedef struct {
    int fd;
    double began;             /* the latency of the request under way runs from here */
    size_t sent;              /* bytes of it */
    char head[HEAD_MAX + 1];  /* the answer's, as far as it has come */
    size_t have;
    long body_left;           /* -1: the head is not whole yet */
    int status;
} Connection;

typedef enum { GOING_ON, ANSWERED, BROKEN } Progress;

static const char *request; /* one whole HTTP/1.1 request */
static size_t request_size;
static struct sockaddr_in address;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void prepare(const char *port, const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    fseek(file, 0, SEEK_END);
    request_size = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(request_size);
    if (fread(bytes, 1, request_size, file) != request_size) die("fread");
    fclose(file);
    request = bytes;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
}

static void watch(int epoll, const Connection *c, int index, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)index};
    if (epoll_ctl(epoll, how, c->fd, &event)) die("epoll_ctl");
}

static void open_connection(int epoll, Connection *c, int index) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    watch(epoll, c, index, EPOLLIN, EPOLL_CTL_ADD);
}

/* Send as much as the socket takes; the rest when epoll tells of room. */
static Progress send_rest(int epoll, Connection *c, int index) {
    while (c->sent < request_size) {
        ssize_t n = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(epoll, c, index, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            return GOING_ON;
        }
        if (n < 0) return BROKEN;
        c->sent += (size_t)n;
    }
    return GOING_ON;
}

static Progress begin_request(int epoll, Connection *c, int index, double began) {
    c->began = began;
    c->sent = c->have = 0;
    c->body_left = -1;
    c->status = 0;
    c->head[0] = 0;
    return send_rest(epoll, c, index);
}

static Progress receive(Connection *c) {
    char scratch[1 << 16];
    if (c->body_left < 0) {
        ssize_t n = recv(c->fd, c->head + c->have, HEAD_MAX - c->have, 0);
        if (n < 0 && errno == EAGAIN) return GOING_ON;
        if (n <= 0 || c->have + (size_t)n >= HEAD_MAX) return BROKEN;
        c->have += (size_t)n;
        c->head[c->have] = 0;
        char *end = strstr(c->head, "\r\n\r\n"), *length = strcasestr(c->head, "\r\ncontent-length:");
        if (!end) return GOING_ON;
        c->status = atoi(c->head + 9);
        c->body_left = (length && length < end ? atol(length + 17) : 0) - (long)(c->head + c->have - end - 4);
        end[2] = 0;
    } else {
        ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
        if (n < 0 && errno == EAGAIN) return GOING_ON;
        if (n <= 0) return BROKEN;
        c->body_left -= n;
    }
    return c->body_left <= 0 && c->sent == request_size ? ANSWERED : GOING_ON;
}

/* What epoll told of a connection. */
static Progress progress(int epoll, Connection *c, int index, uint32_t events) {
    if (events & EPOLLOUT) {
        if (send_rest(epoll, c, index) == BROKEN) return BROKEN;
        if (c->sent == request_size) watch(epoll, c, index, EPOLLIN, EPOLL_CTL_MOD);
    }
    return events & (EPOLLIN | EPOLLHUP | EPOLLERR) ? receive(c) : GOING_ON;
}

/* Whether the connection can carry no further request. */
static int is_over(const Connection *c, Progress how) {
    return how == BROKEN || strcasestr(c->head, "\r\nconnection: close") != NULL;
}

static int smaller(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile_ms(double *values, size_t count, double part) {
    if (!count) return 0.0;
    qsort(values, count, sizeof *values, smaller);
    return values[(size_t)((double)(count - 1) * part)] * 1e3;
}
