package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestMainJob(t *testing.T) {
	s := create(t, "--grace", "0s")
	c := connectable(t, s)
	r := c.ssh(t, nil, "dmesg; id -un; pwd; hostname")
	if r.code != 0 || !strings.Contains(r.stdout, "gVisor") {
		t.Fatalf("dmesg in the sandbox: %v, want gVisor", r)
	}
	for _, want := range []string{"\ndev\n", "\n/workspace\n", "\n" + s.Login + "\n"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("stdout lacks %q: %v", want, r)
		}
	}
	if r.stderr != "" {
		t.Errorf("stderr of a command = %q, want nothing", r.stderr)
	}
	eventually(t, 15*time.Second, func() error {
		if got := get(t, s.ID); got.State != "destroyed" || got.Reason != "exited" {
			return fmt.Errorf("state %s, reason %s, want destroyed after exit", got.State, got.Reason)
		}
		return nil
	})
	noLeftovers(t, s)
	again := c.ssh(t, nil, "true")
	if again.code != 255 || !strings.Contains(again.stderr, "Permission denied") {
		t.Errorf("ssh to a sandbox that is gone: %v, want permission denied", again)
	}
}

func TestSessionIsLikeAnyOther(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	for _, tc := range []struct {
		name, command  string
		stdin          string
		code           int
		stdout, stderr string
	}{
		{"stdout and stderr apart", "echo out; echo err >&2", "", 0, "out\n", "err\n"},
		{"exit status", "exit 42", "", 42, "", ""},
		{"status of a missing program", "no-such-program", "", 127, "", ""},
		{"stdin to its end", "cat | tr a-z A-Z", "hello", 0, "HELLO", ""},
		{"quotes and dollars are the sandbox's", `echo '$HOME' "$HOME" $((6*7))`, "", 0, "$HOME /home/dev 42\n", ""},
		{"newline in the command", "echo one\necho two", "", 0, "one\ntwo\n", ""},
		{"leading dash, as plain sshd has it", "-n", "", 2, "", "bash: -c: option requires an argument\n"},
		{"environment is clean", "env | grep -E '^(SSH_|DOCKER|PODSPAWN|LD_|PAM_)' | grep -v ^SSH_TTY || true", "", 0, "", ""},
		{"the shell is the user's", "echo $0; echo $SHELL", "", 0, "bash\n/bin/bash\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := c.ssh(t, strings.NewReader(tc.stdin), "--", tc.command)
			if r.code != tc.code || tc.code != 127 && (r.stdout != tc.stdout || r.stderr != tc.stderr) {
				t.Errorf("ssh host %q: %v\nwant exit %d, stdout %q, stderr %q", tc.command, r, tc.code, tc.stdout, tc.stderr)
			}
		})
	}
	t.Run("death by signal", func(t *testing.T) {
		r := c.ssh(t, nil, "kill -SEGV $$")
		if r.code != 255 {
			t.Errorf("killed by a signal: %v, want 255 as OpenSSH has it", r)
		}
		// The same from a plain sshd, to compare with.
		h := need(t)
		plain := run(t, nil, "ssh", "-F", "none", "-i", h.realKey, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
			"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", h.realUser+"@127.0.0.1", "kill -SEGV $$")
		if plain.code != r.code {
			t.Errorf("sandbox: exit %d, plain sshd: exit %d", r.code, plain.code)
		}
	})
	t.Run("binary data both ways", func(t *testing.T) {
		data := make([]byte, 8<<20)
		rand.Read(data)
		r := c.ssh(t, bytes.NewReader(data), "tee /tmp/copy | cat")
		if sha256.Sum256([]byte(r.stdout)) != sha256.Sum256(data) {
			t.Errorf("%d bytes came back as %d others", len(data), len(r.stdout))
		}
	})
	t.Run("scp and sftp", func(t *testing.T) {
		dir := t.TempDir()
		src, back := filepath.Join(dir, "src"), filepath.Join(dir, "back")
		if err := os.WriteFile(src, []byte("some text\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := run(t, nil, "scp", append(c.args(), src, c.login+":/workspace/there")...); r.code != 0 {
			t.Fatalf("scp up: %v", r)
		}
		if r := run(t, strings.NewReader("get /workspace/there "+back+"\n"), "sftp", append(c.args(), "-b", "-", c.login)...); r.code != 0 {
			t.Fatalf("sftp get: %v", r)
		}
		if got, err := os.ReadFile(back); err != nil || string(got) != "some text\n" {
			t.Errorf("came back as %q, %v", got, err)
		}
	})
}

