/* A store of cells while its disk stands still, by where they live and how they reach the folder.
 *
 * One thread stores into random cells at a fixed rate (a compare-and-swap, each timed), one loads,
 * one appends records of new users, and one writes back in rolling slices under a budget. A child
 * freezes a file system (FIFREEZE; root) for a while and thaws it whatever becomes of its parent.
 *
 *   --home file     cells and log are files of --dir, mapped; slices by msync
 *   --home tmpfs    they are files of --memory, mapped; slices by pwrite and fdatasync into --dir
 *   --write W       buffered, drop (fadvise after it), dontcache (RWF_DONTCACHE), direct (O_DIRECT)
 *   --skip          leaves out pages whose hash says that nothing has changed
 *
 * Never freezes a file system that is not a mount of its own. benches/standstill/run runs it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x80
#endif

enum { PAGE = 4096, SLICE = 4 << 20, RECORD = 25, BATCH = 64, LOG = 64 << 20, GROWTH = 1 << 20 };
enum { CELLS, USERS, FILES };
static const char *names[FILES] = {"stamps.map", "users.log"};
static const char *homes[] = {"file", "tmpfs", 0};
static const char *writes[] = {"buffered", "drop", "dontcache", "direct", 0};
enum { FILE_HOME, TMPFS };
enum { BUFFERED, DROP, DONTCACHE, DIRECT };

static int home = FILE_HOME, how = BUFFERED;
static const char *dir, *memory = "/dev/shm", *freeze_dir;
static uint64_t slots = 10000000, rate = 200000, active, budget = 64 << 20, new_rate = 2000;
static int seconds = 10, freeze_at = -1, freeze_for = 8;
static bool skip;

static _Atomic uint64_t *cells;
static uint8_t *records;
static _Atomic uint64_t log_end;
static uint64_t *hashes;
static int in_folder[FILES], in_memory[FILES];
static uint64_t bytes[FILES];
static _Atomic int stop, frozen;

static void die(const char *what) {
    perror(what);
    exit(2);
}

static uint64_t clock_ns(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t now_ns(void) {
    return clock_ns(CLOCK_MONOTONIC);
}

/* Times of one kind of work, 16 buckets a doubling: while the disk moved, and while it stood. */
struct work {
    const char *name;
    struct times { uint64_t count[64 * 16], total, longest; } times[2];
};
static struct work stores = {.name = "store"}, loads = {.name = "load"},
                   news = {.name = "new user"};

static void note(struct work *work, int was_frozen, uint64_t from) {
    uint64_t ns = now_ns() - from;
    struct times *times = &work->times[was_frozen || frozen];
    int top = ns < 16 ? 0 : 63 - __builtin_clzll(ns);
    times->count[ns < 16 ? ns : (uint64_t)(top - 3) * 16 + ((ns >> (top - 4)) & 15)]++;
    times->total++;
    if (ns > times->longest)
        times->longest = ns;
}

static double quantile_us(struct times *times, double q) {
    uint64_t seen = 0, b = 0;
    while (b < 64 * 16 - 1 && (seen += times->count[b]) <= times->total * q)
        b++;
    return (b < 16 ? b : (16 + b % 16) << (b / 16 - 1)) / 1e3;
}

static void tell(struct work *work) {
    for (int f = 0; f < 2; f++) {
        struct times *t = &work->times[f];
        if (t->total)
            printf("%s, %s: count=%llu p50_us=%.2f p99_us=%.2f p99.9_us=%.2f longest_us=%.1f\n",
                   work->name, f ? "frozen" : "moving", (unsigned long long)t->total,
                   quantile_us(t, .5), quantile_us(t, .99), quantile_us(t, .999), t->longest / 1e3);
    }
}

/* Over all cells, or over `active` ones spread evenly. */
static uint64_t a_slot(uint64_t *seed) {
    *seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17;
    return active ? *seed % active * (slots / active) : *seed % slots;
}

static void pace(uint64_t began, uint64_t done, uint64_t per_second) {
    uint64_t due = began + done * 1000000000ull / per_second, now = now_ns();
    struct timespec rest = {(due - now) / 1000000000, (due - now) % 1000000000};
    if (now < due)
        nanosleep(&rest, 0);
}

