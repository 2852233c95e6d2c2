/* Reads the frames of `diinn-run --output shm://NAME` in place, from C or C++.
 *
 *     cc -O2 -o read_frames read_frames.c && ./read_frames front 10
 *
 * prints number, size, sequence, capture time, age and mean of so many frames. shared_frames.py describes the segment.
 */
#define _GNU_SOURCE
#include <fcntl.h>
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

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: %s NAME FRAMES\n", argv[0]), 2;
    char path[256];
    snprintf(path, sizeof path, "/dev/shm/%s", argv[1]);
    int file = open(path, O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status) || status.st_size < 4096)
        return fprintf(stderr, "%s is not there yet\n", path), 1;
    const uint8_t *map = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, file, 0);
    const struct header *header = (const struct header *)map;
    if (map == MAP_FAILED || memcmp(header->magic, "DIINNSHM", 8) || header->version != 1)
        return fprintf(stderr, "%s holds no frames of this version\n", path), 1;
    uint64_t last = 0;
    for (int left = atoi(argv[2]); left > 0;) {
        uint64_t n = __atomic_load_n(&header->latest, __ATOMIC_ACQUIRE);
        if (n == last) {
            if (__atomic_load_n(&header->closed, __ATOMIC_ACQUIRE)) break; /* open the name again, if it is there */
            usleep(1000);
            continue;
        }
        last = n;
        const uint8_t *at = map + header->first + (n - 1) % header->slots * header->stride;
        const struct slot *slot = (const struct slot *)at;
        if (__atomic_load_n(&slot->number, __ATOMIC_ACQUIRE) != 2 * n) continue; /* a newer one is on its way */
        struct slot is = *slot;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (__atomic_load_n(&slot->number, __ATOMIC_RELAXED) != 2 * n) continue; /* what we know of it is mixed */
        const uint8_t *bgr = at + header->pixels; /* [height][row]: use it here, without a copy */
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
