/* Faults at chosen I/O calls of a process: loaded by LD_PRELOAD, idle until faultio_arm is called.

   Counted are calls below one folder that change what is on disk: opening for writing, write, fsync, rename, link,
   unlink, mkdir, truncate, chmod. A process that is forked from the armed one counts nothing: its calls are no part of
   the order. Real work is done by raw system calls, the *at variants that every architecture has. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN, WRITE, FSYNC, RENAME, LINK, UNLINK, MKDIR, TRUNCATE, CHMOD };
static const char *const NAMES[] = {"open", "write", "fsync", "rename", "link", "unlink", "mkdir", "truncate", "chmod"};

enum { COUNT, KILL, KILL_HALFWAY, FAIL_ONCE, FAIL_ON, CLOCK_BACK, SIGNAL };

static char root[PATH_MAX];
static size_t root_length;
static int mode, kinds, log_file = -1;
static long at, value;
static pid_t armed; /* 0: idle */
static atomic_long calls;
static atomic_int partly; /* FAIL_ON: whether the one short write has been */

/* Count calls below `folder` into `log` (a line each: number, kind, path). From call `n` (the first is 1):
   KILL          SIGKILL before it
   KILL_HALFWAY  the first half of a write, then SIGKILL; before it where it is no write
   FAIL_ONCE     it alone fails with errno `what`
   FAIL_ON       it and all later calls of the kinds in the mask `which` fail with errno `what`, after one short write,
                 as on a disk that gets full
   CLOCK_BACK    the wall clock is `what` seconds earlier than it was
   SIGNAL        the process gets signal `what` before it, which is then made as usual. */
void faultio_arm(const char *folder, const char *log, int how, long n, long what, int which)
{
    int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    log_file = fcntl(file, F_DUPFD_CLOEXEC, 900); /* out of the way of numbers that programs expect */
    syscall(SYS_close, file);
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    mode = how, at = n, value = what, kinds = which;
    atomic_store(&calls, 0);
    atomic_store(&partly, 0);
    armed = getpid();
}

static int below_root(const char *path)
{
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* The path behind a descriptor, or of a name relative to one. */
static void absolute(int descriptor, const char *name, char *path)
{
    char link[64];
    ssize_t length;
    if (name && *name == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (descriptor == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    if (name && length >= 0 && length < PATH_MAX - 1)
        snprintf(path + length, PATH_MAX - length, "/%s", name);
}

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) /* until the signal arrives */
        ;
}

/* What is to happen instead of a call: */
enum { GO, REFUSED, HALF };

static int verdict(int kind, int descriptor, const char *name)
{
    char path[PATH_MAX], line[PATH_MAX + 64];
    long number;
    int length, saved = errno;
    if (!armed || armed != getpid())
        return GO;
    absolute(descriptor, name, path);
    if (!below_root(path)) {
        errno = saved;
        return GO;
    }
    number = atomic_fetch_add(&calls, 1) + 1;
    length = snprintf(line, sizeof line, "%ld %s %s\n", number, NAMES[kind], path);
    syscall(SYS_write, log_file, line, (size_t)length);
    errno = saved;
    if (number < at || mode == COUNT || mode == CLOCK_BACK)
        return GO;
    if (mode == FAIL_ON) {
        if (!(kinds & (1 << kind)))
            return GO;
        if (kind == WRITE && !atomic_exchange(&partly, 1))
            return HALF;
        errno = (int)value;
        return REFUSED;
    }
    if (number > at)
        return GO;
    if (mode == SIGNAL) {
        kill(armed, (int)value);
        errno = saved;
        return GO;
    }
    if (mode == KILL_HALFWAY && kind == WRITE)
        return HALF;
    if (mode != FAIL_ONCE)
        die();
    errno = (int)value;
    return REFUSED;
}

/* After the first half of a write. */
static ssize_t halfway(ssize_t written)
{
    if (mode == KILL_HALFWAY)
        die();
    return written;
}

static int writes(int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
}

static int open_at(int folder, const char *path, int flags, mode_t permissions)
{
    if (writes(flags) && verdict(OPEN, folder, path) == REFUSED)
        return -1;
    return (int)syscall(SYS_openat, folder, path, flags, permissions);
}

#define PERMISSIONS(flags, last)                                                                                       \
    mode_t permissions = 0;                                                                                            \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list more;                                                                                                  \
        va_start(more, last);                                                                                          \
        permissions = va_arg(more, mode_t);                                                                            \
        va_end(more);                                                                                                  \
    }

int open(const char *path, int flags, ...)
{
    PERMISSIONS(flags, flags)
    return open_at(AT_FDCWD, path, flags, permissions);
}

int openat(int folder, const char *path, int flags, ...)
{
    PERMISSIONS(flags, flags)
    return open_at(folder, path, flags, permissions);
}

int open64(const char *path, int flags, ...)
{
    PERMISSIONS(flags, flags)
    return open_at(AT_FDCWD, path, flags, permissions);
}

int openat64(int folder, const char *path, int flags, ...)
{
    PERMISSIONS(flags, flags)
    return open_at(folder, path, flags, permissions);
}

int creat(const char *path, mode_t permissions)
{
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, permissions);
}

int creat64(const char *path, mode_t permissions)
{
    return creat(path, permissions);
}

