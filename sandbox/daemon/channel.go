package daemon

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// maxAuditCommand bounds what the audit log keeps of a command, in bytes.
const maxAuditCommand = 1024

// session opens one channel of a claimed connection: it hands the hook a guest
// connection and counts the channel until the hook closes its lease. The peer's
// uid is its sandbox (the kernel's word), and its ancestry proves that it
// runs in one of that sandbox's claimed connections.
func (s *Server) session(ctx context.Context, c call) (answer, error) {
	var in localapi.SessionRequest
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return answer{}, badRequest(err)
	}
	if sandbox.IsUserUID(c.peer.UID) {
		if err := s.enter(ctx, c.peer, in.Wait); err != nil {
			return answer{}, err
		}
	}
	row, err := s.Store.ByUID(ctx, c.peer.UID)
	if err != nil {
		return answer{}, err
	}
	conn, up, err := s.connectionOf(ctx, c.peer.PID, row.ID)
	if err != nil {
		if why := s.refused.of(up); why != nil {
			return answer{}, why
		}
		return answer{}, err
	}
	if err := sandbox.Usable(row); err != nil {
		return answer{}, err
	}
	rights := []guest.Right{guest.RightExec}
	cert := sandbox.Certificate{Subject: conn.User} // of a user's connection there is none
	if conn.Serial != 0 {
		if cert, err = s.Store.Certificate(ctx, conn.Serial); err != nil {
			return answer{}, err
		}
	}
	if in.PTY {
		// sshd gave out a terminal only because certificate or key permits one.
		rights = append(rights, guest.RightPTY)
	}
	body := localapi.SessionResponse{
		Sandbox: row.ID, Connection: conn.ID, ExpiresAt: row.ExpiresAt,
		Forwarding: row.Spec.SSH.Forwarding, Agent: row.Spec.SSH.Agent,
	}
	if row.Spec.SSH.SFTP {
		rights = append(rights, guest.RightSFTP)
		body.SFTPCommand = s.SFTPCommand()
	}
	done, err := s.Sessions.openChannel(row.ID, conn.ID)
	if err != nil {
		return answer{}, err
	}
	c.atEnd(func() { done(false) })
	f, err := s.Guests.Open(ctx, row, conn.ID, rights...)
	if err != nil {
		return answer{}, err
	}
	fault.At("daemon.session.connected")
	began := time.Now()
	opened := sessionEvent(sandbox.EventSessionOpened, began, row, conn)
	opened.Subject, opened.Token = cert.Subject, cert.Token
	command := opened
	command.Event, command.Detail = sandbox.EventCommandStarted, commandDetail(in, body.SFTPCommand)
	if err := s.Store.Append(ctx, opened, command); err != nil { // no record, no session
		_ = f.Close() // the store's error is the one to report
		return answer{}, err
	}
	fault.At("daemon.session.recorded")
	return answer{
		body: body, file: f,
		held: func(ctx context.Context) {
			<-ctx.Done()
			s.endChannel(ctx, c, done, command, began)
		},
	}, nil
}

// commandDetail is what the audit log has about a channel.
func commandDetail(in localapi.SessionRequest, sftp string) map[string]string {
	d := map[string]string{"pty": strconv.FormatBool(in.PTY), "kind": "command"}
	switch {
	case in.Command == "":
		d["kind"] = "shell"
	case in.Command == sftp:
		d["kind"] = "sftp"
	default:
		d["command"] = clip(in.Command, maxAuditCommand)
	}
	return d
}

// endChannel is the end of a channel's lease. The daemon's own end is none: the
// hook goes on and tells the next daemon. began is zero when another one opened it.
func (s *Server) endChannel(ctx context.Context, c call, done func(bool), started sandbox.Event, began time.Time) {
	finished := c.finished.Load()
	done(finished)
	if c.stopping() && !finished {
		return
	}
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	ev := started
	ev.Time, ev.Event, ev.Reason, ev.Detail = time.Now(), sandbox.EventCommandFinished, noteLost, nil
	if finished {
		ev.Reason = noteExit
	}
	if !began.IsZero() {
		ev.Detail = map[string]string{"took": ev.Time.Sub(began).Round(time.Millisecond).String()}
	}
	if err := s.Store.Append(wctx, ev); err != nil {
		s.Log.Error("end of a command not recorded", "sandbox", ev.Sandbox, "connection", ev.Session, "err", err)
	}
}

// channel serves the hook of a channel that is open already: it may have been
// opened by an earlier daemon. Its peer is proved as session's is.
func (s *Server) channel(ctx context.Context, c call) (answer, error) {
	var in localapi.ChannelRequest
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return answer{}, badRequest(err)
	}
	row, err := s.Store.ByUID(ctx, c.peer.UID)
	if err != nil {
		return answer{}, err
	}
	conn, _, err := s.connectionOf(ctx, c.peer.PID, row.ID)
	if err != nil {
		return answer{}, err
	}
	body := localapi.ChannelResponse{ExpiresAt: row.ExpiresAt}
	switch in.Do {
	case localapi.ChannelAsk:
		return answer{body: body}, nil
	case localapi.ChannelHold, localapi.ChannelFinish:
	default:
		return answer{}, badRequest(errors.New("unknown request about a channel"))
	}
	done, err := s.Sessions.openChannel(row.ID, conn.ID)
	if err != nil {
		return answer{}, err
	}
	c.atEnd(func() { done(false) })
	cert, err := s.Store.Certificate(ctx, conn.Serial)
	if err != nil {
		return answer{}, err
	}
	ev := sessionEvent(sandbox.EventCommandStarted, time.Now(), row, conn)
	ev.Subject, ev.Token = cert.Subject, cert.Token
	if in.Do == localapi.ChannelFinish {
		c.finished.Store(true)
		s.endChannel(ctx, c, done, ev, time.Time{})
		return answer{body: body}, nil
	}
	return answer{
		body: body,
		held: func(ctx context.Context) {
			<-ctx.Done()
			s.endChannel(ctx, c, done, ev, time.Time{})
		},
	}, nil
}
