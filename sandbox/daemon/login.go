package daemon

import (
	"bytes"
	"context"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/podspawn/podspawn/ephemeralkeys"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// A login, in the order in which sshd makes these calls:
//
//	principals  twice, before the client has proved that it holds the key; also
//	            for certificates that sshd will refuse. Changes nothing.
//	pamOpen     once per connection, after the proof, also for "ssh -N". Claims.
//	session     once per channel.
//	pamClose    once, when sshd closes the connection, for whatever reason.

// endRefused is how soon a connection that was let in only to hear why it is
// refused is ended.
const endRefused = 1500 * time.Millisecond

// denied is a refusal with the words for the audit log and, where the client
// can be told, for the client.
func denied(kind sandbox.Kind, hint, format string, args ...any) *sandbox.Error {
	return sandbox.Errorf(kind, hint, format, args...)
}

// credential is a certificate that was found to be genuine.
type credential struct {
	row     sandbox.Sandbox
	cert    *ssh.Certificate
	binding ephemeralkeys.Binding
}

// check decides whether a certificate may log in as login now, but for what only
// the claim can decide: its uses and the number of connections. It reads the
// state and nothing else.
func (s *Server) check(ctx context.Context, login string, cert *ssh.Certificate, now time.Time) (credential, error) {
	id, err := sandbox.ParseLogin(login)
	if err != nil {
		return credential{}, denied(sandbox.KindNotFound, "check the login name", "no such sandbox login")
	}
	row, err := s.Store.Get(ctx, id)
	if err != nil {
		return credential{}, err
	}
	c := credential{row: row, cert: cert}
	policy := ephemeralkeys.Policy{ForceCommand: s.ForceCommand}
	if c.binding, err = ephemeralkeys.Verify(cert, login, s.keys.Trusted(now), now, policy); err != nil {
		return c, &sandbox.Error{
			Kind: sandbox.KindPolicy, Msg: "the certificate is not valid here: " + err.Error(),
			Hint: "get a fresh one with podspawn cert " + string(id),
		}
	}
	if err := sandbox.Usable(row); err != nil {
		return c, err
	}
	if c.binding.Sandbox != string(id) || c.binding.Spec != string(row.Digest) {
		return c, denied(sandbox.KindPolicy, "get a fresh one with podspawn cert "+string(id), "the certificate is bound to another sandbox or spec")
	}
	issued, err := s.Store.Certificate(ctx, cert.Serial)
	if sandbox.KindOf(err) == sandbox.KindNotFound {
		return c, denied(sandbox.KindPolicy, "get a fresh one with podspawn cert "+string(id), "no certificate was issued under serial %d", cert.Serial)
	}
	if err != nil {
		return c, err
	}
	switch {
	case issued.Sandbox != id || !bytes.Equal(issued.Blob, cert.Marshal()):
		return c, denied(sandbox.KindPolicy, "get a fresh one with podspawn cert "+string(id), "the certificate is not the one issued under serial %d", cert.Serial)
	case !issued.RevokedAt.IsZero():
		return c, denied(sandbox.KindPolicy, "get a fresh one with podspawn cert "+string(id), "the certificate was revoked")
	}
	if issued.Token != "" {
		tok, err := s.Store.Token(ctx, issued.Token)
		if err != nil {
			return c, err
		}
		if !tok.RevokedAt.IsZero() {
			return c, denied(sandbox.KindPolicy, "get a new token", "the token that asked for the certificate was revoked")
		}
	}
	return c, nil
}

func (s *Server) principals(ctx context.Context, c call) (answer, error) {
	var in localapi.PrincipalsRequest
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return answer{}, badRequest(err)
	}
	if err := s.ground(); err != nil {
		return answer{}, err
	}
	fault.At("daemon.principals")
	now := time.Now()
	cert, err := ephemeralkeys.ParseCertificate(in.KeyType, in.Key)
	if err != nil {
		return answer{}, denied(sandbox.KindPolicy, "log in with the certificate that podspawn cert wrote", "what was presented is no certificate")
	}
	cred, err := s.check(ctx, in.User, cert, now)
	if err != nil {
		s.recordRefusal(ctx, cred, in.User, "", err, now)
		return answer{}, err
	}
	// The login is the only part that is not constant, and it matched loginPattern:
	// nothing of the certificate is ever echoed (threat 29).
	line := "restrict"
	for _, o := range []struct {
		option, extension string
		granted           bool
	}{
		{"pty", "permit-pty", true},
		{"port-forwarding", extPortForwarding, cred.row.Spec.SSH.Forwarding},
		{"agent-forwarding", "permit-agent-forwarding", cred.row.Spec.SSH.Agent},
	} {
		if _, ok := cert.Extensions[o.extension]; ok && o.granted {
			line += "," + o.option
		}
	}
	return answer{body: localapi.PrincipalsResponse{Line: line + " " + cred.row.ID.Login()}}, nil
}

