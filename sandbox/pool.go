package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/podspawn/podspawn/sandbox/fault"
)

// The pool holds sandboxes that were started ahead: complete, with login, portal
// and guest, and with nobody as their owner. Create takes one that fits instead of
// starting a container. The life of one:
//
//	accepted → starting → pooled → ready (claimed: a sandbox like any other from here on)
//	                             ↘ draining → destroyed (stale, surplus, or its guest does not answer)
//
// Nothing but the guest runs in one before its claim. One that was claimed never
// comes back, so nothing of a tenant's ever reaches another.

// PoolConfig says what to hold ready. The zero value is no pool.
type PoolConfig struct {
	Size int
	// Spec is what a sandbox is expected to ask for; of it, what can be decided at the
	// claim does not count.
	Spec Spec
	// Quota bounds the pool together with all sandboxes; PerTenant is ignored.
	Quota Quota
	// Settle is how long after a start or a claim the pool waits before it starts
	// another, so that it does not compete with whoever is about to use theirs.
	Settle time.Duration
}

// PoolStatus is what the pool holds.
type PoolStatus struct {
	Size     int    `json:"size"`
	Ready    int    `json:"ready"`
	Starting int    `json:"starting"`
	Problem  string `json:"problem,omitempty"` // why it holds less than Size, in words
}

const (
	poolEvery = 2 * time.Second
	// poolTTL is how far ahead the end of a pooled sandbox is, and poolRenew how much of
	// that may have passed: renewing is also how the pool sees that the guest answers.
	poolTTL   = 2 * time.Hour
	poolRenew = time.Minute
	// poolProbe bounds the question whether a guest still answers.
	poolProbe = 2 * time.Second
	// poolTries bounds the pooled sandboxes that one Create tries.
	poolTries = 3
	// poolPause is how long the pool waits after a start that failed.
	poolPause = 30 * time.Second
)

var errNotPooled = errors.New("the sandbox is not in the pool any more")

