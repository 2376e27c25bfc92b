package daemon

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
)

func TestProcessesAreKnownByPIDAndStart(t *testing.T) {
	p := process(t, false)
	reused := sandbox.Process{PID: p.PID, Start: p.Start - 1} // whoever had this pid before
	if !alive(p) || alive(reused) {
		t.Errorf("alive(%+v) = %v, alive(%+v) = %v, want true and false", p, alive(p), reused, alive(reused))
	}
	if err := signalProcess(reused, unix.SIGKILL); err != nil || !alive(p) {
		t.Errorf("a signal to the pid's earlier owner: %v, the present one alive: %v", err, alive(p))
	}
	if err := waitProcess(t.Context(), reused); err != nil {
		t.Errorf("waiting for the pid's earlier owner: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := waitProcess(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting for a living process: %v, want the deadline", err)
	}
	if err := signalProcess(p, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waitProcess(t.Context(), p); err != nil || alive(p) {
		t.Errorf("after KILL: wait = %v, alive = %v", err, alive(p)) // a zombie, since the test did not wait
	}
	if err := signalProcess(p, unix.SIGKILL); err != nil {
		t.Errorf("a signal to a dead process: %v", err)
	}
}

func TestAncestors(t *testing.T) {
	p := process(t, false)
	up, err := ancestors(p.PID)
	if err != nil || len(up) == 0 || up[0].PID != os.Getpid() {
		t.Fatalf("ancestors = %+v, %v, want this process first", up, err)
	}
	for _, a := range up {
		if a.PID == 1 || !alive(a) {
			t.Errorf("ancestor %+v is process 1, or not alive", a)
		}
	}
	if err := signalProcess(p, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := waitProcess(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{-1, 0, 1 << 30} {
		if up, err := ancestors(pid); err == nil {
			t.Errorf("ancestors(%d) = %+v, want an error", pid, up)
		}
	}
}
