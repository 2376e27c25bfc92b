package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/agent/agenttest"
	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

func seconds(n float64) *float64 { return &n }

func made(t *testing.T, a api.API) string {
	t.Helper()
	v, err := a.Create(t.Context(), api.CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return string(v.ID)
}

// follow polls until the command has ended and returns all that it wrote.
func follow(t *testing.T, a api.API, res api.ExecResult) (api.ExecResult, string) {
	t.Helper()
	out := res.Stdout
	for end := time.Now().Add(20 * time.Second); res.Running || res.Truncated; {
		if time.Now().After(end) {
			t.Fatalf("%s does not end", res.ExecID)
		}
		var err error
		if res, err = a.PollExec(t.Context(), "", res.ExecID, api.ExecPoll{Cursor: res.Cursor, Wait: time.Second, WaitForData: true, MaxOutput: 64 << 10}); err != nil {
			t.Fatal(err)
		}
		out += res.Stdout
	}
	return res, out
}

func TestCommandOutlivesItsCall(t *testing.T) {
	_, a := alice(t)
	id := made(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	res, err := a.Exec(ctx, id, api.ExecRequest{Command: `read x; echo "got $x"; seq 1 50000; read y; exit 3`, Background: true})
	cancel()
	if err != nil || !res.Running || res.ExitCode != -1 || res.ExecID == "" {
		t.Fatalf("Exec = %+v, %v", res, err)
	}
	if _, err := a.InputExec(t.Context(), id, res.ExecID, api.ExecInput{Data: "aGkK", Encoding: "base64"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.InputExec(t.Context(), "", res.ExecID, api.ExecInput{EOF: true}); err != nil {
		t.Fatal(err)
	}
	last, out := follow(t, a, res)
	if last.ExitCode != 3 || !strings.HasPrefix(out, "got hi\n1\n2\n") || !strings.HasSuffix(out, "49999\n50000\n") || len(out) != 288894+len("got hi\n") {
		t.Errorf("ended with %+v and %d bytes", last.ExitCode, len(out))
	}
	// The result is kept, from any cursor.
	again, err := a.PollExec(t.Context(), id, res.ExecID, api.ExecPoll{Cursor: "7.0", MaxOutput: 4})
	if err != nil || again.Stdout != "1\n2\n" || again.Cursor != "11.0" || !again.Truncated || again.Running {
		t.Errorf("PollExec = %+v, %v", again, err)
	}
	if _, err := a.PollExec(t.Context(), id, res.ExecID, api.ExecPoll{Cursor: "999999999.0"}); sandbox.KindOf(err) != sandbox.KindInvalidSpec {
		t.Errorf("cursor ahead = %v", err)
	}
	if _, err := a.InputExec(t.Context(), "", res.ExecID, api.ExecInput{Data: "x"}); sandbox.KindOf(err) != sandbox.KindConflict {
		t.Errorf("input after the end = %v", err)
	}
}

func TestForegroundCommandRunsOnAfterTheWait(t *testing.T) {
	_, a := alice(t)
	id := made(t, a)
	res, err := a.Exec(t.Context(), id, api.ExecRequest{Command: "echo begun; sleep 600", WaitSeconds: seconds(0.3)})
	if err != nil || !res.Running || res.Stdout != "begun\n" {
		t.Fatalf("Exec = %+v, %v", res, err)
	}
	if ok, err := a.SignalExec(t.Context(), id, res.ExecID, api.ExecSignal{Signal: "TERM"}); err != nil || ok.ExecID != res.ExecID {
		t.Fatalf("SignalExec = %+v, %v", ok, err)
	}
	last, out := follow(t, a, res)
	if last.Signal != "TERM" || out != "begun\n" {
		t.Errorf("ended with %+v", last)
	}
}

// Threat 72, of commands: another tenant's do not exist, and a reader may not look.
func TestCommandsBelongToTheirTenant(t *testing.T) {
	d, s := service(t)
	a := s.As(localapi.Auth{Bearer: agenttest.Alice})
	id := made(t, a)
	res, err := a.Exec(t.Context(), id, api.ExecRequest{Command: "sleep 600", Background: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		token localapi.Secret
		want  sandbox.Kind
	}{
		{"another tenant", agenttest.Bob, sandbox.KindNotFound},
		{"read scope", agenttest.Reader, sandbox.KindInsufficientScope},
		{"unknown token", "nonsense", sandbox.KindUnauthorized},
	} {
		by := s.As(localapi.Auth{Bearer: tt.token})
		_, err1 := by.PollExec(t.Context(), "", res.ExecID, api.ExecPoll{})
		_, err2 := by.InputExec(t.Context(), "", res.ExecID, api.ExecInput{Data: "x"})
		_, err3 := by.SignalExec(t.Context(), "", res.ExecID, api.ExecSignal{Signal: "KILL"})
		for _, err := range []error{err1, err2, err3} {
			if sandbox.KindOf(err) != tt.want {
				t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
			}
		}
	}
	if _, err := a.PollExec(t.Context(), "other", res.ExecID, api.ExecPoll{}); sandbox.KindOf(err) != sandbox.KindNotFound {
		t.Errorf("under another sandbox: %v", err)
	}
	d.Revoke(agenttest.Alice)
	if _, err := a.PollExec(t.Context(), id, res.ExecID, api.ExecPoll{}); sandbox.KindOf(err) != sandbox.KindUnauthorized {
		t.Errorf("with a revoked token: %v", err)
	}
}

func pidIn(t *testing.T, file string) int {
	t.Helper()
	pid := 0
	for end := time.Now().Add(10 * time.Second); pid == 0; time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(file); err == nil {
			_, _ = fmt.Sscan(string(b), &pid) // not complete yet
		}
		if time.Now().After(end) {
			t.Fatal("the command does not begin")
		}
	}
	return pid
}

func dies(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !errors.Is(unix.Kill(pid, 0), unix.ESRCH); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("process %d lives on", pid)
		}
	}
}

func TestCancellationKillsForegroundCommandsOnly(t *testing.T) {
	for _, background := range []bool{false, true} {
		t.Run(fmt.Sprintf("background=%v", background), func(t *testing.T) {
			d, a := alice(t)
			id := made(t, a)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				_, err := a.Exec(ctx, id, api.ExecRequest{Command: "echo $$ > pid.new; mv pid.new pid; sleep 600", WaitSeconds: seconds(20), Background: background})
				done <- err
			}()
			pid := pidIn(t, filepath.Join(d.Work(), "pid"))
			cancel()
			err := <-done
			if background {
				if err != nil || unix.Kill(pid, 0) != nil {
					t.Errorf("Exec = %v, and the process is killed", err)
				}
				return // Close kills it
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Exec = %v, want cancelled", err)
			}
			dies(t, pid)
		})
	}
}

func TestCloseKillsCommands(t *testing.T) {
	d := agenttest.Start(t)
	s, err := New(Config{Daemon: d.Client()})
	if err != nil {
		t.Fatal(err)
	}
	a := s.As(localapi.Auth{Bearer: agenttest.Alice})
	if _, err := a.Exec(t.Context(), made(t, a), api.ExecRequest{Command: "echo $$ > pid.new; mv pid.new pid; sleep 600", Background: true}); err != nil {
		t.Fatal(err)
	}
	pid := pidIn(t, filepath.Join(d.Work(), "pid"))
	s.Close()
	dies(t, pid)
	if _, err := a.Exec(t.Context(), "x", api.ExecRequest{Command: "id", Background: true}); err == nil {
		t.Error("a command began after Close")
	}
}

func TestTenantHasSoManyCommands(t *testing.T) {
	_, a := alice(t)
	id := made(t, a)
	for range maxRunning {
		if _, err := a.Exec(t.Context(), id, api.ExecRequest{Argv: []string{"sleep", "600"}, Background: true}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Exec(t.Context(), id, api.ExecRequest{Argv: []string{"true"}, Background: true}); sandbox.KindOf(err) != sandbox.KindQuota {
		t.Errorf("one more = %v, want %s", err, sandbox.KindQuota)
	}
}

// Threat 81: what is kept of a flood is bounded; head and tail are there.
func TestFloodIsBounded(t *testing.T) {
	_, a := alice(t)
	id := made(t, a)
	res, err := a.Exec(t.Context(), id, api.ExecRequest{Command: "echo head; head -c 20000000 /dev/zero | tr '\\0' x; echo tail", WaitSeconds: seconds(20)})
	if err != nil || res.Running {
		t.Fatalf("Exec = %v, running %v", err, res.Running)
	}
	if len(res.Stdout) > ringSize+2*headSize || !res.Truncated || !strings.HasPrefix(res.Stdout, "head\n") || !strings.HasSuffix(res.Stdout, "tail\n") || !strings.Contains(res.Stdout, "bytes left out]") {
		t.Errorf("kept %d bytes: %.40q…", len(res.Stdout), res.Stdout)
	}
}

// A stream loses nothing, however slow its reader is.
func TestStreamIsCompleteForASlowReader(t *testing.T) {
	_, a := alice(t)
	id := made(t, a)
	var kinds []string
	total := 0
	var last *api.ExecResult
	err := a.StreamExec(t.Context(), id, api.ExecRequest{Command: "head -c 8000000 /dev/zero; echo err >&2; exit 4"}, func(e api.ExecEvent) error {
		if len(kinds) == 0 || kinds[len(kinds)-1] != e.Kind {
			kinds = append(kinds, e.Kind)
		}
		if e.Kind == "stdout" {
			total += len(e.Data)
			time.Sleep(100 * time.Microsecond) // a slow reader, not synchronisation
		}
		last = e.Result
		return nil
	})
	if err != nil || total != 8000000 || last == nil || last.ExitCode != 4 || kinds[0] != "started" || kinds[len(kinds)-1] != "exit" {
		t.Errorf("StreamExec = %v, %d bytes, %v, %+v", err, total, kinds, last)
	}
}

func TestStreamKillsTheCommandWhenItsReaderFails(t *testing.T) {
	d, a := alice(t)
	id := made(t, a)
	broken := errors.New("broken")
	err := a.StreamExec(t.Context(), id, api.ExecRequest{Command: "echo $$ > pid.new; mv pid.new pid; yes"}, func(e api.ExecEvent) error {
		if e.Kind == "stdout" {
			return broken
		}
		return nil
	})
	if !errors.Is(err, broken) {
		t.Errorf("StreamExec = %v", err)
	}
	dies(t, pidIn(t, filepath.Join(d.Work(), "pid")))
}

func TestSandboxIsDestroyedOnceTheResultWasRead(t *testing.T) {
	d, a := alice(t)
	id := made(t, a)
	res, err := a.Exec(t.Context(), id, api.ExecRequest{Command: "read x; echo done", Background: true, Destroy: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(d.Requests(localapi.OpDestroy)); n != 0 {
		t.Fatalf("destroyed before the end")
	}
	if _, err := a.InputExec(t.Context(), "", res.ExecID, api.ExecInput{EOF: true}); err != nil {
		t.Fatal(err)
	}
	if _, out := follow(t, a, res); out != "done\n" {
		t.Errorf("output %q", out)
	}
	if n := len(d.Requests(localapi.OpDestroy)); n != 1 {
		t.Errorf("%d destructions, want 1", n)
	}
}

func FuzzParseCursor(f *testing.F) {
	for _, s := range []string{"", "0.0", "1.2", "-1.0", "1", "99999999999999999999.0", "1.2.3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseCursor(s)
		if err != nil {
			return
		}
		if c.out < 0 || c.err < 0 {
			t.Errorf("parseCursor(%q) = %v", s, c)
		}
		if again, err := parseCursor(c.String()); err != nil || again != c {
			t.Errorf("%v does not survive its own form", c)
		}
	})
}
