package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// edit is a file that gets another content, or goes away.
type edit struct {
	path   string
	before string
	exists bool // before the edit
	after  string
	remove bool
	mode   os.FileMode // of a new file; an existing one keeps mode and owner
	gid    int         // of a new file
}

func (e edit) none() bool {
	if e.remove {
		return !e.exists
	}
	return e.exists && e.before == e.after
}

// apply makes the edit. The returned undo puts back what was there, unless
// somebody changed the file meanwhile.
func (e edit) apply() (undo func() error, err error) {
	path, err := filepath.EvalSymlinks(e.path)
	if errors.Is(err, fs.ErrNotExist) {
		path, err = e.path, nil
	}
	if err != nil {
		return nil, err
	}
	mode, uid, gid := e.mode, 0, e.gid
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			uid, gid = int(sys.Uid), int(sys.Gid)
		}
	}
	now, exists, err := readOptional(path)
	if err != nil {
		return nil, err
	}
	if exists != e.exists || now != e.before {
		return nil, refuse(path+" changed while set-up was running", "run podspawn server-setup again")
	}
	if e.remove {
		err = os.Remove(path)
	} else {
		err = replaceFile(path, e.after, mode, uid, gid)
	}
	if err != nil {
		return nil, err
	}
	return func() error {
		now, exists, err := readOptional(path)
		if err != nil {
			return err
		}
		if exists == e.remove || exists && now != e.after {
			return fmt.Errorf("%s was changed by somebody else and is left as it is", path)
		}
		if !e.exists {
			return os.Remove(path)
		}
		return replaceFile(path, e.before, mode, uid, gid)
	}, nil
}

// replaceFile writes a file in one step: readers see the old or the new content,
// also after a crash.
func replaceFile(path, text string, mode os.FileMode, uid, gid int) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".podspawn-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error that led here is the one to report
		}
	}()
	_, werr := f.WriteString(text)
	err = errors.Join(werr, f.Chmod(mode), f.Chown(uid, gid), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// backup keeps the content of a file in the folder of this run.
func backup(folder string, e edit) error {
	if !e.exists {
		return nil
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	name := strings.ReplaceAll(strings.TrimPrefix(e.path, "/"), "/", "_")
	return replaceFile(filepath.Join(folder, name), e.before, 0o600, 0, 0)
}
