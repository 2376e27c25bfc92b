package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/sshconfig"
)

// session is one use of the system's ssh with a key that exists only for it, in
// a folder that only we can read.
//
// Of what the service answered only host, port, login and certificate are used,
// each checked by sshconfig: an ssh_config can run programs, and the service's
// is never written down.
type session struct {
	dir     string
	config  string
	alias   string
	serial  uint64
	started time.Time
}

// newSession makes the folder and its files. The caller closes it.
func newSession(key *sshconfig.Key, from api.SSH) (*session, error) {
	dir, err := os.MkdirTemp("", "podspawn-") // 0700
	if err != nil {
		return nil, withHint(fmt.Errorf("make a folder for the key: %w", err), "TMPDIR must name a folder with room in it")
	}
	t, err := sshconfig.Install(dir, key, from)
	if err != nil {
		_ = os.RemoveAll(dir) // nothing secret was written when Install refuses; its error is the one to report
		return nil, withHint(err, "the service's answer can't be used; compare its version with podspawn version")
	}
	return &session{
		dir: dir, config: filepath.Join(t.Dir, sshconfig.ConfigFile), alias: t.User,
		serial: from.Serial, started: time.Now(),
	}, nil
}

func (s *session) close() error {
	if err := os.RemoveAll(s.dir); err != nil {
		return withHint(fmt.Errorf("remove the key: %w", err), "remove "+s.dir+" yourself; its certificate is valid for minutes only")
	}
	return nil
}

// run runs ssh to its end with our streams and returns its exit status. before
// are options of ours, after is what follows the host: options, --, a command.
//
// A signal to us ends ssh, not the other way round: at a terminal ssh gets ^C
// itself, as a byte or from the terminal driver.
func (s *session) run(ctx context.Context, a *app, before, after []string) (int, error) {
	bin, err := exec.LookPath("ssh")
	if err != nil {
		return 0, withHint(fmt.Errorf("find ssh: %w", err), "install OpenSSH's client (package openssh-client)")
	}
	// No shared connection: its master would outlive this folder, and the sandbox
	// counts it as a session until it is gone.
	args := append([]string{"-F", s.config, "-o", "ControlMaster=no", "-o", "ControlPath=none"}, before...)
	args = append(append(args, s.alias), after...)
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	if ctx.Err() != nil {
		return exitOurs, ctx.Err()
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return 128 + int(ws.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("run ssh: %w", err)
	}
	return 0, nil
}

// explain says why the machine refused the login, when ssh gave up with its own
// status: sshd can only say "Permission denied", the service knows the reason.
func (s *session) explain(ctx context.Context, a *app, svc api.API, ref string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	got, err := svc.Get(ctx, ref)
	if err != nil {
		return // ssh has said that it failed, and this would only say it again
	}
	for _, r := range got.LastRefusals {
		if r.Serial == s.serial && r.Reason != "" {
			fmt.Fprintf(a.stderr, "podspawn: error: the login was refused: %s\n", oneLine(r.Reason))
			fmt.Fprintf(a.stderr, "podspawn: hint: podspawn get %s shows the sandbox and its last refusals\n", oneLine(ref))
			return
		}
	}
	if !got.State.Usable() {
		fmt.Fprintf(a.stderr, "podspawn: error: sandbox %s has ended: %s\n", got.ID, oneLine(cmp.Or(string(got.Reason), string(got.State))))
		fmt.Fprintf(a.stderr, "podspawn: hint: make another with podspawn create\n")
	}
}
