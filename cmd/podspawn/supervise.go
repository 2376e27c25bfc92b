package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	restartMin = 500 * time.Millisecond
	restartMax = 30 * time.Second
	// A process that ran for steadyAfter was healthy: the next restart is quick again.
	steadyAfter = 30 * time.Second
	stopGrace   = 15 * time.Second
	// After giveUpAfter quick failures in a row, half a minute, the
	// configuration is wrong and somebody should read why.
	giveUpAfter = 7
)

// runAllInOne keeps daemon, serve and resolver running as processes of their own,
// and ends them when ctx ends. It is for machines without a service manager.
func runAllInOne(ctx context.Context, a *app, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return withHint(errors.New("--all-in-one must be started as root: the daemon is"), "run it with sudo, or let make up start it")
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range []string{"daemon", "serve", "resolver"} {
		g.Go(func() error { return supervise(ctx, a, name, log.With("child", name)) })
	}
	return g.Wait()
}

// supervise runs one child until ctx ends. The goroutine keeps its thread, since
// a child's parent-death signal comes when the thread that made it ends.
func supervise(ctx context.Context, a *app, name string, log *slog.Logger) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pause, failures := restartMin, 0
	for {
		began := time.Now()
		err := runChild(ctx, a, name)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) >= steadyAfter {
			pause, failures = restartMin, 0
		}
		if failures++; failures >= giveUpAfter {
			return withHint(fmt.Errorf("podspawn %s does not stay up: %w", name, err), "its last words are above")
		}
		log.ErrorContext(ctx, "ended; starting it again", "err", err, "after", pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, restartMax)
	}
}

func runChild(ctx context.Context, a *app, name string) error {
	args := []string{name}
	if a.configFile != "" {
		args = append(args, "--config", a.configFile)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = "podspawn"
	cmd.Stdout, cmd.Stderr = a.stderr, a.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	if err := cmd.Run(); err != nil {
		return err
	}
	return errors.New("it ended by itself")
}
