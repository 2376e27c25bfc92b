package pid1

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// sftpServers are where distributions put OpenSSH's SFTP server.
var sftpServers = [...]string{
	"/usr/lib/openssh/sftp-server",
	"/usr/libexec/openssh/sftp-server",
	"/usr/libexec/sftp-server",
	"/usr/lib/ssh/sftp-server",
}

// exit codes of a shell for what it can't start.
const (
	codeCannotRun = 126
	codeNotFound  = 127
)

// refusal is a process that could not be started, as the host is told.
type refusal struct {
	code int
	msg  string
}

func (r *refusal) Error() string { return r.msg }

func refusef(code int, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

// command is a process to start, with everything resolved.
type command struct {
	path    string
	argv    []string
	env     []string
	dir     string
	account account
	pty     *guest.Terminal
}

// resolve turns a request into a command, under the rights of the connection.
// Its errors are refusals.
func (s *server) resolve(p guest.Preamble, e guest.Exec) (*command, error) {
	if err := allowed(p.Rights, e); err != nil {
		return nil, err
	}
	def, err := s.users.lookup(p.User)
	if err != nil {
		return nil, refusef(codeCannotRun, "%v", err)
	}
	a := def
	if e.User != "" {
		if a, err = s.users.lookup(e.User); err != nil {
			return nil, refusef(codeCannotRun, "%v", err)
		}
	}
	c := &command{account: a, pty: e.PTY}
	shell := first(a.shell, "/bin/sh")
	if p.Shell != "" && a.uid == def.uid {
		shell = p.Shell
	}
	home := first(a.home, p.Home, "/")
	term := ""
	if e.PTY != nil {
		term = validTerm(e.PTY.Term)
	}
	if c.env, err = environ(a, shell, home, term, p.Env, e.Env); err != nil {
		return nil, refusef(codeCannotRun, "%v", err)
	}
	if c.dir, err = workDir(p, e, def, home); err != nil {
		return nil, err
	}
	return c, c.resolveProgram(e, shell)
}

// allowed checks the request against the rights of the connection.
func allowed(rights []guest.Right, e guest.Exec) error {
	has := make(map[guest.Right]bool)
	for _, r := range rights {
		has[r] = true
	}
	switch {
	case e.SFTP && !has[guest.RightSFTP]:
		return refusef(codeCannotRun, "file transfer is not allowed for this connection")
	case e.File != nil && !has[guest.RightFileWrite] && (e.File.Op.Writes() || !has[guest.RightFileRead]):
		return refusef(codeCannotRun, "this file operation is not allowed for this connection")
	case !e.SFTP && e.File == nil && !has[guest.RightExec]:
		return refusef(codeCannotRun, "commands are not allowed for this connection")
	case e.PTY != nil && !has[guest.RightPTY]:
		return refusef(codeCannotRun, "a terminal is not allowed for this connection")
	}
	return nil
}

// resolveProgram fills in what is executed.
func (c *command) resolveProgram(e guest.Exec, shell string) error {
	switch {
	case e.LoginShell:
		c.path, c.argv = shell, []string{"-" + filepath.Base(shell)}
	case e.Command != "":
		c.path, c.argv = shell, []string{filepath.Base(shell), "-c", e.Command}
	case e.Script != "":
		c.path, c.argv = "/bin/sh", []string{"sh", "-c", e.Script}
	case e.SFTP:
		for _, p := range sftpServers {
			if executable(p) == nil {
				c.path, c.argv = p, []string{filepath.Base(p)}
				return nil
			}
		}
		c.path, c.argv = guest.BinaryPath, []string{"podspawn-guest", "sftp"}
	case e.File != nil:
		op, err := json.Marshal(e.File)
		if err != nil {
			return fmt.Errorf("encode file operation: %w", err)
		}
		// A process of the user's own, so that the kernel decides what it may touch.
		c.path, c.argv = guest.BinaryPath, []string{"podspawn-guest", "file", string(op)}
	default:
		c.argv = e.Argv
		var err error
		if c.path, err = findProgram(e.Argv[0], getenv(c.env, "PATH"), c.dir); err != nil {
			return err
		}
	}
	for _, arg := range c.argv {
		if strings.IndexByte(arg, 0) >= 0 {
			return refusef(codeCannotRun, "an argument contains a zero byte")
		}
	}
	if err := executable(c.path); err != nil {
		return cannotExecute(c.path, err)
	}
	return nil
}

// findProgram looks a program up in path, as a shell in dir does.
func findProgram(name, path, dir string) (string, error) {
	if name == "" {
		return "", refusef(codeNotFound, "the command is empty")
	}
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	var denied error
	for d := range strings.SplitSeq(path, ":") {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		p := filepath.Join(d, name)
		err := executable(p)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && denied == nil {
			denied = cannotExecute(p, err)
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", refusef(codeNotFound, "%s: command not found", clip(name))
}

// executable says why path can't be executed, as far as that can be seen
// without being the user.
func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case st.IsDir():
		return syscall.EISDIR
	case st.Mode()&0o111 == 0:
		return syscall.EACCES
	}
	return nil
}

// cannotExecute says why a program was not executed.
func cannotExecute(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return refusef(codeNotFound, "%s does not exist in the sandbox", clip(path))
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return refusef(codeCannotRun, "%s: %v", clip(path), errno)
	}
	return refusef(codeCannotRun, "%s: cannot be executed", clip(path))
}

// workDir returns where the process starts. Only the sandbox's own workspace is
// made when it is missing: a mistyped path should be an error.
func workDir(p guest.Preamble, e guest.Exec, owner account, home string) (string, error) {
	dir := first(e.Dir, p.Work)
	if dir == "" {
		if st, err := os.Stat(home); err == nil && st.IsDir() {
			return home, nil
		}
		return "/", nil
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(first(p.Work, "/"), dir)
	}
	if strings.IndexByte(dir, 0) >= 0 {
		return "", refusef(codeCannotRun, "the working directory contains a zero byte")
	}
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) && filepath.Clean(dir) == filepath.Clean(p.Work) {
		if err := makeWork(dir, owner); err != nil {
			return "", refusef(codeCannotRun, "make workspace %s: %v", clip(dir), err)
		}
		return dir, nil
	}
	if err != nil {
		return "", refusef(codeCannotRun, "working directory %s does not exist in the sandbox", clip(dir))
	}
	if !st.IsDir() {
		return "", refusef(codeCannotRun, "working directory %s is not a directory", clip(dir))
	}
	return dir, nil
}

// makeWork makes the workspace for its owner; directories above it are root's.
func makeWork(dir string, owner account) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		return nil // another connection was faster
	} else if err != nil {
		return err
	}
	return os.Lchown(dir, int(owner.uid), int(owner.gid))
}

func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}
