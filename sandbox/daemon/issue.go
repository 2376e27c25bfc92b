package daemon

import (
	"context"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

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
