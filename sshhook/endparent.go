package sshhook

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// When PAM refuses a session, sshd refuses commands (254, with the line that the
// hook printed) and keeps the connection, so "ssh -N" would stay connected, with
// a certificate that nobody claimed. So the refusing hook leaves a copy of itself
// behind, which ends the connection's sshd a moment later: at once, the client
// would not get the line.
const (
	endCommand = "end-connection"
	endFD      = 3 // the copy's pidfd of that sshd, which names it for ever, unlike a pid
	endDelay   = 1500 * time.Millisecond
)

// EndParent ends the process that runs this one as its PAM step, soon. When the
// copy can't be started it ends it at once.
func EndParent() {
	ppid := unix.Getppid()
	if ppid <= 1 { // it has gone already
		return
	}
	pidfd, err := unix.PidfdOpen(ppid, 0)
	if err == nil {
		// Stdin, since the copy may not hold pam_exec's pipe, which is read to its end.
		_, err = syscall.ForkExec("/proc/self/exe", []string{"podspawn-hook", endCommand}, &syscall.ProcAttr{
			Files: []uintptr{0, 0, 0, uintptr(pidfd)},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		})
	}
	if err != nil {
		_ = unix.Kill(ppid, unix.SIGTERM) // it may have gone
	}
}

// endConnection is the copy. TERM makes the connection's monitor end its user's
// process too, which KILL would leave alone with the connection.
func endConnection() int {
	time.Sleep(endDelay)
	if err := unix.PidfdSendSignal(endFD, unix.SIGTERM, nil, 0); err != nil && err != unix.ESRCH {
		return exitRefused
	}
	return exitOK
}
