package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/sqlstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world stands in for Docker, the host and the guests. It exists for the faults
// that the real ones can't be made to show at a chosen step; the end-to-end tests
// use the real ones. The state is the real SQLite store.
type world struct {
	unwatched chan error // ends a Watch with an error
	mu        sync.Mutex
	boxes     map[sandbox.ID]bool // running?
	logins    map[string]int
	sockets   map[sandbox.ID]bool
	ended     []string // connections
	log       []string // steps of destruction, in order
	fail      map[string]error
	block     map[string]chan struct{}
	watch     chan sandbox.ID

	// What follows is for the pool, see pool_test.go.
	image      string              // id
	generation string              // of guest and runtime
	memory     int64               // available
	deaf       map[sandbox.ID]bool // guests that don't answer
	greeted    map[sandbox.ID]sandbox.Sandbox
}

func newWorld() *world {
	return &world{
		boxes: map[sandbox.ID]bool{}, logins: map[string]int{}, sockets: map[sandbox.ID]bool{},
		unwatched: make(chan error),
		fail:      map[string]error{}, block: map[string]chan struct{}{}, watch: make(chan sandbox.ID),
		image: "sha256:0123", generation: "1", memory: 8 << 30,
		deaf: map[sandbox.ID]bool{}, greeted: map[sandbox.ID]sandbox.Sandbox{},
	}
}

// at runs a step: it blocks while the step is blocked, and fails as told.
func (w *world) at(ctx context.Context, step string, do func()) error {
	w.mu.Lock()
	b := w.block[step]
	w.mu.Unlock()
	if b != nil {
		select {
		case <-b:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.fail[step]; err != nil {
		return err
	}
	w.log = append(w.log, step)
	do()
	return nil
}

func (w *world) set(step string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[step] = err
}

func (w *world) left() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprint("containers ", len(w.boxes), ", logins ", len(w.logins), ", sockets ", len(w.sockets))
}

const nothing = "containers 0, logins 0, sockets 0"

type fakeRuntime struct{ *world }

func (r fakeRuntime) Check(context.Context) error { return nil }
func (r fakeRuntime) Image(ctx context.Context, ref string) (sandbox.Image, error) {
	err := r.at(ctx, "image", func() {})
	r.mu.Lock()
	defer r.mu.Unlock()
	return sandbox.Image{ID: r.image, User: "dev"}, err
}

func (r fakeRuntime) Start(ctx context.Context, p sandbox.StartParams) (sandbox.Container, error) {
	err := r.at(ctx, "start", func() { r.boxes[p.Sandbox] = true })
	return sandbox.Container{Sandbox: p.Sandbox, ID: "c-" + string(p.Sandbox), Running: true}, err
}

func (r fakeRuntime) Destroy(ctx context.Context, id sandbox.ID) error {
	return r.at(ctx, "destroy", func() { delete(r.boxes, id) })
}

func (r fakeRuntime) List(ctx context.Context) (all []sandbox.Container, err error) {
	err = r.at(ctx, "list", func() {
		for id, run := range r.boxes {
			all = append(all, sandbox.Container{Sandbox: id, ID: "c-" + string(id), Running: run})
		}
	})
	return all, err
}

func (r fakeRuntime) Watch(ctx context.Context, ended func(sandbox.ID)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case id := <-r.watch:
			ended(id)
		case err := <-r.unwatched:
			return err
		}
	}
}

type fakeHost struct{ *world }

func (h fakeHost) Open(ctx context.Context, login string, uid int) (uint64, error) {
	return 4242, h.at(ctx, "open", func() { h.logins[login] = uid })
}

func (h fakeHost) Close(ctx context.Context, login string, _ int) error {
	return h.at(ctx, "close", func() { delete(h.logins, login) })
}

func (h fakeHost) Share(ctx context.Context, _, _ string) error {
	return h.at(ctx, "share", func() {})
}

func (h fakeHost) OpenAlias(ctx context.Context, _, alias string, uid int) error {
	return h.at(ctx, "open alias", func() { h.logins[alias] = uid })
}

func (h fakeHost) CloseAlias(ctx context.Context, alias string) error {
	return h.at(ctx, "close alias", func() { delete(h.logins, alias) })
}

func (h fakeHost) List(context.Context) (map[string]int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.logins), nil
}

type fakeSockets struct{ *world }

