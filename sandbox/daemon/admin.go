package daemon

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// admin serves the operations of administrators.
func (s *Server) admin(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	switch c.req.Op {
	case localapi.OpRevoke:
		return s.revoke(ctx, c, by)
	case localapi.OpTokens:
		return s.tokens(ctx, c, by)
	case localapi.OpTokenRevoke:
		return s.revokeToken(ctx, c, by)
	case localapi.OpRotate:
		return s.rotate(ctx, c, by)
	case localapi.OpDrain:
		return s.drain(ctx, c, by)
	default:
		return answer{}, badRequest(errors.New("unknown operation " + clip(string(c.req.Op), 40)))
	}
}

// isRoot reports whether the caller is root on this host, who administers all
// tenants. A token, whatever its scopes, is of one tenant.
func isRoot(by sandbox.Caller) bool {
	return by.Kind == sandbox.ActorAdmin && by.Token == "" && by.Tenant == LocalTenant && by.Can(sandbox.ScopeAdmin)
}

func onlyRoot(by sandbox.Caller) error {
	if isRoot(by) {
		return nil
	}
	return sandbox.Errorf(sandbox.KindPolicy, "run it as root on the host itself", "this concerns all tenants of the host")
}

// findAny is find, but that root on the host may name any tenant's sandbox by its
// id. One of the pool is nobody's yet, and not found.
func (s *Server) findAny(ctx context.Context, by sandbox.Caller, ref string) (sandbox.Sandbox, error) {
	if id, err := sandbox.ParseID(ref); err == nil && isRoot(by) {
		row, err := s.Store.Get(ctx, id)
		if err == nil && row.State != sandbox.StatePooled || err != nil && sandbox.KindOf(err) != sandbox.KindNotFound {
			return row, err
		}
	}
	return s.find(ctx, by, ref)
}

// certificatesOf resolves what a revocation names.
func (s *Server) certificatesOf(ctx context.Context, by sandbox.Caller, ref string) ([]sandbox.Certificate, error) {
	none := sandbox.Errorf(sandbox.KindNotFound, "name a serial, a key id, or a sandbox's login or id; podspawn audit has them",
		"no certificate is known by %q", clip(ref, 80))
	if serial, err := strconv.ParseUint(ref, 10, 64); err == nil {
		cert, err := s.Store.Certificate(ctx, serial)
		if sandbox.KindOf(err) == sandbox.KindNotFound && err != nil || err == nil && cert.Tenant != by.Tenant && !isRoot(by) {
			return nil, none
		}
		return []sandbox.Certificate{cert}, err
	}
	f := sandbox.CertificateFilter{}
	if !isRoot(by) {
		f.Tenant = by.Tenant
	}
	if strings.Contains(ref, ":") {
		f.KeyID = ref
	} else {
		if id, err := sandbox.ParseLogin(ref); err == nil {
			ref = string(id)
		}
		row, err := s.findAny(ctx, by, ref)
		if err != nil {
			return nil, err
		}
		f.Sandbox = row.ID
	}
	certs, err := s.Store.Certificates(ctx, f)
	if err == nil && len(certs) == 0 {
		return nil, none
	}
	return certs, err
}

func (s *Server) revoke(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.RevokeRequest](c, by, sandbox.ScopeAdmin)
	if err != nil {
		return answer{}, err
	}
	certs, err := s.certificatesOf(ctx, by, in.Ref)
	if err != nil {
		return answer{}, err
	}
	out, err := s.revokeAll(ctx, by, certs, "on request")
	return answer{body: out}, err
}

