package daemon

import (
	"context"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

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
