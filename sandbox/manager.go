package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/podspawn/podspawn/sandbox/fault"
)

// Guest speaks to the first process of a sandbox.
type Guest interface {
	// Greet checks that the guest of a sealed sandbox answers and tells it the
	// sandbox's present deadline.
	Greet(ctx context.Context, s Sandbox) error

	// Shutdown has the guest of a sealed sandbox kill everything in it and exit. It
	// returns once the guest has said that it will; that the container is gone is
	// still for the Runtime to say. A guest that has gone is an error.
	Shutdown(ctx context.Context, s Sandbox) error
}

// Sessions knows the SSH connections' processes.
type Sessions interface {
	// End ends connections of a sandbox and returns when none of their processes is
	// left. Those that ended already are no error.
	End(ctx context.Context, s Sandbox, conns []Connection) error
}

// Config is what a Manager works with. Log may be nil; a zero Pool is no pool, and
// needs no Generation; without MemoryReserve Memory is not asked.
type Config struct {
	Store    Store
	Runtime  Runtime
	Host     Host
	Sockets  Sockets
	Guest    Guest
	Sessions Sessions
	Pool     PoolConfig
	// Generation changes when guest or runtime do: what was started with others is
	// of no use in the pool any more.
	Generation func() (string, error)
	// Memory is what the host has available, in bytes. Nothing is started that would
	// begin with less than MemoryReserve.
	Memory        func() (int64, error)
	MemoryReserve int64
	Log           *slog.Logger
}

// Timeouts of the manager's own work, whoever waits for it.
const (
	startTimeout   = 90 * time.Second
	destroyTimeout = 60 * time.Second
	// slowRuntime is how long the runtime has to remove a container before the guest
	// is told to end it from inside.
	slowRuntime = 2 * time.Second
)

// Manager carries out lifetimes: it starts sandboxes, ends them when a request,
// the last exit, idleness or the deadline says so, and removes what a crash left.
// It is safe for concurrent use.
type Manager struct {
	store    Store
	runtime  Runtime
	host     Host
	sockets  Sockets
	guest    Guest
	sessions Sessions
	log      *slog.Logger

	pool       PoolConfig
	generation func() (string, error)
	memory     func() (int64, error)
	reserve    int64

	kick     chan struct{} // capacity 1: wakes the reaper early
	again    chan struct{} // capacity 1: reconcile now
	poolKick chan struct{} // capacity 1: wakes the pool early

	mu        sync.Mutex               // guards what follows
	starts    map[ID]*start            // being started by this process
	ends      map[ID]*end              // being destroyed by this process
	activity  map[ID]int               // running calls and commands
	retry     map[ID]backoff           // destructions that did not finish
	taken     map[ID]bool              // pooled ones that a Create is trying
	keys      map[string]chan struct{} // idempotency keys being decided on; closed when that is done
	lastStart time.Time                // of a tenant's sandbox
	poolNext  time.Time                // the pool starts nothing before
	poolErr   error                    // why the pool is not full
	wg        sync.WaitGroup           // background starts and destructions
	closed    bool                     // no new background work
}

// start is one start in progress: done is closed after err is set.
type start struct {
	pooled bool // nobody waits for it
	cancel context.CancelCauseFunc
	done   chan struct{}
	err    error
}

// end is one destruction in progress.
type end struct {
	done chan struct{}
	err  error
}

type backoff struct {
	tries int
	next  time.Time
}

// NewManager returns a Manager. Call [Manager.Reconcile] before anything else,
// then [Manager.Run].
func NewManager(c Config) *Manager {
	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Manager{
		store: c.Store, runtime: c.Runtime, host: c.Host, sockets: c.Sockets,
		guest: c.Guest, sessions: c.Sessions, log: log,
		pool: c.Pool, generation: c.Generation, memory: c.Memory, reserve: c.MemoryReserve,
		kick: make(chan struct{}, 1), again: make(chan struct{}, 1), poolKick: make(chan struct{}, 1),
		starts:   map[ID]*start{},
		ends:     map[ID]*end{},
		activity: map[ID]int{},
		retry:    map[ID]backoff{},
		taken:    map[ID]bool{},
		keys:     map[string]chan struct{}{},
	}
}

