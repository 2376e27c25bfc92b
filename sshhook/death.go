package sshhook

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// dieBy ends this process with the signal of that name, so that sshd reports to
// the client what ended the remote command. The name comes from a guest: only
// signals that end a process by default count, or a hostile guest could stop
// the hook for ever. It returns when the signal is none of them.
func dieBy(name string) {
	sig := unix.SignalNum("SIG" + name)
	switch sig {
	case unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGBUS, unix.SIGFPE,
		unix.SIGKILL, unix.SIGUSR1, unix.SIGSEGV, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM,
		unix.SIGSTKFLT, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGPROF, unix.SIGIO, unix.SIGPWR, unix.SIGSYS:
	default:
		return
	}
	// os/signal.Reset would bring back the runtime's handlers, which print stacks
	// instead of dying. A zeroed struct sigaction is SIG_DFL; 8 is the kernel's
	// size of a signal set.
	var action [4]uint64
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	var set [1]uint64
	set[0] = 1 << (uint(sig) - 1)
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_UNBLOCK, uintptr(unsafe.Pointer(&set)), 0, 8, 0, 0)
	_ = unix.Kill(unix.Getpid(), sig) // cannot fail: it is our own process
	// Delivery to some thread is immediate, but this one may run on for a moment.
	for range 100 {
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 10e6}, nil) // interrupted or not
	}
}
