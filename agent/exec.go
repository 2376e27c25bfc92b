package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/sshconfig"
	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/localapi"
)

// Bounds of a command.
const (
	defaultTimeout = 10 * time.Minute
	maxTimeout     = 24 * time.Hour
	maxOutput      = 1 << 20          // bytes a stream, also the default: each is held in memory
	startWait      = 20 * time.Second // for a sandbox that is still starting
	lastWords      = 500 * time.Millisecond
	maxCommand     = 128 << 10
	maxArgs        = 1024
	auditCommand   = 4 << 10
)

// exitTimedOut is the exit code of a command that was killed at its timeout, as
// timeout(1) has it.
const exitTimedOut = 124

func (a *as) Exec(ctx context.Context, ref string, r api.ExecRequest) (api.ExecResult, error) {
	if err := checkRef(ref); err != nil {
		return api.ExecResult{}, err
	}
	if err := checkExec(&r); err != nil {
		return api.ExecResult{}, err
	}
	if r.Background || r.WaitSeconds != nil {
		return a.execJob(ctx, ref, r)
	}
	timeout := time.Duration(r.Timeout)
	in := localapi.ExecRequest{Sandbox: ref, Command: auditText(r), Wait: min(startWait, timeout)}

	opening, cancel := context.WithTimeout(ctx, in.Wait+callTimeout)
	defer cancel()
	var out localapi.ExecResponse
	lease, err := a.s.daemon.Open(opening, localapi.OpExec, a.auth, in, &out)
	if err != nil {
		return api.ExecResult{}, err
	}
	defer lease.Close() // tells the daemon that the command has ended
	if lease.File == nil {
		return api.ExecResult{}, errors.New("the daemon sent no connection to the guest")
	}

	// A caller with a deadline of its own gets the output so far, rather than nothing.
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline)-lastWords)
	}
	stdout, stderr := newCollector(r.MaxOutputBytes), newCollector(r.MaxOutputBytes)
	running, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now()
	exit, err := guest.Run(running, lease.File, guestExec(r), guest.Streams{
		Stdin: strings.NewReader(r.Stdin), Stdout: stdout, Stderr: stderr,
	})
	res := api.ExecResult{
		ExecID: out.Exec, ExitCode: exit.Code, Signal: exit.Signal,
		DurationMS: time.Since(began).Milliseconds(), ExpiresAt: out.Sandbox.ExpiresAt.UTC(),
	}
	switch {
	case err == nil:
	case ctx.Err() != nil: // the caller has gone
		return api.ExecResult{}, fmt.Errorf("command cancelled: %w", context.Cause(ctx))
	case running.Err() != nil:
		res.TimedOut, res.ExitCode, res.Signal = true, exitTimedOut, "KILL"
	case errors.Is(err, guest.ErrEnded):
		return api.ExecResult{}, &sandbox.Error{
			Kind: sandbox.KindGone, Msg: "the sandbox ended while the command ran", Err: err,
			Hint: "get the sandbox to see why; create another one",
		}
	default:
		return api.ExecResult{}, fmt.Errorf("run command: %w", err)
	}
	if exit.Error != "" {
		fmt.Fprintf(stderr, "podspawn: error: %s\n", exit.Error)
	}
	res.Stdout, res.Stderr = stdout.String(), stderr.String()
	res.Truncated = stdout.truncated() || stderr.truncated()
	return res, nil
}

// checkExec bounds a request and completes it with defaults.
func checkExec(r *api.ExecRequest) error {
	bad := func(hint, format string, args ...any) error {
		return sandbox.Errorf(sandbox.KindInvalidSpec, hint, format, args...)
	}
	if (r.Command == "") == (len(r.Argv) == 0) {
		return bad("command is run by sh, argv directly", "give exactly one of command and argv")
	}
	total := len(r.Command)
	for _, arg := range r.Argv {
		total += len(arg)
	}
	if total > maxCommand || len(r.Argv) > maxArgs {
		return bad("write it to a file in the sandbox, or send it as stdin", "the command exceeds %d KiB or %d arguments", maxCommand>>10, maxArgs)
	}
	if len(r.Argv) > 0 && r.Argv[0] == "" {
		return bad("put the program first", "argv begins with an empty string")
	}
	if strings.ContainsRune(r.Command+strings.Join(r.Argv, ""), 0) {
		return bad("send binary data as stdin", "the command contains a NUL byte")
	}
	if r.Cwd != "" && (!path.IsAbs(r.Cwd) || strings.ContainsRune(r.Cwd, 0)) {
		return bad("use a path such as /workspace/app", "cwd is not absolute")
	}
	// The rules for the environment and the user are the spec's.
	probe := sandbox.Spec{Env: r.Env, User: r.User}.WithDefaults(sandbox.BuiltinDefaults())
	if err := probe.Validate(); err != nil {
		return err
	}
	request, err := json.Marshal(guestExec(*r))
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	if len(request) > guest.MaxRequest {
		return bad("put large values into a file in the sandbox", "command and environment exceed %d KiB", guest.MaxRequest>>10)
	}
	if r.WaitSeconds != nil && (*r.WaitSeconds < 0 || *r.WaitSeconds > maxWait.Seconds()) {
		return bad(fmt.Sprintf("use 0 to %g", maxWait.Seconds()), "wait_seconds is out of range")
	}
	if r.Destroy && !r.Background && r.WaitSeconds == nil {
		return bad("give wait_seconds too", "destroy needs a command that can be asked about later")
	}
	if t := r.TTY; t != nil && (len(t.Term) > 64 || t.Rows < 0 || t.Rows > 5000 || t.Cols < 0 || t.Cols > 5000) {
		return bad("use the size of a real terminal", "tty is out of range")
	}
	switch {
	case r.Timeout == 0 && r.Background:
		r.Timeout = api.Duration(maxTimeout)
	case r.Timeout == 0:
		r.Timeout = api.Duration(defaultTimeout)
	case time.Duration(r.Timeout) > maxTimeout:
		return bad("use at most 24h", "timeout is out of range")
	}
	switch {
	case r.MaxOutputBytes == 0:
		r.MaxOutputBytes = maxOutput
	case r.MaxOutputBytes < 0 || r.MaxOutputBytes > maxOutput:
		return bad(fmt.Sprintf("use 1 to %d", maxOutput), "max_output_bytes is out of range")
	}
	return nil
}

func guestExec(r api.ExecRequest) guest.Exec {
	e := guest.Exec{Script: r.Command, Argv: r.Argv, User: r.User, Dir: r.Cwd, Env: r.Env}
	if t := r.TTY; t != nil {
		e.PTY = &guest.Terminal{Term: t.Term, Window: window(t.Rows, t.Cols)}
	}
	return e
}

// auditText is the command for the audit log.
func auditText(r api.ExecRequest) string {
	text := r.Command
	if text == "" {
		words := make([]string, len(r.Argv))
		for i, arg := range r.Argv {
			words[i] = sshconfig.Quote(arg)
		}
		text = strings.Join(words, " ")
	}
	if len(text) > auditCommand {
		text = strings.ToValidUTF8(text[:auditCommand], "") + "…"
	}
	return text
}