static void *run_stores(void *unused) {
    uint64_t seed = 88172645463325252ull, began = now_ns(), done = 0;
    while (!stop) {
        for (int i = 0; i < BATCH; i++) {
            uint64_t slot = a_slot(&seed), from = now_ns(), was = cells[slot];
            int f = frozen;
            atomic_compare_exchange_strong(&cells[slot], &was, from);
            note(&stores, f, from);
        }
        done += BATCH;
        /* What a stall has kept from being stored is not made up for. */
        if (now_ns() - began > done * 1000000000ull / rate + 100000000)
            began = now_ns(), done = 0;
        pace(began, done, rate);
    }
    return unused;
}

static void *run_loads(void *unused) {
    uint64_t seed = 362436069, began = now_ns(), done = 0, sum = 0;
    while (!stop) {
        for (int i = 0; i < BATCH; i++) {
            uint64_t from = now_ns();
            int f = frozen;
            sum += cells[a_slot(&seed)];
            note(&loads, f, from);
        }
        pace(began, done += BATCH, 20000);
    }
    return sum ? unused : 0;
}

static void *run_news(void *unused) {
    uint64_t began = now_ns(), done = 0, have = 0;
    while (!stop && log_end + PAGE < LOG) {
        uint64_t from = now_ns(), end = log_end;
        int f = frozen;
        if (end + RECORD > have) {
            if (fallocate(in_memory[USERS], 0, have, GROWTH))
                die("grow");
            have += GROWTH;
        }
        memset(records + end, 1 + done % 255, RECORD);
        log_end = end + RECORD;
        note(&news, f, from);
        pace(began, ++done, new_rate);
    }
    return unused;
}

static uint64_t written, cycles, cycle_ns_longest, writer_cpu_ns;

/* Copies a page and returns its hash. */
static uint64_t copy_page(uint64_t *to, const _Atomic uint64_t *from) {
    uint64_t h[4] = {1, 2, 3, 4};
    static const uint64_t by[4] = {0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9,
                                   0xd6e8feb86659fd93};
    for (int i = 0; i < PAGE / 8; i += 4)
        for (int k = 0; k < 4; k++) {
            to[i + k] = atomic_load_explicit(&from[i + k], memory_order_relaxed);
            h[k] = (h[k] ^ to[i + k]) * by[k];
        }
    return ((h[0] ^ h[1] >> 29) * by[0] ^ (h[2] ^ h[3] >> 31) * by[1]) | 1;
}

static void put(int file, const void *from, uint64_t count, uint64_t at) {
    struct iovec left = {(void *)from, count};
    written += count;
    while (left.iov_len) {
        ssize_t n = pwritev2(file, &left, 1, at, how == DONTCACHE ? RWF_DONTCACHE : 0);
        if (n <= 0)
            die("pwrite");
        left.iov_base = (char *)left.iov_base + n, left.iov_len -= n, at += n;
    }
}

/* The log first; in whole pages, of which the last is written again with the records to come. */
static void write_log(uint64_t from, uint64_t to, void *bounce) {
    from = from / PAGE * PAGE;
    if (home == FILE_HOME) {
        if (msync(records + from, to - from, MS_SYNC))
            die("msync");
        return;
    }
    for (uint64_t at = from; at < to; at += SLICE) {
        uint64_t n = (to - at + PAGE - 1) / PAGE * PAGE;
        n = n > SLICE ? SLICE : n;
        memcpy(bounce, records + at, n);
        put(in_folder[USERS], bounce, n, at);
    }
    if (fdatasync(in_folder[USERS]))
        die("fdatasync");
}

static void write_slice(uint64_t at, uint64_t n, uint64_t *bounce) {
    uint64_t before = written, run = 0;
    if (home == FILE_HOME) {
        if (msync((char *)cells + at, n, MS_SYNC))
            die("msync");
        written += n;
        return;
    }
    for (uint64_t p = 0; p < n; p += PAGE) {
        uint64_t hash = copy_page(bounce + p / 8, cells + (at + p) / 8);
        uint64_t *known = &hashes[(at + p) / PAGE];
        bool same = skip && *known == hash;
        *known = hash;
        if (!same)
            continue;
        if (p > run)
            put(in_folder[CELLS], bounce + run / 8, p - run, at + run);
        run = p + PAGE;
    }
    if (n > run)
        put(in_folder[CELLS], bounce + run / 8, n - run, at + run);
    if (written > before && fdatasync(in_folder[CELLS]))
        die("fdatasync");
    if (how == DROP)
        posix_fadvise(in_folder[CELLS], at, n, POSIX_FADV_DONTNEED);
}

