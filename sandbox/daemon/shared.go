package daemon

import (
	"context"

	"github.com/podspawn/podspawn/sandbox"
)

// A user's uid is shared by all her connections: those in her sandbox, and those
// that are in none. What follows keeps the end of one from being the end of others.

// sharing returns the open connections whose processes may have the uid of row.
func (s *Sessions) sharing(ctx context.Context, row sandbox.Sandbox) ([]sandbox.Connection, error) {
	if sandbox.IsUserUID(row.UID) {
		return s.store.OpenConnections(ctx, "") // more than needed: others keep nothing of this uid
	}
	return s.store.OpenConnections(ctx, row.ID)
}

// others returns the monitors below which processes of row's uid live on when
// row's connections are ended: none, unless the uid is a user's.
func (s *Sessions) others(ctx context.Context, row sandbox.Sandbox, ending []sandbox.Connection) (map[sandbox.Process]bool, error) {
	if !sandbox.IsUserUID(row.UID) {
		return nil, nil
	}
	conns, err := s.store.OpenConnections(ctx, "")
	if err != nil {
		return nil, err
	}
	keep := map[sandbox.Process]bool{}
	for _, c := range conns {
		if c.Sandbox != row.ID {
			keep[c.Monitor] = true
		}
	}
	for _, c := range ending {
		delete(keep, c.Monitor)
	}
	return keep, nil
}

// rowOf returns the sandbox that a connection is in. For a user's that is in none
// it is a row with her uid and nothing else.
func (s *Sessions) rowOf(ctx context.Context, c sandbox.Connection) (sandbox.Sandbox, error) {
	if c.Sandbox != "" {
		return s.store.Get(ctx, c.Sandbox)
	}
	u, err := s.store.UserByName(ctx, c.User)
	if sandbox.KindOf(err) == sandbox.KindNotFound && err != nil {
		return sandbox.Sandbox{Tenant: c.User}, nil // removed; remove-user ends her processes
	}
	return sandbox.Sandbox{Tenant: u.Name, UID: u.UID}, err
}

// present brings a user's connection up to date, which may have entered a sandbox
// since it was opened.
func (s *Sessions) present(ctx context.Context, row sandbox.Sandbox, c sandbox.Connection) (sandbox.Sandbox, sandbox.Connection) {
	if c.User == "" || c.Sandbox != "" {
		return row, c
	}
	conns, err := s.store.OpenConnections(ctx, "")
	if err != nil {
		s.log.Error("connection not looked up", "connection", c.ID, "err", err)
		return row, c
	}
	for _, now := range conns {
		if now.ID != c.ID || now.Sandbox == "" {
			continue
		}
		if in, err := s.store.Get(ctx, now.Sandbox); err == nil {
			return in, now
		}
	}
	return row, c
}
