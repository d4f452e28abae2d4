// Makes calls that change files fail: preloaded into a test's process, told what to do by a file.
//
// FAULTS_CONTROL is a file of four 64-bit numbers: how many calls there were (counted here), the first
// that fails, one past the last that fails, and the error. FAULTS_UNDER is the folder whose files are meant.
// FAULTS_READ is a path's end: opening and reading files with that end is meant, too; with FAULTS_ONLY_READ
// nothing else is.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile uint64_t *control;
static const char *under;
static size_t under_length;
static const char *read_end;
static int only_reads;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAULTS_CONTROL");
  under = getenv("FAULTS_UNDER");
  if (!path || !under) return;
  under_length = strlen(under);
  read_end = getenv("FAULTS_READ");
  only_reads = getenv("FAULTS_ONLY_READ") != NULL;
  int fd = open(path, O_RDWR);
  if (fd < 0) return;
  void *map = mmap(NULL, 32, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (map != MAP_FAILED) control = map;
}

static int fails(void) {
  uint64_t number = __atomic_fetch_add(&control[0], 1, __ATOMIC_SEQ_CST);
  if (number < control[1] || number >= control[2]) return 0;
  errno = (int)control[3];
  return 1;
}

static int is_under(const char *path) {
  return control && path && strncmp(path, under, under_length) == 0;
}

static int is_meant_path(const char *path, int reads) {
  if (!is_under(path)) return 0;
  if (!reads) return !only_reads;
  if (!read_end) return 0;
  size_t length = strlen(path), end = strlen(read_end);
  return length >= end && strcmp(path + length - end, read_end) == 0;
}

static int is_meant(int fd, int reads) {
  if (!control || (reads && !read_end) || (!reads && only_reads)) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return is_meant_path(path, reads);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ON(is_meant_call, type, name, parameters, arguments) \
  type name parameters { REAL(name); if (is_meant_call && fails()) return -1; return real arguments; }
#define ON_READ(type, name, parameters, arguments) ON(is_meant(fd, 1), type, name, parameters, arguments)
#define ON_FD(type, name, parameters, arguments) ON(is_meant(fd, 0), type, name, parameters, arguments)
#define ON_PATH(type, name, parameters, arguments) ON(is_meant_path(path, 0), type, name, parameters, arguments)

ON_READ(ssize_t, read, (int fd, void *bytes, size_t count), (fd, bytes, count))
ON_READ(ssize_t, pread, (int fd, void *bytes, size_t count, off_t at), (fd, bytes, count, at))
ON_READ(ssize_t, pread64, (int fd, void *bytes, size_t count, off64_t at), (fd, bytes, count, at))

ON_FD(ssize_t, write, (int fd, const void *bytes, size_t count), (fd, bytes, count))
ON_FD(ssize_t, pwrite, (int fd, const void *bytes, size_t count, off_t at), (fd, bytes, count, at))
ON_FD(ssize_t, pwrite64, (int fd, const void *bytes, size_t count, off64_t at), (fd, bytes, count, at))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate, (int fd, off_t length), (fd, length))
ON_FD(int, ftruncate64, (int fd, off64_t length), (fd, length))
ON_PATH(int, unlink, (const char *path), (path))
ON_PATH(int, rename, (const char *path, const char *to), (path, to))
ON_PATH(int, link, (const char *path, const char *to), (path, to))
ON_PATH(int, mkdir, (const char *path, mode_t mode), (path, mode))

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest); \
    int reads = (flags & O_ACCMODE) == O_RDONLY; \
    if (is_meant_path(path, reads) && fails()) return -1; \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
