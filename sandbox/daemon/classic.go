package daemon

import (
	"bytes"
	"context"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// A login of a user, in the order in which sshd makes these calls:
//
//	loginKey  for each key that the client offers, before it has proved that it
//	          holds it. Changes nothing.
//	pamOpen   once per connection, after the proof, in the user's portal. Opens the
//	          connection in the state, in no sandbox yet: whether the client wants
//	          one is known only with its first channel.
//	session   once per channel. The first one enters the sandbox that has the user's
//	          uid, which is made when there is none.
//
// A login user+name is a second login of the one living sandbox of that name, with
// that sandbox's uid and portal, and is in it from pamOpen on.

// startWait is how long a channel waits for a sandbox.
const startWait = 100 * time.Second

// visitor is who a login name stands for.
type visitor struct {
	user   sandbox.User
	row    sandbox.Sandbox // of user+name; zero otherwise
	uid    int
	portal uint64
}

// visitorOf looks a login up. Unknown ones are KindNotFound.
func (s *Server) visitorOf(ctx context.Context, login string) (v visitor, err error) {
	name, box, ok := sandbox.ParseUserLogin(login)
	if !ok {
		return v, denied(sandbox.KindNotFound, "check the login name", "no such login")
	}
	if v.user, err = s.Store.UserByName(ctx, name); err != nil {
		return v, err
	}
	v.uid, v.portal = v.user.UID, v.user.Portal
	if box != "" {
		if v.row, err = s.Store.ByName(ctx, name, box); err != nil {
			return v, err
		}
		if v.row.Alias != login {
			return v, denied(sandbox.KindNotFound, "check the login name", "no such login")
		}
		v.uid, v.portal = v.row.UID, v.row.Portal
	}
	return v, nil
}

// keyOf returns the user's entry for a key.
func (s *Server) keyOf(u sandbox.User, key ssh.PublicKey) (ephemeralkeys.AuthorizedKey, error) {
	keys, _, err := s.readKeys(u.Name)
	if err != nil {
		return ephemeralkeys.AuthorizedKey{}, err
	}
	for _, k := range keys {
		if bytes.Equal(k.Key.Marshal(), key.Marshal()) {
			return k, nil
		}
	}
	return ephemeralkeys.AuthorizedKey{}, denied(sandbox.KindPolicy, "podspawn add-user registers keys", "this key is none of user %s", u.Name)
}

// keyLine is what sshd is told about a key.
func keyLine(k ephemeralkeys.AuthorizedKey, rights sandbox.SSHRights) string {
	options := "restrict,pty"
	for _, o := range []struct {
		name  string
		given bool
	}{{",port-forwarding", rights.Forwarding}, {",agent-forwarding", rights.Agent}, {",verify-required", k.VerifyRequired}} {
		if o.given {
			options += o.name
		}
	}
	k.Comment, k.VerifyRequired = "", false
	return options + " " + k.Line()
}

// rightsOf are those of the sandbox that a visitor enters, or would.
func (s *Server) rightsOf(ctx context.Context, v visitor) (sandbox.SSHRights, error) {
	if v.row.ID != "" {
		return v.row.Spec.SSH, nil
	}
	if row, err := s.Store.ByUID(ctx, v.uid); err == nil {
		return row.Spec.SSH, nil
	}
	spec, err := s.specFor(v.user)
	return spec.SSH, err
}

func (s *Server) loginKey(ctx context.Context, c call) (answer, error) {
	var in localapi.LoginKeyRequest
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return answer{}, badRequest(err)
	}
	v, err := s.visitorOf(ctx, in.User)
	if err != nil {
		return answer{}, err
	}
	if err := s.ground(); err != nil {
		return answer{}, err
	}
	key, err := ephemeralkeys.ParseKey(in.KeyType, in.Key)
	if err != nil {
		return answer{}, denied(sandbox.KindPolicy, "use an ed25519 key", "the key is not accepted")
	}
	k, err := s.keyOf(v.user, key)
	if err != nil {
		s.refuseUser(ctx, v, in.User, "", ssh.FingerprintSHA256(key), err, time.Now())
		return answer{}, err
	}
	rights, err := s.rightsOf(ctx, v)
	if err != nil {
		return answer{}, err
	}
	return answer{body: localapi.LoginKeyResponse{Line: keyLine(k, rights)}}, nil
}

