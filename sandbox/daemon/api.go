package daemon

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/guest"
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

// exec hands the API process a guest connection for one command, and counts the
// command as activity until its lease closes.
func (s *Server) exec(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.ExecRequest](c, by, sandbox.ScopeRun)
	if err != nil {
		return answer{}, err
	}
	row, err := s.find(ctx, by, in.Sandbox)
	if err != nil {
		return answer{}, err
	}
	if row, err = s.Manager.AwaitReady(ctx, row, min(in.Wait, time.Minute)); err != nil {
		return answer{}, err
	}
	rights := execRights(in)
	done, ok := s.running.take(row.ID, maxCommands)
	if !ok {
		return answer{}, sandbox.Errorf(sandbox.KindQuota, "wait until one has ended", "sandbox %s runs %d commands already", row.ID, maxCommands)
	}
	c.atEnd(done)
	id := sandbox.NewToken("exe_")
	c.atEnd(s.Manager.Begin(row.ID))
	f, err := s.Guests.Open(ctx, row, id, rights...)
	if err != nil {
		return answer{}, err
	}
	if err := s.watchToken(ctx, c, by, f); err != nil {
		_ = f.Close() // the refusal is the error to report
		return answer{}, err
	}
	began := time.Now()
	ev := sandbox.Event{
		Time: began, Event: sandbox.EventCommandStarted, Tenant: row.Tenant, Subject: by.Subject, Actor: by.Kind,
		Sandbox: row.ID, SpecDigest: row.Digest, Token: by.Token, Session: id,
		Detail: map[string]string{"command": clip(in.Command, 1024)},
	}
	if in.Files != nil {
		ev.Event, ev.Detail = sandbox.EventFileWritten, map[string]string{"path": clip(in.Files.Path, 1024)}
		if !in.Files.Write {
			return answer{body: localapi.ExecResponse{Sandbox: row, Exec: id}, file: f, held: whileOpen}, nil
		}
	}
	fault.At("daemon.exec.connected")
	if err := s.Store.Append(ctx, ev); err != nil { // no record, no command
		_ = f.Close() // the store's error is the one to report
		return answer{}, err
	}
	return answer{
		body: localapi.ExecResponse{Sandbox: row, Exec: id}, file: f,
		held: func(ctx context.Context) {
			<-ctx.Done()
			if in.Files != nil {
				return
			}
			ended := ev
			ended.Time, ended.Event = time.Now(), sandbox.EventCommandFinished
			ended.Detail = map[string]string{"took": ended.Time.Sub(began).Round(time.Millisecond).String()}
			wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
			defer cancel()
			if err := s.Store.Append(wctx, ended); err != nil {
				s.Log.Error("end of a command not recorded", "sandbox", row.ID, "exec", id, "err", err)
			}
		},
	}, nil
}

// execRights are what a connection of the API may be used for, and no more.
func execRights(in localapi.ExecRequest) []guest.Right {
	switch {
	case in.Files != nil && in.Files.Write:
		return []guest.Right{guest.RightFileWrite}
	case in.Files != nil:
		return []guest.Right{guest.RightFileRead}
	case in.PTY:
		return []guest.Right{guest.RightExec, guest.RightPTY}
	default:
		return []guest.Right{guest.RightExec}
	}
}

func (s *Server) issue(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.IssueRequest](c, by, sandbox.ScopeRun)
	if err != nil {
		return answer{}, err
	}
	row, err := s.find(ctx, by, in.Sandbox)
	if err != nil {
		return answer{}, err
	}
	if row, err = s.Manager.AwaitReady(ctx, row, 20*time.Second); err != nil {
		return answer{}, err
	}
	key, err := ephemeralkeys.ParsePublicKey(in.PublicKey)
	if err != nil {
		return answer{}, sandbox.Errorf(sandbox.KindInvalidSpec, "send one line as ssh-keygen writes it into a .pub file", "public_key: %v", err)
	}
	ttl := in.TTL
	if ttl == 0 {
		ttl = ephemeralkeys.DefaultTTL
	}
	if limit := min(s.Limits.CertTTLMax, ephemeralkeys.MaxTTL); ttl < 0 || ttl > limit {
		return answer{}, sandbox.Errorf(sandbox.KindPolicy, "ask for at most "+limit.String(), "a certificate ttl of %s is not allowed", ttl)
	}
	if in.Uses < 0 || in.Uses > 1000 {
		return answer{}, sandbox.Errorf(sandbox.KindInvalidSpec, "0 means unlimited until the certificate expires", "uses: %d is not between 0 and 1000", in.Uses)
	}
	now := time.Now()
	cert, err := s.Store.Issue(ctx, func(serial uint64) (sandbox.Certificate, sandbox.Event, error) {
		return s.sign(serial, row, by, in, ephemeralkeys.Grant{
			Serial: serial, PublicKey: key, Now: now, TTL: ttl, SourceAddress: in.SourceAddress,
		})
	})
	if err != nil {
		return answer{}, err
	}
	fault.At("daemon.issue.stored")
	signed, err := ssh.ParsePublicKey(cert.Blob)
	if err != nil {
		return answer{}, err
	}
	s.Manager.Begin(row.ID)() // a call is activity
	return answer{body: localapi.IssueResponse{
		Sandbox: row, Certificate: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signed))), Serial: cert.Serial, ValidBefore: cert.ValidBefore, Host: s.Host,
	}}, nil
}