// ground returns an error when what every login stands on is not as it was set up.
func (s *Server) ground() error {
	if err := s.SetupIntact(); err != nil {
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: "the host's sshd, PAM or NSS files changed since server-setup",
			Hint: "look at podspawn doctor, then run podspawn server-setup again", Err: err,
		}
	}
	if err := s.HostRule(); err != nil {
		return &sandbox.Error{
			Kind: sandbox.KindUnavailable, Msg: "the firewall rule that keeps sandboxes off the host's network is missing",
			Hint: "the daemon puts it back; podspawn doctor says whether it could", Err: err,
		}
	}
	return nil
}

// pamOpen is the claim. Its peer is root's hook below the connection's sshd
// monitor; both must be in the sandbox's portal, since pam_usernet ignores its
// own errors. An error here makes PAM refuse the login; a refusal whose reason
// the client should hear is recorded, and the login goes on just far enough for
// the session hook to print it.
func (s *Server) pamOpen(ctx context.Context, c call) (answer, error) {
	var in localapi.PAMOpenRequest
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return answer{}, badRequest(err)
	}
	now := time.Now()
	id, err := sandbox.ParseLogin(in.User)
	if err != nil {
		return answer{}, s.pamOpenUser(ctx, c, in, now)
	}
	row, err := s.Store.Get(ctx, id)
	if err != nil {
		return answer{}, err
	}
	monitor, err := s.monitorOf(c.peer.PID, row.Portal)
	if err != nil {
		s.recordRefusal(ctx, credential{row: row}, in.User, in.Source, err, now)
		return answer{}, err
	}
	if err := s.ground(); err != nil {
		return answer{}, err
	}
	cred, err := s.claim(ctx, in, monitor, now)
	if err == nil {
		s.openRelay(ctx, cred)
		return answer{}, nil
	}
	s.recordRefusal(ctx, cred, in.User, in.Source, err, now)
	pub := sandbox.Public(err)
	if !sayable(pub.Kind) {
		return answer{}, err
	}
	s.refused.add(monitor, pub, now)
	s.Sessions.EndRefused(row, monitor, endRefused)
	return answer{}, nil
}

// sayable reports whether a refusal of this kind is the client's business.
func sayable(k sandbox.Kind) bool {
	return k == sandbox.KindPolicy || k == sandbox.KindGone || k == sandbox.KindQuota || k == sandbox.KindNotReady
}

// claim verifies the certificate once more, now that its key is proved, and
// opens the connection in the state.
func (s *Server) claim(ctx context.Context, in localapi.PAMOpenRequest, monitor sandbox.Process, now time.Time) (credential, error) {
	cert, err := ephemeralkeys.ParseAuthInfo(in.AuthInfo)
	if err != nil {
		return credential{}, &sandbox.Error{
			Kind: sandbox.KindUnauthorized, Msg: "sshd did not say which certificate logged in",
			Hint: "run podspawn doctor", Err: err,
		}
	}
	cred, err := s.check(ctx, in.User, cert, now)
	if err != nil {
		return cred, err
	}
	conn := sandbox.Connection{
		ID: sandbox.NewToken("con_"), Sandbox: cred.row.ID, Serial: cert.Serial,
		Source: clip(in.Source, 64), Monitor: monitor, OpenedAt: now,
	}
	ev := sessionEvent(sandbox.EventCertAccepted, now, cred.row, conn)
	ev.Token = cred.binding.Token
	fault.At("daemon.claim.before")
	row, err := s.Store.Claim(ctx, conn, ev)
	fault.At("daemon.claim.stored")
	if err != nil {
		return cred, err
	}
	s.Sessions.Watch(row, conn)
	s.Log.InfoContext(ctx, "connection opened", "sandbox", row.ID, "connection", conn.ID, "serial", cert.Serial)
	return cred, nil
}