static void *run_writer(void *unused) {
    uint64_t synced = 0, *bounce = aligned_alloc(PAGE, SLICE);
    memset(bounce, 0, SLICE);
    while (!stop) {
        uint64_t began = now_ns(), end = log_end;
        if (end > synced)
            write_log(synced, end, bounce);
        synced = end;
        for (uint64_t at = 0; at < bytes[CELLS] && !stop; at += SLICE) {
            uint64_t before = written, rest = bytes[CELLS] - at;
            write_slice(at, rest < SLICE ? rest : SLICE, bounce);
            usleep((written - before) * 1000000ull / budget);
        }
        cycles++;
        if (now_ns() - began > cycle_ns_longest)
            cycle_ns_longest = now_ns() - began;
        writer_cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        while (!stop && now_ns() - began < 1000000000)
            usleep(10000);
    }
    return unused;
}

/* A child freezes and thaws, out of reach of signals to this process's group, so that no end of
 * this process leaves anything frozen. */
static void *run_freezer(void *unused) {
    struct stat here, above, root;
    char up[4096];
    snprintf(up, sizeof up, "%s/..", freeze_dir);
    if (stat(freeze_dir, &here) || stat(up, &above) || stat("/", &root))
        die("stat");
    if (here.st_dev == above.st_dev || here.st_dev == root.st_dev) {
        fprintf(stderr, "%s is not a mount of its own: not frozen\n", freeze_dir);
        exit(2);
    }
    int fd = open(freeze_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    _Atomic int *state = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = fork();
    if (child == 0) {
        setsid();
        sleep(freeze_at);
        *state = ioctl(fd, FIFREEZE, 0) ? 3 : 1;
        sleep(*state == 1 ? freeze_for : 0);
        if (*state == 1)
            ioctl(fd, FITHAW, 0);
        else
            perror("FIFREEZE");
        *state = 3;
        _exit(0);
    }
    for (; *state != 3; usleep(1000))
        frozen = *state == 1;
    frozen = 0;
    waitpid(child, 0, 0);
    return unused;
}

static int made(const char *folder, const char *name, int flags) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | flags, 0600);
    if (fd < 0)
        die(path);
    return fd;
}

static void *region(int which) {
    int direct = how == DIRECT && home != FILE_HOME ? O_DIRECT : 0;
    in_folder[which] = made(dir, names[which], direct);
    in_memory[which] = home == TMPFS ? made(memory, names[which], 0) : in_folder[which];
    /* A mapped log grows as its records come. */
    if ((which == CELLS || home != FILE_HOME) && fallocate(in_folder[which], 0, 0, bytes[which]))
        die("fallocate");
    if (ftruncate(in_memory[which], bytes[which]))
        die("ftruncate");
    void *p = mmap(0, bytes[which], PROT_READ | PROT_WRITE, MAP_SHARED, in_memory[which], 0);
    if (p == MAP_FAILED)
        die("mmap");
    return p;
}

/* Written to the folder's device, the journal included. */
static double device_mb(void) {
    struct stat s;
    char path[256];
    unsigned long long sectors = 0;
    stat(dir, &s);
    snprintf(path, sizeof path, "/sys/dev/block/%u:%u/stat", major(s.st_dev), minor(s.st_dev));
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%*u %*u %*u %*u %*u %*u %llu", &sectors) != 1)
        sectors = 0;
    if (f)
        fclose(f);
    return sectors * 512 / 1e6;
}

static double cached_mb(int file, uint64_t length) {
    unsigned char *in = malloc(length / PAGE + 1);
    void *p = mmap(0, length, PROT_READ, MAP_SHARED, file, 0);
    uint64_t pages = 0;
    if (p == MAP_FAILED || mincore(p, length, in))
        return -1;
    for (uint64_t i = 0; i < length / PAGE; i++)
        pages += in[i] & 1;
    munmap(p, length);
    free(in);
    return pages * PAGE / 1e6;
}

