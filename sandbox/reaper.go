package sandbox

import (
	"context"
	"errors"
	"time"
)

const (
	reapEvery      = time.Second
	reconcileEvery = 30 * time.Second
)

// Run ends sandboxes whose time has come and repairs what went missing, until
// ctx ends. Call it once, after Reconcile.
func (m *Manager) Run(ctx context.Context) {
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		m.watch(ctx)
	}()
	pooled := make(chan struct{})
	go func() {
		defer close(pooled)
		m.runPool(ctx)
	}()
	defer func() { <-watched; <-pooled }()

	reap := time.NewTicker(reapEvery)
	defer reap.Stop()
	reconcile := time.NewTicker(reconcileEvery)
	defer reconcile.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.again:
			m.reconcileNow(ctx)
		case <-reconcile.C:
			m.reconcileNow(ctx)
		case <-reap.C:
		case <-m.kick:
		}
		if err := m.reap(ctx, time.Now()); err != nil && ctx.Err() == nil {
			m.log.ErrorContext(ctx, "reaper can't read the state", "err", err)
		}
	}
}

func (m *Manager) reconcileNow(ctx context.Context) {
	if err := m.Reconcile(ctx); err != nil && ctx.Err() == nil {
		m.log.WarnContext(ctx, "reconciliation incomplete", "err", err)
	}
}

// engineBack makes up for the time in which the runtime did not answer: what was
// put off is tried now, not when its turn comes.
func (m *Manager) engineBack() {
	m.mu.Lock()
	for id, b := range m.retry {
		b.next = time.Time{}
		m.retry[id] = b
	}
	m.mu.Unlock()
	select {
	case m.again <- struct{}{}:
	default: // it will already
	}
}

// watch ends sandboxes whose container stopped.
func (m *Manager) watch(ctx context.Context) {
	for ctx.Err() == nil {
		err := m.runtime.Watch(ctx, func(id ID) {
			row, err := m.store.Get(ctx, id)
			if err == nil && (row.State.Usable() || row.State == StatePooled) {
				m.destroyLater(id, ReasonLost)
			}
		})
		if ctx.Err() != nil {
			return
		}
		m.log.WarnContext(ctx, "container events lost; connecting again", "err", err)
		for err != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			_, err = m.runtime.List(ctx)
		}
		m.log.InfoContext(ctx, "the container engine answers again")
		m.engineBack()
	}
}

func (m *Manager) reap(ctx context.Context, now time.Time) error {
	rows, err := m.store.List(ctx, Filter{Living: true, Limit: MaxList})
	if err != nil {
		return err
	}
	for _, s := range rows {
		reason, due := m.due(s, now)
		switch {
		case !due:
		case s.State == StatePooled: // it may be claimed at this moment
			if err := m.retire(ctx, s.ID, reason); err != nil {
				return err
			}
		default:
			m.destroyLater(s.ID, reason)
		}
	}
	return nil
}

// due reports whether a living sandbox has to end now.
func (m *Manager) due(s Sandbox, now time.Time) (Reason, bool) {
	m.mu.Lock()
	busy, retry := m.activity[s.ID] > 0, m.retry[s.ID]
	m.mu.Unlock()
	switch {
	case s.State == StateDraining:
		return s.Reason, !now.Before(retry.next)
	case !now.Before(s.ExpiresAt):
		return ReasonDeadline, true
	case s.State != StateReady:
		return "", false
	case !s.GraceUntil.IsZero() && !now.Before(s.GraceUntil) && !busy:
		return ReasonExited, true
	case s.Spec.Lifecycle.IdleTimeout > 0 && !busy && !now.Before(s.LastActivity.Add(s.Spec.Lifecycle.IdleTimeout)):
		return ReasonIdle, true
	}
	return "", false
}

// Reconcile compares the state with what exists and ends what should not: living
// rows whose container or socket is gone, rows that an earlier process was
// starting or destroying, and containers, logins and sockets without a living
// row. A row exists before anything of it is made, so what has none is nobody's
// work in progress. Only what carries our label or name is looked at.
func (m *Manager) Reconcile(ctx context.Context) error {
	// What exists is listed before the rows: whatever is made in between has a row,
	// and a row that became ready in between is left for the next time.
	began := time.Now()
	boxes, boxErr := m.runtime.List(ctx)
	logins, loginErr := m.host.List(ctx)
	dirs, dirErr := m.sockets.List()

	rows, err := m.store.List(ctx, Filter{Living: true, Limit: MaxList})
	if err != nil {
		return err
	}
	living := make(map[ID]bool, len(rows))
	for _, s := range rows {
		living[s.ID] = true
	}
	running := map[ID]bool{}
	for _, c := range boxes {
		running[c.Sandbox] = c.Running
		if !living[c.Sandbox] {
			boxErr = errors.Join(boxErr, m.runtime.Destroy(ctx, c.Sandbox))
		}
	}
	for login, uid := range logins {
		if id, err := ParseLogin(login); err == nil && !living[id] {
			loginErr = errors.Join(loginErr, m.host.Close(ctx, login, uid))
		}
	}
	for _, id := range dirs {
		if !living[id] {
			dirErr = errors.Join(dirErr, m.sockets.Remove(id))
		}
	}
	for _, s := range rows {
		if s.ReadyAt.Before(began) {
			m.reconcileRow(s, boxErr == nil, running[s.ID], logins)
		}
	}
	return errors.Join(boxErr, loginErr, dirErr)
}

// reconcileRow looks at one living row. listed says that the runtime answered;
// without its word no container is called lost.
func (m *Manager) reconcileRow(s Sandbox, listed, running bool, logins map[string]int) {
	m.mu.Lock()
	mine := m.starts[s.ID] != nil || m.ends[s.ID] != nil
	m.mu.Unlock()
	_, login := logins[s.ID.Login()]
	switch {
	case mine:
	case s.State == StateAccepted || s.State == StateStarting:
		m.destroyLater(s.ID, ReasonStart)
	case s.State == StateDraining: // the reaper's
	case listed && !running, logins != nil && !login:
		m.log.Warn("sandbox lost", "sandbox", s.ID, "container", running, "login", login)
		m.destroyLater(s.ID, ReasonLost)
	default:
		if err := m.sockets.Reopen(s.ID, s.SocketDev, s.SocketIno); err != nil {
			m.log.Warn("guest's socket lost", "sandbox", s.ID, "err", err)
			m.destroyLater(s.ID, ReasonLost)
		}
	}
}
