package daemon

import (
	"context"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// session opens one channel of a claimed connection: it hands the hook a guest
// connection and counts the channel until the hook closes its lease. The peer's
// uid is its sandbox (the kernel's word), and its ancestry proves that it
// runs in one of that sandbox's claimed connections.
func (s *Server) session(ctx context.Context, c call) (answer, error) {
	var in localapi.SessionRequest
	if err := localapi.Decode(c.req.Body, &in); err != nil {
		return answer{}, badRequest(err)
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
	cert, err := s.Store.Certificate(ctx, conn.Serial)
	if err != nil {
		return answer{}, err
	}
	if in.PTY {
		// sshd gave out a terminal only because the certificate permits one.
		rights = append(rights, guest.RightPTY)
	}
	body := localapi.SessionResponse{Sandbox: row.ID, Connection: conn.ID, ExpiresAt: row.ExpiresAt}
	if row.Spec.SSH.SFTP {
		rights = append(rights, guest.RightSFTP)
		body.SFTPCommand = s.SFTPCommand()
	}
	done, err := s.Sessions.openChannel(row.ID)
	if err != nil {
		return answer{}, err
	}
	f, err := s.Guests.Open(ctx, row, conn.ID, rights...)
	if err != nil {
		done()
		return answer{}, err
	}
	ev := sessionEvent(sandbox.EventSessionOpened, time.Now(), row, conn)
	ev.Subject, ev.Token = cert.Subject, cert.Token
	if err := s.Store.Append(ctx, ev); err != nil { // no record, no session
		done()
		_ = f.Close() // the store's error is the one to report
		return answer{}, err
	}
	return answer{
		body: body, file: f, undo: done,
		held: func(ctx context.Context) {
			defer done()
			<-ctx.Done()
		},
	}, nil
}
