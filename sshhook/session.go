package sshhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// session is one channel: it gets a guest connection from the daemon and carries
// bytes between it and sshd until the remote command has ended. The connection
// to the daemon stays open meanwhile, as the lease by which the daemon counts
// the channel and learns how it ended; that the daemon goes away does not end the
// session, see lease.
func (h *Hook) session(ctx context.Context) int {
	fault.At("hook.session.begun")
	if h.isService() {
		return h.service(ctx)
	}
	tty := isTerminal(h.Stdin)
	resp, lease, err := h.open(ctx, localapi.SessionRequest{PTY: tty, Command: clip(h.Env.Command, maxTold)})
	if err != nil {
		h.complain(refusalLine(err))
		return exitTemp
	}
	held := h.hold(ctx, lease)
	finished := false
	defer func() { held.end(ctx, finished) }()
	if lease.File == nil {
		h.complain(refusalLine(errors.New("no descriptor came")))
		return exitTemp
	}
	defer func() { _ = lease.File.Close() }() // guest.Run has closed it already, unless it was not reached

	if resp.Forwarding {
		awaitRelay(ctx)
	}
	fault.At("hook.session.leased")
	req, err := h.request(tty, resp)
	if err != nil {
		h.complain(refusalLine(err))
		return exitTemp
	}
	if resp.Agent && h.Env.Agent != "" {
		stop, err := h.agent(ctx, &req)
		if err != nil {
			h.complain(oneLine("podspawn: warning: the SSH agent is not forwarded: " + err.Error()))
		}
		defer stop()
	}
	if req.PTY != nil && !resp.ExpiresAt.IsZero() {
		wctx, stop := context.WithCancel(ctx)
		warned := make(chan struct{})
		go func() { defer close(warned); h.warn(wctx, resp.ExpiresAt) }()
		defer func() { stop(); <-warned }()
	}
	exit, err := h.carry(ctx, lease.File, req)
	// When the client vanishes the command may end for want of input, and we hear
	// of that first; then nobody is there any more.
	finished = err == nil && !gone(h.Stdout)
	switch {
	case errors.Is(err, errClientGone):
		return exitLost // nobody is there to read a line
	case err != nil:
		h.complain(refusalLine(lost(err)))
		return exitLost
	case exit.Error != "":
		h.complain(oneLine("podspawn: error: " + exit.Error))
	case exit.Signal != "":
		held.end(ctx, finished) // the next line does not return
		dieBy(exit.Signal)
		return exitLost
	}
	return exit.Code & 0xff
}

// startTimeout bounds the wait for a sandbox that is made for this session.
const startTimeout = 110 * time.Second

// open asks for a channel. Where a sandbox has to be started first, it asks once
// more and waits, and says so to whoever sits at the terminal.
func (h *Hook) open(ctx context.Context, req localapi.SessionRequest) (resp localapi.SessionResponse, lease *localapi.Lease, err error) {
	soon, cancel := h.withTimeout(ctx)
	defer cancel()
	lease, err = h.Daemon.Open(soon, localapi.OpSession, localapi.Auth{}, req, &resp)
	if err == nil || sandbox.KindOf(err) != sandbox.KindNotReady {
		return resp, lease, err
	}
	if req.PTY && !h.Env.HasCommand {
		h.complain("podspawn: starting your sandbox …")
	}
	late, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	req.Wait = true
	lease, err = h.Daemon.Open(late, localapi.OpSession, localapi.Auth{}, req, &resp)
	return resp, lease, err
}

// lost turns an error of a running session into one for people.
func lost(err error) error {
	if _, ok := errors.AsType[*sandbox.Error](err); ok {
		return err
	}
	return &sandbox.Error{
		Kind: sandbox.KindGone,
		Msg:  "the connection to the sandbox was lost",
		Hint: "podspawn get says whether it still runs",
		Err:  err,
	}
}

