package daemon

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// find returns a sandbox of the caller's tenant by id or name. One of another
// tenant is not found, exactly like one that never existed.
func (s *Server) find(ctx context.Context, by sandbox.Caller, ref string) (sandbox.Sandbox, error) {
	var row sandbox.Sandbox
	id, err := sandbox.ParseID(ref)
	if err == nil {
		row, err = s.Store.Get(ctx, id)
	} else {
		row, err = s.Store.ByName(ctx, by.Tenant, ref)
	}
	if err == nil && row.Tenant != by.Tenant || sandbox.KindOf(err) == sandbox.KindNotFound && err != nil {
		return sandbox.Sandbox{}, sandbox.Errorf(sandbox.KindNotFound, "podspawn list shows yours", "there is no sandbox %q", clip(ref, 80))
	}
	return row, err
}

func (s *Server) create(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.CreateRequest](c, by, sandbox.ScopeRun)
	if err != nil {
		return answer{}, err
	}
	if err := s.accepting(); err != nil {
		return answer{}, err
	}
	if limit := s.ttlLimit(by); in.DefaultTTL && limit > 0 {
		in.Spec.Lifecycle.TTL = min(in.Spec.Lifecycle.TTL, limit)
	}
	if err := s.allow(by, in); err != nil {
		s.deny(ctx, sandbox.EventPolicyDenied, by, err)
		return answer{}, err
	}
	perTenant := s.perTenant(by)
	alias, err := s.aliasFor(ctx, by.Tenant, in.Name)
	if err != nil {
		return answer{}, err
	}
	row, err := s.Manager.Create(ctx, sandbox.CreateParams{
		Caller: by, Alias: alias, Name: in.Name, Labels: in.Labels, Spec: in.Spec, Now: time.Now(),
		Quota:          sandbox.Quota{PerTenant: perTenant, Total: s.Limits.Total, Memory: s.Limits.Memory},
		IdempotencyKey: in.IdempotencyKey, RequestDigest: in.RequestDigest,
	})
	if k := sandbox.KindOf(err); err != nil && (k == sandbox.KindQuota || k == sandbox.KindCapacity) {
		s.deny(ctx, sandbox.EventQuotaDenied, by, err)
	}
	if err != nil {
		return answer{}, err
	}
	return s.show(ctx, row)
}

// allow checks what the configuration and the caller's caps permit, beyond what
// Spec.Validate does for everybody.
func (s *Server) allow(by sandbox.Caller, in localapi.CreateRequest) error {
	if in.Name != "" {
		if err := sandbox.ValidateName(in.Name); err != nil {
			return err
		}
	}
	if err := sandbox.ValidateLabels(in.Labels); err != nil {
		return err
	}
	if err := s.allowEgress(in.Spec.Network.Egress); err != nil {
		return err
	}
	return s.allowTTL(by, in.Spec.Lifecycle.TTL)
}

func (s *Server) allowEgress(want sandbox.Egress) error {
	limit := cmp.Or(s.Limits.Egress, sandbox.EgressNone)
	if want.Within(limit) {
		return nil
	}
	return sandbox.Errorf(sandbox.KindEgressDenied, fmt.Sprintf("use egress %s, or have the administrator raise egress.max", limit),
		"egress %s is more than this host allows", clip(string(want), 40))
}

// ttlLimit is the longest life of a sandbox of the caller's; 0 is no limit.
func (s *Server) ttlLimit(by sandbox.Caller) time.Duration {
	limit := s.Limits.TTLMax
	if by.Caps.MaxTTL > 0 && (limit == 0 || by.Caps.MaxTTL < limit) {
		limit = by.Caps.MaxTTL
	}
	return limit
}

func (s *Server) allowTTL(by sandbox.Caller, ttl time.Duration) error {
	limit := s.ttlLimit(by)
	if ttl <= 0 || limit > 0 && ttl > limit {
		return sandbox.Errorf(sandbox.KindPolicy, "ask for at most "+limit.String(), "a ttl of %s is not allowed", ttl)
	}
	return nil
}

func (s *Server) deny(ctx context.Context, kind sandbox.EventKind, by sandbox.Caller, err error) {
	now := time.Now()
	if !s.refused.worthWriting(by.Tenant+"\x00"+string(kind), now) {
		return
	}
	if err := s.Store.Append(ctx, sandbox.Event{
		Time: now, Event: kind, Tenant: by.Tenant, Subject: by.Subject, Actor: by.Kind, Token: by.Token,
		Reason: sandbox.Public(err).Msg,
	}); err != nil {
		s.Log.ErrorContext(ctx, "denial not recorded", "tenant", by.Tenant, "err", err)
	}
}

