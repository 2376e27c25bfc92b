package portal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// killAll kills every process that has the uid as any of its uids, and returns
// when /proc shows none. Zombies do not count: they hold nothing, and their
// parent's habits are not ours to wait for.
func killAll(ctx context.Context, uid int) error {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		pids, err := processesOf(uid)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := kill(pid, uid); err != nil {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes are still there: %w", len(pids), ctx.Err())
		case <-time.After(wait):
		}
	}
}

// kill sends KILL through a pidfd, after making sure that what the pidfd names
// still has the uid: the pid may have been reused since it was read.
func kill(pid, uid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if has, err := hasUID(pid, uid); err != nil || !has {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func processesOf(uid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		has, err := hasUID(pid, uid)
		if err != nil {
			return nil, err
		}
		if has {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// hasUID reports whether a process that is no zombie has the uid as its real,
// effective, saved or file system uid (proc_pid_status(5)). A process that is
// gone has none.
func hasUID(pid, uid int) (bool, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	want, found := []byte(strconv.Itoa(uid)), false
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("State:")); ok && bytes.HasPrefix(bytes.TrimSpace(v), []byte("Z")) {
			return false, nil
		}
		if v, ok := bytes.CutPrefix(line, []byte("Uid:")); ok {
			for _, f := range bytes.Fields(v) {
				found = found || bytes.Equal(f, want)
			}
		}
	}
	return found, nil
}
