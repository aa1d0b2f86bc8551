/* Records what a process does to the files of one folder, in the order in which it did it.

   Preloaded (LD_PRELOAD); RECORD_FOLDER names the folder, RECORD_TRACE the file that takes the records.  What
   the process writes to a file of the folder that is called "notes" becomes a record too and changes no disk:
   so its promises stand between the writes that they are about.

   A record is a header of 48 bytes, then the path (for what names a file) or the bytes (of a write):

       u32 kind, u32 file, u64 offset, u64 length, u64 extra, u64 bytes that follow, u64 0

   Files are numbered as they are met; one that is created anew gets a number of its own.  A write through a
   descriptor without O_DSYNC is recorded when it is in the page cache.  What waits for the disk (fsync,
   fdatasync, a write with O_DSYNC) is recorded twice, when it begins and when it has returned, and other
   threads go on meanwhile; `extra` of both is one number.

   Where RECORD_KERNEL is set, the program is told that it runs on that release of Linux, with its files on ext4:
   LMDB asks, since fdatasync was broken there once.

   Processes that the program starts are recorded into the same trace: what numbers files and syncs, and the lock
   that keeps records in order, are in a map that all of them share.  Each has its own descriptors.

   Not seen: maps that are written to, and what libc does inside itself.  Whoever reads the trace compares the
   files that it leads to with the files that are there. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

enum kind {
    CREATED = 1, OPENED, WRITTEN, SYNC_WRITE_BEGAN, SYNC_WRITE_ENDED, RESIZED, ALLOCATED, SYNC_BEGAN, SYNC_ENDED,
    RENAMED, REMOVED, NOTED, UNKNOWN, LINKED
};

struct record {
    uint32_t kind, file;
    uint64_t offset, length, extra, following, zero;
};

enum { DESCRIPTORS = 4096, FILES = 1024 };

struct open_file {
    uint32_t file;  /* 0: not of the folder */
    int dsync, notes;
};

/* A new file of zeros is a shared state that nobody has prepared yet. */
struct shared {
    int is_prepared;
    pthread_mutex_t lock;
    uint64_t tokens;
    uint32_t file_count;
    struct { dev_t device; ino_t inode; } files[FILES];
};

static struct open_file descriptors[DESCRIPTORS];
static struct shared *shared;
static int trace = -1;
static char folder[PATH_MAX];
static size_t folder_length;

static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_close)(int);
static int (*real_fcntl)(int, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static ssize_t (*real_pwritev2)(int, const struct iovec *, int, off_t, int);
static int (*real_ftruncate)(int, off_t);
static int (*real_fallocate)(int, int, off_t, off_t);
static int (*real_posix_fallocate)(int, off_t, off_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_link)(const char *, const char *);
static int (*real_linkat)(int, const char *, int, const char *, int);
static int (*real_fstatfs)(int, struct statfs *);
static int (*real_uname)(struct utsname *);

#define FIND(name) (real_##name = dlsym(RTLD_NEXT, #name))

/* The first process prepares it before it can have started another. */
static void share(const char *path) {
    char name[PATH_MAX];
    if (snprintf(name, sizeof name, "%s.shared", path) >= (int)sizeof name) abort();
    int file = real_open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0 || real_ftruncate(file, sizeof *shared)) abort();
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared == MAP_FAILED) abort();
    real_close(file);
    if (!shared->is_prepared) {
        pthread_mutexattr_t attributes;
        pthread_mutexattr_init(&attributes);
        pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
        pthread_mutex_init(&shared->lock, &attributes);
        shared->is_prepared = 1;
    }
}

__attribute__((constructor)) static void start(void) {
    FIND(open), FIND(openat), FIND(close), FIND(fcntl), FIND(write), FIND(writev), FIND(pwrite), FIND(pwritev);
    FIND(pwritev2), FIND(ftruncate), FIND(fallocate), FIND(posix_fallocate), FIND(fsync), FIND(fdatasync), FIND(rename), FIND(unlink);
    FIND(fstatfs), FIND(uname), FIND(link), FIND(linkat);
    const char *named = getenv("RECORD_FOLDER"), *path = getenv("RECORD_TRACE");
    if (named && path && strlen(named) < sizeof folder) {
        strcpy(folder, named);
        folder_length = strlen(folder);
        share(path);
        trace = real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    }
}

