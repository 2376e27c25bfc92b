package portal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
)

// Group is the primary group of every sandbox login, by which sshd's Match
// block and PAM recognise them.
const Group = "podspawn"

// RelayGroup is the group of relays; its name is only for people.
const RelayGroup = "podspawn-relay"

// logins edits libnss-extrausers' files. Lines that are not a sandbox's are kept
// as they are. Readers (every getpwnam on the host) see the old file or the new
// one, never half of one.
type logins struct {
	dir, home, shell string
	mu               sync.Mutex // serialises edits within this process; the lock file does so between processes
}

const maxLoginFile = 16 << 20

// add writes the login's lines: shadow first, since a passwd line without a
// shadow line is a login that PAM's account step cannot judge. It is idempotent.
func (l *logins) add(login string, uid int) error {
	return l.locked(func() error {
		if err := l.edit("group", 0o644, func(lines []string) []string {
			for name, gid := range map[string]int{Group: sandbox.LoginGID, RelayGroup: sandbox.RelayGID} {
				line := fmt.Sprintf("%s:x:%d:", name, gid)
				if !slices.Contains(lines, line) {
					lines = append(without(lines, name), line)
				}
			}
			return lines
		}); err != nil {
			return err
		}
		if err := l.edit("shadow", 0o640, func(lines []string) []string {
			// "*": no password ever matches. "!" would count as a locked account.
			return append(without(lines, login), login+":*:::::::")
		}); err != nil {
			return err
		}
		fault.At("portal.open.shadow")
		return l.edit("passwd", 0o644, func(lines []string) []string {
			return append(without(lines, login),
				fmt.Sprintf("%s:x:%d:%d:podspawn sandbox:%s:%s", login, uid, sandbox.LoginGID, l.home, l.shell))
		})
	})
}

// remove is idempotent.
func (l *logins) remove(login string) error {
	return l.locked(func() error {
		for _, f := range []struct {
			name string
			mode fs.FileMode
		}{{"passwd", 0o644}, {"shadow", 0o640}} {
			if err := l.edit(f.name, f.mode, func(lines []string) []string { return without(lines, login) }); err != nil {
				return err
			}
			fault.At("portal.close." + f.name)
		}
		return nil
	})
}

// list returns the sandbox logins of passwd and shadow; 0 for a uid that is not known.
func (l *logins) list() (map[string]int, error) {
	all := map[string]int{}
	for _, name := range []string{"shadow", "passwd"} {
		lines, err := readLines(filepath.Join(l.dir, name))
		if err != nil {
			return nil, err
		}
		for _, line := range lines {
			f := strings.Split(line, ":")
			if _, err := sandbox.ParseLogin(f[0]); err != nil {
				continue
			}
			uid := all[f[0]]
			if name == "passwd" && len(f) > 2 {
				uid, _ = strconv.Atoi(f[2]) // 0 for garbage: not known
			}
			all[f[0]] = uid
		}
	}
	return all, nil
}

func (l *logins) locked(do func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(l.dir, ".podspawn.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return do()
}

// edit replaces a file by its changed lines, unless nothing changed.
func (l *logins) edit(name string, mode fs.FileMode, change func([]string) []string) error {
	path := filepath.Join(l.dir, name)
	old, err := readLines(path)
	if err != nil {
		return err
	}
	lines := change(slices.Clone(old))
	if slices.Equal(old, lines) {
		return nil
	}
	var b bytes.Buffer
	for _, line := range lines {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return replaceFile(path, b.Bytes(), mode)
}

// replaceFile writes a file so that a crash leaves the old one or the new one.
// Owner and mode of an existing file are kept.
func replaceFile(path string, data []byte, mode fs.FileMode) (err error) {
	uid, gid := 0, 0
	if st, serr := os.Stat(path); serr == nil {
		mode = st.Mode().Perm()
		var sys unix.Stat_t
		if err := unix.Stat(path, &sys); err != nil {
			return err
		}
		uid, gid = int(sys.Uid), int(sys.Gid)
	} else {
		uid, gid = os.Geteuid(), os.Getegid()
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chown(uid, gid); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	fault.At("portal.write." + filepath.Base(path))
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return f.Close()
}

// readLines returns no lines for a missing file.
func readLines(path string) ([]string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > maxLoginFile {
		return nil, fmt.Errorf("%s is %d bytes long, which is not plausible", path, st.Size())
	}
	var lines []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		lines = append(lines, s.Text())
	}
	return lines, s.Err()
}

// without drops the lines whose first field is name.
func without(lines []string, name string) []string {
	return slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, name+":") })
}
