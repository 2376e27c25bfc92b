package daemon

import (
	"context"
	"fmt"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// perTenant is how many sandboxes the caller may have; 0 is no limit.
func (s *Server) perTenant(by sandbox.Caller) int {
	limit := s.Limits.PerTenant
	if n := by.Caps.MaxSandboxes; n > 0 && (limit == 0 || n < limit) {
		limit = n
	}
	return limit
}

// validate says what create would make of a request, and makes nothing. It
// decides nothing: create asks everything again.
func (s *Server) validate(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.CreateRequest](c, by, sandbox.ScopeRead)
	if err != nil {
		return answer{}, err
	}
	limit := s.ttlLimit(by)
	if in.DefaultTTL && limit > 0 {
		in.Spec.Lifecycle.TTL = min(in.Spec.Lifecycle.TTL, limit)
	}
	if err := in.Spec.Validate(); err != nil {
		return answer{}, err
	}
	out := localapi.ValidateResponse{
		Digest: in.Spec.Digest(), TTL: in.Spec.Lifecycle.TTL, MaxSandboxes: s.perTenant(by), MaxTTL: limit,
	}
	if err := s.allow(by, in); err != nil {
		out.Denied = append(out.Denied, denial(err))
	}
	rows, err := s.Store.List(ctx, sandbox.Filter{Tenant: by.Tenant, Living: true, Limit: 500})
	if err != nil {
		return answer{}, err
	}
	out.Living = len(rows)
	if out.MaxSandboxes > 0 && out.Living >= out.MaxSandboxes {
		out.Denied = append(out.Denied, localapi.Error{
			Kind: sandbox.KindQuota, Msg: fmt.Sprintf("there are %d sandboxes of %d", out.Living, out.MaxSandboxes), Hint: "destroy one, or wait for the end of one",
		})
	}
	return answer{body: out}, nil
}

func denial(err error) localapi.Error {
	e := sandbox.Public(err)
	return localapi.Error{Kind: e.Kind, Msg: e.Msg, Hint: e.Hint}
}