ssize_t write(int file, const void *bytes, size_t n)
{
    switch (verdict(WRITE, file, NULL)) {
    case REFUSED:
        return -1;
    case HALF:
        return halfway(syscall(SYS_write, file, bytes, (n + 1) / 2));
    }
    return syscall(SYS_write, file, bytes, n);
}

ssize_t pwrite(int file, const void *bytes, size_t n, off_t where)
{
    switch (verdict(WRITE, file, NULL)) {
    case REFUSED:
        return -1;
    case HALF:
        return halfway(syscall(SYS_pwrite64, file, bytes, (n + 1) / 2, where));
    }
    return syscall(SYS_pwrite64, file, bytes, n, where);
}

ssize_t pwrite64(int file, const void *bytes, size_t n, off64_t where)
{
    return pwrite(file, bytes, n, where);
}

ssize_t writev(int file, const struct iovec *parts, int n)
{
    switch (verdict(WRITE, file, NULL)) {
    case REFUSED:
        return -1;
    case HALF:
        return halfway(syscall(SYS_write, file, parts->iov_base, (parts->iov_len + 1) / 2));
    }
    return syscall(SYS_writev, file, parts, n);
}

ssize_t sendfile(int to, int from, off_t *where, size_t n)
{
    if (verdict(WRITE, to, NULL) == REFUSED)
        return -1;
    return syscall(SYS_sendfile, to, from, where, n);
}

ssize_t sendfile64(int to, int from, off64_t *where, size_t n)
{
    return sendfile(to, from, where, n);
}

ssize_t copy_file_range(int from, off64_t *from_where, int to, off64_t *to_where, size_t n, unsigned flags)
{
    if (verdict(WRITE, to, NULL) == REFUSED)
        return -1;
    return syscall(SYS_copy_file_range, from, from_where, to, to_where, n, flags);
}

int fsync(int file)
{
    return verdict(FSYNC, file, NULL) == REFUSED ? -1 : (int)syscall(SYS_fsync, file);
}

int fdatasync(int file)
{
    return verdict(FSYNC, file, NULL) == REFUSED ? -1 : (int)syscall(SYS_fdatasync, file);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags)
{
    if (verdict(RENAME, to_folder, to) == REFUSED)
        return -1;
    return (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    return renameat2(from_folder, from, to_folder, to, 0);
}

int rename(const char *from, const char *to)
{
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags)
{
    if (verdict(LINK, to_folder, to) == REFUSED)
        return -1;
    return (int)syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
}

int link(const char *from, const char *to)
{
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int symlinkat(const char *text, int folder, const char *path)
{
    return verdict(LINK, folder, path) == REFUSED ? -1 : (int)syscall(SYS_symlinkat, text, folder, path);
}

int symlink(const char *text, const char *path)
{
    return symlinkat(text, AT_FDCWD, path);
}

int unlinkat(int folder, const char *path, int flags)
{
    return verdict(UNLINK, folder, path) == REFUSED ? -1 : (int)syscall(SYS_unlinkat, folder, path, flags);
}

int unlink(const char *path)
{
    return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

int mkdirat(int folder, const char *path, mode_t permissions)
{
    return verdict(MKDIR, folder, path) == REFUSED ? -1 : (int)syscall(SYS_mkdirat, folder, path, permissions);
}

int mkdir(const char *path, mode_t permissions)
{
    return mkdirat(AT_FDCWD, path, permissions);
}

int ftruncate(int file, off_t size)
{
    return verdict(TRUNCATE, file, NULL) == REFUSED ? -1 : (int)syscall(SYS_ftruncate, file, size);
}

int ftruncate64(int file, off64_t size)
{
    return ftruncate(file, size);
}

int truncate(const char *path, off_t size)
{
    return verdict(TRUNCATE, AT_FDCWD, path) == REFUSED ? -1 : (int)syscall(SYS_truncate, path, size);
}

int truncate64(const char *path, off64_t size)
{
    return truncate(path, size);
}

int fallocate(int file, int how, off_t from, off_t n)
{
    return verdict(TRUNCATE, file, NULL) == REFUSED ? -1 : (int)syscall(SYS_fallocate, file, how, from, n);
}

int fallocate64(int file, int how, off64_t from, off64_t n)
{
    return fallocate(file, how, from, n);
}

int posix_fallocate(int file, off_t from, off_t n)
{
    return fallocate(file, 0, from, n) ? errno : 0;
}

int posix_fallocate64(int file, off64_t from, off64_t n)
{
    return posix_fallocate(file, from, n);
}

int fchmod(int file, mode_t permissions)
{
    return verdict(CHMOD, file, NULL) == REFUSED ? -1 : (int)syscall(SYS_fchmod, file, permissions);
}

int fchmodat(int folder, const char *path, mode_t permissions, int flags)
{
    (void)flags; /* none that Linux's system call takes */
    return verdict(CHMOD, folder, path) == REFUSED ? -1 : (int)syscall(SYS_fchmodat, folder, path, permissions);
}

int chmod(const char *path, mode_t permissions)
{
    return fchmodat(AT_FDCWD, path, permissions, 0);
}

static long seconds_back(void)
{
    return armed && mode == CLOCK_BACK && atomic_load(&calls) >= at ? value : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec -= seconds_back();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int result = (int)syscall(SYS_gettimeofday, now, zone);
    if (!result)
        now->tv_sec -= seconds_back();
    return result;
}

time_t time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where)
        *where = now.tv_sec;
    return now.tv_sec;
}
