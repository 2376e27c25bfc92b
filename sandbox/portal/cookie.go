package portal

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Cookie returns the cookie of the network namespace at path, a number that the
// kernel gives to no other namespace until it boots again (SO_NETNS_COOKIE,
// Linux 5.14). The inode number would not do: it is free again as soon as a
// namespace goes, and pam_usernet makes a new one when ours is missing, which
// then got the same number.
func Cookie(path string) (uint64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	if st.Type != unix.NSFS_MAGIC {
		return 0, errNotMounted
	}
	return cookieIn(fd)
}

// CookieOf returns the cookie of a process's network namespace.
func CookieOf(pid int) (uint64, error) {
	return Cookie("/proc/" + strconv.Itoa(pid) + "/ns/net")
}

// cookieIn asks a socket made inside the namespace, since nothing else tells.
func cookieIn(ns int) (cookie uint64, err error) {
	err = within(ns, func() error {
		sock, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(sock)
		cookie, err = unix.GetsockoptUint64(sock, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	return cookie, err
}
