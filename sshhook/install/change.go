package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strings"
	"syscall"
)

// change is one step of a plan.
type change struct {
	what string // in words
	diff string // of a file
	file string // that is edited, "" otherwise
	edit edit
	// reload says that a running sshd does not see it by itself.
	reload bool
	do     func() (undo func() error, err error)
}

func editChange(what string, e edit) change {
	shown := diff(e.before, e.after)
	if e.remove {
		shown = ""
	}
	return change{what: what, diff: shown, file: e.path, edit: e, reload: true, do: e.apply}
}

// dirChange makes a directory as it should be, or is nil when it is.
func dirChange(d dir) (*change, error) {
	st, err := os.Lstat(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &change{what: fmt.Sprintf("make %s (%04o)", d.path, d.mode), do: func() (func() error, error) {
			if err := os.MkdirAll(d.path, os.FileMode(d.mode)); err != nil {
				return nil, err
			}
			undo := func() error {
				_ = os.Remove(d.path) // no longer empty: something else lives there
				return nil
			}
			return undo, os.Chmod(d.path, os.FileMode(d.mode)) // whatever the umask
		}}, nil
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, refuse(d.path+" is not a directory", "move it away")
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if ok && sys.Uid == 0 && st.Mode().Perm() == os.FileMode(d.mode) || !d.ours {
		return nil, nil
	}
	old := st.Mode().Perm()
	return &change{what: fmt.Sprintf("make %s root's with mode %04o", d.path, d.mode), do: func() (func() error, error) {
		undo := func() error { return errors.Join(os.Chown(d.path, int(sys.Uid), int(sys.Gid)), os.Chmod(d.path, old)) }
		return undo, errors.Join(os.Chown(d.path, 0, 0), os.Chmod(d.path, os.FileMode(d.mode)))
	}}, nil
}

// userChange makes a system user that can't log in, or is nil when there is one.
func userChange(ctx context.Context, name string) (*change, error) {
	_, err := user.Lookup(name)
	if err == nil {
		return nil, nil
	}
	if _, ok := errors.AsType[user.UnknownUserError](err); !ok {
		return nil, err
	}
	return &change{what: "add the system user " + name, do: func() (func() error, error) {
		err := run(ctx, "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", name)
		if err != nil {
			return nil, err
		}
		return func() error { return run(context.WithoutCancel(ctx), "userdel", name) }, nil
	}}, nil
}

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %s: %w", name, strings.Join(args, " "), firstLine(string(out)), err)
	}
	return nil
}