func (s fakeSockets) Prepare(id sandbox.ID) (string, error) {
	return "/run/x", s.at(context.Background(), "prepare", func() { s.sockets[id] = true })
}

func (s fakeSockets) Seal(ctx context.Context, _ sandbox.ID) (uint64, uint64, error) {
	return 7, 9, s.at(ctx, "seal", func() {})
}

func (s fakeSockets) Reopen(_ sandbox.ID, dev, ino uint64) error {
	if dev != 7 || ino != 9 { // what Seal returned
		return errors.New("another socket")
	}
	return s.at(context.Background(), "reopen", func() {})
}

func (s fakeSockets) Dial(context.Context, sandbox.ID) (*os.File, error) {
	return nil, errors.ErrUnsupported
}

func (s fakeSockets) Remove(id sandbox.ID) error {
	return s.at(context.Background(), "remove", func() { delete(s.sockets, id) })
}

func (s fakeSockets) List() ([]sandbox.ID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.sockets)), nil
}

type fakeGuest struct{ *world }

func (g fakeGuest) Greet(ctx context.Context, s sandbox.Sandbox) error {
	err := g.at(ctx, "greet", func() { g.greeted[s.ID] = s })
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deaf[s.ID] {
		return errors.New("no answer")
	}
	return err
}

func (g fakeGuest) Shutdown(ctx context.Context, _ sandbox.Sandbox) error {
	return g.at(ctx, "shutdown", func() {})
}

type fakeSessions struct{ *world }

func (s fakeSessions) End(ctx context.Context, _ sandbox.Sandbox, conns []sandbox.Connection) error {
	return s.at(ctx, "end", func() {
		for _, c := range conns {
			s.ended = append(s.ended, c.ID)
		}
	})
}

// rig is a manager on a world and a real store.
type rig struct {
	*sandbox.Manager
	world *world
	store *sqlstore.Store
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return openRig(t, newWorld(), filepath.Join(t.TempDir(), "state.db"))
}

