package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

// errGone means that a process no longer exists.
var errGone = errors.New("the process is gone")

// procStat is what we need of /proc/PID/stat, proc_pid_stat(5).
type procStat struct {
	sandbox.Process
	parent int
}

func statProc(pid int) (procStat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return procStat{}, errGone
	}
	if err != nil {
		return procStat{}, err
	}
	// The second field is the name in parentheses and may hold anything, so count
	// from the last one: what follows are fields 3 (state), 4 (ppid) … 22 (start time).
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return procStat{}, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	f := bytes.Fields(b[i+1:])
	if len(f) < 20 {
		return procStat{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	parent, err1 := strconv.Atoi(string(f[1]))
	start, err2 := strconv.ParseUint(string(f[19]), 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return procStat{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return procStat{Process: sandbox.Process{PID: pid, Start: start}, parent: parent}, nil
}

// uidOf returns the owner of /proc/PID: the effective uid.
func uidOf(pid int) (int, error) {
	uid, _, err := ownerOf(pid)
	return uid, err
}

// ownerOf returns the effective uid and gid of a process, which own /proc/PID.
func ownerOf(pid int) (uid, gid int, err error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(pid), &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, 0, errGone
		}
		return 0, 0, err
	}
	return int(st.Uid), int(st.Gid), nil
}

// processesOf returns the processes whose effective uid this is; the sandbox's
// relay, which serves all connections, only when asked.
func processesOf(uid int, relay bool) ([]sandbox.Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var procs []sandbox.Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		has, gid, err := ownerOf(pid)
		if err != nil || has != uid || gid == sandbox.RelayGID && !relay {
			continue // gone, or somebody else's
		}
		if st, err := statProc(pid); err == nil {
			procs = append(procs, st.Process)
		}
	}
	return procs, nil
}

// maxAncestors bounds the walk to the root of the process tree.
const maxAncestors = 64

// ancestors returns the parent of pid, its parent, and so on, without process 1.
// pid is held by a pidfd over the walk and must still be there at the end, so
// that a pid which was reused on the way can't lend its ancestry (threat 46). The
// same goes for each process above it: a child that still names its parent after
// the parent was looked at had that one and no later owner of its pid.
func ancestors(pid int) ([]sandbox.Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil, errGone
		}
		return nil, err
	}
	defer unix.Close(fd)
	st, err := statProc(pid)
	if err != nil {
		return nil, err
	}
	var up []sandbox.Process
	for steps := 0; st.parent > 1 && steps < maxAncestors; steps++ {
		parent, perr := statProc(st.parent)
		again, err := statProc(st.PID)
		switch {
		case err != nil:
			return nil, err
		case again.Process != st.Process:
			return nil, errGone
		case again.parent != st.parent: // the parent ended meanwhile
			st = again
		case perr != nil:
			return nil, perr
		default:
			up, st = append(up, parent.Process), parent
		}
	}
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
		return nil, errGone
	}
	return up, nil
}

// alive reports whether exactly this process exists and is no zombie.
func alive(p sandbox.Process) bool {
	fd, err := openProcess(p)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return !exited(fd)
}

// openProcess returns a pidfd of exactly this process.
func openProcess(p sandbox.Process) (int, error) {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return -1, errGone
		}
		return -1, err
	}
	if st, err := statProc(p.PID); err != nil || st.Process != p {
		_ = unix.Close(fd) // another process's
		return -1, errors.Join(errGone, err)
	}
	return fd, nil
}

// exited reports whether a pidfd's process has ended: it polls as readable then.
func exited(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// waitProcess returns nil when the process has ended, or ctx's error. It blocks no thread.
func waitProcess(ctx context.Context, p sandbox.Process) error {
	fd, err := openProcess(p)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) }) // unblocks the wait
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Read(func(fd uintptr) bool { return exited(int(fd)) }); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	return nil
}

// signalProcess sends a signal to exactly this process; one that is gone is no error.
func signalProcess(p sandbox.Process, sig unix.Signal) error {
	fd, err := openProcess(p)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}
