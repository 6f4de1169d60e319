/* A subscriber in a loop of poll(2), beside a timer: prints what the example `publish` sends, line by line.
 *
 *   cargo build --release --example memlane_c
 *   cc examples/loops/poll.c -o poll -Ltarget/release/examples -lmemlane_c -Wl,-rpath,target/release/examples
 *   cargo run --release --example publish          (in another terminal)
 *   ./poll smallest
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* As in c.rs. */
struct memlane_subscriber;
struct memlane_subscriber *memlane_connect(const char *service);
int memlane_fd(const struct memlane_subscriber *subscriber);
ssize_t memlane_receive(struct memlane_subscriber *subscriber, uint8_t *buffer, size_t size);
void memlane_close(struct memlane_subscriber *subscriber);
enum { MEMLANE_EMPTY = -1, MEMLANE_GONE = -2, MEMLANE_FAILED = -3 };

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s SERVICE\n", argv[0]);
        return 2;
    }
    struct memlane_subscriber *subscriber = memlane_connect(argv[1]);
    if (!subscriber)
        return 1;

    struct itimerspec second = {{1, 0}, {1, 0}};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (timer < 0 || timerfd_settime(timer, 0, &second, NULL) < 0) {
        perror("timerfd");
        return 1;
    }

    struct pollfd sources[] = {
        {.fd = memlane_fd(subscriber), .events = POLLIN},
        {.fd = timer, .events = POLLIN},
    };
    static uint8_t line[4096];
    unsigned long lines = 0;
    ssize_t len = MEMLANE_EMPTY;
    while (len != MEMLANE_GONE && len != MEMLANE_FAILED) {
        if (poll(sources, 2, -1) < 0 && errno != EINTR) {
            perror("poll");
            return 1;
        }
        if (sources[0].revents) {
            /* One at a time will do: the descriptor stays readable until there is none. */
            len = memlane_receive(subscriber, line, sizeof line);
            if (len >= 0) {
                lines++;
                fwrite(line, 1, (size_t)len < sizeof line ? (size_t)len : sizeof line, stdout);
                putchar('\n');
            }
        }
        if (sources[1].revents) {
            uint64_t seconds;
            if (read(timer, &seconds, sizeof seconds) > 0)
                fprintf(stderr, "%lu lines so far\n", lines);
        }
    }
    close(timer);
    memlane_close(subscriber);
    return len == MEMLANE_GONE ? EXIT_SUCCESS : EXIT_FAILURE;
}
