/* Closed-loop load: every connection has one request under way, and begins the next when it is answered.

   closed_loop PORT SECONDS CONNECTIONS THREADS PATIENCE FILE

   FILE holds one whole HTTP/1.1 request. Each thread has its share of the connections: one thread alone does not send
   bodies of 150 KB as fast as a GPU's server takes them. After SECONDS none is begun any more, and what is under way
   is waited for, PATIENCE seconds at most. Prints one line of name=value; cpu_s is what the generator itself used. */

#include "load.h"
#include <pthread.h>
#include <sys/resource.h>

typedef struct {
    pthread_t thread;
    int count; /* connections */
    double *took;
    size_t ok, room, ok_in_time, refused, failed, unanswered;
} Share;

static double end, patience;

static void note(Share *share, double took) {
    if (share->ok == share->room) {
        share->room = share->room ? share->room * 2 : 4096;
        share->took = realloc(share->took, share->room * sizeof *share->took);
        if (!share->took) die("realloc");
    }
    share->took[share->ok++] = took;
}

static void count_answer(Share *share, const Connection *c, Progress how, double t) {
    if (how == BROKEN || (c->status != 200 && c->status != 429)) share->failed++;
    else if (c->status == 429) share->refused++;
    else {
        note(share, t - c->began);
        share->ok_in_time += t <= end;
    }
}

/* One answer is counted; the next request begins, unless the time is over. Returns how many are under way then: 0, 1. */
static int next(Share *share, int epoll, Connection *c, int index, Progress how) {
    for (;;) {
        double t = now();
        count_answer(share, c, how, t);
        if (is_over(c, how)) {
            close(c->fd);
            open_connection(epoll, c, index);
        }
        if (t >= end) return 0;
        how = begin_request(epoll, c, index, t);
        if (how != BROKEN) return 1;
    }
}

static void *run(void *argument) {
    Share *share = argument;
    Connection *connections = calloc((size_t)share->count, sizeof *connections);
    int epoll = epoll_create1(0), under_way = 0;
    for (int i = 0; i < share->count; i++) {
        open_connection(epoll, &connections[i], i);
        Progress how = begin_request(epoll, &connections[i], i, now());
        under_way += how == BROKEN ? next(share, epoll, &connections[i], i, how) : 1;
    }
    while (under_way) {
        double left = end + patience - now();
        if (left <= 0) break;
        struct epoll_event events[256];
        int n = epoll_wait(epoll, events, 256, (int)(left * 1e3) + 1);
        for (int i = 0; i < n; i++) {
            int index = (int)events[i].data.u32;
            Progress how = progress(epoll, &connections[index], index, events[i].events);
            if (how != GOING_ON) under_way += next(share, epoll, &connections[index], index, how) - 1;
        }
    }
    share->unanswered = (size_t)under_way;
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "usage: closed_loop PORT SECONDS CONNECTIONS THREADS PATIENCE FILE\n");
        return 2;
    }
    double seconds = atof(argv[2]);
    int count = atoi(argv[3]), threads = atoi(argv[4]);
    if (count < 1 || threads < 1) {
        fprintf(stderr, "closed_loop: expected at least one connection and one thread\n");
        return 2;
    }
    if (threads > count) threads = count;
    patience = atof(argv[5]);
    prepare(argv[1], argv[6]);
    end = now() + seconds;
    Share *shares = calloc((size_t)threads, sizeof *shares), all = {0};
    for (int i = 0; i < threads; i++) {
        shares[i].count = count / threads + (i < count % threads);
        if (pthread_create(&shares[i].thread, NULL, run, &shares[i])) die("pthread_create");
    }
    for (int i = 0; i < threads; i++) {
        Share *share = &shares[i];
        pthread_join(share->thread, NULL);
        for (size_t k = 0; k < share->ok; k++) note(&all, share->took[k]);
        all.ok_in_time += share->ok_in_time;
        all.refused += share->refused;
        all.failed += share->failed;
        all.unanswered += share->unanswered;
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    double p50 = percentile_ms(all.took, all.ok, 0.5), p99 = percentile_ms(all.took, all.ok, 0.99);
    printf("FIGURES ok=%zu ok_in_time=%zu refused=%zu failed=%zu unanswered=%zu seconds=%.3f p50_ms=%.3f p99_ms=%.3f "
           "max_ms=%.3f cpu_s=%.3f\n",
           all.ok, all.ok_in_time, all.refused, all.failed, all.unanswered, seconds, p50, p99,
           all.ok ? all.took[all.ok - 1] * 1e3 : 0.0, cpu);
    return 0;
}
