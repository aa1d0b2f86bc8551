/* Makes every sync of a regular file take longer, as on a disk where syncs are dear, and counts them.

   Preloaded (LD_PRELOAD).  SLOW_SYNC_MICROSECONDS says how much longer; SLOW_SYNC_COUNT names a file of 8 bytes that all
   processes count in.  A sync is what the name says, or a write to a descriptor that was opened with O_SYNC or O_DSYNC.
   Syncs that are made at once are delayed at once: nobody waits for another's. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static struct timespec delay;
static _Atomic uint64_t *count;

__attribute__((constructor)) static void start(void) {
    const char *microseconds = getenv("SLOW_SYNC_MICROSECONDS"), *path = getenv("SLOW_SYNC_COUNT");
    long asked = microseconds ? atol(microseconds) : 0;
    delay = (struct timespec){asked / 1000000, asked % 1000000 * 1000};
    int descriptor = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (mapped != MAP_FAILED) count = mapped;
    close(descriptor);
}

static void wait_longer(void) {
    int saved = errno;
    if (count) atomic_fetch_add(count, 1);
    for (struct timespec left = delay; nanosleep(&left, &left) && errno == EINTR;) {}
    errno = saved;
}

static int is_regular(int descriptor) {
    struct stat found;
    int saved = errno, result = !fstat(descriptor, &found) && S_ISREG(found.st_mode);
    errno = saved;
    return result;
}

static int is_synced(int descriptor) {
    int saved = errno, flags = fcntl(descriptor, F_GETFL);
    errno = saved;
    return flags >= 0 && flags & O_DSYNC && is_regular(descriptor);  /* O_SYNC holds the bit of O_DSYNC */
}

/* A function of libc, followed by the delay where a condition holds. */
#define SLOW(type, name, parameters, arguments, condition) \
    type name parameters { \
        static type (*real) parameters; \
        if (!real) real = (type (*) parameters)dlsym(RTLD_NEXT, #name); \
        type result = real arguments; \
        if (result >= 0 && (condition)) wait_longer(); \
        return result; \
    }

SLOW(int, fsync, (int fd), (fd), is_regular(fd))
SLOW(int, fdatasync, (int fd), (fd), is_regular(fd))
SLOW(int, syncfs, (int fd), (fd), 1)
SLOW(int, sync_file_range, (int fd, off64_t from, off64_t length, unsigned flags), (fd, from, length, flags),
     flags & (SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER) && is_regular(fd))
SLOW(int, msync, (void *from, size_t length, int flags), (from, length, flags), flags & MS_SYNC)

#define PARTS const struct iovec *parts, int number
#define FLAGGED (is_synced(fd) || (flags & (RWF_DSYNC | RWF_SYNC) && is_regular(fd)))

SLOW(ssize_t, write, (int fd, const void *bytes, size_t length), (fd, bytes, length), is_synced(fd))
SLOW(ssize_t, pwrite, (int fd, const void *bytes, size_t length, off_t at), (fd, bytes, length, at), is_synced(fd))
SLOW(ssize_t, pwrite64, (int fd, const void *bytes, size_t length, off64_t at), (fd, bytes, length, at), is_synced(fd))
SLOW(ssize_t, writev, (int fd, PARTS), (fd, parts, number), is_synced(fd))
SLOW(ssize_t, pwritev, (int fd, PARTS, off_t at), (fd, parts, number, at), is_synced(fd))
SLOW(ssize_t, pwritev64, (int fd, PARTS, off64_t at), (fd, parts, number, at), is_synced(fd))
SLOW(ssize_t, pwritev2, (int fd, PARTS, off_t at, int flags), (fd, parts, number, at, flags), FLAGGED)
SLOW(ssize_t, pwritev64v2, (int fd, PARTS, off64_t at, int flags), (fd, parts, number, at, flags), FLAGGED)
