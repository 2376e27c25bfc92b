package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// auditEvent is a line of the audit log.
type auditEvent struct {
	Seq     int64             `json:"seq"`
	Event   string            `json:"event"`
	Sandbox string            `json:"sandbox"`
	Token   string            `json:"token_id"`
	Serial  uint64            `json:"cert_serial"`
	Source  string            `json:"source"`
	Session string            `json:"session"`
	Subject string            `json:"subject"`
	Reason  string            `json:"reason"`
	Detail  map[string]string `json:"detail"`
}

const auditLog = "/var/log/podspawn/audit.jsonl"

// audited returns the sandbox's events of a kind, in order.
func audited(t *testing.T, s sandbox, kind string) []auditEvent {
	t.Helper()
	f, err := os.Open(auditLog)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []auditEvent
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return all // what is being written counts the next time
		}
		if err != nil {
			t.Fatal(err)
		}
		var e auditEvent
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		if e.Sandbox == s.ID && (kind == "" || e.Event == kind) {
			all = append(all, e)
		}
	}
}

// closedAs waits until n connections of the sandbox have closed and fails the
// test unless the last one did for this reason.
func closedAs(t *testing.T, s sandbox, n int, want string) {
	t.Helper()
	eventually(t, 15*time.Second, func() error {
		evs := audited(t, s, "session.closed")
		if len(evs) != n {
			return fmt.Errorf("%d connections closed, want %d", len(evs), n)
		}
		if got := evs[n-1].Reason; got != want {
			t.Fatalf("connection closed by %q, want %q", got, want)
		}
		return nil
	})
}

func wantState(t *testing.T, s sandbox, state, reason string) {
	t.Helper()
	eventually(t, 20*time.Second, func() error {
		if got := get(t, s.ID); got.State != state || got.Reason != reason {
			return fmt.Errorf("state = %s (%s), want %s (%s)", got.State, got.Reason, state, reason)
		}
		return nil
	})
}

// startSSH runs ssh with a stdin that stays open, and returns once the sandbox is
// running.
func startSSH(t *testing.T, s sandbox, c client, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("ssh", append(c.args(args...), c.login)...)
	if n := len(args); n > 0 && !strings.HasPrefix(args[n-1], "-") { // a command goes last
		cmd = exec.Command("ssh", append(c.args(args[:n-1]...), c.login, args[n-1])...)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill() // ended by the test already, unless it failed
		_ = cmd.Wait()
	})
	if strings.Contains(strings.Join(args, " "), "echo up") {
		if line, err := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, "up") {
			t.Fatalf("the session says %q, %v", line, err)
		}
	} else {
		go io.Copy(io.Discard, out) // ends with the process
	}
	eventually(t, 15*time.Second, func() error {
		if got := get(t, s.ID); got.State != "running" {
			return fmt.Errorf("state = %s, want running", got.State)
		}
		return nil
	})
	return cmd
}

// A connection whose last command ended by itself was left by exit, however the
// command ended: with grace 0 the sandbox goes at once.
func TestExitDestroys(t *testing.T) {
	for _, tc := range []struct {
		name  string
		stdin string
		args  []string
	}{
		{"status 0", "", []string{"true"}},
		{"status 3", "", []string{"exit 3"}},
		{"killed by a signal", "", []string{"kill -9 $$"}},
		{"shell on a terminal", "exit\n", []string{"-tt"}},
		{"end of input", "hello", []string{"cat"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := create(t, "--grace", "0s")
			connectable(t, s).ssh(t, strings.NewReader(tc.stdin), tc.args...)
			closedAs(t, s, 1, "exit")
			wantState(t, s, "destroyed", "exited")
		})
	}
}

// A client that vanishes is a loss, whatever ran and however that takes the end
// of its input. The sandbox, also one with grace 0, is there when it comes back.
func TestLossOnlyStartsTheIdleClock(t *testing.T) {
	s := create(t, "--grace", "0s")
	c := connectable(t, s)
	for i, tc := range []struct {
		name string
		sig  syscall.Signal
		args []string
	}{
		{"reads its input", syscall.SIGKILL, []string{"echo up; cat"}},
		{"reads nothing", syscall.SIGKILL, []string{"echo up; sleep 300"}},
		{"on a terminal", syscall.SIGKILL, []string{"-tt", "echo up; cat"}},
		{"client told to end", syscall.SIGTERM, []string{"-tt", "echo up; cat"}},
		{"no command", syscall.SIGKILL, []string{"-N"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := startSSH(t, s, c, tc.args...)
			if err := cmd.Process.Signal(tc.sig); err != nil {
				t.Fatal(err)
			}
			closedAs(t, s, i+1, "lost")
			if got := get(t, s.ID); got.State != "ready" {
				t.Errorf("state = %s (%s), want ready", got.State, got.Reason)
			}
			// Threat 47: what the client ran has ended with it.
			if r := run(t, nil, "pgrep", "-U", uidOf(t, s), "-G", "69999"); r.stdout != "" { // the relay stays
				t.Errorf("processes on the host after the client was killed: %s", r.stdout)
			}
		})
	}
	if r := c.ssh(t, nil, "! pgrep -x cat; ! pgrep -x sleep; echo back"); r.stdout != "back\n" {
		t.Errorf("coming back after the losses: %v", r)
	}
	wantState(t, s, "destroyed", "exited")
}

// A silent open session is not idle; a lost one is, and the idle clock ends it.
func TestIdleCountsConnections(t *testing.T) {
	s := create(t, "--grace", "0s", "--idle", "2s")
	cmd := startSSH(t, s, connectable(t, s), "echo up; sleep 300")
	began := time.Now()
	for time.Since(began) < 3500*time.Millisecond { // longer than idle and the reaper's pace
		if got := get(t, s.ID); got.State != "running" {
			t.Fatalf("state = %s (%s) with an open session, want running", got.State, got.Reason)
		}
		time.Sleep(250 * time.Millisecond) // the pace of looking, not a condition
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	closedAs(t, s, 1, "lost")
	wantState(t, s, "expired", "idle")
}

// on_exit keep arms nothing.
func TestKeepSurvivesExit(t *testing.T) {
	s := create(t, "--on-exit", "keep")
	c := connectable(t, s)
	c.ssh(t, nil, "true")
	closedAs(t, s, 1, "exit")
	if r := c.ssh(t, nil, "echo again"); r.stdout != "again\n" {
		t.Errorf("after the first session left: %v", r)
	}
}

// Each command over ssh is on record, joined to certificate and connection.
func TestCommandsAreAudited(t *testing.T) {
	s := create(t, "--on-exit", "keep")
	c := connectable(t, s)
	c.ssh(t, nil, "echo audited")
	closedAs(t, s, 1, "exit")
	issued, accepted := audited(t, s, "cert.issued"), audited(t, s, "cert.accepted")
	started, finished := audited(t, s, "command.started"), audited(t, s, "command.finished")
	if len(issued) != 1 || len(accepted) != 1 || len(started) != 1 || len(finished) != 1 {
		t.Fatalf("issued %v, accepted %v, started %v, finished %v; want one each", issued, accepted, started, finished)
	}
	for _, e := range []auditEvent{accepted[0], started[0], finished[0]} {
		if e.Serial != issued[0].Serial || e.Session != accepted[0].Session || e.Source != "127.0.0.1" {
			t.Errorf("%+v does not join certificate %d and connection %s", e, issued[0].Serial, accepted[0].Session)
		}
	}
	if started[0].Detail["command"] != "echo audited" || started[0].Subject != "root" || finished[0].Reason != "exit" {
		t.Errorf("started %+v, finished %+v", started[0], finished[0])
	}
}