func TestTerminal(t *testing.T) {
	s := create(t)
	c := connectable(t, s)
	// A terminal in a terminal: tmux plays the person's.
	name := "e2e-" + s.Login
	tmux := func(args ...string) result { return run(t, nil, "tmux", append([]string{"-L", name}, args...)...) }
	sshLine := "TERM=xterm ssh " + strings.Join(c.args("-tt", c.login), " ")
	if r := tmux("new-session", "-d", "-x", "91", "-y", "31", "-s", "s", sshLine+"; echo left-with $?; sleep 100"); r.code != 0 {
		t.Fatalf("tmux: %v", r)
	}
	defer tmux("kill-server")
	screen := func() string { return tmux("capture-pane", "-p", "-t", "s").stdout }
	see := func(want string) {
		t.Helper()
		eventually(t, 15*time.Second, func() error {
			if got := screen(); !strings.Contains(got, want) {
				return fmt.Errorf("the screen lacks %q:\n%s", want, got)
			}
			return nil
		})
	}
	keys := func(k ...string) { t.Helper(); tmux(append([]string{"send-keys", "-t", "s"}, k...)...) }
	see("this sandbox ends at") // the line with the deadline
	keys("stty size; tty; echo term=$TERM", "Enter")
	see("31 91")
	see("/dev/pts/")
	see("term=xterm")
	tmux("resize-window", "-t", "s", "-x", "70", "-y", "20")
	keys("clear; stty size", "Enter")
	see("20 70")
	runs := func(what string) {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			if r := c.ssh(t, nil, "pgrep -fx '"+what+"'"); r.code != 0 {
				return fmt.Errorf("%s does not run yet", what)
			}
			return nil
		})
	}
	keys("clear; sleep 1000", "Enter")
	runs("sleep 1000")
	keys("C-c")
	keys("echo after-$?", "Enter")
	see("after-130")
	keys("sleep 1001", "Enter")
	runs("sleep 1001")
	keys("C-z")
	see("Stopped")
	keys("exit 7", "Enter", "exit 7", "Enter")
	see("left-with 7")
}

func TestClientGoneKillsItsProcesses(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"without terminal", nil},
		{"with terminal", []string{"-tt"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := create(t, "--grace", "5m")
			c := connectable(t, s)
			cmd := exec.Command("ssh", append(c.args(tc.args...), c.login, "sleep 12345 & sleep 12345")...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, 15*time.Second, func() error {
				if r := c.ssh(t, nil, "pgrep -fc '^sleep 12345'"); strings.TrimSpace(r.stdout) != "2" {
					return fmt.Errorf("running: %v, want both", r)
				}
				return nil
			})
			if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			eventually(t, 15*time.Second, func() error {
				if r := c.ssh(t, nil, "pgrep -fa '^sleep 12345'"); r.stdout != "" {
					return fmt.Errorf("still running: %s", r.stdout)
				}
				return nil
			})
		})
	}
}

func TestRunDestroysOnExit(t *testing.T) {
	need(t)
	before := run(t, nil, podspawn, "list", "--quiet").stdout
	r := run(t, strings.NewReader("in\n"), podspawn, "run", "--", "sh", "-c", "cat; echo out; exit 9")
	if r.code != 9 || r.stdout != "in\nout\n" {
		t.Errorf("podspawn run: %v, want exit 9 and its output alone on stdout", r)
	}
	eventually(t, 15*time.Second, func() error {
		if after := run(t, nil, podspawn, "list", "--quiet").stdout; after != before {
			return fmt.Errorf("sandboxes before:\n%safter:\n%s", before, after)
		}
		return nil
	})
}

func TestSSHCommandPassesItsOptionsOn(t *testing.T) {
	s := create(t)
	r := run(t, nil, podspawn, "ssh", s.ID, "--", "echo", "a b", "&&", "uname", "-n")
	if r.code != 0 || r.stdout != "a b\n"+s.Login+"\n" {
		t.Errorf("podspawn ssh: %v", r)
	}
	if r := run(t, nil, podspawn, "ssh", s.ID, "--", "exit 3"); r.code != 3 {
		t.Errorf("podspawn ssh -- exit 3: %v", r)
	}
	if r := run(t, nil, podspawn, "ssh", "sbx_0000000000000000", "--", "true"); r.code != 255 || !strings.Contains(r.stderr, "podspawn: error:") {
		t.Errorf("podspawn ssh to nothing: %v, want 255 and an error", r)
	}
}
