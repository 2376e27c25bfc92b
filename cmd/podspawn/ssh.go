package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/agent/sshconfig"
)

func newSSHCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ssh ID [SSH OPTIONS] [-- CMD…]",
		Short: "open a session with a fresh key and certificate and the system's ssh", GroupID: groupPeople,
		Long: `Makes a key pair and a certificate that exist only for this session, and runs
the system's ssh with them. Everything after ID goes to ssh as it is, so all of
its options work; flags of podspawn's own come before ID.`,
		Args: atLeast("an ID or NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.json {
				return usagef(cmd, "podspawn ssh prints what the sandbox prints, so --json has no meaning")
			}
			return runSSH(cmd.Context(), a, args[0], args[1:])
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func runSSH(ctx context.Context, a *app, ref string, args []string) error {
	svc, err := a.connect()
	if err != nil {
		return ours(err)
	}
	key, err := sshconfig.NewKey()
	if err != nil {
		return ours(err)
	}
	block, err := svc.Certificate(ctx, ref, api.CertificateRequest{PublicKey: key.Public})
	if err != nil {
		return ours(err)
	}
	return attach(ctx, a, svc, ref, key, block, nil, args)
}

// attach runs one session to its end. The error that it returns carries the
// status of ssh.
func attach(ctx context.Context, a *app, svc api.API, ref string, key *sshconfig.Key, block api.SSH, before, after []string) error {
	s, err := newSession(key, block)
	if err != nil {
		return ours(err)
	}
	status, err := s.run(ctx, a, before, after)
	if cerr := s.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return ours(err)
	}
	if status == exitOurs {
		s.explain(ctx, a, svc, ref)
	}
	if status != 0 {
		return statusError(status)
	}
	return nil
}

// ours marks a failure that is not the remote command's; a bad command line
// keeps its own status.
func ours(err error) error {
	if _, ok := errors.AsType[*usageError](err); ok {
		return err
	}
	return &sessionError{err: err}
}
