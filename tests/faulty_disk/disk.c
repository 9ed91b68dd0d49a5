/* A disk that fails when it is told to, for any process that is started with this library in LD_PRELOAD.

   Reads, writes, syncs and truncations of files whose path contains `watched` are counted in a control file,
   which tests share with the process, and the n-th of them fails as the control file says. __init__.py
   writes that file and says what each fault does. Compiled by the tests. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { READ, WRITE, SYNC, TRUNCATE, OPERATIONS };
enum { NONE, ERROR, TORN_ERROR, KILL_BEFORE, KILL_WITHIN, KILL_AFTER, POWER_LOSS };

struct control {
    int64_t fault;              /* what happens */
    int64_t operations;         /* at which operations: a bit each */
    int64_t countdown;          /* at the how-manieth of them from now, 1 for the next */
    int64_t lasting;            /* whether all later ones fail too; with ERROR and TORN_ERROR */
    int64_t code;               /* the errno of an error */
    int64_t seed;               /* which of the writes that no sync followed survive a loss of power; 0: none */
    int64_t fired;              /* how often a fault came */
    int64_t counts[OPERATIONS]; /* operations seen */
    char watched[1024];         /* part of the path of the files that this is about; empty: none */
};

static struct control *control;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_pread)(int, void *, size_t, off_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off_t);

/* ---------------------------------------------------------------- what no sync followed yet */

struct change {                 /* one write or truncation, and what was there before */
    struct change *earlier;
    dev_t device;
    ino_t file;
    int descriptor;             /* of our own */
    off_t size_before, offset;
    size_t length, kept;        /* of the new bytes (a truncation has none), and of the old ones */
    char *bytes, *before;
};

static struct change *unsynced;

static void drop(struct change *change) {
    close(change->descriptor);
    free(change->bytes);
    free(change->before);
    free(change);
}

static void remember(int descriptor, off_t offset, const void *bytes, size_t length) {
    struct stat about;
    char path[64];
    struct change *change = calloc(1, sizeof *change);
    fstat(descriptor, &about);
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    change->descriptor = open(path, O_RDWR | O_CLOEXEC);
    change->device = about.st_dev;
    change->file = about.st_ino;
    change->size_before = about.st_size;
    change->offset = offset;
    change->length = length;
    change->kept = offset < about.st_size ? (size_t)(about.st_size - offset) : 0;
    if (bytes != NULL) {
        if (change->kept > length)
            change->kept = length;
        change->bytes = memcpy(malloc(length ? length : 1), bytes, length);
    }
    change->before = malloc(change->kept ? change->kept : 1);
    if (change->kept && real_pread(change->descriptor, change->before, change->kept, offset) < 0)
        change->kept = 0;
    change->earlier = unsynced;
    unsynced = change;
}

static void forget(int descriptor) {
    struct stat about;
    fstat(descriptor, &about);
    for (struct change **at = &unsynced; *at != NULL;) {
        struct change *change = *at;
        if (change->device == about.st_dev && change->file == about.st_ino) {
            *at = change->earlier;
            drop(change);
        } else {
            at = &change->earlier;
        }
    }
}

static void redo(struct change *change) {
    if (change == NULL)
        return;
    redo(change->earlier);
    int64_t luck = (control->seed = (control->seed * 6364136223846793005LL + 1442695040888963407LL)) >> 40 & 3;
    if (change->bytes == NULL || luck == 0)
        return;
    size_t length = luck == 1 ? change->length / 2 : change->length;
    if (real_pwrite(change->descriptor, change->bytes, length, change->offset) < 0)
        return;
}

static void lose_power(void) {
    for (struct change *change = unsynced; change != NULL; change = change->earlier) {
        if (change->kept && real_pwrite(change->descriptor, change->before, change->kept, change->offset) < 0)
            continue;
        if (real_ftruncate(change->descriptor, change->size_before) < 0)
            continue;
    }
    if (control->seed != 0)
        redo(unsynced);
}

/* ---------------------------------------------------------------- when a fault comes */

static void die(void) {
    kill(getpid(), SIGKILL);
    pause();
}