// CreateParams says what to create and on whose behalf.
type CreateParams struct {
	Caller Caller
	Name   string
	Labels map[string]string
	Spec   Spec // complete
	Quota  Quota
	Now    time.Time
	// UID and Alias are set for a user's sandbox: see Sandbox.
	UID   int
	Alias string
	// IdempotencyKey, when set, makes a second call with the same key and the same
	// RequestDigest return the sandbox of the first, for 24 hours.
	IdempotencyKey string
	RequestDigest  string
}

// Create makes a sandbox, or takes one from the pool, and returns it once it is
// ready. When ctx ends first it
// returns the row as it is then, and the start goes on: the sandbox belongs to
// its tenant from the moment it is accepted. A sandbox that cannot be started is
// destroyed, and the error says why.
func (m *Manager) Create(ctx context.Context, p CreateParams) (Sandbox, error) {
	if err := p.Spec.Validate(); err != nil {
		return Sandbox{}, err
	}
	img, err := m.runtime.Image(ctx, p.Spec.Image)
	if err != nil {
		return Sandbox{}, err
	}
	row := Sandbox{
		ID: NewID(), Tenant: p.Caller.Tenant, Subject: p.Caller.Subject, Name: p.Name,
		Labels: p.Labels, Spec: p.Spec, Digest: p.Spec.Digest(), State: StateAccepted,
		UID: p.UID, Alias: p.Alias,
		User: p.Spec.User, ImageID: img.ID, CreatedAt: p.Now, ExpiresAt: p.Now.Add(p.Spec.Lifecycle.TTL), LastActivity: p.Now,
	}
	if row.User == "" {
		row.User = img.User
	}
	if row, err = m.accept(ctx, row, p); err != nil {
		return Sandbox{}, err
	}
	return m.await(ctx, row)
}

// accept finds the sandbox of an earlier call with the same key, claims a pooled
// one, or begins to start one.
func (m *Manager) accept(ctx context.Context, row Sandbox, p CreateParams) (Sandbox, error) {
	if p.IdempotencyKey != "" {
		// Between what the key stands for and the row, one call at a time.
		done, err := m.lockKey(ctx, row.Tenant, p.IdempotencyKey)
		if err != nil {
			return Sandbox{}, err
		}
		defer done()
		digest, value, fresh, err := m.store.Remember(ctx, row.Tenant, p.IdempotencyKey, p.RequestDigest, string(row.ID), p.Now)
		if err != nil {
			return Sandbox{}, err
		}
		if !fresh {
			if digest != p.RequestDigest {
				return Sandbox{}, Errorf(KindIdempotencyMismatch, "use a new key for a new request",
					"this idempotency key was used for another request")
			}
			row.ID = ID(value)
			if got, err := m.store.Get(ctx, row.ID); err == nil || KindOf(err) != KindNotFound {
				return got, err
			}
			// The first call got no further than its key: carry on in its place.
		}
	}
	if err := m.memoryLeft(); err != nil {
		return Sandbox{}, err
	}
	if row.Alias == "" { // a user's has her uid or a second login, which a pooled one has not
		if got, ok, err := m.claimPooled(ctx, row, p); err != nil || ok {
			return got, err
		}
	}
	row, err := m.store.Insert(ctx, row, p.Quota, m.event(EventSandboxCreated, p.Now, row, p.Caller))
	if err != nil {
		return Sandbox{}, err
	}
	fault.At("manager.create.accepted")
	return row, m.begin(row)
}

