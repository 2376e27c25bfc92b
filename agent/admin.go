package agent

import (
	"context"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

var _ api.Admin = (*as)(nil)

// Bounds of the administrators' requests.
const (
	revokeTimeout = 40 * time.Second // the daemon ends connections meanwhile
	maxRef        = 512
	caOverlap     = 15 * time.Minute
)

func (a *as) Revoke(ctx context.Context, ref string) (api.Revoked, error) {
	if ref == "" || len(ref) > maxRef {
		return api.Revoked{}, sandbox.Errorf(sandbox.KindInvalidSpec, "name a serial, a key id, or a sandbox's login or id", "certificate is missing or too long")
	}
	var out localapi.RevokeResponse
	err := a.callFor(ctx, revokeTimeout, localapi.OpRevoke, localapi.RevokeRequest{Ref: ref}, &out)
	return revoked(out), err
}

func revoked(r localapi.RevokeResponse) api.Revoked {
	if r.Serials == nil {
		r.Serials = []uint64{}
	}
	return api.Revoked{Serials: r.Serials, Connections: r.Connections, Commands: r.Commands}
}

func (a *as) Tokens(ctx context.Context) (api.Tokens, error) {
	var out localapi.TokensResponse
	if err := a.call(ctx, localapi.OpTokens, localapi.TokensRequest{}, &out); err != nil {
		return api.Tokens{}, err
	}
	all := api.Tokens{Tokens: make([]api.TokenInfo, 0, len(out.Tokens))}
	for _, t := range out.Tokens {
		v := api.TokenInfo{
			ID: t.ID, Tenant: t.Tenant, Subject: t.Subject, Scopes: t.Scopes,
			MaxSandboxes: t.Caps.MaxSandboxes, MaxTTL: api.Duration(t.Caps.MaxTTL),
			IssuedAt: t.IssuedAt.UTC(), ExpiresAt: t.ExpiresAt.UTC(),
		}
		if !t.RevokedAt.IsZero() {
			at := t.RevokedAt.UTC()
			v.RevokedAt = &at
		}
		all.Tokens = append(all.Tokens, v)
	}
	return all, nil
}

func (a *as) RevokeToken(ctx context.Context, id string) (api.Revoked, error) {
	if id == "" || len(id) > maxRef {
		return api.Revoked{}, sandbox.Errorf(sandbox.KindInvalidSpec, "podspawn token list shows the ids", "the token's id is missing or too long")
	}
	var out localapi.RevokeResponse
	err := a.callFor(ctx, revokeTimeout, localapi.OpTokenRevoke, localapi.TokenRevokeRequest{ID: id}, &out)
	return revoked(out), err
}

func (a *as) RotateCA(ctx context.Context, r api.RotateRequest) (api.CA, error) {
	in := localapi.RotateRequest{Overlap: caOverlap}
	if r.Overlap != nil {
		in.Overlap = time.Duration(*r.Overlap)
	}
	var out localapi.CAResponse
	if err := a.call(ctx, localapi.OpRotate, in, &out); err != nil {
		return api.CA{}, err
	}
	return ca(out), nil
}

func ca(out localapi.CAResponse) api.CA {
	v := api.CA{UserCA: out.UserCA, Host: out.Host.Host, Port: out.Host.Port, KnownHosts: out.Host.KnownHosts}
	for _, t := range out.Trusted {
		c := api.TrustedCA{Key: t.Key, Fingerprint: t.Fingerprint}
		if !t.Until.IsZero() {
			at := t.Until.UTC()
			c.Until = &at
		}
		v.Trusted = append(v.Trusted, c)
	}
	return v
}

func (a *as) Drain(ctx context.Context, r api.DrainRequest) (api.Drain, error) {
	var out localapi.DrainResponse
	err := a.call(ctx, localapi.OpDrain, localapi.DrainRequest{On: r.Drain}, &out)
	return api.Drain{Draining: out.Draining, Living: out.Living}, err
}
