/* A disk that misbehaves: preloaded into a process, it counts, fails, holds up and writes down what the process does to
   the files of one folder. Everything else goes through untouched.

   COLLECTOR_FAULTS_FOLDER   the folder
   COLLECTOR_FAULTS_CONTROL  a file of one `struct control`, shared with whoever gives the orders (disk.py)
   COLLECTOR_FAULTS_TRACE    where each change is written down, in order; unset: nowhere
   A process may also call `faults_begin` with the three itself. */
#define _GNU_SOURCE
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
#include <sys/syscall.h>
#include <unistd.h>

#define FDS 65536

enum kind { OPEN = 1, READ = 2, WRITE = 4, SYNC = 8, TRUNCATE = 16, UNLINK = 32, RENAME = 64, MAP = 128 };

struct control {
    int64_t calls;      /* counted so far: those of a kind in `kinds` */
    int64_t fail_from;  /* the first call that fails; 0: none */
    int64_t fail_until; /* the last one */
    int32_t error;      /* errno of the failure */
    int32_t kinds;
    int32_t hold;       /* while it is set, a write or a sync does not come back */
    int32_t held;       /* how many calls are being held up */
};

static struct control idle, *control = &idle;
static char folder[PATH_MAX];
static size_t folder_length;
static int trace = -1;
static char ours[FDS]; /* descriptors of files in the folder */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

__attribute__((visibility("default"))) void faults_begin(const char *where, const char *orders, const char *record) {
    snprintf(folder, sizeof folder, "%s", where);
    folder_length = strlen(folder);
    int fd = syscall(SYS_openat, AT_FDCWD, orders, O_RDWR | O_CLOEXEC, 0);
    void *shared = (void *)syscall(SYS_mmap, NULL, sizeof idle, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    control = shared == MAP_FAILED ? &idle : shared;
    syscall(SYS_close, fd);
    if (record && *record)
        trace = syscall(SYS_openat, AT_FDCWD, record, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("COLLECTOR_FAULTS_FOLDER"), *orders = getenv("COLLECTOR_FAULTS_CONTROL");
    if (where && orders)
        faults_begin(where, orders, getenv("COLLECTOR_FAULTS_TRACE"));
}

static int is_ours(const char *path) {
    return folder_length && path && !strncmp(path, folder, folder_length) &&
           (path[folder_length] == '/' || !path[folder_length]);
}

static int our_fd(int fd) { return fd >= 0 && fd < FDS && ours[fd]; }

/* Returns nonzero, with errno set, when this call has to fail. */
static int fails(enum kind kind) {
    if (kind & (WRITE | SYNC) && __atomic_load_n(&control->hold, __ATOMIC_SEQ_CST)) {
        __atomic_add_fetch(&control->held, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&control->hold, __ATOMIC_SEQ_CST))
            usleep(5000);
        __atomic_sub_fetch(&control->held, 1, __ATOMIC_SEQ_CST);
    }
    if (!(kind & control->kinds))
        return 0;
    int64_t call = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
    if (!control->fail_from || call < control->fail_from || call > control->fail_until)
        return 0;
    errno = control->error;
    return 1;
}

/* One line of the trace: kind, inode, offset, length of the path, length of the data; then path and data. */
static void note(char kind, uint64_t inode, uint64_t offset, const char *path, const void *data, size_t length) {
    if (trace < 0)
        return;
    char head[32] = {kind};
    uint32_t sizes[2] = {path ? strlen(path) : 0, length};
    memcpy(head + 8, &inode, 8);
    memcpy(head + 16, &offset, 8);
    memcpy(head + 24, sizes, 8);
    int saved = errno;
    if (syscall(SYS_write, trace, head, sizeof head) < 0 || (path && syscall(SYS_write, trace, path, sizes[0]) < 0) ||
        (length && syscall(SYS_write, trace, data, length) < 0))
        abort();
    errno = saved;
}

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) ? 0 : found.st_ino;
}

static int opened(const char *path, int flags, mode_t mode) {
    if (!is_ours(path))
        return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fails(OPEN))
        return -1;
    pthread_mutex_lock(&order);
    struct stat before;
    int is_new = flags & O_CREAT && stat(path, &before);
    int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0 && fd < FDS) {
        ours[fd] = 1;
        if (is_new)
            note('C', inode_of(fd), 0, path, NULL, 0);
        else if (flags & O_TRUNC)
            note('T', inode_of(fd), 0, NULL, NULL, 0);
    }
    pthread_mutex_unlock(&order);
    return fd;
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return opened(path, flags | O_LARGEFILE, mode);
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    return opened(path, flags, mode);
}