static int is_watched(int descriptor) {
    char link[64], path[PATH_MAX];
    if (control == NULL || control->watched[0] == 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strstr(path, control->watched) != NULL;
}

/* The fault of this operation, which is counted. */
static int64_t fault_of(int operation) {
    int64_t fault = NONE;
    pthread_mutex_lock(&lock);
    control->counts[operation] += 1;
    if (control->fault != NONE && control->operations >> operation & 1) {
        if (control->countdown > 0)
            control->countdown -= 1;
        if (control->countdown == 0) {
            fault = control->fault;
            control->fired += 1;
            if (!control->lasting)
                control->fault = NONE;
        }
    }
    pthread_mutex_unlock(&lock);
    return fault;
}

static ssize_t failure(void) {
    errno = (int)control->code;
    return -1;
}

/* ---------------------------------------------------------------- the calls */

static ssize_t watched_write(int descriptor, const void *bytes, size_t length, off_t offset, int moves) {
    int64_t fault = fault_of(WRITE);
    size_t written = length;
    if (fault == KILL_BEFORE)
        die();
    if (fault == ERROR)
        return failure();
    if (fault == KILL_WITHIN || fault == TORN_ERROR)
        written = length / 2;
    if (moves)
        offset = lseek(descriptor, 0, fcntl(descriptor, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    pthread_mutex_lock(&lock);
    remember(descriptor, offset, bytes, written);
    pthread_mutex_unlock(&lock);
    ssize_t done = moves ? real_write(descriptor, bytes, written)
                         : real_pwrite(descriptor, bytes, written, offset);
    if (fault == KILL_WITHIN || fault == KILL_AFTER)
        die();
    if (fault == POWER_LOSS) {
        lose_power();
        die();
    }
    return fault == TORN_ERROR ? failure() : done;
}

static int watched_sync(int descriptor, int (*sync)(int)) {
    int64_t fault = fault_of(SYNC);
    if (fault == POWER_LOSS) {
        lose_power();
        die();
    }
    if (fault == KILL_BEFORE || fault == KILL_WITHIN)
        die();
    if (fault == ERROR || fault == TORN_ERROR)
        return (int)failure();
    int done = sync(descriptor);
    pthread_mutex_lock(&lock);
    forget(descriptor);
    pthread_mutex_unlock(&lock);
    if (fault == KILL_AFTER)
        die();
    return done;
}

static int watched_truncate(int descriptor, off_t size) {
    int64_t fault = fault_of(TRUNCATE);
    if (fault == KILL_BEFORE || fault == KILL_WITHIN)
        die();
    if (fault == ERROR || fault == TORN_ERROR)
        return (int)failure();
    pthread_mutex_lock(&lock);
    remember(descriptor, size, NULL, 0);
    pthread_mutex_unlock(&lock);
    int done = real_ftruncate(descriptor, size);
    if (fault == POWER_LOSS)
        lose_power();
    if (fault == KILL_AFTER || fault == POWER_LOSS)
        die();
    return done;
}

static int read_fails(void) {
    int64_t fault = fault_of(READ);
    if (fault == POWER_LOSS)
        lose_power();
    if (fault != NONE && fault != ERROR && fault != TORN_ERROR)
        die();
    return fault != NONE;
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    return is_watched(descriptor) ? watched_write(descriptor, bytes, length, 0, 1)
                                  : real_write(descriptor, bytes, length);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t length, off_t offset) {
    return is_watched(descriptor) ? watched_write(descriptor, bytes, length, offset, 0)
                                  : real_pwrite(descriptor, bytes, length, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off_t offset) {
    return pwrite(descriptor, bytes, length, offset);
}

ssize_t read(int descriptor, void *bytes, size_t length) {
    return is_watched(descriptor) && read_fails() ? failure() : real_read(descriptor, bytes, length);
}

ssize_t pread(int descriptor, void *bytes, size_t length, off_t offset) {
    return is_watched(descriptor) && read_fails() ? failure() : real_pread(descriptor, bytes, length, offset);
}

ssize_t pread64(int descriptor, void *bytes, size_t length, off_t offset) {
    return pread(descriptor, bytes, length, offset);
}

int fsync(int descriptor) {
    return is_watched(descriptor) ? watched_sync(descriptor, real_fsync) : real_fsync(descriptor);
}

int fdatasync(int descriptor) {
    return is_watched(descriptor) ? watched_sync(descriptor, real_fdatasync) : real_fdatasync(descriptor);
}

int ftruncate(int descriptor, off_t size) {
    return is_watched(descriptor) ? watched_truncate(descriptor, size) : real_ftruncate(descriptor, size);
}

int ftruncate64(int descriptor, off_t size) { return ftruncate(descriptor, size); }

/* ---------------------------------------------------------------- the control file */

/* Heed another control file from now on, and forget what was not synced; a forked child calls it. */
int faulty_disk_control(const char *path) {
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0)
        return -1;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped == MAP_FAILED)
        return -1;
    while (unsynced != NULL) {
        struct change *change = unsynced;
        unsynced = change->earlier;
        drop(change);
    }
    control = mapped;
    return 0;
}

__attribute__((constructor)) static void load(void) {
    real_read = dlsym(RTLD_NEXT, "read");
    real_pread = dlsym(RTLD_NEXT, "pread64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    const char *path = getenv("FAULTY_DISK");
    if (path != NULL)
        faulty_disk_control(path);
}
