package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/podspawn/podspawn/sandbox/fault"
)

// errEnding cancels a start whose sandbox is being destroyed.
var errEnding = Errorf(KindGone, "create another with podspawn create", "the sandbox was destroyed while it was being started")

// Destroy ends a sandbox and returns when nothing of it is left, with its last
// row. It is idempotent: a second call joins the first, and one for a sandbox
// that has ended returns its row. A canceled ctx stops the waiting, not the
// destruction. A destruction that fails is tried again by the reaper; the row
// stays in StateDraining until nothing is left.
func (m *Manager) Destroy(ctx context.Context, id ID, reason Reason, by Caller) (Sandbox, error) {
	e, err := m.beginEnd(id, reason, by)
	if err != nil {
		return Sandbox{}, err
	}
	select {
	case <-e.done:
	case <-ctx.Done():
		return m.store.Get(context.WithoutCancel(ctx), id)
	}
	row, err := m.store.Get(ctx, id)
	return row, errors.Join(e.err, err)
}

// destroyLater begins a destruction and does not wait for it.
func (m *Manager) destroyLater(id ID, reason Reason) {
	if _, err := m.beginEnd(id, reason, system); err != nil {
		m.log.Warn("destruction not begun", "sandbox", id, "reason", reason, "err", err)
	}
}

// beginEnd starts the destruction of id, or joins the one in progress.
func (m *Manager) beginEnd(id ID, reason Reason, by Caller) (*end, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.ends[id]; e != nil {
		return e, nil
	}
	if m.closed {
		return nil, Errorf(KindUnavailable, "try again in a few seconds", "the daemon is shutting down")
	}
	e := &end{done: make(chan struct{})}
	m.ends[id] = e
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		ctx, cancel := context.WithTimeout(context.Background(), destroyTimeout)
		defer cancel()
		e.err = m.destroy(ctx, id, reason, by)
		m.mu.Lock()
		delete(m.ends, id)
		if b := m.retry[id]; e.err != nil {
			b.tries++
			b.next = time.Now().Add(min(time.Second<<min(b.tries, 6), time.Minute))
			m.retry[id] = b
			m.log.Error("sandbox not destroyed yet", "sandbox", id, "reason", reason, "tries", b.tries, "err", e.err)
		} else {
			delete(m.retry, id)
		}
		m.mu.Unlock()
		close(e.done)
	}()
	return e, nil
}

// destroy is the one way in which a sandbox ends. Each step succeeds when there
// is nothing to do, so that it can be run again from the start after a failure
// or a crash. The order matters: nothing new can begin once the row is marked,
// connections end before their portal goes, and the uid is free for another
// sandbox only when no process, file or namespace of it exists.
func (m *Manager) destroy(ctx context.Context, id ID, reason Reason, by Caller) error {
	row, err := m.mark(ctx, id, reason, by)
	if err != nil || row.State.Final() {
		return err
	}
	fault.At("manager.destroy.marked")
	m.stopStart(ctx, id)

	began := time.Now()
	conns, err := m.store.OpenConnections(ctx, id)
	if err != nil {
		return fmt.Errorf("look up connections: %w", err)
	}
	var removed []string
	steps := []struct {
		name string
		do   func() error
	}{
		{"connections", func() error { return m.sessions.End(ctx, row, conns) }},
		{"container", func() error { return m.endContainer(ctx, row) }},
		{"socket", func() error { return m.sockets.Remove(id) }},
		{"login", func() error {
			if row.Alias != "" && !IsUserUID(row.UID) {
				if err := m.host.CloseAlias(ctx, row.Alias); err != nil {
					return err
				}
			}
			return m.host.Close(ctx, id.Login(), row.UID)
		}},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("remove %s: %w", s.name, err)
		}
		fault.At("manager.destroy." + s.name)
		removed = append(removed, s.name)
	}
	now := time.Now()
	for _, c := range conns {
		ev := m.event(EventSessionClosed, now, row, system)
		ev.Session, ev.Serial, ev.Source, ev.Reason = c.ID, c.Serial, c.Source, "destroyed"
		if _, err := m.store.CloseConnection(ctx, c.ID, now, false, "destroyed", ev); err != nil {
			return fmt.Errorf("close connection %s: %w", c.ID, err)
		}
	}
	fault.At("manager.destroy.closed")
	_, err = m.store.Update(ctx, id, func(s *Sandbox) ([]Event, error) {
		if s.State.Final() {
			return nil, nil
		}
		s.State, s.EndedAt = s.Reason.Final(), now
		ev := m.event(EventSandboxDestroyed, now, *s, by)
		ev.Reason = string(s.Reason)
		ev.Detail = map[string]string{"removed": strings.Join(removed, " "), "state": string(s.State)}
		return []Event{ev}, nil
	})
	if err != nil {
		return fmt.Errorf("record the end: %w", err)
	}
	fault.At("manager.destroy.recorded")
	m.log.InfoContext(ctx, "sandbox destroyed", "sandbox", id, "reason", row.Reason, "took", time.Since(began))
	return nil
}

// endContainer removes the container. A runtime that does not answer, or not soon,
// must not keep the sandbox's code running: its guest is told to end it, and what
// is then left is removed when the runtime answers.
func (m *Manager) endContainer(ctx context.Context, row Sandbox) error {
	done := make(chan error, 1)
	go func() { done <- m.runtime.Destroy(ctx, row.ID) }()
	slow := time.NewTimer(slowRuntime)
	defer slow.Stop()
	select {
	case err := <-done:
		if err == nil {
			return nil
		}
		m.shutdownGuest(ctx, row)
		return err
	case <-slow.C:
		m.shutdownGuest(ctx, row)
		return <-done
	}
}

// shutdownGuest is best effort: whatever it does not do, the runtime does later.
func (m *Manager) shutdownGuest(ctx context.Context, row Sandbox) {
	if row.SocketIno == 0 {
		return // it never got as far as running anybody's code
	}
	ctx, cancel := context.WithTimeout(ctx, slowRuntime)
	defer cancel()
	// An earlier process may have begun this destruction: then the socket is not open yet.
	err := m.sockets.Reopen(row.ID, row.SocketDev, row.SocketIno)
	if err == nil {
		err = m.guest.Shutdown(ctx, row)
	}
	m.log.WarnContext(ctx, "container engine does not remove a sandbox; its guest was told to end it", "sandbox", row.ID, "err", err)
}

// mark puts the row into StateDraining. The first reason stays.
func (m *Manager) mark(ctx context.Context, id ID, reason Reason, by Caller) (Sandbox, error) {
	now := time.Now()
	row, err := m.store.Update(ctx, id, func(s *Sandbox) ([]Event, error) {
		if s.State.Final() || s.State == StateDraining {
			return nil, nil
		}
		s.State, s.Reason, s.DrainingAt, s.GraceUntil = StateDraining, reason, now, time.Time{}
		ev := m.event(EventSandboxDraining, now, *s, by)
		ev.Reason = string(reason)
		return []Event{ev}, nil
	})
	if err != nil {
		return Sandbox{}, fmt.Errorf("mark as draining: %w", err)
	}
	return row, nil
}

// stopStart cancels a start of this process and waits until it no longer makes
// anything.
func (m *Manager) stopStart(ctx context.Context, id ID) {
	m.mu.Lock()
	st := m.starts[id]
	m.mu.Unlock()
	if st == nil {
		return
	}
	st.cancel(errEnding)
	select {
	case <-st.done:
	case <-ctx.Done(): // the steps below fail with ctx and are tried again
	}
}