int close(int fd) {
    if (fd >= 0 && fd < FDS)
        ours[fd] = 0;
    return syscall(SYS_close, fd);
}

ssize_t read(int fd, void *into, size_t length) {
    return our_fd(fd) && fails(READ) ? -1 : syscall(SYS_read, fd, into, length);
}

ssize_t pread64(int fd, void *into, size_t length, off64_t offset) {
    return our_fd(fd) && fails(READ) ? -1 : syscall(SYS_pread64, fd, into, length, offset);
}

ssize_t pread(int fd, void *into, size_t length, off_t offset) { return pread64(fd, into, length, offset); }

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    if (!our_fd(fd))
        return syscall(SYS_pwrite64, fd, data, length, offset);
    if (fails(WRITE)) { /* the disk took half of it */
        int error = errno;
        if (length > 1 && error != EROFS && syscall(SYS_pwrite64, fd, data, length / 2, offset) < 0)
            error = errno;
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&order);
    ssize_t written = syscall(SYS_pwrite64, fd, data, length, offset);
    if (written > 0)
        note('W', inode_of(fd), offset, NULL, data, written);
    pthread_mutex_unlock(&order);
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return pwrite64(fd, data, length, offset); }

ssize_t write(int fd, const void *data, size_t length) {
    if (!our_fd(fd))
        return syscall(SYS_write, fd, data, length);
    if (fails(WRITE)) {
        int error = errno;
        if (length > 1 && error != EROFS && syscall(SYS_write, fd, data, length / 2) < 0)
            error = errno;
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&order);
    ssize_t written = syscall(SYS_write, fd, data, length);
    if (written > 0) /* the position is behind it now, wherever it was appended */
        note('W', inode_of(fd), lseek(fd, 0, SEEK_CUR) - written, NULL, data, written);
    pthread_mutex_unlock(&order);
    return written;
}

static int synced(int fd, long call) {
    if (our_fd(fd) && fails(SYNC))
        return -1;
    pthread_mutex_lock(&order);
    int failed = syscall(call, fd);
    if (!failed && our_fd(fd))
        note('S', inode_of(fd), 0, NULL, NULL, 0);
    pthread_mutex_unlock(&order);
    return failed;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }

int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int ftruncate64(int fd, off64_t length) {
    if (our_fd(fd) && fails(TRUNCATE))
        return -1;
    pthread_mutex_lock(&order);
    int failed = syscall(SYS_ftruncate, fd, length);
    if (!failed && our_fd(fd))
        note('T', inode_of(fd), length, NULL, NULL, 0);
    pthread_mutex_unlock(&order);
    return failed;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int truncate64(const char *path, off64_t length) {
    if (is_ours(path) && fails(TRUNCATE))
        return -1;
    pthread_mutex_lock(&order);
    struct stat found;
    int failed = syscall(SYS_truncate, path, length);
    if (!failed && is_ours(path) && !stat(path, &found))
        note('T', found.st_ino, length, NULL, NULL, 0);
    pthread_mutex_unlock(&order);
    return failed;
}

int truncate(const char *path, off_t length) { return truncate64(path, length); }

int unlink(const char *path) {
    if (is_ours(path) && fails(UNLINK))
        return -1;
    pthread_mutex_lock(&order);
    int failed = syscall(SYS_unlink, path);
    if (!failed && is_ours(path))
        note('U', 0, 0, path, NULL, 0);
    pthread_mutex_unlock(&order);
    return failed;
}

int rename(const char *from, const char *to) {
    if (is_ours(from) && fails(RENAME))
        return -1;
    pthread_mutex_lock(&order);
    int failed = syscall(SYS_rename, from, to);
    if (!failed && is_ours(from))
        note('R', 0, 0, from, to, strlen(to));
    pthread_mutex_unlock(&order);
    return failed;
}

void *mmap64(void *at, size_t length, int protection, int flags, int fd, off64_t offset) {
    if (our_fd(fd) && fails(MAP))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, length, protection, flags, fd, offset);
}
