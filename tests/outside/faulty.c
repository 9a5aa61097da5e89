/* Preloaded into a process, this makes its folders behave as network folders may, and its clock as a frozen one does.
 *
 * FAULTY_ROOT      paths below it are concerned, others are not
 * FAULTY_LOCKS=1   locks are refused (ENOLCK), as without a lock daemon
 * FAULTY_RENAMES=N every Nth rename fails with a stale handle (ESTALE)
 * FAULTY_OPENS=N   every Nth opening for reading fails with a stale handle
 * FAULTY_CLOCK=T   the clock of day says T seconds, always
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int concerned(const char *path) {
    const char *root = getenv("FAULTY_ROOT");
    return root && path && strncmp(path, root, strlen(root)) == 0;
}

static int due(const char *name, atomic_int *count) {
    const char *every = getenv(name);
    return every && atoi(every) > 0 && atomic_fetch_add(count, 1) % atoi(every) == atoi(every) - 1;
}

int flock(int file, int operation) {
    if (getenv("FAULTY_LOCKS")) {
        errno = ENOLCK;
        return -1;
    }
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return real(file, operation);
}

int rename(const char *from, const char *to) {
    static atomic_int count;
    if (concerned(to) && due("FAULTY_RENAMES", &count)) {
        errno = ESTALE;
        return -1;
    }
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return real(from, to);
}

static int opened(const char *path, int flags) {
    static atomic_int count;
    int reads = (flags & O_ACCMODE) == O_RDONLY && !(flags & O_DIRECTORY);
    return reads && concerned(path) && due("FAULTY_OPENS", &count);
}

#define OPEN(NAME)                                               \
    int NAME(const char *path, int flags, ...) {                 \
        va_list rest;                                            \
        va_start(rest, flags);                                   \
        int mode = va_arg(rest, int);                            \
        va_end(rest);                                            \
        if (opened(path, flags)) {                               \
            errno = ESTALE;                                      \
            return -1;                                           \
        }                                                        \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #NAME); \
        return real(path, flags, mode);                          \
    }
OPEN(open)
OPEN(open64)

int clock_gettime(clockid_t clock, struct timespec *now) {
    const char *frozen = getenv("FAULTY_CLOCK");
    if (frozen && clock == CLOCK_REALTIME) {
        now->tv_sec = atol(frozen);
        now->tv_nsec = 0;
        return 0;
    }
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    return real(clock, now);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    const char *frozen = getenv("FAULTY_CLOCK");
    if (frozen) {
        now->tv_sec = atol(frozen);
        now->tv_usec = 0;
        return 0;
    }
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    return real(now, zone);
}