/* --- records; called with the lock held --- */

static void put(enum kind kind, uint32_t file, uint64_t offset, uint64_t length, uint64_t extra,
                const struct iovec *parts, int count, size_t following) {
    struct record head = {kind, file, offset, length, extra, following, 0};
    if (real_write(trace, &head, sizeof head) != sizeof head) abort();
    for (int i = 0; i < count && following; i++) {
        size_t part = parts[i].iov_len < following ? parts[i].iov_len : following;
        if (real_write(trace, parts[i].iov_base, part) != (ssize_t)part) abort();
        following -= part;
    }
}

static void put_path(enum kind kind, uint32_t file, uint64_t extra, const char *path) {
    struct iovec part = {(void *)path, strlen(path)};
    put(kind, file, 0, 0, extra, &part, 1, part.iov_len);
}

/* --- which files are recorded --- */

static int is_inside(const char *path) {
    return trace >= 0 && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static struct open_file *found(int descriptor) {
    if (trace < 0 || descriptor < 0 || descriptor >= DESCRIPTORS) return NULL;
    return descriptors[descriptor].file || descriptors[descriptor].notes ? &descriptors[descriptor] : NULL;
}

static void opened(int descriptor, const char *path, int flags, int existed) {
    struct stat status;
    if (descriptor >= DESCRIPTORS || fstat(descriptor, &status)) abort();
    const char *name = strrchr(path, '/');
    if (!strcmp(name ? name + 1 : path, "notes")) {
        descriptors[descriptor] = (struct open_file){0, 0, 1};
    } else {
        uint32_t file = 0;
        for (uint32_t i = shared->file_count; existed && i > 0 && !file; i--)
            if (shared->files[i - 1].device == status.st_dev && shared->files[i - 1].inode == status.st_ino) file = i;
        if (!file) {
            if (shared->file_count == FILES) abort();
            shared->files[shared->file_count].device = status.st_dev;
            shared->files[shared->file_count++].inode = status.st_ino;
            file = shared->file_count;
            put_path(existed ? OPENED : CREATED, file, S_ISDIR(status.st_mode), path);
        }
        if (existed && flags & O_TRUNC) put(RESIZED, file, 0, 0, 0, NULL, 0, 0);
        descriptors[descriptor] = (struct open_file){file, !!(flags & O_DSYNC), 0};
    }
}

static int opening(int directory, const char *path, int flags, mode_t mode) {
    if (!is_inside(path)) return real_openat(directory, path, flags, mode);
    pthread_mutex_lock(&shared->lock);
    int existed = !access(path, F_OK);
    int descriptor = real_openat(directory, path, flags, mode), saved = errno;
    if (descriptor >= 0) opened(descriptor, path, flags, existed);
    pthread_mutex_unlock(&shared->lock);
    errno = saved;
    return descriptor;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, mode_t); \
        va_end(rest); \
    }

