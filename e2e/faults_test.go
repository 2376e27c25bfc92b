package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// live is an SSH session that answers lines: one line in, one line out.
type live struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (c client) live(t *testing.T) *live {
	t.Helper()
	cmd := exec.Command("ssh", append(c.args(c.login), "while read -r l; do echo \"got $l\"; done")...)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	l := &live{t: t, cmd: cmd, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // ended by the test already, unless it failed
		_ = cmd.Wait()
	})
	l.echo("hello")
	return l
}

func (l *live) echo(word string) {
	l.t.Helper()
	if _, err := fmt.Fprintln(l.in, word); err != nil {
		l.t.Fatalf("write to the session: %v", err)
	}
	line := make(chan string, 1)
	go func() { s, _ := l.out.ReadString('\n'); line <- s }()
	select {
	case got := <-line:
		if got != "got "+word+"\n" {
			l.t.Fatalf("session answers %q to %q", got, word)
		}
	case <-time.After(30 * time.Second):
		l.t.Fatalf("session does not answer to %q", word)
	}
}

// close ends the session in order and returns ssh's status.
func (l *live) close() error {
	l.t.Helper()
	if err := l.in.Close(); err != nil {
		return err
	}
	return l.cmd.Wait()
}

func (h *machine) restart(t *testing.T, name string, sig syscall.Signal) {
	t.Helper()
	if err := h.end(name, sig); err != nil {
		t.Fatal(err)
	}
	if err := h.start(name, podspawn, name); err != nil {
		t.Fatal(err)
	}
	if err := h.awaitReady(); err != nil {
		t.Fatal(err)
	}
}

// A session goes on over the death of daemon and API, its count is not lost, and
// its sandbox still ends when it leaves.
func TestSessionSurvivesDaemonAndAPI(t *testing.T) {
	h := need(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			s := create(t, "--grace", "0s")
			l := connectable(t, s).live(t)
			h.restart(t, "daemon", sig)
			l.echo("after the daemon")
			h.restart(t, "serve", sig)
			l.echo("after the API")
			if got := get(t, s.ID); got.State != "running" {
				t.Errorf("state = %s, want running", got.State)
			}
			if err := l.close(); err != nil {
				t.Errorf("session ends with %v", err)
			}
			eventually(t, 15*time.Second, func() error {
				if got := get(t, s.ID); got.State != "destroyed" {
					return fmt.Errorf("state = %s, want destroyed", got.State)
				}
				return nil
			})
			noLeftovers(t, s)
		})
	}
}

// Threat 35: no daemon, no login; and other people's logins go on.
func TestDaemonDown(t *testing.T) {
	h := need(t)
	s := create(t, "--grace", "10m")
	c := connectable(t, s)
	if err := h.end("daemon", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.start("daemon", podspawn, "daemon"); err != nil {
			t.Fatal(err)
		}
		if err := h.awaitReady(); err != nil {
			t.Fatal(err)
		}
	}()
	if r := c.ssh(t, nil, "echo in"); r.code != 255 || r.stdout != "" || !strings.Contains(r.stderr, "Permission denied") {
		t.Errorf("ssh without a daemon: %v", r)
	}
	if r := run(t, nil, podspawn, "list"); r.code != 6 || !strings.Contains(r.stderr, "podspawn: hint: ") {
		t.Errorf("podspawn list without a daemon: %v, want exit 6 and a hint", r)
	}
	if r := h.asRealUser(t, h.realUser, "echo in"); r.stdout != "in\n" {
		t.Errorf("a real user without a daemon: %v", r)
	}
}

func TestTwoDaemonsAtOnce(t *testing.T) {
	need(t)
	r := run(t, nil, podspawn, "daemon")
	if r.code == 0 || !strings.Contains(r.stderr, "another podspawn daemon") {
		t.Errorf("a second daemon: %v, want refused", r)
	}
	if r := run(t, nil, podspawn, "list"); r.code != 0 {
		t.Errorf("the first one does not answer any more: %v", r)
	}
}

func TestPortTaken(t *testing.T) {
	need(t)
	r := run(t, nil, podspawn, "serve")
	if r.code == 0 || !strings.Contains(r.stderr, "127.0.0.1:7722 is taken") || !strings.Contains(r.stderr, "podspawn: hint: ") {
		t.Errorf("a second serve: %v", r)
	}
}