// sign completes the grant with what binds it to the sandbox, and signs it.
func (s *Server) sign(serial uint64, row sandbox.Sandbox, by sandbox.Caller, in localapi.IssueRequest, g ephemeralkeys.Grant) (sandbox.Certificate, sandbox.Event, error) {
	g.KeyID = ephemeralkeys.KeyID(s.HostName, row.ID.Login(), by.Subject)
	g.Principal = row.ID.Login()
	g.ForceCommand = s.ForceCommand
	g.PTY = true
	g.PortForwarding, g.Agent = row.Spec.SSH.Forwarding, row.Spec.SSH.Agent
	g.Binding = ephemeralkeys.Binding{V: 1, Sandbox: string(row.ID), Spec: string(row.Digest), Uses: in.Uses, Token: by.Token}
	cert, err := s.keys.Current().Issue(g)
	if err != nil {
		return sandbox.Certificate{}, sandbox.Event{}, &sandbox.Error{
			Kind: sandbox.KindInvalidSpec, Msg: "the certificate can't be issued: " + err.Error(), Hint: "change what the message names",
		}
	}
	validBefore := time.Unix(int64(cert.ValidBefore), 0).UTC()
	ev := sandbox.Event{
		Time: g.Now, Event: sandbox.EventCertIssued, Tenant: row.Tenant, Subject: by.Subject, Actor: by.Kind, Sandbox: row.ID,
		SpecDigest: row.Digest, Token: by.Token, Serial: serial,
		Detail: map[string]string{"key": ssh.FingerprintSHA256(g.PublicKey), "valid_before": validBefore.Format(time.RFC3339)},
	}
	return sandbox.Certificate{
		Serial: serial, Sandbox: row.ID, Tenant: row.Tenant, Subject: by.Subject, Token: by.Token, KeyID: cert.KeyId,
		Blob: cert.Marshal(), Fingerprint: ssh.FingerprintSHA256(g.PublicKey), Uses: in.Uses, IssuedAt: g.Now, ValidBefore: validBefore,
	}, ev, nil
}

// Bounds of API tokens.
const (
	tokenTTLDefault = 24 * time.Hour
	tokenTTLMax     = 366 * 24 * time.Hour
)

func (s *Server) issueToken(ctx context.Context, c call, by sandbox.Caller) (answer, error) {
	in, err := request[localapi.TokenRequest](c, by, sandbox.ScopeAdmin)
	if err != nil {
		return answer{}, err
	}
	now := time.Now()
	t := sandbox.APIToken{
		ID: sandbox.NewToken("tok_"), Tenant: in.Tenant, Subject: in.Subject, Scopes: in.Scopes, Caps: in.Caps, IssuedAt: now,
	}
	if t.Tenant == "" {
		t.Tenant = t.Subject
	}
	if len(t.Scopes) == 0 {
		t.Scopes = []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun}
	}
	ttl := in.TTL
	if ttl == 0 {
		ttl = tokenTTLDefault
	}
	if ttl < time.Second || ttl > tokenTTLMax {
		return answer{}, sandbox.Errorf(sandbox.KindPolicy, "ask for 1s to "+tokenTTLMax.String(), "a token ttl of %s is not allowed", ttl)
	}
	// Whoever is not root on this host makes tokens of its own tenant only.
	if by.Token != "" && t.Tenant != by.Tenant {
		return answer{}, sandbox.Errorf(sandbox.KindPolicy, "leave tenant out", "this caller makes tokens for tenant %q only", by.Tenant)
	}
	if err := inheritCaps(&t.Caps, by); err != nil {
		return answer{}, err
	}
	t.ExpiresAt = now.Add(ttl)
	raw, err := s.Tokens.Issue(t)
	if err != nil {
		return answer{}, err
	}
	err = s.Store.AddToken(ctx, t, sandbox.Event{
		Time: now, Event: sandbox.EventTokenIssued, Tenant: t.Tenant, Subject: by.Subject, Actor: by.Kind, Token: t.ID,
		Detail: map[string]string{"for": t.Subject, "expires_at": t.ExpiresAt.UTC().Format(time.RFC3339)},
	})
	if err != nil {
		return answer{}, err
	}
	return answer{body: localapi.TokenResponse{Token: localapi.Secret(raw), ID: t.ID, ExpiresAt: t.ExpiresAt}}, nil
}

// inheritCaps gives a token that is made with another one that one's caps, where
// it asks for none, and refuses wider ones.
func inheritCaps(c *sandbox.Caps, by sandbox.Caller) error {
	if c.MaxSandboxes == 0 {
		c.MaxSandboxes = by.Caps.MaxSandboxes
	}
	if c.MaxTTL == 0 {
		c.MaxTTL = by.Caps.MaxTTL
	}
	if most := by.Caps.MaxSandboxes; most > 0 && c.MaxSandboxes > most {
		return sandbox.Errorf(sandbox.KindPolicy, "ask for no more than this token's own", "max_sandboxes: this token may have %d", most)
	}
	if most := by.Caps.MaxTTL; most > 0 && c.MaxTTL > most {
		return sandbox.Errorf(sandbox.KindPolicy, "ask for no more than this token's own", "max_ttl: this token may have %s", most)
	}
	return nil
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
