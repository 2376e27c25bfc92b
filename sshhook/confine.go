package sshhook

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Confine gives up what no hook needs, for the whole process and for good: core
// dumps, files, new privileges, and being looked at or traced by other
// processes of its uid. Run it first. It needs a program without cgo.
// startSelf leaves the right to start this very program, for [EndParent].
// files is how many it may have open at once.
func Confine(startSelf bool, files uint64) error {
	for _, l := range []struct {
		what int
		max  uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, files},
		{unix.RLIMIT_FSIZE, 0},
	} {
		if err := lower(l.what, l.max); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("become undumpable: %w", err)
	}
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no-new-privileges: %w", err)
	}
	return closeFilesystem(startSelf)
}

// lower sets soft and hard limit to at most limit.
func lower(what int, limit uint64) error {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(what, &r); err != nil {
		return fmt.Errorf("read limit %d: %w", what, err)
	}
	r.Max = min(r.Max, limit)
	r.Cur = r.Max
	if err := syscall.Setrlimit(what, &r); err != nil {
		return fmt.Errorf("lower limit %d: %w", what, err)
	}
	return nil
}

// closeFilesystem forbids to open, make or run any file from now on, but for this
// program with startSelf, where the kernel has landlock(7). Sockets are reached
// all the same.
func closeFilesystem(startSelf bool) error {
	const everything = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1 // all rights of the first version
	attr := unix.LandlockRulesetAttr{Handled_access_fs: everything}
	r, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	rules := int(r)
	switch {
	case errno == unix.ENOSYS || errno == unix.EOPNOTSUPP:
		return nil
	case errno != 0:
		return fmt.Errorf("create landlock rules: %w", errno)
	}
	var err error
	if startSelf {
		err = allowSelf(rules)
	}
	if err == nil {
		err = allThreads(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rules), 0, 0)
	}
	if err = errors.Join(err, unix.Close(rules)); err != nil {
		return fmt.Errorf("enforce landlock rules: %w", err)
	}
	return nil
}

func allowSelf(rules int) error {
	fd, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	attr := unix.LandlockPathBeneathAttr{
		Allowed_access: unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE, // execve reads
		Parent_fd:      int32(fd),
	}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if err := unix.Close(fd); err != nil || errno == 0 {
		return err
	}
	return errno
}

// allThreads makes a system call that the kernel applies to one thread in every
// thread that the Go runtime has.
func allThreads(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
