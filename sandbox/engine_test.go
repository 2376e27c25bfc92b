package sandbox_test

import (
	"context"
	"slices"
	"testing"

	"github.com/podspawn/podspawn/sandbox"
)

// A dead container engine must not keep a sandbox's code alive: the guest ends
// it, the row stays draining, and the engine's return finishes the job at once
// and not when the back-off ends.
func TestDestroyWithoutAnEngineGoesThroughTheGuest(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		name := map[bool]string{false: "same process", true: "after a restart of the daemon"}[restarted]
		t.Run(name, func(t *testing.T) {
			w, path := newWorld(), t.TempDir()+"/state.db"
			r := openRig(t, w, path)
			row := r.create(t, nil)
			down := sandbox.Errorf(sandbox.KindUnavailable, "start Docker", "the engine does not answer")
			w.set("destroy", down)
			w.set("list", down)
			if restarted {
				r = openRig(t, w, path)
				if err := r.Reconcile(context.Background()); sandbox.KindOf(err) != sandbox.KindUnavailable {
					t.Fatalf("Reconcile = %v, want the engine's error", err)
				}
			}
			r.run(t)
			got, err := r.Destroy(context.Background(), row.ID, sandbox.ReasonRequested, params(nil).Caller)
			if sandbox.KindOf(err) != sandbox.KindUnavailable || got.State != sandbox.StateDraining {
				t.Fatalf("Destroy = %s, %v, want draining and why", got.State, err)
			}
			if !w.did("reopen") || !w.did("shutdown") {
				t.Errorf("steps = %v, want the guest's shutdown", w.steps())
			}
			if w.left() == nothing {
				t.Error("login and socket are gone before the container is")
			}
			for range 5 { // until the back-off is long
				_, _ = r.Destroy(context.Background(), row.ID, sandbox.ReasonRequested, params(nil).Caller)
			}
			w.unwatched <- down
			w.set("destroy", nil)
			w.set("list", nil)
			if got := r.await(t, row.ID, sandbox.StateDestroyed); got.Reason != sandbox.ReasonRequested {
				t.Errorf("reason = %s, want the first", got.Reason)
			}
			if left := w.left(); left != nothing {
				t.Errorf("left: %s", left)
			}
		})
	}
}

// An engine that hangs is as good as dead: the guest is told before it answers.
func TestSlowEngineDoesNotKeepTheSandboxRunning(t *testing.T) {
	w := newWorld()
	r := openRig(t, w, t.TempDir()+"/state.db")
	row := r.create(t, nil)
	hang := make(chan struct{})
	w.mu.Lock()
	w.block["destroy"] = hang
	w.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		_, err := r.Destroy(context.Background(), row.ID, sandbox.ReasonDeadline, params(nil).Caller)
		done <- err
	}()
	for !w.did("shutdown") {
		select {
		case err := <-done:
			t.Fatalf("Destroy = %v before the engine answered", err)
		default:
		}
	}
	close(hang)
	if err := <-done; err != nil {
		t.Errorf("Destroy = %v", err)
	}
	if left := w.left(); left != nothing {
		t.Errorf("left: %s", left)
	}
}

// Nothing but the guest runs in a sandbox that was never ready, so there is
// nobody to shut down, and no socket to do it through.
func TestEngineThatDiesDuringAStartIsNotMadeUpForByTheGuest(t *testing.T) {
	w := newWorld()
	r := openRig(t, w, t.TempDir()+"/state.db")
	down := sandbox.Errorf(sandbox.KindUnavailable, "start Docker", "the engine does not answer")
	w.set("start", down)
	w.set("destroy", down)
	if _, err := r.Create(context.Background(), params(nil)); sandbox.KindOf(err) != sandbox.KindUnavailable {
		t.Fatalf("Create = %v, want the engine's error", err)
	}
	rows, err := r.store.List(context.Background(), sandbox.Filter{})
	if err != nil || len(rows) != 1 {
		t.Fatalf("rows = %v, %v", rows, err)
	}
	r.await(t, rows[0].ID, sandbox.StateDraining)
	if w.did("shutdown") {
		t.Error("a guest that was never sealed was connected to")
	}
}

func (w *world) steps() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.log)
}

func (w *world) did(step string) bool { return slices.Contains(w.steps(), step) }