// poolKey names everything about a sandbox that can't change once it is started:
// two specs with one key can have each other's containers. What the claim decides
// is left out by name, so that a field that is new to Spec separates until somebody
// says here that it need not.
func poolKey(imageID string, spec Spec, generation string) string {
	spec.Image = imageID
	spec.Name, spec.Env, spec.User, spec.Shell, spec.Workspace = "", nil, "", "", ""
	spec.SSH, spec.Lifecycle = SSHRights{}, Lifecycle{}
	b, err := json.Marshal([]any{spec, generation})
	if err != nil { // NaN in CPUs; Validate refuses it first
		panic("sandbox: spec does not marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// keyOf is poolKey with the present generation of guest and runtime.
func (m *Manager) keyOf(imageID string, spec Spec) (string, error) {
	generation, err := m.generation()
	if err != nil {
		return "", fmt.Errorf("look at guest and runtime: %w", err)
	}
	return poolKey(imageID, spec, generation), nil
}

// claimPooled gives want's owner a pooled sandbox that fits. ok is false when
// there is none: then a container has to be started. A pooled one that does not
// answer is destroyed, and never the reason why a Create fails.
func (m *Manager) claimPooled(ctx context.Context, want Sandbox, p CreateParams) (got Sandbox, ok bool, err error) {
	if m.pool.Size == 0 {
		return Sandbox{}, false, nil
	}
	if want.Pool, err = m.keyOf(want.ImageID, want.Spec); err != nil {
		return Sandbox{}, false, err
	}
	for range poolTries {
		has, found, err := m.take(ctx, want.Pool)
		if err != nil || !found {
			return Sandbox{}, false, err
		}
		got, err = m.claim(ctx, has, want, p)
		m.letGo(has.ID)
		switch {
		case err == nil:
			m.kickPool()
			return got, true, nil
		case errors.Is(err, errNotPooled) || KindOf(err) == KindNotFound: // the next one
		default:
			return Sandbox{}, false, err
		}
	}
	return Sandbox{}, false, nil
}

// take picks a pooled sandbox that no other Create of this process is trying.
// That is only so that they don't get into each other's way: who owns one is
// decided by the Store.
func (m *Manager) take(ctx context.Context, key string) (Sandbox, bool, error) {
	rows, err := m.store.Pooled(ctx)
	if err != nil {
		return Sandbox{}, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range rows {
		if s.State == StatePooled && s.Pool == key && !m.taken[s.ID] {
			m.taken[s.ID] = true
			return s, true, nil
		}
	}
	return Sandbox{}, false, nil
}

func (m *Manager) letGo(id ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.taken, id)
}

// claim makes has want's. The guest is asked before, so that nobody is given one
// that does not answer, and told its new deadline after, when that is decided.
func (m *Manager) claim(ctx context.Context, has, want Sandbox, p CreateParams) (Sandbox, error) {
	probe, cancel := context.WithTimeout(ctx, poolProbe)
	err := m.guest.Greet(probe, has)
	cancel()
	if err != nil {
		if ctx.Err() != nil {
			return Sandbox{}, ctx.Err() // nobody waits; that says nothing about the guest
		}
		m.log.WarnContext(ctx, "pooled sandbox does not answer", "sandbox", has.ID, "err", err)
		return Sandbox{}, errors.Join(errNotPooled, m.retire(ctx, has.ID, ReasonLost))
	}
	fault.At("manager.pool.probed")
	want.ID = has.ID
	claimed := m.event(EventSandboxClaimed, p.Now, want, p.Caller)
	claimed.Detail = map[string]string{"waited": p.Now.Sub(has.ReadyAt).Round(time.Second).String()}
	got, err := m.store.ClaimPooled(ctx, want, p.Quota, p.IdempotencyKey, m.event(EventSandboxCreated, p.Now, want, p.Caller), claimed)
	if err != nil {
		return Sandbox{}, err
	}
	fault.At("manager.pool.claimed")
	m.mu.Lock()
	m.lastStart = time.Now()
	m.mu.Unlock()
	if err := m.guest.Greet(ctx, got); err != nil {
		// It learns its deadline with each connection, and ends by ours without that.
		m.log.WarnContext(ctx, "guest not told of its deadline", "sandbox", got.ID, "err", err)
	}
	m.log.InfoContext(ctx, "sandbox claimed from the pool", "sandbox", got.ID)
	return got, nil
}

// retire ends a pooled sandbox, unless somebody claimed it meanwhile: then it is
// theirs, and retire returns nil.
func (m *Manager) retire(ctx context.Context, id ID, reason Reason) error {
	now := time.Now()
	_, err := m.store.Update(ctx, id, func(s *Sandbox) ([]Event, error) {
		if s.State != StatePooled {
			return nil, errNotPooled
		}
		s.State, s.Reason, s.DrainingAt = StateDraining, reason, now
		ev := m.event(EventSandboxDraining, now, *s, system)
		ev.Reason = string(reason)
		return []Event{ev}, nil
	})
	if errors.Is(err, errNotPooled) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("retire pooled sandbox %s: %w", id, err)
	}
	m.destroyLater(id, reason)
	return nil
}

// runPool keeps the pool as it should be until ctx ends.
func (m *Manager) runPool(ctx context.Context) {
	t := time.NewTicker(poolEvery)
	defer t.Stop()
	for {
		if err := m.tendPool(ctx); err != nil && ctx.Err() == nil {
			m.log.WarnContext(ctx, "pool not filled", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-m.poolKick:
		}
	}
}

func (m *Manager) kickPool() {
	select {
	case m.poolKick <- struct{}{}:
	default: // it will look anyway
	}
}

// tendPool retires what is of no use, sees that the others answer, and starts at
// most one.
func (m *Manager) tendPool(ctx context.Context) error {
	rows, err := m.store.Pooled(ctx)
	if err != nil || m.pool.Size == 0 && len(rows) == 0 {
		return err
	}
	spec := m.pool.Spec
	key, img, size := "", Image{}, m.pool.Size
	if size > 0 {
		img, err = m.runtime.Image(ctx, spec.Image)
		if err == nil {
			key, err = m.keyOf(img.ID, spec)
		}
		switch {
		case KindOf(err) == KindImageNotFound && err != nil:
			size = 0 // what is there is of an image that nobody can ask for any more
		case err != nil:
			return m.poolProblem(err)
		}
		err = errors.Join(err, m.memoryLeft())
		if err != nil {
			size = 0
		}
	}
	problem := m.poolProblem(err)
	have := 0
	var errs []error
	for _, s := range rows {
		switch {
		case s.State == StateDraining:
		case s.State != StatePooled:
			have++ // an earlier process's, or Reconcile ends it
		case s.Pool != key || have >= size:
			errs = append(errs, m.retire(ctx, s.ID, ReasonRetired))
		case m.renew(ctx, s):
			have++
		}
	}
	if problem == nil && have < size && m.calm() {
		errs = append(errs, m.poolProblem(m.fill(ctx, key, img)))
	}
	return errors.Join(errs...)
}

// renew reports whether a pooled sandbox is in order. One whose guest does not
// answer is retired.
func (m *Manager) renew(ctx context.Context, s Sandbox) bool {
	now := time.Now()
	m.mu.Lock()
	busy := m.taken[s.ID]
	m.mu.Unlock()
	if busy || s.ExpiresAt.Sub(now) > poolTTL-poolRenew {
		return true
	}
	s.ExpiresAt = now.Add(poolTTL)
	probe, cancel := context.WithTimeout(ctx, poolProbe)
	defer cancel()
	err := m.guest.Greet(probe, s)
	if ctx.Err() != nil {
		return true
	}
	if err != nil {
		m.log.WarnContext(ctx, "pooled sandbox does not answer", "sandbox", s.ID, "err", err)
		if err := m.retire(ctx, s.ID, ReasonLost); err != nil {
			m.log.ErrorContext(ctx, "pooled sandbox not retired", "sandbox", s.ID, "err", err)
		}
		return false
	}
	_, err = m.store.Update(ctx, s.ID, func(now *Sandbox) ([]Event, error) {
		if now.State == StatePooled { // else it is somebody's, with an end of its own
			now.ExpiresAt = s.ExpiresAt
		}
		return nil, nil
	})
	if err != nil {
		m.log.WarnContext(ctx, "pooled sandbox not renewed", "sandbox", s.ID, "err", err)
	}
	return true
}

// calm reports whether the pool may start a container now: nobody waits for one,
// and nobody has just been given theirs.
func (m *Manager) calm() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, st := range m.starts {
		if !st.pooled {
			return false
		}
	}
	now := time.Now()
	return !m.closed && now.Sub(m.lastStart) >= m.pool.Settle && !now.Before(m.poolNext)
}

// fill starts one sandbox for the pool and waits for it.
func (m *Manager) fill(ctx context.Context, key string, img Image) error {
	now := time.Now()
	row := Sandbox{
		ID: NewID(), Pool: key, Spec: m.pool.Spec, Digest: m.pool.Spec.Digest(), State: StateAccepted,
		User: img.User, ImageID: img.ID, CreatedAt: now, ExpiresAt: now.Add(poolTTL), LastActivity: now,
	}
	quota := m.pool.Quota
	quota.PerTenant = 0
	row, err := m.store.Insert(ctx, row, quota, m.event(EventSandboxPooled, now, row, system))
	if err != nil {
		return err
	}
	fault.At("manager.pool.accepted")
	if err := m.begin(row); err != nil {
		return err
	}
	m.mu.Lock()
	st := m.starts[row.ID]
	m.mu.Unlock()
	if st == nil { // over already
		m.kickPool()
		return nil
	}
	select {
	case <-st.done:
	case <-ctx.Done():
		st.cancel(errEnding) // nobody waits for it, and the daemon should not either
		<-st.done
	}
	m.mu.Lock()
	m.poolNext = time.Time{}
	if st.err != nil {
		m.poolNext = time.Now().Add(poolPause)
	}
	m.mu.Unlock()
	m.kickPool() // for the next one
	return st.err
}

// poolProblem remembers why the pool is not full. Lack of room and of an image
// are no errors: they are seen in PoolStatus, and the pool waits.
func (m *Manager) poolProblem(err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.poolErr = err; err == nil {
		return nil
	}
	if k := KindOf(err); k == KindCapacity || k == KindImageNotFound {
		return nil
	}
	return err
}

// PoolStatus returns what the pool holds.
func (m *Manager) PoolStatus(ctx context.Context) (PoolStatus, error) {
	out := PoolStatus{Size: m.pool.Size}
	rows, err := m.store.Pooled(ctx)
	if err != nil {
		return out, err
	}
	for _, s := range rows {
		switch s.State {
		case StatePooled:
			out.Ready++
		case StateAccepted, StateStarting:
			out.Starting++
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.poolErr != nil {
		out.Problem = Public(m.poolErr).Msg
	}
	return out, nil
}

// memoryLeft returns an *Error of KindCapacity when the host has less memory
// available than it is to keep for itself.
func (m *Manager) memoryLeft() error {
	if m.reserve == 0 {
		return nil
	}
	left, err := m.memory()
	if err != nil {
		return fmt.Errorf("look at the host's memory: %w", err)
	}
	if left < m.reserve {
		return Errorf(KindCapacity, "try again when other sandboxes have ended",
			"this host has %d MiB of memory left, and keeps %d MiB for itself", left>>20, m.reserve>>20)
	}
	return nil
}