// lockKey waits until no other call decides on the tenant's idempotency key.
func (m *Manager) lockKey(ctx context.Context, tenant, key string) (unlock func(), err error) {
	name := tenant + "\x00" + key
	for {
		m.mu.Lock()
		busy := m.keys[name]
		if busy == nil {
			mine := make(chan struct{})
			m.keys[name] = mine
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				delete(m.keys, name)
				m.mu.Unlock()
				close(mine)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// begin starts an accepted sandbox in the background.
func (m *Manager) begin(row Sandbox) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	st := &start{pooled: row.Pool != "", cancel: cancel, done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		cancel(nil)
		return Errorf(KindUnavailable, "try again in a few seconds", "the daemon is shutting down")
	}
	m.starts[row.ID] = st
	if !st.pooled {
		m.lastStart = time.Now()
	}
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		defer cancel(nil)
		ctx, stop := context.WithTimeoutCause(ctx, startTimeout,
			Errorf(KindTimeout, "the host may be overloaded; try again", "the sandbox did not start within %s", startTimeout))
		defer stop()
		st.err = m.start(ctx, row)
		m.mu.Lock()
		delete(m.starts, row.ID)
		m.mu.Unlock()
		close(st.done)
		if st.err != nil {
			m.log.WarnContext(ctx, "sandbox not started", "sandbox", row.ID, "err", st.err)
			m.destroyLater(row.ID, ReasonStart)
		}
	}()
	return nil
}

// await waits until the sandbox is no longer starting.
func (m *Manager) await(ctx context.Context, row Sandbox) (Sandbox, error) {
	m.mu.Lock()
	st := m.starts[row.ID]
	m.mu.Unlock()
	if st != nil {
		select {
		case <-st.done:
			if st.err != nil {
				return Sandbox{}, st.err
			}
		case <-ctx.Done():
		}
	}
	return m.store.Get(context.WithoutCancel(ctx), row.ID)
}

// AwaitReady waits for at most wait until a sandbox that is being started is
// usable. It fails with KindGone when it ended, KindNotReady when time is up.
func (m *Manager) AwaitReady(ctx context.Context, row Sandbox, wait time.Duration) (Sandbox, error) {
	if !row.State.Usable() && wait > 0 {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		var err error
		if row, err = m.await(ctx, row); err != nil {
			return Sandbox{}, err
		}
	}
	return row, Usable(row)
}

// Usable returns nil when the sandbox takes sessions and commands, and else the
// error that says why not.
func Usable(s Sandbox) error {
	switch {
	case s.State.Usable():
		return nil
	case s.State.Final() || s.State == StateDraining:
		return Gone(s)
	default:
		return Errorf(KindNotReady, "try again in a second", "sandbox %s is still %s", s.ID, s.State)
	}
}

// Gone returns the error for a sandbox that has ended or is ending.
func Gone(s Sandbox) *Error {
	why := map[Reason]string{
		ReasonRequested: "it was destroyed on request",
		ReasonExited:    "its last session left",
		ReasonIdle:      "it was idle",
		ReasonDeadline:  "it reached its deadline",
		ReasonStart:     "it could not be started",
		ReasonLost:      "its container stopped",
		ReasonRetired:   "nobody used it",
	}[s.Reason]
	at := s.DrainingAt
	if at.IsZero() {
		at = s.EndedAt
	}
	return Errorf(KindGone, why+" at "+at.UTC().Format(time.RFC3339)+"; create another with podspawn create",
		"sandbox %s is gone", s.ID)
}

// start does the work of starting. What it leaves behind on an error is
// Destroy's to remove.
func (m *Manager) start(ctx context.Context, row Sandbox) error {
	row, err := m.store.Update(ctx, row.ID, func(s *Sandbox) ([]Event, error) {
		if s.State != StateAccepted {
			return nil, Gone(*s)
		}
		s.State = StateStarting
		return nil, nil
	})
	if err != nil {
		return err
	}
	fault.At("manager.start.marked")
	dir, err := m.sockets.Prepare(row.ID)
	if err != nil {
		return fmt.Errorf("prepare the guest's socket directory: %w", err)
	}
	fault.At("manager.start.prepared")
	var box Container
	var portal, dev, ino uint64
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		var err error
		box, err = m.runtime.Start(gctx, StartParams{
			Sandbox: row.ID, ImageID: row.ImageID, SocketDir: dir, Resources: row.Spec.Resources,
			Egress: row.Spec.Network.Egress, Deadline: row.ExpiresAt.Unix(),
		})
		if err != nil {
			return fmt.Errorf("start the container: %w", err)
		}
		fault.At("manager.start.container")
		if dev, ino, err = m.sockets.Seal(gctx, row.ID); err != nil {
			return fmt.Errorf("wait for the guest: %w", err)
		}
		fault.At("manager.start.sealed")
		return nil
	})
	g.Go(func() error {
		var err error
		if portal, err = m.openHost(gctx, row); err != nil {
			return fmt.Errorf("make portal and login: %w", err)
		}
		fault.At("manager.start.host")
		return nil
	})
	if err := g.Wait(); err != nil {
		return causeOr(ctx, err)
	}
	row.SocketDev, row.SocketIno = dev, ino
	if err := m.guest.Greet(ctx, row); err != nil {
		return causeOr(ctx, fmt.Errorf("greet the guest: %w", err))
	}
	fault.At("manager.start.greeted")
	now := time.Now()
	_, err = m.store.Update(ctx, row.ID, func(s *Sandbox) ([]Event, error) {
		if s.State != StateStarting {
			return nil, Gone(*s)
		}
		s.State = StateReady
		if s.Pool != "" {
			s.State = StatePooled
		}
		s.Container, s.Portal, s.SocketDev, s.SocketIno = box.ID, portal, dev, ino
		s.ReadyAt, s.LastActivity = now, now
		return []Event{m.event(EventSandboxStarted, now, *s, system)}, nil
	})
	fault.At("manager.start.ready")
	return causeOr(ctx, err)
}

