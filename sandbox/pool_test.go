package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/sqlstore"
)

func poolOf(size int) sandbox.PoolConfig {
	return sandbox.PoolConfig{Size: size, Spec: sandbox.Spec{}.WithDefaults(sandbox.BuiltinDefaults())}
}

// newPool is a running manager whose pool is full.
func newPool(t *testing.T, size int) *rig {
	t.Helper()
	r := openRig(t, newWorld(), filepath.Join(t.TempDir(), "state.db"), poolOf(size))
	r.run(t)
	r.awaitPool(t, size)
	return r
}

// waiting returns the ids of what can be claimed.
func (r *rig) waiting(t *testing.T) (ids []sandbox.ID) {
	t.Helper()
	rows, err := r.store.Pooled(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range rows {
		if s.State == sandbox.StatePooled {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// eventually polls until f returns nil.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// awaitPool waits until so many can be claimed, none of them one of these.
func (r *rig) awaitPool(t *testing.T, size int, without ...sandbox.ID) {
	t.Helper()
	eventually(t, func() error {
		got := r.waiting(t)
		if len(got) != size || slices.ContainsFunc(got, func(id sandbox.ID) bool { return slices.Contains(without, id) }) {
			return fmt.Errorf("pool holds %v, want %d without %v", got, size, without)
		}
		return nil
	})
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func TestCreateTakesFromThePoolAndThePoolFillsAgain(t *testing.T) {
	r := newPool(t, 2)
	has := r.waiting(t)
	p := params(func(s *sandbox.Spec) {
		s.Env, s.User, s.Workspace, s.Lifecycle.TTL = map[string]string{"A": "b"}, "ann", "/home/ann", 7*time.Minute
	})
	p.Name, p.Labels = "n", map[string]string{"x": "y"}
	got, err := r.Create(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != has[0] {
		t.Errorf("created %s, want the one that waited longest, %s", got.ID, has[0])
	}
	if got.State != sandbox.StateReady || got.Tenant != "t1" || got.Subject != "ann" || got.Name != "n" || got.User != "ann" || got.Pool != "" {
		t.Errorf("claimed row = %+v, want a ready one of its tenant's", got)
	}
	if got.Digest != p.Spec.Digest() || cmp.Diff(p.Spec, got.Spec) != "" || cmp.Diff(p.Labels, got.Labels) != "" {
		t.Errorf("claimed row has spec %+v and labels %v, want those asked for", got.Spec, got.Labels)
	}
	if want := p.Now.Add(7 * time.Minute); !got.ExpiresAt.Equal(want) {
		t.Errorf("ends at %s, want %s", got.ExpiresAt, want)
	}
	r.world.change(func() {
		if told := r.world.greeted[got.ID]; !told.ExpiresAt.Equal(got.ExpiresAt) || told.Spec.Env["A"] != "b" {
			t.Errorf("the guest was told %+v, want the deadline and spec of the claim", told)
		}
	})
	want := []sandbox.EventKind{sandbox.EventSandboxPooled, sandbox.EventSandboxStarted, sandbox.EventSandboxCreated, sandbox.EventSandboxClaimed}
	evs, err := r.store.Events(context.Background(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []sandbox.EventKind
	for _, e := range evs {
		if e.Sandbox == got.ID {
			kinds = append(kinds, e.Event)
		}
	}
	if d := cmp.Diff(want, kinds); d != "" {
		t.Errorf("audit events of it (-want +got):\n%s", d)
	}
	r.awaitPool(t, 2, got.ID)
}

func TestParallelCreatesNeverShareAPooledSandbox(t *testing.T) {
	r := newPool(t, 3)
	ids := make(chan sandbox.ID, 12)
	var wg sync.WaitGroup
	for n := range 12 {
		wg.Go(func() {
			p := params(nil)
			p.Caller.Tenant = fmt.Sprint("t", n)
			row, err := r.Create(context.Background(), p)
			if err != nil {
				t.Errorf("Create: %v", err)
			} else if row.Tenant != p.Caller.Tenant {
				t.Errorf("tenant %s got a sandbox of %s", p.Caller.Tenant, row.Tenant)
			}
			ids <- row.ID
		})
	}
	wg.Wait()
	close(ids)
	seen := map[sandbox.ID]bool{}
	for id := range ids {
		if seen[id] {
			t.Errorf("%s was handed out twice", id)
		}
		seen[id] = true
	}
}

func TestAnotherContainerIsStartedCold(t *testing.T) {
	for name, change := range map[string]func(*sandbox.Spec){
		"memory": func(s *sandbox.Spec) { s.Resources.Memory *= 2 },
		"cpus":   func(s *sandbox.Spec) { s.Resources.CPUs = 2 },
		"disk":   func(s *sandbox.Spec) { s.Resources.Disk *= 2 },
		"pids":   func(s *sandbox.Spec) { s.Resources.PIDs++ },
		"egress": func(s *sandbox.Spec) { s.Network.Egress = "another" },
	} {
		t.Run(name, func(t *testing.T) {
			spec := params(change).Spec
			if name == "egress" { // whatever Validate says about it
				base := params(nil).Spec
				if sandbox.PoolKey("i", spec, "g") == sandbox.PoolKey("i", base, "g") {
					t.Error("another egress has the same key")
				}
				return
			}
			r := newPool(t, 1)
			has := r.waiting(t)[0]
			if row := r.create(t, change); row.ID == has || row.State != sandbox.StateReady {
				t.Errorf("created %s in state %s, want another than the pooled %s", row.ID, row.State, has)
			}
		})
	}
}

func TestPooledSandboxThatDoesNotAnswerIsReplacedAndNeverHandedOut(t *testing.T) {
	r := newPool(t, 2)
	bad := r.waiting(t)
	r.world.change(func() {
		for _, id := range bad {
			r.world.deaf[id] = true
		}
	})
	p := params(nil)
	p.Quota.PerTenant = 1 // the bad ones take no place of the tenant's
	row, err := r.Create(context.Background(), p)
	if err != nil {
		t.Fatalf("Create with a bad pool: %v", err)
	}
	if slices.Contains(bad, row.ID) {
		t.Errorf("handed out %s, whose guest does not answer", row.ID)
	}
	for _, id := range bad {
		if got := r.await(t, id, sandbox.StateFailed); got.Tenant != "" || got.Reason != sandbox.ReasonLost {
			t.Errorf("bad one ended as %+v, want nobody's, lost", got)
		}
	}
	r.awaitPool(t, 2, append(bad, row.ID)...)
}

func TestStaleEntriesAreReplaced(t *testing.T) {
	for name, change := range map[string]func(*world){
		"image":            func(w *world) { w.image = "sha256:4567" },
		"guest or runtime": func(w *world) { w.generation = "2" },
	} {
		t.Run(name, func(t *testing.T) {
			r := newPool(t, 1)
			old := r.waiting(t)[0]
			r.world.change(func() { change(r.world) })
			if row := r.create(t, nil); row.ID == old {
				t.Error("a stale entry was handed out")
			}
			r.awaitPool(t, 1, old)
			if got := r.await(t, old, sandbox.StateDestroyed); got.Reason != sandbox.ReasonRetired {
				t.Errorf("the stale one ended as %s, want retired", got.Reason)
			}
		})
	}
}

func TestPoolIsEmptiedWhen(t *testing.T) {
	for name, change := range map[string]func(*rig){
		"the image is gone":   func(r *rig) { r.world.set("image", sandbox.Errorf(sandbox.KindImageNotFound, "build it", "no image")) },
		"memory becomes rare": func(r *rig) { r.world.change(func() { r.world.memory = 1<<20 - 1 }) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newPool(t, 2)
			change(r)
			r.awaitPool(t, 0)
			eventually(t, func() error {
				if left := r.world.left(); left != nothing {
					return errors.New("left: " + left)
				}
				return nil
			})
			st, err := r.PoolStatus(context.Background())
			if err != nil || st.Problem == "" || st.Size != 2 || st.Ready != 0 {
				t.Errorf("status = %+v, %v, want the reason why it is empty", st, err)
			}
		})
	}
}

func TestPoolTurnedOffIsEmptiedByTheNextDaemon(t *testing.T) {
	w, path := newWorld(), filepath.Join(t.TempDir(), "state.db")
	t.Run("before", func(t *testing.T) {
		r := openRig(t, w, path, poolOf(2))
		r.run(t)
		r.awaitPool(t, 2)
	})
	r := openRig(t, w, path)
	if err := r.Reconcile(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.run(t)
	r.awaitPool(t, 0)
	eventually(t, func() error {
		if left := w.left(); left != nothing {
			return errors.New("left: " + left)
		}
		return nil
	})
}

func TestPoolOutlivesARestart(t *testing.T) {
	w, path := newWorld(), filepath.Join(t.TempDir(), "state.db")
	var has []sandbox.ID
	t.Run("before", func(t *testing.T) {
		r := openRig(t, w, path, poolOf(2))
		r.run(t)
		r.awaitPool(t, 2)
		has = r.waiting(t)
	})
	r := openRig(t, w, path, poolOf(2))
	if err := r.Reconcile(context.Background()); err != nil {
		t.Fatal(err)
	}
	if row := r.create(t, nil); row.ID != has[0] {
		t.Errorf("created %s, want the pooled %s", row.ID, has[0])
	}
}

// A daemon killed in the middle of filling: what it left has no owner, and goes.
func TestDeathInTheMiddleOfFilling(t *testing.T) {
	for _, state := range []sandbox.State{sandbox.StateAccepted, sandbox.StateStarting} {
		t.Run(string(state), func(t *testing.T) {
			w, path := newWorld(), filepath.Join(t.TempDir(), "state.db")
			ctx := context.Background()
			dead, err := sqlstore.Open(ctx, path)
			if err != nil {
				t.Fatal(err)
			}
			now, spec := time.Now(), poolOf(1).Spec
			row, err := dead.Insert(ctx, sandbox.Sandbox{
				ID: sandbox.NewID(), Pool: "k", Spec: spec, Digest: spec.Digest(), CreatedAt: now, ExpiresAt: now.Add(time.Hour), LastActivity: now,
			}, sandbox.Quota{}, sandbox.Event{Time: now, Event: sandbox.EventSandboxPooled})
			if err == nil {
				_, err = dead.Update(ctx, row.ID, func(s *sandbox.Sandbox) ([]sandbox.Event, error) { s.State = state; return nil, nil })
			}
			if err := errors.Join(err, dead.Close()); err != nil {
				t.Fatal(err)
			}
			w.boxes[row.ID], w.sockets[row.ID], w.logins[row.ID.Login()] = true, true, row.UID
			r := openRig(t, w, path, poolOf(1))
			if err := r.Reconcile(ctx); err != nil {
				t.Fatal(err)
			}
			r.run(t)
			r.await(t, row.ID, sandbox.StateFailed)
			r.awaitPool(t, 1, row.ID)
			if want := "containers 1, logins 1, sockets 1"; w.left() != want {
				t.Errorf("host has %s, want %s", w.left(), want)
			}
		})
	}
}

func TestPooledContainerThatStopsIsReplaced(t *testing.T) {
	r := newPool(t, 1)
	id := r.waiting(t)[0]
	r.world.watch <- id
	r.await(t, id, sandbox.StateFailed)
	r.awaitPool(t, 1, id)
}

func TestPooledSandboxTakesNoSession(t *testing.T) {
	r := newPool(t, 1)
	row := r.state(t, r.waiting(t)[0])
	if err := sandbox.Usable(row); sandbox.KindOf(err) != sandbox.KindNotReady || err == nil {
		t.Errorf("Usable = %v, want not_ready", err)
	}
	if _, err := r.Extend(context.Background(), row.ID, time.Hour, sandbox.Caller{}); err == nil {
		t.Error("Extend of a pooled sandbox succeeded")
	}
	if rows, err := r.store.List(context.Background(), sandbox.Filter{Tenant: "t1", Living: true}); err != nil || len(rows) != 0 {
		t.Errorf("a tenant sees %v, %v", rows, err)
	}
}

func TestPoolStartsNothingWhileSomebodyWaits(t *testing.T) {
	r := openRig(t, newWorld(), filepath.Join(t.TempDir(), "state.db"), poolOf(1))
	gate := make(chan struct{})
	r.world.block["seal"] = gate
	created := make(chan error, 1)
	go func() {
		_, err := r.Create(context.Background(), params(nil))
		created <- err
	}()
	eventually(t, func() error {
		rows, err := r.store.List(context.Background(), sandbox.Filter{Tenant: "t1"})
		if err == nil && (len(rows) != 1 || rows[0].State != sandbox.StateStarting) {
			err = errors.New("not starting yet")
		}
		return err
	})
	for range 3 {
		if err := r.TendPool(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if rows, err := r.store.Pooled(context.Background()); err != nil || len(rows) != 0 {
		t.Errorf("pool = %v, %v while a tenant's sandbox starts, want none", rows, err)
	}
	close(gate)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	if err := r.TendPool(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.awaitPool(t, 1)
}

func TestPooledSandboxIsRenewedAndNotDestroyedUnderItsOwner(t *testing.T) {
	r := newPool(t, 1)
	id := r.waiting(t)[0]
	set := func(change func(*sandbox.Sandbox)) {
		if _, err := r.store.Update(context.Background(), id, func(s *sandbox.Sandbox) ([]sandbox.Event, error) {
			change(s)
			return nil, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	soon := time.Now().Add(time.Minute)
	set(func(s *sandbox.Sandbox) { s.ExpiresAt = soon })
	eventually(t, func() error {
		if got := r.state(t, id).ExpiresAt; !got.After(soon) {
			return fmt.Errorf("ends at %s, want it renewed", got)
		}
		return nil
	})
	if row := r.create(t, nil); row.ID != id {
		t.Fatalf("created %s, want %s", row.ID, id)
	}
	if err := r.Retire(context.Background(), id, sandbox.ReasonRetired); err != nil {
		t.Errorf("retiring what was claimed: %v", err)
	}
	if got := r.state(t, id); got.State != sandbox.StateReady {
		t.Errorf("state = %s after the pool gave it up, want ready: it is its owner's", got.State)
	}
}

func TestIdempotentCreateTakesOneFromThePool(t *testing.T) {
	r := newPool(t, 3)
	p := params(nil)
	p.IdempotencyKey, p.RequestDigest = "k1", "d1"
	ids := make(chan sandbox.ID, 6)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			row, err := r.Create(context.Background(), p)
			if err != nil {
				t.Errorf("Create: %v", err)
			}
			ids <- row.ID
		})
	}
	wg.Wait()
	close(ids)
	first := <-ids
	for id := range ids {
		if id != first {
			t.Errorf("same key, another sandbox: %s and %s", first, id)
		}
	}
	if rows, err := r.store.List(context.Background(), sandbox.Filter{Tenant: "t1"}); err != nil || len(rows) != 1 {
		t.Errorf("the tenant has %d sandboxes, %v, want 1", len(rows), err)
	}
}

func TestCreateIsRefusedWhenTheHostHasNoMemoryLeft(t *testing.T) {
	r := newRig(t)
	r.world.memory = 1<<20 - 1
	_, err := r.Create(context.Background(), params(nil))
	if sandbox.KindOf(err) != sandbox.KindCapacity || sandbox.Public(err).Hint == "" {
		t.Fatalf("Create = %v, want capacity with a hint", err)
	}
	if rows, err := r.store.List(context.Background(), sandbox.Filter{}); err != nil || len(rows) != 0 {
		t.Errorf("rows = %v, %v, want none", rows, err)
	}
	r.world.change(func() { r.world.memory = 8 << 30 })
	r.create(t, nil)
	p := params(nil)
	p.Quota.Memory = 2*p.Spec.Resources.Memory - 1
	if _, err := r.Create(context.Background(), p); sandbox.KindOf(err) != sandbox.KindCapacity {
		t.Errorf("Create beyond the host's memory = %v, want capacity", err)
	}
}