// openRig is a daemon (re)starting on what another left.
func openRig(t *testing.T, w *world, path string, pool ...sandbox.PoolConfig) *rig {
	t.Helper()
	var c sandbox.Config
	if len(pool) > 0 {
		c.Pool = pool[0]
	}
	store, err := sqlstore.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	c.Store, c.Runtime, c.Host, c.Sockets = store, fakeRuntime{w}, fakeHost{w}, fakeSockets{w}
	c.Guest, c.Sessions = fakeGuest{w}, fakeSessions{w}
	c.Generation = func() (string, error) { w.mu.Lock(); defer w.mu.Unlock(); return w.generation, nil }
	c.Memory = func() (int64, error) { w.mu.Lock(); defer w.mu.Unlock(); return w.memory, nil }
	c.MemoryReserve = 1 << 20
	m := sandbox.NewManager(c)
	r := &rig{Manager: m, world: w, store: store}
	t.Cleanup(func() {
		m.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func params(change func(*sandbox.Spec)) sandbox.CreateParams {
	spec := sandbox.Spec{}.WithDefaults(sandbox.BuiltinDefaults())
	if change != nil {
		change(&spec)
	}
	return sandbox.CreateParams{
		Caller: sandbox.Caller{Tenant: "t1", Subject: "ann", Kind: sandbox.ActorHuman},
		Spec:   spec, Quota: sandbox.Quota{PerTenant: 5}, Now: time.Now(),
	}
}

func (r *rig) create(t *testing.T, change func(*sandbox.Spec)) sandbox.Sandbox {
	t.Helper()
	row, err := r.Create(context.Background(), params(change))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return row
}

func (r *rig) state(t *testing.T, id sandbox.ID) sandbox.Sandbox {
	t.Helper()
	row, err := r.store.Get(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// await polls until the sandbox is in the state.
func (r *rig) await(t *testing.T, id sandbox.ID, want sandbox.State) sandbox.Sandbox {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		row := r.state(t, id)
		if row.State == want {
			return row
		}
		if time.Now().After(deadline) {
			t.Fatalf("state = %s, want %s", row.State, want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *rig) events(t *testing.T) []sandbox.EventKind {
	t.Helper()
	evs, err := r.store.Events(context.Background(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []sandbox.EventKind
	for _, e := range evs {
		kinds = append(kinds, e.Event)
	}
	return kinds
}

func TestLifeFromCreateToDestroy(t *testing.T) {
	r := newRig(t)
	row := r.create(t, nil)
	if row.State != sandbox.StateReady || row.Portal != 4242 || row.SocketDev != 7 || row.SocketIno != 9 || row.Container == "" {
		t.Errorf("created row = %+v, want ready with portal, socket and container", row)
	}
	if row.User != "dev" {
		t.Errorf("user = %q, want the image's", row.User)
	}
	gone, err := r.Destroy(context.Background(), row.ID, sandbox.ReasonRequested, params(nil).Caller)
	if err != nil || gone.State != sandbox.StateDestroyed || gone.EndedAt.IsZero() {
		t.Fatalf("Destroy = %+v, %v, want destroyed", gone, err)
	}
	if left := r.world.left(); left != nothing {
		t.Errorf("left: %s", left)
	}
	want := []sandbox.EventKind{sandbox.EventSandboxCreated, sandbox.EventSandboxStarted, sandbox.EventSandboxDraining, sandbox.EventSandboxDestroyed}
	if d := cmp.Diff(want, r.events(t)); d != "" {
		t.Errorf("audit events (-want +got):\n%s", d)
	}
	if again, err := r.Destroy(context.Background(), row.ID, sandbox.ReasonDeadline, params(nil).Caller); err != nil || again.Reason != sandbox.ReasonRequested {
		t.Errorf("second Destroy = %s, %v, want the first's reason and no error", again.Reason, err)
	}
}

func TestStartThatFailsLeavesNothingAndSaysWhy(t *testing.T) {
	for _, step := range []string{"prepare", "start", "seal", "open", "greet"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			why := sandbox.Errorf(sandbox.KindCapacity, "later", "no room")
			r.world.set(step, why)
			_, err := r.Create(context.Background(), params(nil))
			if sandbox.KindOf(err) != sandbox.KindCapacity {
				t.Fatalf("Create = %v, want the step's error", err)
			}
			rows, err := r.store.List(context.Background(), sandbox.Filter{})
			if err != nil || len(rows) != 1 {
				t.Fatalf("rows = %v, %v, want the failed one", rows, err)
			}
			r.await(t, rows[0].ID, sandbox.StateFailed)
			if left := r.world.left(); left != nothing {
				t.Errorf("left: %s", left)
			}
		})
	}
}

func TestCreateWithUnknownImageMakesNoRow(t *testing.T) {
	r := newRig(t)
	r.world.set("image", sandbox.Errorf(sandbox.KindImageNotFound, "build it", "no image"))
	if _, err := r.Create(context.Background(), params(nil)); sandbox.KindOf(err) != sandbox.KindImageNotFound {
		t.Fatalf("Create = %v, want image_not_found", err)
	}
	if rows, err := r.store.List(context.Background(), sandbox.Filter{}); err != nil || len(rows) != 0 {
		t.Errorf("rows = %v, %v, want none", rows, err)
	}
}

func TestDestroyThatFailsStaysDrainingAndIsTriedAgain(t *testing.T) {
	for _, step := range []string{"end", "destroy", "remove", "close"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			row := r.create(t, nil)
			r.world.set(step, errors.New("not now"))
			if _, err := r.Destroy(context.Background(), row.ID, sandbox.ReasonRequested, sandbox.Caller{}); err == nil {
				t.Fatal("Destroy succeeded although a step failed")
			}
			if got := r.state(t, row.ID).State; got != sandbox.StateDraining {
				t.Errorf("state = %s, want draining: it is not gone", got)
			}
			r.world.set(step, nil)
			r.run(t)
			r.await(t, row.ID, sandbox.StateDestroyed)
			if left := r.world.left(); left != nothing {
				t.Errorf("left: %s", left)
			}
		})
	}
}

func TestDestroyDuringStartStopsIt(t *testing.T) {
	r := newRig(t)
	r.world.block["seal"] = make(chan struct{}) // never closed: the guest never listens
	created := make(chan error, 1)
	go func() {
		_, err := r.Create(context.Background(), params(nil))
		created <- err
	}()
	var id sandbox.ID
	for id == "" {
		rows, err := r.store.List(context.Background(), sandbox.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 1 && rows[0].State == sandbox.StateStarting {
			id = rows[0].ID
		}
		time.Sleep(time.Millisecond)
	}
	row, err := r.Destroy(context.Background(), id, sandbox.ReasonRequested, sandbox.Caller{})
	if err != nil || row.State != sandbox.StateDestroyed {
		t.Fatalf("Destroy = %s, %v, want destroyed", row.State, err)
	}
	if err := <-created; sandbox.KindOf(err) != sandbox.KindGone {
		t.Errorf("Create = %v, want gone", err)
	}
	if left := r.world.left(); left != nothing {
		t.Errorf("left: %s", left)
	}
}

func TestCanceledDestroyStopsWaitingNotDestroying(t *testing.T) {
	r := newRig(t)
	row := r.create(t, nil)
	gate := make(chan struct{})
	r.world.block["destroy"] = gate
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	got, err := r.Destroy(ctx, row.ID, sandbox.ReasonRequested, sandbox.Caller{})
	if err != nil || got.State.Final() {
		t.Fatalf("Destroy with a dead context = %s, %v, want the row on its way", got.State, err)
	}
	close(gate)
	r.await(t, row.ID, sandbox.StateDestroyed)
}

func TestLastExitStartsGraceThenDestroys(t *testing.T) {
	r := newRig(t)
	r.run(t)
	row := r.create(t, func(s *sandbox.Spec) { s.Lifecycle.Grace = 0 })
	connect(t, r, row)
	if got := r.state(t, row.ID).State; got != sandbox.StateRunning {
		t.Fatalf("state with a connection = %s, want running", got)
	}
	disconnect(t, r)
	r.Kick()
	gone := r.await(t, row.ID, sandbox.StateDestroyed)
	if gone.Reason != sandbox.ReasonExited {
		t.Errorf("reason = %s, want exited", gone.Reason)
	}
}

func connect(t *testing.T, r *rig, row sandbox.Sandbox) {
	t.Helper()
	ctx := context.Background()
	cert, err := r.store.Issue(ctx, func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
		return sandbox.Certificate{
			Serial: serial, Sandbox: row.ID, Tenant: row.Tenant, Blob: []byte("x"), IssuedAt: time.Now(), ValidBefore: time.Now().Add(time.Minute),
		}, sandbox.Event{Time: time.Now(), Event: sandbox.EventCertIssued, Sandbox: row.ID}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	conn := sandbox.Connection{
		ID: sandbox.NewToken("con_"), Sandbox: row.ID, Serial: cert.Serial, OpenedAt: time.Now(), Monitor: sandbox.Process{PID: 1, Start: 1},
	}
	if _, err := r.store.Claim(ctx, conn, sandbox.Event{Time: time.Now(), Event: sandbox.EventCertAccepted, Sandbox: row.ID}); err != nil {
		t.Fatal(err)
	}
}

func disconnect(t *testing.T, r *rig) {
	t.Helper()
	ctx := context.Background()
	conns, err := r.store.OpenConnections(ctx, "")
	if err != nil || len(conns) != 1 {
		t.Fatalf("open connections = %v, %v, want one", conns, err)
	}
	closed, err := r.store.CloseConnection(ctx, conns[0].ID, time.Now(), true, "exit",
		sandbox.Event{Time: time.Now(), Event: sandbox.EventSessionClosed, Sandbox: conns[0].Sandbox})
	if err != nil || !closed {
		t.Fatalf("CloseConnection = %v, %v", closed, err)
	}
}

func TestDestroyEndsConnectionsFirst(t *testing.T) {
	r := newRig(t)
	row := r.create(t, nil)
	connect(t, r, row)
	r.world.log = nil
	if _, err := r.Destroy(context.Background(), row.ID, sandbox.ReasonRequested, sandbox.Caller{}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"end", "destroy", "remove", "close"}, r.world.log); d != "" {
		t.Errorf("order of destruction (-want +got):\n%s", d)
	}
	if len(r.world.ended) != 1 {
		t.Errorf("ended connections: %v, want the one", r.world.ended)
	}
	if conns, err := r.store.OpenConnections(context.Background(), row.ID); err != nil || len(conns) != 0 {
		t.Errorf("connections open in the state: %v, %v", conns, err)
	}
}

func TestEndsByDeadlineAndByIdleness(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*sandbox.Sandbox)
		busy   bool
		want   sandbox.Reason
	}{
		{"deadline", func(s *sandbox.Sandbox) { s.ExpiresAt = time.Now().Add(-time.Second) }, false, sandbox.ReasonDeadline},
		{"deadline, with a command running", func(s *sandbox.Sandbox) { s.ExpiresAt = time.Now().Add(-time.Second) }, true, sandbox.ReasonDeadline},
		{"idle", func(s *sandbox.Sandbox) { s.LastActivity = time.Now().Add(-24 * time.Hour) }, false, sandbox.ReasonIdle},
		{"idle by the clock, with a command running", func(s *sandbox.Sandbox) { s.LastActivity = time.Now().Add(-24 * time.Hour) }, true, ""},
		{"grace over", func(s *sandbox.Sandbox) { s.GraceUntil = time.Now().Add(-time.Second) }, false, sandbox.ReasonExited},
		{"grace running", func(s *sandbox.Sandbox) { s.GraceUntil = time.Now().Add(time.Hour) }, false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			row := r.create(t, nil)
			if c.busy {
				defer r.Begin(row.ID)()
			}
			if _, err := r.store.Update(context.Background(), row.ID, func(s *sandbox.Sandbox) ([]sandbox.Event, error) {
				c.change(s)
				return nil, nil
			}); err != nil {
				t.Fatal(err)
			}
			r.run(t)
			r.Kick()
			if c.want == "" {
				// A second sandbox whose time has come shows that the reaper has been by.
				other := r.create(t, nil)
				if _, err := r.store.Update(context.Background(), other.ID, func(s *sandbox.Sandbox) ([]sandbox.Event, error) {
					s.ExpiresAt = time.Now().Add(-time.Second)
					return nil, nil
				}); err != nil {
					t.Fatal(err)
				}
				r.await(t, other.ID, sandbox.StateExpired)
				if got := r.state(t, row.ID).State; got != sandbox.StateReady {
					t.Errorf("state = %s, want ready", got)
				}
				return
			}
			if got := r.await(t, row.ID, c.want.Final()); got.Reason != c.want {
				t.Errorf("reason = %s, want %s", got.Reason, c.want)
			}
		})
	}
}

// A daemon that died at any step of create or destroy: the next one finds what it
// left and removes it.
func TestReconcileAfterDeathAtEachStep(t *testing.T) {
	for _, c := range []struct {
		name  string
		state sandbox.State
		left  []string
		want  sandbox.State
	}{
		{"accepted, nothing made", sandbox.StateAccepted, nil, sandbox.StateFailed},
		{"starting, socket", sandbox.StateStarting, []string{"socket"}, sandbox.StateFailed},
		{"starting, all made", sandbox.StateStarting, []string{"socket", "box", "login"}, sandbox.StateFailed},
		{"ready, container gone", sandbox.StateReady, []string{"socket", "login"}, sandbox.StateFailed},
		{"ready, container stopped", sandbox.StateReady, []string{"socket", "login", "stopped"}, sandbox.StateFailed},
		{"ready, login gone", sandbox.StateReady, []string{"socket", "box"}, sandbox.StateFailed},
		{"ready, another socket", sandbox.StateReady, []string{"socket", "login", "box", "swapped"}, sandbox.StateFailed},
		{"ready, all there", sandbox.StateReady, []string{"socket", "login", "box"}, sandbox.StateReady},
		{"draining, half removed", sandbox.StateDraining, []string{"login"}, sandbox.StateDestroyed},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, path := newWorld(), filepath.Join(t.TempDir(), "state.db")
			ctx := context.Background()
			dead, err := sqlstore.Open(ctx, path)
			if err != nil {
				t.Fatal(err)
			}
			p := params(nil)
			row, err := dead.Insert(ctx, sandbox.Sandbox{
				ID: sandbox.NewID(), Tenant: "t1", Spec: p.Spec, Digest: p.Spec.Digest(), State: sandbox.StateAccepted,
				CreatedAt: p.Now, ExpiresAt: p.Now.Add(time.Hour), LastActivity: p.Now,
			}, sandbox.Quota{}, sandbox.Event{Time: p.Now, Event: sandbox.EventSandboxCreated})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := dead.Update(ctx, row.ID, func(s *sandbox.Sandbox) ([]sandbox.Event, error) {
				s.State, s.SocketDev, s.SocketIno = c.state, 7, 9
				if slices.Contains(c.left, "swapped") {
					s.SocketIno = 10
				}
				if c.state == sandbox.StateDraining {
					s.Reason = sandbox.ReasonRequested
				}
				return nil, nil
			}); err != nil {
				t.Fatal(err)
			}
			if err := dead.Close(); err != nil {
				t.Fatal(err)
			}
			for _, l := range c.left {
				switch l {
				case "socket":
					w.sockets[row.ID] = true
				case "box":
					w.boxes[row.ID] = true
				case "stopped":
					w.boxes[row.ID] = false
				case "login":
					w.logins[row.ID.Login()] = row.UID
				}
			}
			r := openRig(t, w, path)
			if err := r.Reconcile(ctx); err != nil {
				t.Fatalf("Reconcile: %v", err)
			}
			r.run(t)
			r.await(t, row.ID, c.want)
			if c.want.Final() && w.left() != nothing {
				t.Errorf("left: %s", w.left())
			}
		})
	}
}

func TestReconcileRemovesWhatHasNoRow(t *testing.T) {
	r := newRig(t)
	mine := r.create(t, nil)
	orphan := sandbox.NewID()
	r.world.boxes[orphan], r.world.sockets[orphan], r.world.logins[orphan.Login()] = true, true, 70001
	r.world.logins["alice"] = 1000 // not ours
	if err := r.Reconcile(context.Background()); err != nil {
		t.Fatal(err)
	}
	if r.world.boxes[orphan] || r.world.sockets[orphan] || r.world.logins[orphan.Login()] != 0 {
		t.Errorf("the orphan is still there: %s", r.world.left())
	}
	if !r.world.boxes[mine.ID] || r.world.logins["alice"] != 1000 {
		t.Error("Reconcile touched what was not an orphan")
	}
	if got := r.state(t, mine.ID).State; got != sandbox.StateReady {
		t.Errorf("living sandbox is %s", got)
	}
}

func TestDockerDownLosesNoSandbox(t *testing.T) {
	r := newRig(t)
	row := r.create(t, nil)
	r.world.set("list", errors.New("no answer"))
	if err := r.Reconcile(context.Background()); err == nil {
		t.Error("Reconcile hides that Docker did not answer")
	}
	if got := r.state(t, row.ID).State; got != sandbox.StateReady {
		t.Errorf("state = %s, want ready: nobody said that its container is gone", got)
	}
}

func TestContainerThatStopsEndsItsSandbox(t *testing.T) {
	r := newRig(t)
	r.run(t)
	row := r.create(t, nil)
	r.world.watch <- row.ID
	if got := r.await(t, row.ID, sandbox.StateFailed); got.Reason != sandbox.ReasonLost {
		t.Errorf("reason = %s, want lost", got.Reason)
	}
}

func TestIdempotencyKey(t *testing.T) {
	r := newRig(t)
	p := params(nil)
	p.IdempotencyKey, p.RequestDigest = "k1", "d1"
	ids := make(chan sandbox.ID, 8)
	var wg sync.WaitGroup
	for range 8 {
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
	p.RequestDigest = "d2"
	if _, err := r.Create(context.Background(), p); sandbox.KindOf(err) != sandbox.KindIdempotencyMismatch {
		t.Errorf("same key, another request: %v, want idempotency_mismatch", err)
	}
}

func TestExtendNeverShortens(t *testing.T) {
	r := newRig(t)
	row := r.create(t, func(s *sandbox.Spec) { s.Lifecycle.TTL = time.Hour })
	shorter, err := r.Extend(context.Background(), row.ID, time.Minute, sandbox.Caller{})
	if err != nil || !shorter.ExpiresAt.Equal(row.ExpiresAt) {
		t.Errorf("Extend by a minute: %v, %v, want the old end %v", shorter.ExpiresAt, err, row.ExpiresAt)
	}
	longer, err := r.Extend(context.Background(), row.ID, 2*time.Hour, sandbox.Caller{})
	if err != nil || longer.ExpiresAt.Before(row.ExpiresAt.Add(50*time.Minute)) {
		t.Errorf("Extend by two hours: %v, %v", longer.ExpiresAt, err)
	}
}

func TestEveryRefusalHasAHint(t *testing.T) {
	for _, s := range []sandbox.Sandbox{
		{State: sandbox.StateDestroyed, Reason: sandbox.ReasonRequested},
		{State: sandbox.StateExpired, Reason: sandbox.ReasonIdle},
		{State: sandbox.StateFailed, Reason: sandbox.ReasonLost},
		{State: sandbox.StateDraining, Reason: sandbox.ReasonExited},
		{State: sandbox.StateStarting},
	} {
		e, ok := errors.AsType[*sandbox.Error](sandbox.Usable(s))
		if !ok || e.Hint == "" || e.Msg == "" {
			t.Errorf("Usable(%s) = %v, want a message and a hint", s.State, e)
		}
	}
}