// request builds what is asked of the guest.
func (h *Hook) request(tty bool, resp localapi.SessionResponse) (guest.Exec, error) {
	req, err := classify(h.Env.Command, h.Env.HasCommand, resp.SFTPCommand)
	if err != nil {
		return guest.Exec{}, err
	}
	req.Env = h.Env.Locale
	if tty && !req.SFTP {
		req.PTY = &guest.Terminal{Term: h.Env.Term, Window: windowOf(h.Stdin)}
		if req.PTY.Term == "" {
			req.PTY.Term = "dumb"
		}
		if req.LoginShell && !resp.ExpiresAt.IsZero() {
			h.complain(deadlineLine(resp.ExpiresAt, time.Now()))
		}
	}
	if b, err := json.Marshal(req); err != nil || len(b) > guest.MaxRequest {
		return guest.Exec{}, &localError{"the command is too long", "put it into a file in the sandbox and run that"}
	}
	return req, nil
}

// deadlineLine says when the sandbox ends. UTC, since the host's time zone says
// nothing to the client.
func deadlineLine(end, now time.Time) string {
	return fmt.Sprintf("podspawn: this sandbox ends at %s UTC, in %s",
		end.UTC().Format("15:04"), max(end.Sub(now), 0).Round(time.Minute))
}

// errClientGone means that sshd or the client ended the channel.
var errClientGone = errors.New("the client has gone")

// carry runs req at the other end of conn with this process's streams.
func (h *Hook) carry(ctx context.Context, conn *os.File, req guest.Exec) (guest.Exit, error) {
	if req.PTY != nil {
		restore, err := rawMode(h.Stdin)
		if err != nil {
			return guest.Exit{}, fmt.Errorf("set up the terminal: %w", err)
		}
		defer restore()
	}
	wakeEnd, wake, err := os.Pipe()
	if err != nil {
		return guest.Exit{}, fmt.Errorf("watch the client: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	resize := make(chan guest.Window, 1)
	signals := make(chan string)
	streams := guest.Streams{
		Stdin: h.Stdin, Stdout: h.Stdout, Stderr: h.Stderr,
		Resize: resize, Signals: signals,
	}

	caught := make(chan os.Signal, 8) // a burst of resizes and one HUP
	signal.Notify(caught, unix.SIGHUP, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH)
	signal.Ignore(unix.SIGPIPE) // a write error tells as much, and we can tidy up
	var wg sync.WaitGroup
	wg.Go(func() { h.relaySignals(ctx, cancel, caught, resize, signals) })
	wg.Go(func() {
		if hungUp(h.Stdout, wakeEnd) {
			cancel(errClientGone)
		}
	})
	defer func() {
		cancel(nil)
		_ = wake.Close() // wakes hungUp
		wg.Wait()
		signal.Stop(caught)
		_ = wakeEnd.Close() // a pipe of our own, as above
	}()

	exit, err := guest.Run(ctx, conn, req, streams)
	if err != nil && (errors.Is(context.Cause(ctx), errClientGone) || outputFailed(err)) {
		return guest.Exit{}, errClientGone
	}
	return exit, err
}

// outputFailed reports whether err is that our own output can't be written, and
// not that the guest's connection broke.
func outputFailed(err error) bool {
	return !errors.Is(err, guest.ErrEnded) && (errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EIO))
}

// relaySignals passes the process's signals on: a changed window as such, the
// others to the remote process group, and HUP and TERM, which sshd sends when
// the channel ends, as the end.
func (h *Hook) relaySignals(ctx context.Context, cancel context.CancelCauseFunc, caught <-chan os.Signal, resize chan<- guest.Window, signals chan<- string) {
	for {
		var sig os.Signal
		select {
		case <-ctx.Done():
			return
		case sig = <-caught:
		}
		switch sig {
		case unix.SIGHUP, unix.SIGTERM:
			cancel(errClientGone)
			return
		case unix.SIGWINCH:
			select { // only the newest size counts, but dropping is for the reader's buffer of 1
			case resize <- windowOf(h.Stdin):
			case <-ctx.Done():
				return
			}
		default:
			name := unix.SignalName(sig.(unix.Signal))
			select {
			case signals <- name[len("SIG"):]:
			case <-ctx.Done():
				return
			}
		}
	}
}
