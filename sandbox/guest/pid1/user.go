package pid1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of what is read from the sandbox's own user database.
const (
	maxDatabase = 1 << 20
	maxGroups   = 256
)

// account is a user of the sandbox.
type account struct {
	name   string
	uid    uint32
	gid    uint32
	groups []uint32
	home   string
	shell  string
}

// users resolves names in the files of the sandbox, never through libc: NSS
// modules of an image must not run in PID 1.
type users struct {
	passwd string // path of /etc/passwd
	group  string // path of /etc/group
}

// lookup resolves "", "name", "uid", and either with ":group". Empty is root. A
// number needs no entry; a name does.
func (u users) lookup(spec string) (account, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	a, found, err := u.find(name)
	if err != nil {
		return account{}, err
	}
	if !found {
		uid, ok := number(name)
		if !ok {
			return account{}, fmt.Errorf("user %q does not exist in the sandbox", clip(name))
		}
		a = account{name: name, uid: uid}
		if uid == 0 {
			a.name, a.home = "root", "/root"
		}
	}
	if err := u.addGroups(&a, group, hasGroup); err != nil {
		return account{}, err
	}
	return a, nil
}

// find looks for a name or, when it is a number, for a uid.
func (u users) find(name string) (a account, found bool, err error) {
	uid, numeric := number(name)
	err = eachLine(u.passwd, func(f []string) bool {
		if len(f) < 7 {
			return true
		}
		id, ok1 := number(f[2])
		gid, ok2 := number(f[3])
		if !ok1 || !ok2 || (f[0] != name && (!numeric || id != uid)) {
			return true
		}
		a = account{name: f[0], uid: id, gid: gid, home: f[5], shell: f[6]}
		found = true
		return false
	})
	return a, found, err
}

// addGroups sets the primary group when one was asked for, and the supplementary ones.
func (u users) addGroups(a *account, group string, asked bool) error {
	gid, numeric := number(group)
	found := numeric
	a.groups = nil
	err := eachLine(u.group, func(f []string) bool {
		if len(f) < 4 {
			return true
		}
		id, ok := number(f[2])
		if !ok {
			return true
		}
		if asked && !numeric && f[0] == group {
			gid, found = id, true
		}
		for m := range strings.SplitSeq(f[3], ",") {
			if m == a.name && len(a.groups) < maxGroups {
				a.groups = append(a.groups, id)
				break
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	if asked {
		if !found {
			return fmt.Errorf("group %q does not exist in the sandbox", clip(group))
		}
		a.gid = gid
	}
	return nil
}

// eachLine calls f with the fields of each line until it returns false. A file
// that is missing has no lines. The file is the sandbox's: it may be a fifo or
// endless, which must not hold up PID 1.
func eachLine(path string, f func(fields []string) bool) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(file, maxDatabase))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxDatabase+1)
	for lines.Scan() {
		if line := lines.Text(); line != "" && line[0] != '#' && !f(strings.Split(line, ":")) {
			return nil
		}
	}
	return nil
}

// number parses a uid or gid. The highest value is none: for chown and setuid it means "unchanged".
func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

// clip bounds what an error repeats of its input.
func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
