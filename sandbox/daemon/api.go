package daemon

import (
	"context"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// LocalTenant is root's tenant on the host's own socket.
const LocalTenant = "root"

// api serves the API process. It is trusted with nothing but delivery: every
// operation on a tenant's behalf carries that caller's credential, and is
// decided by it.
func (s *Server) api(ctx context.Context, c call) (answer, error) {
	switch c.req.Op {
	case localapi.OpAccept:
		return s.accept(ctx, c)
	case localapi.OpKeys:
		return answer{body: s.Tokens.Keys()}, nil
	case localapi.OpReady:
		return answer{body: localapi.ReadyResponse{Problems: s.problems(ctx)}}, nil
	case localapi.OpCA:
		return answer{body: localapi.CAResponse{UserCA: s.keys.Current().AuthorizedKey(), Trusted: s.keys.List(time.Now()), Host: s.Host}}, nil
	}
	by, err := s.authenticate(ctx, c.req.Auth)
	if err != nil {
		return answer{}, err
	}
	done, ok := s.tenants.take(by.Tenant, maxOfTenant)
	if !ok {
		return answer{}, sandbox.Errorf(sandbox.KindCapacity, "wait until some have ended", "%d calls of tenant %s are under way", maxOfTenant, by.Tenant)
	}
	c.atEnd(done)
	switch c.req.Op {
	case localapi.OpWhoAmI:
		return answer{body: localapi.WhoAmIResponse{Caller: by}}, nil
	case localapi.OpCreate:
		return s.create(ctx, c, by)
	case localapi.OpValidate:
		return s.validate(ctx, c, by)
	case localapi.OpGet:
		return s.get(ctx, c, by)
	case localapi.OpList:
		return s.list(ctx, c, by)
	case localapi.OpExtend:
		return s.extend(ctx, c, by)
	case localapi.OpDestroy:
		return s.destroy(ctx, c, by)
	case localapi.OpExec:
		return s.exec(ctx, c, by)
	case localapi.OpIssue:
		return s.issue(ctx, c, by)
	case localapi.OpToken:
		return s.issueToken(ctx, c, by)
	default:
		return s.admin(ctx, c, by)
	}
}

// authenticate derives the caller from its credential.
func (s *Server) authenticate(ctx context.Context, a localapi.Auth) (sandbox.Caller, error) {
	switch {
	case a.Peer != "" && a.Bearer == "":
		peer, ok := s.peers.of(a.Peer)
		if !ok {
			return sandbox.Caller{}, sandbox.Errorf(sandbox.KindUnauthorized, "connect again", "the calling connection is closed")
		}
		if sandbox.IsUserUID(peer.UID) { // the session hook of a user's claimed connection
			u, _, err := s.userConnection(ctx, peer)
			if err != nil {
				return sandbox.Caller{}, err
			}
			return caller0(u), nil
		}
		if peer.UID != 0 {
			return sandbox.Caller{}, sandbox.Errorf(sandbox.KindUnauthorized,
				"use a token: PODSPAWN_TOKEN_FILE, made by root with podspawn token create", "uid %d is no user of podspawn", peer.UID)
		}
		return sandbox.Caller{
			Tenant: LocalTenant, Subject: "root", Kind: sandbox.ActorAdmin,
			Scopes: []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun, sandbox.ScopeAdmin},
		}, nil
	case a.Bearer != "" && a.Peer == "":
		claims, err := s.Tokens.Verify(a.Bearer.Reveal(), time.Now())
		if err != nil {
			return sandbox.Caller{}, err
		}
		tok, err := s.Store.Token(ctx, claims.ID)
		if sandbox.KindOf(err) == sandbox.KindNotFound || err == nil && !tok.RevokedAt.IsZero() {
			return sandbox.Caller{}, sandbox.Errorf(sandbox.KindUnauthorized, "get a new token with podspawn token create", "the token was revoked")
		}
		if err != nil {
			return sandbox.Caller{}, err
		}
		if tok.Tenant == "" { // to the state, "" is everybody, and who owns the pool
			return sandbox.Caller{}, sandbox.Errorf(sandbox.KindUnauthorized, "get a new token with podspawn token create", "the token names no tenant")
		}
		return sandbox.Caller{
			Tenant: tok.Tenant, Subject: tok.Subject, Kind: sandbox.ActorAgent, Token: tok.ID, Scopes: tok.Scopes, Caps: tok.Caps,
		}, nil
	default:
		return sandbox.Caller{}, sandbox.Errorf(sandbox.KindUnauthorized, "send Authorization: Bearer with a token from podspawn token create",
			"the request carries no credential")
	}
}

func need(by sandbox.Caller, scope sandbox.Scope) error {
	if by.Can(scope) {
		return nil
	}
	return sandbox.Errorf(sandbox.KindInsufficientScope, "use a token created with --scope "+string(scope), "the token lacks the scope %s", scope)
}

// request checks the caller's scope, then decodes the body.
func request[T any](c call, by sandbox.Caller, scope sandbox.Scope) (T, error) {
	var in T
	if err := need(by, scope); err != nil {
		return in, err
	}
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return in, badRequest(err)
	}
	return in, nil
}

// problems lists what keeps sandboxes from being made, in words for people.
func (s *Server) problems(ctx context.Context) []string {
	var out []string
	for _, err := range []error{s.accepting(), s.ground(), s.Runtime.Check(ctx), s.network()} {
		if err != nil {
			pub := sandbox.Public(err)
			out = append(out, pub.Msg+" ("+pub.Hint+")")
		}
	}
	return out
}

// network returns an error while sandboxes with a network can't be made, though
// they are allowed.
func (s *Server) network() error {
	if s.Egress == nil || !sandbox.EgressPublic.Within(s.Limits.Egress) {
		return nil
	}
	return s.Egress()
}