// processes of the sandbox's uid on the host.
func hostProcesses(t *testing.T, s sandbox) []int {
	t.Helper()
	var pids []int
	for _, f := range strings.Fields(run(t, nil, "pgrep", "-U", uidOf(t, s)).stdout) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func TestKillsInTheMiddle(t *testing.T) {
	for _, tc := range []struct {
		name string
		kill func(t *testing.T, s sandbox)
		ends string // the state that the sandbox comes to
	}{
		{"hook and sshd of the user", func(t *testing.T, s sandbox) {
			for _, pid := range hostProcesses(t, s) {
				_ = syscall.Kill(pid, syscall.SIGKILL) // may go with its parent
			}
		}, "expired"},
		{"sshd monitor", func(t *testing.T, s sandbox) {
			for _, pid := range hostProcesses(t, s) {
				parent := strings.TrimSpace(run(t, nil, "ps", "-o", "ppid=", "-p", strconv.Itoa(pid)).stdout)
				if comm := strings.TrimSpace(run(t, nil, "ps", "-o", "comm=,uid=", "-p", parent).stdout); strings.HasPrefix(comm, "sshd") && strings.HasSuffix(comm, " 0") {
					p, _ := strconv.Atoi(parent)
					if err := syscall.Kill(p, syscall.SIGKILL); err != nil {
						t.Fatal(err)
					}
					return
				}
			}
			t.Fatal("no monitor found")
		}, "expired"},
		{"container", func(t *testing.T, s sandbox) {
			r := run(t, nil, "docker", "ps", "-q", "--filter", "label=dev.podspawn.sandbox="+s.ID)
			if err := command("docker", "kill", strings.TrimSpace(r.stdout)); err != nil {
				t.Fatal(err)
			}
		}, "failed"},
		{"runsc itself", func(t *testing.T, s sandbox) {
			r := run(t, nil, "docker", "inspect", "-f", "{{.State.Pid}}", strings.TrimSpace(run(t, nil, "docker", "ps", "-q", "--filter", "label=dev.podspawn.sandbox="+s.ID).stdout))
			pid, err := strconv.Atoi(strings.TrimSpace(r.stdout))
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, "failed"},
		{"destroy", func(t *testing.T, s sandbox) {
			if r := run(t, nil, podspawn, "destroy", s.ID); r.code != 0 {
				t.Fatalf("destroy: %v", r)
			}
		}, "destroyed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			grace := "0s"
			if tc.ends == "failed" {
				grace = "5m" // else the session's end may be noticed first
			}
			idle := "15m"
			if tc.ends == "expired" {
				idle = "3s" // a lost connection starts no grace, only the idle clock
			}
			s := create(t, "--grace", grace, "--idle", idle)
			l := connectable(t, s).live(t)
			tc.kill(t, s)
			done := make(chan error, 1)
			go func() { done <- l.cmd.Wait() }()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Error("the session did not end")
			}
			eventually(t, 20*time.Second, func() error {
				if got := get(t, s.ID); got.State != tc.ends {
					return fmt.Errorf("state = %s (%s), want %s", got.State, got.Reason, tc.ends)
				}
				return nil
			})
			noLeftovers(t, s)
		})
	}
}

// dockerd dies: live sessions go on, and it is told plainly what does not work.
func TestDockerDown(t *testing.T) {
	h := need(t)
	s := create(t, "--grace", "0s")
	l := connectable(t, s).live(t)
	if err := h.end("dockerd", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.echo("without dockerd")
	r := run(t, nil, podspawn, "create")
	if r.code != 6 || !strings.Contains(r.stderr, "podspawn: hint: ") {
		t.Errorf("create without dockerd: %v, want exit 6 and a hint", r)
	}
	if err := l.close(); err != nil {
		t.Errorf("session ends with %v", err)
	}
	if err := h.startDockerd(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 90*time.Second, func() error {
		if got := get(t, s.ID); got.State != "destroyed" && got.State != "failed" {
			return fmt.Errorf("state = %s, want an end now that dockerd is back", got.State)
		}
		return nil
	})
	noLeftovers(t, s)
	create(t)
}

// The daemon is killed at several moments of create and destroy; the next one
// leaves nothing behind.
func TestDaemonKilledDuringCreateAndDestroy(t *testing.T) {
	h := need(t)
	for _, after := range []time.Duration{20 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond} {
		t.Run("create "+after.String(), func(t *testing.T) {
			cmd := exec.Command(podspawn, "create", "killed")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after) // a moment to be hit, not a condition to wait for
			h.restart(t, "daemon", syscall.SIGKILL)
			_ = cmd.Wait() // whatever it says, it must end
			run(t, nil, podspawn, "destroy", "killed")
			nothingOfOurs(t)
		})
		t.Run("destroy "+after.String(), func(t *testing.T) {
			s := create(t)
			cmd := exec.Command(podspawn, "destroy", s.ID)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(after / 2)
			h.restart(t, "daemon", syscall.SIGKILL)
			_ = cmd.Wait() // whatever it says, it must end
			run(t, nil, podspawn, "destroy", s.ID)
			nothingOfOurs(t)
		})
	}
}

// nothingOfOurs fails the test unless the host has no sandbox at all.
func nothingOfOurs(t *testing.T) {
	t.Helper()
	eventually(t, 60*time.Second, func() error {
		return errors.Join(
			absent("docker", "ps", "-aq", "--filter", "label=dev.podspawn.sandbox"),
			absent("docker", "network", "ls", "-q", "--filter", "label=dev.podspawn.sandbox"),
			absent("sh", "-c", "ls -d /sys/class/net/ps-* 2>/dev/null; true"),
			absent("sh", "-c", "grep -h ^sbx- /var/lib/extrausers/*; true"),
			absent("sh", "-c", "ls -d /run/netns/sbx-* /etc/netns/sbx-* /run/podspawn/guests/* 2>/dev/null; true"),
			absent("sh", "-c", "grep -h podspawn/guests /proc/self/mountinfo; true"),
			absent(podspawn, "list", "--quiet"),
		)
	})
}

func TestRuntimeMissing(t *testing.T) {
	h := need(t)
	const config = "/etc/docker/daemon.json"
	old, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	restart := func(text []byte) {
		t.Helper()
		if err := errors.Join(h.end("dockerd", syscall.SIGTERM), os.WriteFile(config, text, 0o644), h.startDockerd()); err != nil {
			t.Fatal(err)
		}
	}
	restart([]byte("{}"))
	defer func() {
		restart(old)
		if err := h.awaitReady(); err != nil {
			t.Error(err)
		}
	}()
	eventually(t, 20*time.Second, func() error {
		r := run(t, nil, podspawn, "create", "no-runtime")
		if r.code == 0 {
			run(t, nil, podspawn, "destroy", "no-runtime")
			return fmt.Errorf("a sandbox was made without gVisor: %v", r)
		}
		if r.code != 6 || !strings.Contains(r.stderr, "server-setup") {
			return fmt.Errorf("create: %v, want exit 6 and the remedy", r)
		}
		return nil
	})
	nothingOfOurs(t)
}
