package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/sshconfig"
)

const (
	createTimeout  = 3 * time.Minute
	destroyTimeout = 30 * time.Second
)

type runOptions struct{ spec specOptions }

func newRunCommand(a *app) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [-f PODFILE] [--image I] [-- CMD…]",
		Short: "make a sandbox, work in it over ssh, and destroy it", GroupID: groupPeople,
		Long: `Makes a sandbox, runs CMD in it over ssh (a shell when there is none; in a
terminal when there is one), and destroys it, also when it is interrupted. One
word after -- is a shell command; several are a program and its arguments, each
passed on as it is.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return usagef(cmd, "the command goes after --: podspawn run -- %s", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.json {
				return usagef(cmd, "podspawn run prints what the sandbox prints, so --json has no meaning")
			}
			if err := refuseLater(cmd, "push", "pull"); err != nil {
				return err
			}
			return runRun(cmd.Context(), a, &o, args)
		},
	}
	o.spec.register(cmd)
	laterFlags(cmd, nil, []string{"push", "pull"})
	return cmd
}

func runRun(ctx context.Context, a *app, o *runOptions, command []string) (err error) {
	r, err := o.spec.request(a)
	if err != nil {
		return err
	}
	svc, err := a.connect()
	if err != nil {
		return ours(err)
	}
	key, err := sshconfig.NewKey()
	if err != nil {
		return ours(err)
	}
	r.Maker, r.PublicKey = api.MakerRun, key.Public
	r.OnExit, r.Grace = "destroy", new(api.Duration)
	s, err := createAnyway(ctx, svc, r)
	if err != nil {
		return ours(err)
	}
	defer func() {
		if derr := destroyAnyway(ctx, a, svc, s); derr != nil && err == nil {
			err = ours(derr)
		} else if derr != nil {
			a.report(derr)
		}
	}()
	if ctx.Err() != nil {
		return ours(ctx.Err())
	}
	a.say("sandbox %s is ready; it ends with this command", s.ID)
	block := s.SSH
	if block == nil {
		got, err := svc.Certificate(ctx, string(s.ID), api.CertificateRequest{PublicKey: key.Public})
		if err != nil {
			return ours(err)
		}
		block = &got
	}
	before, after := remoteCommand(command, isTerminal(a.stdin) && isTerminal(a.stdout))
	return attach(ctx, a, svc, string(s.ID), key, *block, before, after)
}

// createAnyway waits for the sandbox even when we are interrupted: one whose id
// we never learn could not be destroyed.
func createAnyway(ctx context.Context, svc api.API, r api.CreateRequest) (api.Sandbox, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
	defer cancel()
	return svc.Create(ctx, r)
}

func destroyAnyway(ctx context.Context, a *app, svc api.API, s api.Sandbox) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
	defer cancel()
	gone, err := svc.Destroy(ctx, string(s.ID))
	if err != nil {
		return err
	}
	if gone.State.Final() {
		a.say("sandbox %s is gone", s.ID)
	} else {
		a.say("sandbox %s is %s: the service goes on removing it", s.ID, gone.State)
	}
	return nil
}

// remoteCommand makes ssh's arguments. ssh joins the words of a command with
// spaces for the remote shell, so several are quoted to arrive as they are.
func remoteCommand(command []string, terminal bool) (before, after []string) {
	if len(command) == 0 {
		return nil, nil
	}
	if terminal {
		before = []string{"-t"}
	}
	if len(command) == 1 {
		return before, []string{"--", command[0]}
	}
	words := make([]string, len(command))
	for i, w := range command {
		words[i] = sshconfig.Quote(w)
	}
	return before, []string{"--", strings.Join(words, " ")}
}