// pamOpenUser is the claim of a user's login. A login that is nobody's of ours is
// KindNotFound when the connection is in the host's network: a real user's, whom
// the line of PAM that should skip her did not.
func (s *Server) pamOpenUser(ctx context.Context, c call, in localapi.PAMOpenRequest, now time.Time) error {
	v, err := s.visitorOf(ctx, in.User)
	if err != nil {
		if sandbox.KindOf(err) == sandbox.KindNotFound && !s.onHostNetwork(c.peer.PID) {
			return denied(sandbox.KindPolicy, "check the login name", "this login is not registered any more")
		}
		return err
	}
	monitor, err := s.monitorOf(c.peer.PID, v.portal)
	if err != nil {
		s.refuseUser(ctx, v, in.User, in.Source, "", err, now)
		return err
	}
	if err := s.ground(); err != nil {
		return err
	}
	fingerprint, err := s.admit(ctx, v, in, monitor, now)
	if err == nil {
		return nil
	}
	s.refuseUser(ctx, v, in.User, in.Source, fingerprint, err, now)
	pub := sandbox.Public(err)
	if !sayable(pub.Kind) {
		return err
	}
	s.refused.add(monitor, pub, now)
	s.Sessions.EndRefused(v.asRow(), monitor, endRefused)
	return nil
}

// asRow is what the visitor's processes are known by.
func (v visitor) asRow() sandbox.Sandbox {
	if v.row.ID != "" {
		return v.row
	}
	return sandbox.Sandbox{Tenant: v.user.Name, UID: v.uid}
}

// admit looks the key up once more, now that it is proved, and opens the connection.
func (s *Server) admit(ctx context.Context, v visitor, in localapi.PAMOpenRequest, monitor sandbox.Process, now time.Time) (fingerprint string, err error) {
	key, err := ephemeralkeys.ParseAuthInfoKey(in.AuthInfo)
	if err != nil {
		return "", &sandbox.Error{
			Kind: sandbox.KindUnauthorized, Msg: "sshd did not say which key logged in",
			Hint: "run podspawn doctor", Err: err,
		}
	}
	fingerprint = ssh.FingerprintSHA256(key)
	if _, err := s.keyOf(v.user, key); err != nil {
		return fingerprint, err
	}
	if v.row.ID != "" {
		if err := sandbox.Usable(v.row); err != nil {
			return fingerprint, err
		}
	}
	conn := sandbox.Connection{
		ID: sandbox.NewToken("con_"), Sandbox: v.row.ID, User: v.user.Name, Key: fingerprint,
		Source: clip(in.Source, 64), Monitor: monitor, OpenedAt: now,
	}
	row := v.asRow()
	ev := sessionEvent(sandbox.EventCertAccepted, now, row, conn)
	ev.Subject, ev.Actor = v.user.Name, sandbox.ActorHuman
	ev.Detail = map[string]string{"login": in.User, "key": fingerprint}
	if err := s.Store.Enter(ctx, conn, ev); err != nil {
		return fingerprint, err
	}
	s.Sessions.Watch(row, conn)
	if v.row.ID != "" {
		s.relayFor(ctx, v.row)
	}
	s.Log.InfoContext(ctx, "connection opened", "user", v.user.Name, "sandbox", row.ID, "connection", conn.ID)
	return fingerprint, nil
}

// onHostNetwork reports whether a process is in the daemon's own network namespace.
func (s *Server) onHostNetwork(pid int) bool {
	theirs, err := s.NetNS(pid)
	if err != nil {
		return false
	}
	ours, err := s.NetNS(selfPID)
	return err == nil && ours == theirs
}

// userConnection finds the open connection of a user that a process runs below.
func (s *Server) userConnection(ctx context.Context, peer localapi.Peer) (sandbox.User, sandbox.Connection, error) {
	u, err := s.Store.UserByUID(ctx, peer.UID)
	if err != nil {
		return u, sandbox.Connection{}, err
	}
	conn, up, err := s.connectionOf(ctx, peer.PID, "")
	if err == nil && conn.User != u.Name {
		err = denied(sandbox.KindUnauthorized, "connect with ssh", "this process is in no connection of user %s", u.Name)
	}
	if err != nil {
		if why := s.refused.of(up); why != nil {
			err = why
		}
		return u, sandbox.Connection{}, err
	}
	return u, conn, nil
}

// maxEnter bounds how often enter finds the sandbox gone that it was about to enter.
const maxEnter = 5