// openHost makes portal and login, and a second login where there is one.
func (m *Manager) openHost(ctx context.Context, row Sandbox) (portal uint64, err error) {
	users := IsUserUID(row.UID)
	if users {
		if err := m.host.Share(ctx, row.Alias, row.ID.Login()); err != nil {
			return 0, err
		}
	}
	if portal, err = m.host.Open(ctx, row.ID.Login(), row.UID); err != nil || users || row.Alias == "" {
		return portal, err
	}
	return portal, m.host.OpenAlias(ctx, row.ID.Login(), row.Alias, row.UID)
}

// causeOr prefers the reason why ctx ended to the errors that its end caused.
func causeOr(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		if e, ok := errors.AsType[*Error](context.Cause(ctx)); ok {
			return e
		}
	}
	return err
}

// system is the actor of what nobody asked for.
var system = Caller{Subject: "podspawn", Kind: ActorSystem}

func (m *Manager) event(kind EventKind, now time.Time, s Sandbox, by Caller) Event {
	return Event{
		Time: now, Event: kind, Tenant: s.Tenant, Subject: by.Subject, Actor: by.Kind,
		Sandbox: s.ID, SpecDigest: s.Digest, Token: by.Token,
	}
}

// Begin counts a call or command as activity of the sandbox until the returned
// function is called (once): a sandbox with one is not idle.
func (m *Manager) Begin(id ID) (end func()) {
	m.mu.Lock()
	m.activity[id]++
	m.mu.Unlock()
	return func() {
		m.mu.Lock()
		if m.activity[id]--; m.activity[id] <= 0 {
			delete(m.activity, id)
		}
		m.mu.Unlock()
		m.touch(id)
	}
}

// touch restarts the idle clock. Losing it to a broken store only ends a sandbox
// earlier, so it is logged and no more.
func (m *Manager) touch(id ID) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := m.store.Update(ctx, id, func(s *Sandbox) ([]Event, error) {
		if !s.State.Final() {
			s.LastActivity = time.Now()
		}
		return nil, nil
	})
	if err != nil {
		m.log.WarnContext(ctx, "activity not recorded", "sandbox", id, "err", err)
	}
}

// Extend sets the end of a living sandbox to now + ttl, never earlier than it is.
func (m *Manager) Extend(ctx context.Context, id ID, ttl time.Duration, by Caller) (Sandbox, error) {
	now := time.Now()
	row, err := m.store.Update(ctx, id, func(s *Sandbox) ([]Event, error) {
		if err := Usable(*s); err != nil {
			return nil, err
		}
		if end := now.Add(ttl); end.After(s.ExpiresAt) {
			s.ExpiresAt = end
		}
		s.LastActivity = now
		ev := m.event(EventSandboxExtended, now, *s, by)
		ev.Detail = map[string]string{"expires_at": s.ExpiresAt.UTC().Format(time.RFC3339)}
		return []Event{ev}, nil
	})
	if err != nil {
		return Sandbox{}, err
	}
	// The guest has a deadline of its own; it learns the new one here, and again
	// with each connection.
	if err := m.guest.Greet(ctx, row); err != nil {
		m.log.WarnContext(ctx, "guest not told of its new deadline", "sandbox", id, "err", err)
	}
	return row, nil
}

// Kick makes the reaper look now.
func (m *Manager) Kick() {
	select {
	case m.kick <- struct{}{}:
	default: // it will look anyway
	}
}

// Close waits for starts and destructions in progress.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.wg.Wait()
}
