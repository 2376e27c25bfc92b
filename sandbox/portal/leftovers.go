package portal

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// removeFiles removes what belongs to the uid in the world-writable folders. Our
// hooks and a session's sshd make no files (RLIMIT_FSIZE 0, no forwarding of
// sockets), so this is against what sshd leaves when it is killed. The removal
// stays below each folder whatever links it meets (os.Root).
func (h *Host) removeFiles(uid int) error {
	var errs []error
	for _, dir := range h.c.Temp {
		errs = append(errs, removeFilesIn(dir, uid))
	}
	return errors.Join(errs...)
}

func removeFilesIn(dir string, uid int) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		st, err := root.Lstat(name)
		if err != nil {
			continue // gone since it was listed
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != uid {
			continue
		}
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

// removeIPC removes the System V IPC objects that the uid owns or made
// (sysvipc(7)), which outlive their processes.
func removeIPC(uid int) error {
	kinds := []struct {
		file string
		ctl  func(id uintptr) unix.Errno
	}{
		{"/proc/sysvipc/shm", func(id uintptr) unix.Errno {
			_, _, e := unix.Syscall(unix.SYS_SHMCTL, id, unix.IPC_RMID, 0)
			return e
		}},
		{"/proc/sysvipc/msg", func(id uintptr) unix.Errno {
			_, _, e := unix.Syscall(unix.SYS_MSGCTL, id, unix.IPC_RMID, 0)
			return e
		}},
		{"/proc/sysvipc/sem", func(id uintptr) unix.Errno {
			_, _, e := unix.Syscall6(unix.SYS_SEMCTL, id, 0, unix.IPC_RMID, 0, 0, 0)
			return e
		}},
	}
	for _, k := range kinds {
		ids, err := ipcOf(k.file, uid)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if e := k.ctl(uintptr(id)); e != 0 && e != unix.EINVAL && e != unix.EIDRM {
				return fmt.Errorf("remove IPC object %d of %s: %w", id, k.file, e)
			}
		}
	}
	return nil
}

// ipcOf returns the ids of the objects in a /proc/sysvipc file whose columns uid
// or cuid have the value.
func ipcOf(file string, uid int) ([]int, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without it
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	if !s.Scan() {
		return nil, s.Err()
	}
	col := map[string]int{}
	for i, name := range strings.Fields(s.Text()) {
		col[name] = i
	}
	idCol := 1 // key, then shmid, msqid or semid
	want := strconv.Itoa(uid)
	var ids []int
	for s.Scan() {
		f := strings.Fields(s.Text())
		if u, c := col["uid"], col["cuid"]; u < len(f) && c < len(f) && idCol < len(f) && (f[u] == want || f[c] == want) {
			id, err := strconv.Atoi(f[idCol])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			ids = append(ids, id)
		}
	}
	return ids, s.Err()
}