// show completes a row with what is not in it.
func (s *Server) show(ctx context.Context, row sandbox.Sandbox) (answer, error) {
	out, err := s.view(ctx, row)
	return answer{body: out}, err
}

func (s *Server) view(ctx context.Context, row sandbox.Sandbox) (localapi.SandboxResponse, error) {
	out := localapi.SandboxResponse{Sandbox: row}
	if row.State == sandbox.StateRunning {
		conns, err := s.Store.OpenConnections(ctx, row.ID)
		if err != nil {
			return out, err
		}
		out.Connections = len(conns)
	}
	return out, nil
}

// refusalsShown is how many refused logins one answer tells of.
const refusalsShown = 5

func (s *Server) get(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.SandboxRef](c, by, sandbox.ScopeRead)
	if err != nil {
		return answer{}, err
	}
	row, err := s.findAny(ctx, by, in.Sandbox)
	if err != nil {
		return answer{}, err
	}
	out, err := s.view(ctx, row)
	if err != nil {
		return answer{}, err
	}
	evs, err := s.Store.RefusalsOf(ctx, row.ID, refusalsShown)
	if err != nil {
		return answer{}, err
	}
	for _, ev := range evs {
		out.Refusals = append(out.Refusals, localapi.Refusal{Time: ev.Time, Serial: ev.Serial, Source: ev.Source, Reason: ev.Reason})
	}
	return answer{body: out}, nil
}

func (s *Server) list(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.ListRequest](c, by, sandbox.ScopeRead)
	if err != nil {
		return answer{}, err
	}
	tenant := by.Tenant
	if in.AllTenants {
		if err := onlyRoot(by); err != nil {
			return answer{}, err
		}
		tenant = ""
	}
	rows, err := s.Store.List(ctx, sandbox.Filter{
		Tenant: tenant, Living: !in.Final, Labels: in.Labels, Before: in.Before, Limit: min(max(in.Limit, 0), 500),
	})
	if err != nil {
		return answer{}, err
	}
	out := localapi.ListResponse{Sandboxes: make([]localapi.SandboxResponse, 0, len(rows))}
	for _, row := range rows {
		v, err := s.view(ctx, row)
		if err != nil {
			return answer{}, err
		}
		out.Sandboxes = append(out.Sandboxes, v)
	}
	return answer{body: out}, nil
}

func (s *Server) extend(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.ExtendRequest](c, by, sandbox.ScopeRun)
	if err != nil {
		return answer{}, err
	}
	row, err := s.find(ctx, by, in.Sandbox)
	if err != nil {
		return answer{}, err
	}
	// The limit is on the whole life: extending for ever would be no limit.
	if err := s.allowTTL(by, time.Until(row.CreatedAt)*-1+in.TTL); err != nil {
		s.deny(ctx, sandbox.EventPolicyDenied, by, err)
		return answer{}, err
	}
	if row, err = s.Manager.Extend(ctx, row.ID, in.TTL, by); err != nil {
		return answer{}, err
	}
	return s.show(ctx, row)
}

func (s *Server) destroy(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.DestroyRequest](c, by, sandbox.ScopeRun)
	if err != nil {
		return answer{}, err
	}
	row, err := s.findAny(ctx, by, in.Sandbox)
	if err != nil {
		return answer{}, err
	}
	wctx, cancel := context.WithTimeout(ctx, min(max(in.Wait, 0), time.Minute))
	defer cancel()
	row, err = s.Manager.Destroy(wctx, row.ID, sandbox.ReasonRequested, by)
	if err != nil && row.State == sandbox.StateDraining && sandbox.KindOf(err) == sandbox.KindUnavailable {
		// It has begun and will be finished: that is an answer, not a failure.
		s.Log.WarnContext(ctx, "destruction waits", "sandbox", row.ID, "err", err)
		return answer{body: localapi.SandboxResponse{Sandbox: row, Note: sandbox.Public(err).Msg +
			"; what runs in the sandbox was ended from inside, the rest is removed as soon as it does"}}, nil
	}
	if err != nil {
		return answer{}, err
	}
	return s.show(ctx, row)
}
