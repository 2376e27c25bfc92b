package daemon

import (
	"context"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// extPortForwarding is the extension of a certificate that may forward.
const extPortForwarding = "permit-port-forwarding"

// relayTimeout leaves the PAM step its time to answer.
const relayTimeout = 3 * time.Second

// openRelay starts the sandbox's relay for a connection that may forward. Without
// it the portal leads nowhere, so a failure costs the forwarding and not the login.
func (s *Server) openRelay(ctx context.Context, cred credential) {
	if _, ok := cred.cert.Extensions[extPortForwarding]; !ok || !cred.row.Spec.SSH.Forwarding {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	if err := s.Relay(ctx, cred.row.ID.Login(), cred.row.UID); err != nil {
		s.Log.ErrorContext(ctx, "relay not started; the sandbox has no forwarding", "sandbox", cred.row.ID, "err", err)
	}
}

// forward hands out a guest connection for one forwarded connection or one
// listener. The kernel says who asks: the group is the relay's alone, which only
// this daemon gives to a process, and a session runs below a claimed connection.
func (s *Server) forward(ctx context.Context, c call) (answer, error) {
	var in localapi.ForwardRequest
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return answer{}, badRequest(err)
	}
	row, err := s.Store.ByUID(ctx, c.peer.UID)
	if err != nil {
		return answer{}, err
	}
	if err := sandbox.Usable(row); err != nil {
		return answer{}, err
	}
	relay := c.peer.GID == sandbox.RelayGID
	var right guest.Right
	var session string
	switch {
	case relay && in.Want == localapi.ForwardDial && row.Spec.SSH.Forwarding:
		right = guest.RightDial
	case relay && in.Want == localapi.ForwardListen && row.Spec.SSH.Forwarding:
		right = guest.RightListen
	case !relay && in.Want == localapi.ForwardAgent && row.Spec.SSH.Agent:
		conn, _, err := s.connectionOf(ctx, c.peer.PID, row.ID)
		if err != nil {
			return answer{}, err
		}
		right, session = guest.RightAgent, conn.ID
	default:
		return answer{}, denied(sandbox.KindPolicy, "create a sandbox whose spec allows it", "sandbox %s does not allow this forwarding", row.ID)
	}
	if relay { // threat 62: never one in the host's namespace
		ns, err := s.NetNS(c.peer.PID)
		if err != nil {
			return answer{}, err
		}
		if row.Portal == 0 || ns != row.Portal {
			return answer{}, denied(sandbox.KindUnauthorized, "run podspawn doctor on the host", "the relay is not in the sandbox's network namespace")
		}
	}
	f, err := s.Guests.Open(ctx, row, session, right)
	if err != nil {
		return answer{}, err
	}
	if err := s.recordForward(ctx, row, in, session); err != nil { // no record, no connection
		_ = f.Close() // the store's error is the one to report
		return answer{}, err
	}
	return answer{file: f}, nil
}

// recordForward writes what is forwarded into the audit log, the same at most
// once a second: a browser makes a hundred connections to one port.
func (s *Server) recordForward(ctx context.Context, row sandbox.Sandbox, in localapi.ForwardRequest, session string) error {
	detail := map[string]string{"kind": string(in.Want)}
	if in.Want == localapi.ForwardDial {
		if _, _, err := guest.SplitTarget(in.Target); err != nil {
			return badRequest(err)
		}
		detail["target"] = in.Target
	}
	now := time.Now()
	if !s.refused.worthWriting("forward\x00"+string(row.ID)+"\x00"+detail["kind"]+"\x00"+detail["target"], now) {
		return nil
	}
	return s.Store.Append(ctx, sandbox.Event{
		Time: now, Event: sandbox.EventForwardOpened, Tenant: row.Tenant, Sandbox: row.ID, SpecDigest: row.Digest,
		Session: session, Detail: detail,
	})
}