// enter brings the connection of a channel into the user's sandbox, which it makes
// when there is none. Without wait it does nothing that takes time.
func (s *Server) enter(ctx context.Context, peer localapi.Peer, wait bool) error {
	if conn, _, err := s.connectionOf(ctx, peer.PID, ""); err == nil && conn.Serial != 0 {
		return nil // by certificate, into her sandbox by its own login
	}
	u, conn, err := s.userConnection(ctx, peer)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startWait)
	defer cancel()
	cold := denied(sandbox.KindNotReady, "try again in a second", "the sandbox of %s is not ready", u.Name)
	for range maxEnter {
		row, err := s.Store.ByUID(ctx, u.UID)
		none := err != nil && sandbox.KindOf(err) == sandbox.KindNotFound
		if err != nil && !none {
			return err
		}
		if !wait && (none || !row.State.Usable()) {
			return cold
		}
		switch {
		case none:
			row, err = s.createFor(ctx, u)
		case row.State == sandbox.StateDraining:
			// Its uid is hers: the next one can only be made when this one has gone.
			if _, err := s.Manager.Destroy(ctx, row.ID, row.Reason, caller0(u)); err != nil {
				return err
			}
			continue
		default:
			row, err = s.Manager.AwaitReady(ctx, row, startWait)
		}
		if err == nil {
			if err = sandbox.Usable(row); err == nil {
				_, err = s.Store.Bind(ctx, conn.ID, row.ID)
			}
			if err == nil && conn.Sandbox == "" {
				s.relayFor(ctx, row)
			}
		}
		switch kind := sandbox.KindOf(err); {
		case err == nil:
			return nil
		case kind == sandbox.KindConflict && none, kind == sandbox.KindGone && !none:
			// Another channel was quicker, or the sandbox ended just now.
		default:
			return err
		}
	}
	return cold
}

// caller0 is a user as the one on whose behalf something is made.
func caller0(u sandbox.User) sandbox.Caller {
	return sandbox.Caller{
		Tenant: u.Name, Subject: u.Name, Kind: sandbox.ActorHuman,
		Scopes: []sandbox.Scope{sandbox.ScopeRead, sandbox.ScopeRun},
	}
}

func (s *Server) createFor(ctx context.Context, u sandbox.User) (sandbox.Sandbox, error) {
	spec, err := s.specFor(u)
	if err != nil {
		return sandbox.Sandbox{}, err
	}
	by := caller0(u)
	row, err := s.Manager.Create(ctx, sandbox.CreateParams{
		Caller: by, Spec: spec, Now: time.Now(), UID: u.UID, Alias: u.Name,
		Quota: sandbox.Quota{PerTenant: s.Limits.PerTenant, Total: s.Limits.Total, Memory: s.Limits.Memory},
	})
	if err != nil && sandbox.KindOf(err) == sandbox.KindQuota {
		s.deny(ctx, sandbox.EventQuotaDenied, by, err)
	}
	return row, err
}

func (s *Server) specFor(u sandbox.User) (spec sandbox.Spec, err error) {
	if u.Spec != nil {
		spec = *u.Spec
	} else if spec, err = s.UserSpec(); err != nil {
		return spec, err
	}
	if s.Limits.TTLMax > 0 {
		spec.Lifecycle.TTL = min(spec.Lifecycle.TTL, s.Limits.TTLMax)
	}
	return spec, nil
}

// relayFor starts the relay of a sandbox that a user has entered. Without it her
// portal leads nowhere, so a failure costs the forwarding and not the session.
func (s *Server) relayFor(ctx context.Context, row sandbox.Sandbox) {
	if !row.Spec.SSH.Forwarding || s.Relay == nil {
		return
	}
	if err := s.Relay(ctx, row.ID.Login(), row.UID); err != nil {
		s.Log.ErrorContext(ctx, "relay not started; the sandbox has no forwarding", "sandbox", row.ID, "err", err)
	}
}

// refuseUser writes a refused login of a user into the audit log.
func (s *Server) refuseUser(ctx context.Context, v visitor, login, source, key string, err error, now time.Time) {
	reason := sandbox.Public(err).Msg
	if !s.refused.worthWriting(login+"\x00"+reason, now) {
		return
	}
	ev := sandbox.Event{
		Time: now, Event: sandbox.EventCertRefused, Tenant: v.user.Name, Sandbox: v.row.ID, Source: clip(source, 64), Reason: reason,
		Detail: map[string]string{"login": strconv.QuoteToASCII(clip(login, 100))},
	}
	if key != "" {
		ev.Detail["key"] = key
	}
	if err := s.Store.Append(ctx, ev); err != nil {
		s.Log.ErrorContext(ctx, "refusal not recorded", "login", clip(login, 100), "err", err)
	}
}

// aliasFor is the second login of a sandbox that is made by name in the tenant of
// a user: her key opens it. "" where there is none.
func (s *Server) aliasFor(ctx context.Context, tenant, name string) (string, error) {
	login := tenant + "+" + name
	if _, box, ok := sandbox.ParseUserLogin(login); !ok || box == "" {
		return "", nil
	}
	switch _, err := s.Store.UserByName(ctx, tenant); {
	case err == nil:
		return login, nil
	case sandbox.KindOf(err) == sandbox.KindNotFound:
		return "", nil
	default:
		return "", err
	}
}