// revokeAll revokes certificates, ends the connections that they opened, and
// writes the revocation list. Once it began it goes on when the caller leaves.
// The order matters: after the state says so no new connection is claimed, so
// those that are open then are all there are.
func (s *Server) revokeAll(ctx context.Context, by sandbox.Caller, certs []sandbox.Certificate, why string) (localapi.RevokeResponse, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	now := time.Now()
	out := localapi.RevokeResponse{Serials: []uint64{}}
	gone := map[uint64]bool{}
	for _, cert := range certs {
		err := s.Store.RevokeCertificate(ctx, cert.Serial, now, sandbox.Event{
			Time: now, Event: sandbox.EventCertRevoked, Tenant: cert.Tenant, Subject: by.Subject, Actor: by.Kind,
			Sandbox: cert.Sandbox, Token: cert.Token, Serial: cert.Serial, Reason: why, Detail: map[string]string{"key_id": cert.KeyID},
		})
		if err != nil {
			return out, err
		}
		gone[cert.Serial] = true
		out.Serials = append(out.Serials, cert.Serial)
	}
	conns, err := s.Store.OpenConnections(ctx, "")
	if err != nil {
		return out, err
	}
	by1 := map[sandbox.ID][]sandbox.Connection{}
	for _, conn := range conns {
		if gone[conn.Serial] {
			by1[conn.Sandbox] = append(by1[conn.Sandbox], conn)
			out.Connections++
		}
	}
	var mu sync.Mutex // guards errs
	var errs []error
	var wg sync.WaitGroup
	for id, conns := range by1 {
		wg.Go(func() {
			row, err := s.Store.Get(ctx, id)
			if err == nil {
				err = s.Sessions.Cut(ctx, row, conns, noteRevoked)
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	if s.Revocations != nil {
		if err := s.Revocations.Update(ctx, now); err != nil {
			// The hooks refuse the certificate anyway, and the list is tried again.
			s.Log.ErrorContext(ctx, "revocation list not written", "err", err)
		}
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

func (s *Server) tokens(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	if _, err := request[localapi.TokensRequest](c, by, sandbox.ScopeAdmin); err != nil {
		return answer{}, err
	}
	tenant := by.Tenant
	if isRoot(by) {
		tenant = ""
	}
	all, err := s.Store.Tokens(ctx, tenant)
	if err != nil {
		return answer{}, err
	}
	const most = 1000
	return answer{body: localapi.TokensResponse{Tokens: all[:min(len(all), most)]}}, nil
}

// revokeToken revokes a token with all that it opened: its certificates, their
// connections, and its running commands.
func (s *Server) revokeToken(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.TokenRevokeRequest](c, by, sandbox.ScopeAdmin)
	if err != nil {
		return answer{}, err
	}
	tok, err := s.Store.Token(ctx, clip(in.ID, 64))
	if sandbox.KindOf(err) == sandbox.KindNotFound && err != nil || err == nil && tok.Tenant != by.Tenant && !isRoot(by) {
		return answer{}, sandbox.Errorf(sandbox.KindNotFound, "podspawn token list shows them", "there is no token %q", clip(in.ID, 64))
	}
	if err != nil {
		return answer{}, err
	}
	now := time.Now()
	if err := s.Store.RevokeToken(ctx, tok.ID, now, sandbox.Event{
		Time: now, Event: sandbox.EventTokenRevoked, Tenant: tok.Tenant, Subject: by.Subject, Actor: by.Kind, Token: tok.ID,
		Detail: map[string]string{"for": tok.Subject},
	}); err != nil {
		return answer{}, err
	}
	commands := s.ofTokens.end(tok.ID)
	certs, err := s.Store.Certificates(ctx, sandbox.CertificateFilter{Token: tok.ID})
	if err != nil {
		return answer{}, err
	}
	out, err := s.revokeAll(ctx, by, certs, "its token was revoked")
	out.Commands = commands
	return answer{body: out}, err
}

func (s *Server) rotate(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.RotateRequest](c, by, sandbox.ScopeAdmin)
	if err != nil {
		return answer{}, err
	}
	if err := onlyRoot(by); err != nil {
		return answer{}, err
	}
	if in.Overlap < 0 || in.Overlap > ephemeralkeys.MaxTTL {
		return answer{}, sandbox.Errorf(sandbox.KindInvalidSpec, "no certificate lives longer than "+ephemeralkeys.MaxTTL.String(),
			"an overlap of %s is not between 0 and %s", in.Overlap, ephemeralkeys.MaxTTL)
	}
	now := time.Now()
	before := s.keys.Current()
	rerr := s.keys.Rotate(now, in.Overlap)
	after := s.keys.Current()
	if before == after {
		return answer{}, rerr
	}
	err = s.Store.Append(ctx, sandbox.Event{
		Time: now, Event: sandbox.EventSetupChanged, Tenant: by.Tenant, Subject: by.Subject, Actor: by.Kind, Reason: "the user CA was replaced",
		Detail: map[string]string{
			"new": ssh.FingerprintSHA256(after.PublicKey()), "old": ssh.FingerprintSHA256(before.PublicKey()),
			"old_trusted_until": now.Add(in.Overlap).UTC().Format(time.RFC3339),
		},
	})
	if err := errors.Join(rerr, err); err != nil {
		return answer{}, err
	}
	return answer{body: localapi.CAResponse{UserCA: after.AuthorizedKey(), Trusted: s.keys.List(now), Host: s.Host}}, nil
}

// drain turns the refusal of new sandboxes on or off. It is forgotten when the
// daemon ends: what comes after an upgrade takes sandboxes again.
func (s *Server) drain(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.DrainRequest](c, by, sandbox.ScopeAdmin)
	if err != nil {
		return answer{}, err
	}
	if err := onlyRoot(by); err != nil {
		return answer{}, err
	}
	if s.draining.Swap(in.On) != in.On {
		ev := sandbox.Event{
			Time: time.Now(), Event: sandbox.EventSetupChanged, Tenant: by.Tenant, Subject: by.Subject, Actor: by.Kind,
			Reason: "draining: no new sandboxes",
		}
		if !in.On {
			ev.Reason = "draining ended"
		}
		if err := s.Store.Append(ctx, ev); err != nil {
			return answer{}, err
		}
	}
	rows, err := s.Store.List(ctx, sandbox.Filter{Living: true, Limit: sandbox.MaxList})
	if err != nil {
		return answer{}, err
	}
	return answer{body: localapi.DrainResponse{Draining: in.On, Living: len(rows)}}, nil
}

// accepting returns an error while the host takes no new sandboxes.
func (s *Server) accepting() error {
	if !s.draining.Load() {
		return nil
	}
	return sandbox.Errorf(sandbox.KindUnavailable, "use another host, or wait until its administrator ends podspawn drain",
		"this host is being drained and takes no new sandboxes")
}

// keepKeys forgets former CAs in time, until ctx ends.
func (s *Server) keepKeys(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			if err := s.keys.Tidy(now); err != nil {
				s.Log.ErrorContext(ctx, "sshd still trusts a former user CA", "err", err)
			}
		}
	}
}
