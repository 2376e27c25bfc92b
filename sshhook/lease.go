package sshhook

import (
	"context"
	"sync"
	"time"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// How a hook finds the next daemon when the one that it knew has gone.
const (
	rejoinFirst = 50 * time.Millisecond // doubling
	rejoinMost  = 2 * time.Second
	lastWord    = 2 * time.Second // for telling how the channel ended
)

// maxTold bounds what the daemon is told of a command, for its audit log.
const maxTold = 2048

// lease is the daemon's knowledge that this channel is open. When the daemon goes
// away the channel is registered with the next one, so that its count and its end
// are known there too. Safe for concurrent use.
type lease struct {
	daemon *localapi.Client
	stop   context.CancelFunc
	done   chan struct{} // closed when nothing is rejoining any more

	mu    sync.Mutex      // guards what follows
	now   *localapi.Lease // nil while no daemon knows
	ended bool
}

// hold keeps a lease until end is called.
func (h *Hook) hold(ctx context.Context, first *localapi.Lease) *lease {
	ctx, stop := context.WithCancel(ctx)
	l := &lease{daemon: h.Daemon, stop: stop, done: make(chan struct{}), now: first}
	go func() {
		defer close(l.done)
		l.keep(ctx, first)
	}()
	return l
}

func (l *lease) keep(ctx context.Context, now *localapi.Lease) {
	pause := rejoinFirst
	for ctx.Err() == nil {
		if now != nil {
			now.Wait()
			if !l.set(nil) {
				return
			}
			_ = now.Close() // the daemon has closed its end
			pause = rejoinFirst
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		pause = min(2*pause, rejoinMost)
		cctx, cancel := context.WithTimeout(ctx, callTimeout)
		next, err := l.daemon.Open(cctx, localapi.OpChannel, localapi.Auth{}, localapi.ChannelRequest{Do: localapi.ChannelHold}, nil)
		cancel()
		if err != nil {
			now = nil
			continue // it may not run yet
		}
		if !l.set(next) {
			_ = next.Close() // the channel ended meanwhile, and said so
			return
		}
		now = next
	}
}

// set notes the lease of the moment, and reports whether the channel is still open.
func (l *lease) set(now *localapi.Lease) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.now = now
	}
	return !l.ended
}

// end gives the lease up and tells the daemon when the command ended by itself.
// A daemon that is not there to hear it takes the end for a loss, which only
// lets the sandbox live until it is idle. Later calls do nothing.
func (l *lease) end(ctx context.Context, finished bool) {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return
	}
	l.ended = true
	now := l.now
	l.mu.Unlock()
	told := !finished
	if now != nil {
		if finished {
			told = now.Finish() == nil
		} else {
			_ = now.Close() // ends with the process anyway
		}
	}
	l.stop()
	<-l.done
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWord)
	defer cancel()
	for pause := rejoinFirst; !told && ctx.Err() == nil; pause *= 2 {
		err := l.daemon.Call(ctx, localapi.OpChannel, localapi.Auth{}, localapi.ChannelRequest{Do: localapi.ChannelFinish}, nil)
		if err == nil || sandbox.KindOf(err) != sandbox.KindUnavailable {
			return // told, or refused, which it will be again
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// clip bounds s, in bytes.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
