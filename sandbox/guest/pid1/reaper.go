package pid1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper waits for every child of this process: those that it started, and the
// orphans that PID 1 inherits. It is the only one that waits, so an orphan's
// zombie never stays and a status is never stolen. Safe for concurrent use.
type reaper struct {
	// foreign makes it reap children that it did not start. Only PID 1 has those.
	foreign bool

	mu   sync.Mutex // guards live, and is held from fork to registration
	live map[int]*process
}

// process is a child that the reaper started.
type process struct {
	pid  int // also its process group and session
	r    *reaper
	done chan struct{}
	// status is valid once done is closed.
	status syscall.WaitStatus
}

// run reaps until ctx ends. It returns with children possibly still alive.
func (r *reaper) run(ctx context.Context) {
	// One slot is enough: each round reaps everything there is.
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	defer signal.Stop(chld)
	for {
		r.reap()
		select {
		case <-ctx.Done():
			return
		case <-chld:
		}
	}
}

// reap waits for every child that has ended. The lock is held around each wait,
// so that no pid is signaled after it was free for another process.
func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.foreign {
		for pid := range r.live {
			r.wait(pid)
		}
		return
	}
	for r.wait(-1) {
	}
}

// wait collects one child, with mu held, and reports whether there was one.
func (r *reaper) wait(pid int) bool {
	var status syscall.WaitStatus
	got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
	for err == syscall.EINTR {
		got, err = syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
	}
	if err != nil || got <= 0 {
		return false
	}
	if p := r.live[got]; p != nil {
		delete(r.live, got)
		p.status = status
		close(p.done)
	}
	return true
}

// start forks and executes. The child leads a session and a process group.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, r: r, done: make(chan struct{})}
	if r.live == nil {
		r.live = make(map[int]*process)
	}
	r.live[pid] = p
	return p, nil
}

// signalGroup signals a process group of p's session; pgrp 0 is p's own. It is
// no error if nothing of the group is left.
func (p *process) signalGroup(pgrp int, sig syscall.Signal) error {
	if pgrp <= 1 {
		pgrp = p.pid
	}
	if err := syscall.Kill(-pgrp, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process group %d: %w", pgrp, err)
	}
	return nil
}

// signalName returns a signal's name without SIG, as guest.Exit has it.
func signalName(s syscall.Signal) string {
	if name := unix.SignalName(s); len(name) > 3 {
		return name[3:]
	}
	return fmt.Sprint(int(s)) // a real-time signal
}
