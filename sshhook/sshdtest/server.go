package sshdtest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Patience bounds how long a test waits for a real process.
const Patience = 20 * time.Second

// Await calls ok until it returns true, or fails the test with what was awaited.
func Await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", Patience, what)
		}
		time.Sleep(10 * time.Millisecond) // between looks at another process; nothing relies on it
	}
}

// Run runs a command that must succeed and returns its stdout.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, words.String())
	}
	return out.String()
}

// Write writes a file of the lab and makes its folder.
func Write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err = errors.Join(err, os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// Key makes an Ed25519 key pair and returns the path of the private one.
func Key(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path)
	return path
}

// Authorize lets a real user in with key; the lab's sshd looks for keys in
// /etc/ssh/keys, so that no home directory of the machine is touched.
func Authorize(t testing.TB, user, key string) {
	t.Helper()
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	Write(t, "/etc/ssh/keys/"+user, string(pub), 0o644)
	Write(t, "/etc/ssh/sshd_config.d/90-lab.conf", "AuthorizedKeysFile /etc/ssh/keys/%u\nLogLevel DEBUG1\n", 0o644)
}

// AddUser makes a real user of the lab, with a home that ends with it.
func AddUser(t testing.TB, name string) {
	t.Helper()
	if err := exec.Command("id", name).Run(); err == nil {
		return
	}
	Run(t, "mkdir", "-p", "/run/home")
	Run(t, "useradd", "--create-home", "--home-dir", "/run/home/"+name, "--shell", "/bin/bash", name)
}

// Server is the lab's sshd, on 127.0.0.1:22.
type Server struct {
	PID int
	log string
}

const pidFile = "/run/sshd.pid" // Debian's default

// Start starts sshd as the distribution does, under its own name, since that is
// its PAM service, and stops it when the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{log: filepath.Join(t.TempDir(), "sshd.log")}
	Run(t, "/usr/sbin/sshd", "-E", s.log)
	Await(t, "sshd's pid", func() bool {
		b, err := os.ReadFile(pidFile) // it exists before there is a number in it
		if err == nil {
			s.PID, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		return err == nil && syscall.Kill(s.PID, 0) == nil
	})
	t.Cleanup(func() {
		_ = syscall.Kill(s.PID, syscall.SIGTERM) // the test may have ended it
		Await(t, "sshd to end", func() bool { return syscall.Kill(s.PID, 0) != nil })
		if t.Failed() {
			t.Logf("sshd said:\n%s", s.Log())
		}
	})
	Await(t, "sshd to listen", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:22")
		return err == nil && c.Close() == nil
	})
	return s
}

// Log returns the end of what sshd logged so far.
func (s *Server) Log() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	const most = 12 << 10
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(b)
}

// Client returns OpenSSH's client, ready to run against the lab's sshd; args are
// its options, the login, and the command.
func (s *Server) Client(key string, args ...string) *exec.Cmd {
	cmd := exec.Command("ssh", append([]string{
		"-F", "none", "-i", key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
	}, args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8", "TERM=xterm"} // no agent
	return cmd
}

// SSH runs Client until it ends, which must be soon.
func (s *Server) SSH(t testing.TB, key string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := s.Client(key, args...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	cmd.WaitDelay = Patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(Patience, func() { _ = cmd.Process.Kill() }) // it may have ended just now
	err := cmd.Wait()
	if !late.Stop() {
		t.Fatalf("ssh %s took longer than %v; stdout %q, stderr %q", strings.Join(args, " "), Patience, out.String(), words.String())
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return out.String(), words.String(), cmd.ProcessState.ExitCode()
}

// Break makes a file unusable until the test ends, as a broken or removed
// library or program would be, without touching the machine's.
func Break(t testing.TB, path string) {
	t.Helper()
	if err := syscall.Mount("/dev/null", path, "", syscall.MS_BIND, ""); err != nil {
		t.Fatalf("break %s: %v", path, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
			t.Errorf("repair %s: %v", path, err)
		}
	})
}
