package main

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

type execOptions struct {
	interactive, tty bool
	user, dir        string
	env              []string
	timeout          string
}

func newExecCommand(a *app) *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use: "exec ID [-it] -- CMD…", Short: "run a command in a sandbox through the API, without ssh", GroupID: groupPeople,
		Long: `Runs a program with its arguments in a sandbox, through the service and without
an ssh connection, and exits with its status. For a shell's words use
podspawn exec ID -- sh -c 'WORDS'. The program is killed when this command ends.`,
		Args: atLeast("an ID or NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.json {
				return usagef(cmd, "podspawn exec prints what the command prints, so --json has no meaning")
			}
			if dash := cmd.ArgsLenAtDash(); len(args) < 2 || dash > 1 || dash < 0 && strings.HasPrefix(args[1], "-") {
				return usagef(cmd, "give one ID and, after --, a command")
			}
			return runExec(cmd.Context(), a, o, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(true)
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&o.tty, "tty", "t", false, "give it a terminal; needs one here")
	f.StringVarP(&o.user, "user", "u", "", "user name or uid instead of the sandbox's")
	f.StringVarP(&o.dir, "workdir", "w", "", "absolute working directory instead of the workspace")
	f.StringArrayVarP(&o.env, "env", "e", nil, "KEY=VALUE, may be repeated")
	f.StringVar(&o.timeout, "timeout", "", "kill it after this time (default 24h)")
	return cmd
}

func runExec(ctx context.Context, a *app, o execOptions, ref string, command []string) error {
	r := api.ExecRequest{Argv: command, User: o.user, Cwd: o.dir, StdinOpen: o.interactive, Timeout: api.Duration(24 * time.Hour)}
	if o.timeout != "" {
		d, err := parseDuration(o.timeout)
		if err != nil {
			return &usageError{msg: err.Error(), hint: "write it like --timeout 90s"}
		}
		r.Timeout = api.Duration(d)
	}
	for _, kv := range o.env {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return &usageError{msg: "--env " + kv + " is not KEY=VALUE", hint: "write it like -e LANG=C.UTF-8"}
		}
		if r.Env == nil {
			r.Env = map[string]string{}
		}
		r.Env[k] = v
	}
	var terminal *os.File
	if o.tty {
		in, ok := a.stdin.(*os.File)
		if !ok || !isTerminal(a.stdin) {
			return &usageError{msg: "-t needs a terminal, and standard input is none", hint: "leave -t out"}
		}
		terminal = in
		r.TTY = &api.TTY{Term: a.getenv("TERM")}
		if w, h, err := term.GetSize(int(in.Fd())); err == nil {
			r.TTY.Rows, r.TTY.Cols = h, w
		}
	}
	svc, err := a.connect()
	if err != nil {
		return ours(err)
	}
	if terminal != nil {
		state, err := term.MakeRaw(int(terminal.Fd()))
		if err != nil {
			return ours(err)
		}
		defer func() { _ = term.Restore(int(terminal.Fd()), state) }() // nothing better to do
	}
	status, err := stream(ctx, a, svc, ref, r, o.interactive, terminal)
	switch {
	case err != nil:
		return ours(err)
	case status != 0:
		return statusError(status)
	}
	return nil
}

// stream runs the command, with what belongs to it on this side.
func stream(ctx context.Context, a *app, svc api.API, ref string, r api.ExecRequest, stdin bool, terminal *os.File) (status int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	err = svc.StreamExec(ctx, ref, r, func(e api.ExecEvent) error {
		var err error
		switch e.Kind {
		case "started":
			if stdin {
				// Not waited for: it may be in a Read of our stdin for ever.
				go feed(ctx, svc, e.ExecID, a.stdin)
			}
			if terminal != nil {
				wg.Go(func() { follow(ctx, svc, e.ExecID, terminal) })
			}
		case "stdout":
			_, err = a.stdout.Write(e.Data)
		case "stderr":
			_, err = a.stderr.Write(e.Data)
		case "exit":
			status = e.Result.ExitCode
			if e.Result.TimedOut {
				a.say("it was killed at its timeout")
			}
		}
		return err
	})
	return status, err
}

// feed sends our stdin. A command that does not read is waited for.
func feed(ctx context.Context, svc api.API, exec string, stdin io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := stdin.Read(buf)
		in := api.ExecInput{Data: base64.StdEncoding.EncodeToString(buf[:n]), Encoding: "base64", EOF: err != nil}
		for {
			if n == 0 && err == nil {
				break
			}
			_, serr := svc.InputExec(ctx, "", exec, in)
			if serr == nil {
				break
			}
			e, ok := errors.AsType[*sandbox.Error](serr)
			if !ok || e.Kind != sandbox.KindConflict || !strings.Contains(e.Msg, "does not read") {
				return // it has ended, which the stream tells
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
		if err != nil {
			return
		}
	}
}

// follow passes the terminal's size on.
func follow(ctx context.Context, svc api.API, exec string, terminal *os.File) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		if w, h, err := term.GetSize(int(terminal.Fd())); err == nil {
			_, _ = svc.InputExec(ctx, "", exec, api.ExecInput{Rows: h, Cols: w}) // the next change comes
		}
	}
}
