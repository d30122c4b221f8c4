/* Open-loop load: requests arrive at random times (Poisson) at a given rate, whatever the server does.

   open_loop PORT RATE SECONDS CONNECTIONS FILE

   FILE holds one whole HTTP/1.1 request. An arrival takes a connection that is free, or waits here for one; its
   latency runs from its arrival, so that a server that stalls is charged for everybody who came meanwhile. One
   thread, epoll, a timer of nanoseconds. Prints one line of name=value.
   Python cannot do this: at ten thousand requests a second its own pauses would be what is measured. */

#include "load.h"
#include <math.h>
#include <sys/timerfd.h>

enum { PATIENCE_S = 10 };

static int epoll;
static Connection *connections;
static int *free_list, free_count;
static double *waiting; /* arrivals without a connection, first in first out */
static size_t waiting_first, waiting_end;
static double *ok, *refused;
static size_t ok_count, ok_in_time, refused_count, failed, in_flight;
static double end; /* of the arrivals */

/* The answer, or the connection, is over: the connection is free, or another takes its place. */
static void finish(int index, Progress how) {
    Connection *c = &connections[index];
    double t = now(), took = t - c->began;
    in_flight--;
    if (how == BROKEN || (c->status != 200 && c->status != 429)) failed++;
    else if (c->status == 200) {
        ok[ok_count++] = took;
        ok_in_time += t <= end;
    }
    else refused[refused_count++] = took;
    if (is_over(c, how)) {
        close(c->fd);
        open_connection(epoll, c, index);
    }
    free_list[free_count++] = index;
}

static void begin(double arrived) {
    int index = free_list[--free_count];
    in_flight++;
    if (begin_request(epoll, &connections[index], index, arrived) == BROKEN) finish(index, BROKEN);
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: open_loop PORT RATE SECONDS CONNECTIONS FILE\n");
        return 2;
    }
    double rate = atof(argv[2]), seconds = atof(argv[3]);
    int count = atoi(argv[4]);
    prepare(argv[1], argv[5]);

    size_t most = (size_t)(rate * seconds * 2 + 10000);
    ok = malloc(most * sizeof *ok);
    refused = malloc(most * sizeof *refused);
    waiting = malloc(most * sizeof *waiting);
    connections = calloc((size_t)count, sizeof *connections);
    free_list = calloc((size_t)count, sizeof *free_list);
    epoll = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        open_connection(epoll, &connections[i], i);
        free_list[free_count++] = i;
    }
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
            Progress how = progress(epoll, &connections[index], (int)index, events[i].events);
            if (how != GOING_ON) finish((int)index, how);
        }
    }
    size_t unanswered = in_flight + (waiting_end - waiting_first);
    printf("FIGURES arrived=%zu ok=%zu ok_in_time=%zu refused=%zu failed=%zu unanswered=%zu seconds=%.3f p50_ms=%.3f p99_ms=%.3f "
           "refused_p99_ms=%.3f late_ms=%.3f\n",
           arrived, ok_count, ok_in_time, refused_count, failed, unanswered, seconds, percentile_ms(ok, ok_count, 0.5),
           percentile_ms(ok, ok_count, 0.99), percentile_ms(refused, refused_count, 0.99), late * 1e3);
    return 0;
}