/* What a power cut would cost now: by how much the oldest missing store precedes the last one. */
static double oldest_unwritten_s(void) {
    uint64_t last = 0, oldest = 0, *disk = aligned_alloc(PAGE, SLICE);
    for (uint64_t n = 0; n < slots; n++)
        last = cells[n] > last ? cells[n] : last;
    for (uint64_t at = 0; at < bytes[CELLS]; at += SLICE) {
        ssize_t n = pread(in_folder[CELLS], disk, SLICE, at);
        for (ssize_t i = 0; i < n / 8 && at / 8 + i < slots; i++)
            if (disk[i] != cells[at / 8 + i] && last - cells[at / 8 + i] > oldest)
                oldest = last - cells[at / 8 + i];
    }
    free(disk);
    return oldest / 1e9;
}

static int one_of(const char *names_of[], const char *name) {
    for (int i = 0; names_of[i]; i++)
        if (!strcmp(names_of[i], name))
            return i;
    fprintf(stderr, "unknown: %s\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"home", 1, 0, 'h'}, {"dir", 1, 0, 'd'}, {"memory", 1, 0, 'm'}, {"slots", 1, 0, 'n'},
        {"rate", 1, 0, 'r'}, {"active", 1, 0, 'a'}, {"seconds", 1, 0, 's'}, {"write", 1, 0, 'w'},
        {"skip", 0, 0, 'k'}, {"budget-mib", 1, 0, 'b'}, {"freeze-at", 1, 0, 'f'},
        {"freeze-for", 1, 0, 'F'}, {"freeze-dir", 1, 0, 'D'}, {0}};
    for (int o; (o = getopt_long(argc, argv, "", options, 0)) != -1;)
        switch (o) {
        case 'h': home = one_of(homes, optarg); break;
        case 'w': how = one_of(writes, optarg); break;
        case 'd': dir = optarg; break;
        case 'm': memory = optarg; break;
        case 'D': freeze_dir = optarg; break;
        case 'n': slots = strtoull(optarg, 0, 10); break;
        case 'r': rate = strtoull(optarg, 0, 10); break;
        case 'a': active = strtoull(optarg, 0, 10); break;
        case 's': seconds = atoi(optarg); break;
        case 'b': budget = strtoull(optarg, 0, 10) << 20; break;
        case 'f': freeze_at = atoi(optarg); break;
        case 'F': freeze_for = atoi(optarg); break;
        case 'k': skip = true; break;
        default: return 2;
        }
    if (!dir || !slots || !rate || !budget || optind < argc)
        return fprintf(stderr, "--dir is missing, or a number is zero\n"), 2;
    freeze_dir = freeze_dir ? freeze_dir : dir;
    bytes[CELLS] = (slots * 8 + PAGE - 1) / PAGE * PAGE, bytes[USERS] = LOG;
    cells = region(CELLS), records = region(USERS);
    hashes = calloc(bytes[CELLS] / PAGE, 8);
    for (uint64_t n = 0; n < slots; n++)
        cells[n] = 1; /* every page is there */
    fsync(in_folder[CELLS]);

    pthread_t threads[5];
    void *(*runs[])(void *) = {run_stores, run_loads, run_news, run_writer, run_freezer};
    int count = freeze_at >= 0 ? 5 : 4;
    double device = device_mb(), began = now_ns();
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], 0, runs[i], 0);
    sleep(seconds);
    stop = 1;
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], 0);
    double s = (now_ns() - began) / 1e9, cached = cached_mb(in_folder[CELLS], bytes[CELLS]);
    device = device_mb() - device;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    tell(&stores), tell(&loads), tell(&news);
    printf("write-back: cycles=%llu longest_s=%.1f device_mb=%.1f mb_a_cycle=%.1f cpu_percent=%.2f "
           "oldest_unwritten_s=%.2f\n", (unsigned long long)cycles, cycle_ns_longest / 1e9, device,
           device / (cycles ? cycles : 1), writer_cpu_ns / 1e7 / s,
           home == FILE_HOME ? 0 : oldest_unwritten_s());
    printf("memory: cells_mb=%.0f folder_cached_mb=%.0f faults=%ld\n", bytes[CELLS] / 1e6, cached,
           usage.ru_minflt);
    return 0;
}
