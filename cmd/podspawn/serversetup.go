package main

import (
	"context"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sshhook/install"
)

type serverSetupOptions struct {
	sshdConfig string
	dryRun     bool
	uninstall  bool
}

type setupResult struct {
	Changed bool     `json:"changed"`
	DryRun  bool     `json:"dry_run"`
	Steps   []string `json:"steps"`
}

func newServerSetupCommand(a *app) *cobra.Command {
	var o serverSetupOptions
	cmd := &cobra.Command{
		Use: "server-setup", Short: "set up this machine's sshd, PAM and NSS, CAs and directories", GroupID: groupAdmin, Args: exact(),
		Long: `Sets this machine up, as root: a drop-in for sshd, four lines of PAM, extrausers in
nsswitch.conf, two system users, the certificate authorities and directories, and
gVisor's runtimes in Docker's configuration.
Every file is backed up first and checked with sshd before sshd reads it; when
anything fails, all of it is put back. A second run changes nothing. Logins of
real users stay as they are.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return runServerSetup(cmd.Context(), a, &o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.sshdConfig, "sshd-config", "", "`FILE` that sshd reads (default /etc/ssh/sshd_config)")
	f.BoolVar(&o.dryRun, "dry-run", false, "only print what would be done")
	f.BoolVar(&o.uninstall, "uninstall", false, "undo it; CA keys and backups stay")
	return cmd
}

func runServerSetup(ctx context.Context, a *app, o *serverSetupOptions) error {
	if os.Geteuid() != 0 {
		return sandbox.Errorf(sandbox.KindPolicy, "run it with sudo", "set-up needs root")
	}
	c, err := a.loadConfig(nil)
	if err != nil {
		return err
	}
	opts := install.Options{SSHDConfig: o.sshdConfig, DryRun: o.dryRun}
	if !a.json && !a.quiet {
		opts.Out = a.stdout // what was done is the result
	}
	do := install.Apply
	if o.uninstall {
		do = install.Uninstall
	} else if opts.Hostnames, err = hostnames(c.SSH.Host); err != nil {
		return err
	}
	r, err := do(ctx, opts)
	if err != nil {
		return err
	}
	steps, err := setUpDocker(o.uninstall, o.dryRun, opts.Out)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(setupResult{Changed: r.Changed || len(steps) > 0, DryRun: o.dryRun, Steps: slices.Concat([]string{}, r.Steps, steps)})
	}
	return nil
}

// hostnames are what the host certificate vouches for: what clients are told to
// connect to, the machine's name, and the loopback's.
func hostnames(sshHost string) ([]string, error) {
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	names := []string{strings.ToLower(name), "localhost", "127.0.0.1", "::1"}
	if h := strings.ToLower(sshHost); !slices.Contains(names, h) {
		names = append(names, h)
	}
	return names, nil
}