int open(const char *path, int flags, ...) { MODE(flags) return opening(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opening(AT_FDCWD, path, flags, mode); }
int openat(int directory, const char *path, int flags, ...) { MODE(flags) return opening(directory, path, flags, mode); }
int openat64(int directory, const char *path, int flags, ...) { MODE(flags) return opening(directory, path, flags, mode); }

int close(int descriptor) {
    if (found(descriptor)) {
        pthread_mutex_lock(&shared->lock);
        descriptors[descriptor] = (struct open_file){0, 0, 0};
        pthread_mutex_unlock(&shared->lock);
    }
    return real_close(descriptor);
}

/* A second descriptor of a file is one like the first. */
int fcntl(int descriptor, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (!real_fcntl) FIND(fcntl);
    if ((command != F_DUPFD && command != F_DUPFD_CLOEXEC) || !found(descriptor))
        return real_fcntl(descriptor, command, argument);
    pthread_mutex_lock(&shared->lock);
    int result = real_fcntl(descriptor, command, argument), saved = errno;
    if (result >= DESCRIPTORS) abort();
    if (result >= 0) descriptors[result] = descriptors[descriptor];
    pthread_mutex_unlock(&shared->lock);
    errno = saved;
    return result;
}

#undef fcntl64
int fcntl64(int descriptor, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return fcntl(descriptor, command, argument);
}

/* --- writes --- */

enum how { HERE, AT };

static ssize_t do_write(int descriptor, const struct iovec *parts, int count, off_t offset, enum how how) {
    return how == AT ? real_pwritev(descriptor, parts, count, offset) : real_writev(descriptor, parts, count);
}

static ssize_t writing(int descriptor, const struct iovec *parts, int count, off_t offset, enum how how) {
    struct open_file *known = found(descriptor);
    if (!known) return do_write(descriptor, parts, count, offset, how);
    size_t length = 0;
    for (int i = 0; i < count; i++) length += parts[i].iov_len;
    pthread_mutex_lock(&shared->lock);
    struct open_file file = *known;
    if (how == HERE && !file.notes) {
        int append = fcntl(descriptor, F_GETFL) & O_APPEND;
        offset = lseek(descriptor, 0, append ? SEEK_END : SEEK_CUR);
    }
    ssize_t written;
    int saved;
    if (file.notes) {
        put(NOTED, 0, 0, length, 0, parts, count, length);
        pthread_mutex_unlock(&shared->lock);
        return length;
    }
    if (file.dsync) {
        uint64_t token = ++shared->tokens;
        put(SYNC_WRITE_BEGAN, file.file, offset, length, token, parts, count, length);
        pthread_mutex_unlock(&shared->lock);
        written = do_write(descriptor, parts, count, offset, how);
        saved = errno;
        pthread_mutex_lock(&shared->lock);
        put(SYNC_WRITE_ENDED, file.file, offset, length, token, NULL, 0, 0);
        /* Its bytes are in the trace already: a write that came out short would make the trace untrue. */
        if (written != (ssize_t)length) put(UNKNOWN, file.file, 0, 0, 0, NULL, 0, 0);
    } else {
        written = do_write(descriptor, parts, count, offset, how);
        saved = errno;
        if (written > 0) put(WRITTEN, file.file, offset, written, 0, parts, count, written);
    }
    pthread_mutex_unlock(&shared->lock);
    errno = saved;
    return written;
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    struct iovec part = {(void *)bytes, length};
    return found(descriptor) ? writing(descriptor, &part, 1, 0, HERE) : real_write(descriptor, bytes, length);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    return writing(descriptor, parts, count, 0, HERE);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t length, off_t offset) {
    struct iovec part = {(void *)bytes, length};
    return found(descriptor) ? writing(descriptor, &part, 1, offset, AT) : real_pwrite(descriptor, bytes, length, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off_t offset) {
    return pwrite(descriptor, bytes, length, offset);
}

ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset) {
    return writing(descriptor, parts, count, offset, AT);
}

ssize_t pwritev64(int descriptor, const struct iovec *parts, int count, off_t offset) {
    return writing(descriptor, parts, count, offset, AT);
}

ssize_t pwritev2(int descriptor, const struct iovec *parts, int count, off_t offset, int flags) {
    struct open_file *known = found(descriptor);
    if (!known) return real_pwritev2(descriptor, parts, count, offset, flags);
    if (flags) {
        pthread_mutex_lock(&shared->lock);
        put(UNKNOWN, known->file, 0, 0, flags, NULL, 0, 0);
        pthread_mutex_unlock(&shared->lock);
    }
    return writing(descriptor, parts, count, offset, offset == -1 ? HERE : AT);
}

ssize_t pwritev64v2(int descriptor, const struct iovec *parts, int count, off_t offset, int flags) {
    return pwritev2(descriptor, parts, count, offset, flags);
}

/* --- length and room --- */

int ftruncate(int descriptor, off_t length) {
    struct open_file *known = found(descriptor);
    if (!known) return real_ftruncate(descriptor, length);
    pthread_mutex_lock(&shared->lock);
    int result = real_ftruncate(descriptor, length), saved = errno;
    if (!result) put(RESIZED, known->file, 0, length, 0, NULL, 0, 0);
    pthread_mutex_unlock(&shared->lock);
    errno = saved;
    return result;
}

int ftruncate64(int descriptor, off_t length) { return ftruncate(descriptor, length); }

int fallocate(int descriptor, int mode, off_t offset, off_t length) {
    struct open_file *known = found(descriptor);
    if (!known) return real_fallocate(descriptor, mode, offset, length);
    pthread_mutex_lock(&shared->lock);
    int result = real_fallocate(descriptor, mode, offset, length), saved = errno;
    if (!result) put(ALLOCATED, known->file, offset, length, mode, NULL, 0, 0);
    pthread_mutex_unlock(&shared->lock);
    errno = saved;
    return result;
}

int fallocate64(int descriptor, int mode, off_t offset, off_t length) {
    return fallocate(descriptor, mode, offset, length);
}

int posix_fallocate(int descriptor, off_t offset, off_t length) {
    struct open_file *known = found(descriptor);
    if (!known) return real_posix_fallocate(descriptor, offset, length);
    pthread_mutex_lock(&shared->lock);
    int result = real_posix_fallocate(descriptor, offset, length);
    if (!result) put(ALLOCATED, known->file, offset, length, 0, NULL, 0, 0);
    pthread_mutex_unlock(&shared->lock);
    return result;
}

int posix_fallocate64(int descriptor, off_t offset, off_t length) {
    return posix_fallocate(descriptor, offset, length);
}

/* --- syncs; `offset` is 1 for fsync --- */

static int syncing(int descriptor, int whole) {
    int (*sync)(int) = whole ? real_fsync : real_fdatasync;
    struct open_file *known = found(descriptor);
    if (!known || known->notes) return sync(descriptor);
    pthread_mutex_lock(&shared->lock);
    uint32_t file = known->file;
    uint64_t token = ++shared->tokens;
    put(SYNC_BEGAN, file, whole, 0, token, NULL, 0, 0);
    pthread_mutex_unlock(&shared->lock);
    int result = sync(descriptor), saved = errno;
    pthread_mutex_lock(&shared->lock);
    put(result ? UNKNOWN : SYNC_ENDED, file, whole, 0, token, NULL, 0, 0);
    pthread_mutex_unlock(&shared->lock);
    errno = saved;
    return result;
}

int fsync(int descriptor) { return syncing(descriptor, 1); }
int fdatasync(int descriptor) { return syncing(descriptor, 0); }

/* --- names --- */

static void put_names(enum kind kind, const char *from, const char *to) {
    struct iovec parts[3] = {{(void *)from, strlen(from)}, {"", 1}, {(void *)to, strlen(to)}};
    put(kind, 0, 0, 0, 0, parts, 3, parts[0].iov_len + 1 + parts[2].iov_len);
}

int rename(const char *from, const char *to) {
    if (!is_inside(from) && !is_inside(to)) return real_rename(from, to);
    pthread_mutex_lock(&shared->lock);
    int result = real_rename(from, to), saved = errno;
    if (!result) put_names(RENAMED, from, to);
    pthread_mutex_unlock(&shared->lock);
    errno = saved;
    return result;
}

int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags) {
    if (!is_inside(from) && !is_inside(to)) return real_linkat(from_directory, from, to_directory, to, flags);
    pthread_mutex_lock(&shared->lock);
    int result = real_linkat(from_directory, from, to_directory, to, flags), saved = errno;
    if (!result) put_names(LINKED, from, to);
    pthread_mutex_unlock(&shared->lock);
    errno = saved;
    return result;
}

int link(const char *from, const char *to) {
    return is_inside(from) || is_inside(to) ? linkat(AT_FDCWD, from, AT_FDCWD, to, 0) : real_link(from, to);
}

int unlink(const char *path) {
    if (!is_inside(path)) return real_unlink(path);
    pthread_mutex_lock(&shared->lock);
    int result = real_unlink(path), saved = errno;
    if (!result) put_path(REMOVED, 0, 0, path);
    pthread_mutex_unlock(&shared->lock);
    errno = saved;
    return result;
}

/* --- what the system says of itself --- */

int uname(struct utsname *name) {
    const char *release = getenv("RECORD_KERNEL");
    int result = real_uname(name);
    if (!result && release) strncpy(name->release, release, sizeof name->release - 1);
    return result;
}

int fstatfs(int descriptor, struct statfs *status) {
    int result = real_fstatfs(descriptor, status);
    if (!result && getenv("RECORD_KERNEL")) status->f_type = 0xEF53;
    return result;
}
