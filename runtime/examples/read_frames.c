/* Reads the frames of `diinn-run --output shm://NAME` in place, from C or C++.
 *
 *     cc -O2 -o read_frames read_frames.c && ./read_frames front 10
 *
 * prints number, size, sequence, capture time, age and mean of so many frames. sinks/shared_memory.py describes the segment.
 * The file may be anybody's: its numbers are copied, checked and then used. Who cuts it ends us, with a word.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct header {
    char magic[8];
    uint32_t version, first, slots, pixels;
    uint64_t stride, latest;
    uint32_t closed, reserved[5];
    char camera[64], view[64];
};

struct slot {
    uint64_t number;
    uint32_t width, height, row, format;
    uint64_t sequence;
    double captured, arrived;
    uint32_t quality;
};

static void gone(int number) {
    static const char message[] = "the segment was cut short\n";
    _exit(write(2, message, sizeof message - 1) < 0 || number ? 1 : 0);
}

/* Whether all that a header speaks of lies within so many bytes. */
static int is_sane(const struct header *h, uint64_t size) {
    return h->first >= sizeof *h && h->first < size && h->slots > 0 && h->slots <= 1024 &&
           h->pixels >= sizeof(struct slot) && h->stride > h->pixels && (h->first | h->stride) % 8 == 0 &&
           h->stride <= (size - h->first) / h->slots;
}

static int is_frame(const struct slot *s, const struct header *h) {
    return s->format == 1 && s->width > 0 && s->height > 0 && s->row >= 3ull * s->width &&
           (uint64_t)s->row * s->height <= h->stride - h->pixels;
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: %s NAME FRAMES\n", argv[0]), 2;
    char path[256];
    snprintf(path, sizeof path, "/dev/shm/%s", argv[1]);
    int file = open(path, O_RDONLY | O_NONBLOCK);
    struct stat status;
    if (file < 0 || fstat(file, &status) || status.st_size < 4096)
        return fprintf(stderr, "%s is not there yet\n", path), 1;
    if (!S_ISREG(status.st_mode) || (geteuid() && status.st_uid && status.st_uid != geteuid()))
        return fprintf(stderr, "%s is another user's, or no segment\n", path), 1;
    signal(SIGBUS, gone);
    const uint8_t *map = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, file, 0);
    const struct header *header = (const struct header *)map;
    if (map == MAP_FAILED || memcmp(header->magic, "DIINNSHM", 8) || header->version != 1)
        return fprintf(stderr, "%s holds no frames of this version\n", path), 1;
    const struct header known = *header;
    if (!is_sane(&known, status.st_size)) return fprintf(stderr, "%s is damaged\n", path), 1;
    uint64_t last = 0;
    for (int left = atoi(argv[2]); left > 0;) {
        uint64_t n = __atomic_load_n(&header->latest, __ATOMIC_ACQUIRE);
        if (n == last) {
            if (__atomic_load_n(&header->closed, __ATOMIC_ACQUIRE)) break; /* open the name again, if it is there */
            usleep(1000);
            continue;
        }
        last = n;
        const uint8_t *at = map + known.first + (n - 1) % known.slots * known.stride;
        const struct slot *slot = (const struct slot *)at;
        if (__atomic_load_n(&slot->number, __ATOMIC_ACQUIRE) != 2 * n) continue; /* a newer one is on its way */
        struct slot is = *slot;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (__atomic_load_n(&slot->number, __ATOMIC_RELAXED) != 2 * n) continue; /* what we know of it is mixed */
        if (!is_frame(&is, &known)) return fprintf(stderr, "%s holds what is no frame\n", path), 1;
        const uint8_t *bgr = at + known.pixels; /* [height][row]: use it here, without a copy */
        double sum = 0;
        for (uint32_t y = 0; y < is.height; y++)
            for (uint32_t x = 0; x < 3 * is.width; x++) sum += bgr[(size_t)y * is.row + x];
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (__atomic_load_n(&slot->number, __ATOMIC_RELAXED) != 2 * n) continue; /* written over meanwhile */
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        printf("%llu %ux%u sequence %llu captured %.3f age %.1f ms mean %.3f\n", (unsigned long long)n, is.width,
               is.height, (unsigned long long)is.sequence, is.captured,
               (now.tv_sec + now.tv_nsec * 1e-9 - is.arrived) * 1e3, sum / ((double)is.height * is.width * 3));
        fflush(stdout);
        left--;
    }
    return 0;
}
