/* Lets a chosen call on the files of one folder fail, as a full or a failing disk lets it.

   Preloaded (LD_PRELOAD); FAULT_FOLDER names the folder.  Calls that write, change lengths, allocate, sync or create
   are counted from fault_arm on, by whatever thread; the one with the chosen number fails, or all from it on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum how { BEFORE, AFTER, SHORT };  /* nothing is done; it is done all the same; half of the bytes are written */
enum kind { CREATE = 1, WRITE = 2, META = 4, LENGTH = 8, SYNC = 16 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int armed, number, lasting, error, mode, kinds, calls, struck;
static char folder[PATH_MAX];

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
    const char *named = getenv("FAULT_FOLDER");
    if (named && strlen(named) < sizeof folder) strcpy(folder, named);
}

/* From now on the call with this number (from 0) of these kinds fails; `lasting`: and all that follow. */
void fault_arm(int nth, int forever, int code, int how, int which) {
    pthread_mutex_lock(&lock);
    number = nth, lasting = forever, error = code, mode = how, kinds = which, calls = struck = 0, armed = 1;
    pthread_mutex_unlock(&lock);
}

/* Which kinds of calls have failed since. */
int fault_disarm(void) {
    pthread_mutex_lock(&lock);
    armed = 0;
    int result = struck;
    pthread_mutex_unlock(&lock);
    return result;
}

static int is_inside(const char *path) {
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int strikes(enum kind kind) {
    pthread_mutex_lock(&lock);
    int result = 0;
    if (armed && kind & kinds) {
        result = calls == number || (lasting && calls > number);
        calls++;
        if (result) struck |= kind;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static int strikes_at(int descriptor, enum kind kind) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    int flags = fcntl(descriptor, F_GETFL);
    errno = saved;
    if (length < 0) return 0;
    path[length] = 0;
    if (kind == WRITE && flags & O_DSYNC) kind = META;
    return is_inside(path) && strikes(kind);
}

static ssize_t write_parts(int descriptor, const struct iovec *parts, int count, off_t offset) {
    if (offset < 0) {
        REAL(writev);
        return real(descriptor, parts, count);
    }
    REAL(pwritev);
    return real(descriptor, parts, count, offset);
}

static ssize_t writing(int descriptor, const struct iovec *parts, int count, off_t offset) {
    if (!strikes_at(descriptor, WRITE)) return write_parts(descriptor, parts, count, offset);
    if (mode == SHORT) {
        struct iovec first[count];
        size_t half = 0;
        for (int i = 0; i < count; i++) half += parts[i].iov_len;
        half /= 2;
        int used = 0;
        for (size_t left = half; used < count && left; used++) {
            first[used] = parts[used];
            if (first[used].iov_len > left) first[used].iov_len = left;
            left -= first[used].iov_len;
        }
        return write_parts(descriptor, first, used, offset);
    }
    if (mode == AFTER) write_parts(descriptor, parts, count, offset);
    errno = error;
    return -1;
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    struct iovec part = {(void *)bytes, length};
    return writing(descriptor, &part, 1, -1);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) { return writing(descriptor, parts, count, -1); }

ssize_t pwrite(int descriptor, const void *bytes, size_t length, off_t offset) {
    struct iovec part = {(void *)bytes, length};
    return writing(descriptor, &part, 1, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off_t offset) {
    return pwrite(descriptor, bytes, length, offset);
}

ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset) {
    return writing(descriptor, parts, count, offset);
}

ssize_t pwritev64(int descriptor, const struct iovec *parts, int count, off_t offset) {
    return writing(descriptor, parts, count, offset);
}

#define FAILING(kind, name, arguments) \
    REAL(name); \
    if (!strikes_at(descriptor, kind)) return real arguments; \
    if (mode == AFTER) real arguments; \
    errno = error; \
    return -1;

int ftruncate(int descriptor, off_t length) { FAILING(LENGTH, ftruncate, (descriptor, length)) }
int ftruncate64(int descriptor, off_t length) { return ftruncate(descriptor, length); }
int fallocate(int descriptor, int how, off_t offset, off_t length) {
    FAILING(LENGTH, fallocate, (descriptor, how, offset, length))
}
int fallocate64(int descriptor, int how, off_t offset, off_t length) {
    return fallocate(descriptor, how, offset, length);
}
int fsync(int descriptor) { FAILING(SYNC, fsync, (descriptor)) }
int fdatasync(int descriptor) { FAILING(SYNC, fdatasync, (descriptor)) }

static int opening(const char *path, int flags, mode_t permissions) {
    REAL(openat);
    if (flags & O_CREAT && armed && is_inside(path) && access(path, F_OK) && strikes(CREATE)) {
        errno = error;
        return -1;
    }
    return real(AT_FDCWD, path, flags, permissions);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        mode_t permissions = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            permissions = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        return opening(path, flags, permissions); \
    }

OPEN(open)
OPEN(open64)