// monitorOf returns the sshd process that the hook runs under, after checking
// that both are root's and in the portal.
func (s *Server) monitorOf(pid int, portal uint64) (sandbox.Process, error) {
	up, err := ancestors(pid)
	if err != nil {
		return sandbox.Process{}, err
	}
	if len(up) == 0 {
		return sandbox.Process{}, denied(sandbox.KindUnauthorized, "only sshd's PAM step may claim", "the hook has no parent")
	}
	monitor := up[0]
	for _, p := range []int{pid, monitor.PID} {
		uid, err := uidOf(p)
		if err != nil {
			return sandbox.Process{}, err
		}
		ns, err := s.NetNS(p)
		if err != nil {
			return sandbox.Process{}, err
		}
		if uid != 0 || portal == 0 || ns != portal {
			return sandbox.Process{}, denied(sandbox.KindUnavailable, "run podspawn doctor on the host",
				"the connection is not in the sandbox's network namespace")
		}
	}
	if !alive(monitor) {
		return sandbox.Process{}, errGone
	}
	return monitor, nil
}

func (s *Server) pamClose(ctx context.Context, c call) (answer, error) {
	var in localapi.PAMCloseRequest
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return answer{}, badRequest(err)
	}
	id, err := sandbox.ParseLogin(in.User)
	if _, _, ok := sandbox.ParseUserLogin(in.User); err != nil && ok {
		return answer{}, nil // a user's connection is known by its processes alone
	}
	if err != nil {
		return answer{}, denied(sandbox.KindNotFound, "check the login name", "no such sandbox login")
	}
	fault.At("daemon.pam-close")
	// Nothing follows from it: sshd closes the PAM session in the same way when the
	// client has left in order, vanished, or timed out. See Sessions.
	_, _, err = s.connectionOf(ctx, c.peer.PID, id)
	return answer{}, err
}

// connectionOf finds the claimed connection that a process runs below.
func (s *Server) connectionOf(ctx context.Context, pid int, id sandbox.ID) (sandbox.Connection, []sandbox.Process, error) {
	up, err := ancestors(pid)
	if err != nil {
		return sandbox.Connection{}, nil, err
	}
	conns, err := s.Store.OpenConnections(ctx, id)
	if err != nil {
		return sandbox.Connection{}, nil, err
	}
	for _, p := range up {
		for _, c := range conns {
			if c.Monitor == p {
				return c, up, nil
			}
		}
	}
	return sandbox.Connection{}, up, denied(sandbox.KindUnauthorized, "connect with ssh", "this process is in no claimed SSH connection")
}

// recordRefusal writes a refused login into the audit log, at most once a second
// for one login and reason.
func (s *Server) recordRefusal(ctx context.Context, cred credential, login, source string, err error, now time.Time) {
	reason := sandbox.Public(err).Msg
	if sandbox.KindOf(err) == sandbox.KindInternal {
		s.Log.ErrorContext(ctx, "login not decided", "login", clip(login, 64), "err", err)
	}
	if !s.refused.worthWriting(login+"\x00"+reason, now) {
		return
	}
	ev := sandbox.Event{
		Time: now, Event: sandbox.EventCertRefused, Tenant: cred.row.Tenant, Sandbox: cred.row.ID,
		SpecDigest: cred.row.Digest, Source: clip(source, 64), Reason: reason,
		Detail: map[string]string{"login": strconv.QuoteToASCII(clip(login, 64))},
	}
	if cred.cert != nil {
		ev.Serial = cred.cert.Serial
	}
	if err := s.Store.Append(ctx, ev); err != nil {
		s.Log.ErrorContext(ctx, "refusal not recorded", "login", clip(login, 64), "err", err)
	}
}

func badRequest(err error) error {
	return &sandbox.Error{
		Kind: sandbox.KindInternal, Msg: "the request is not in the daemon's protocol",
		Hint: "install all binaries of one release and restart the daemon", Err: err,
	}
}

// clip bounds what is kept of foreign words.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n]
}
