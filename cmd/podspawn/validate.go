package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/agent/api"
	"github.com/podspawn/podspawn/sandbox"
)

func newValidateCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "validate [PODFILE]", Short: "check a Podfile, and print the resolved spec and its digest", GroupID: groupPeople,
		Long: `Has the service check the Podfile (podfile.yaml or .podspawn/podfile.yaml of this
folder when none is named; - is stdin) and prints the spec with every value
spelled out. What the policy or the quota would refuse now is said on stderr,
and the status is then that of the refusal. Nothing is made.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef(cmd, "give one PODFILE")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runValidate(cmd.Context(), a, args) },
	}
}

func runValidate(ctx context.Context, a *app, args []string) error {
	var o specOptions
	if len(args) > 0 {
		o.podfile = args[0]
	}
	r, err := o.request(a)
	if err != nil {
		return err
	}
	svc, err := a.connect()
	if err != nil {
		return err
	}
	v, err := svc.Validate(ctx, r)
	if err != nil {
		return err
	}
	if err := a.printValidation(v); err != nil {
		return err
	}
	for _, d := range v.Denied {
		return sandbox.Errorf(d.Code, d.Hint, "%s", d.Message)
	}
	return nil
}

func (a *app) printValidation(v api.Validation) error {
	if a.json {
		return a.printJSON(v)
	}
	if a.quiet {
		_, err := fmt.Fprintln(a.stdout, v.SpecDigest)
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "# %s\n%s", v.SpecDigest, v.Podfile)
	return err
}

func newInitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "write a podfile.yaml to start from", GroupID: groupPeople, Args: exact(),
		RunE: func(_ *cobra.Command, _ []string) error { return runInit(a) },
	}
}

const initFile = "podfile.yaml"

const initText = `# A sandbox for this folder; docs/podfile.md explains every key.
# Check it with podspawn validate, work in it with podspawn run.
image: podspawn/base
workspace: /workspace
# env: {LOG_LEVEL: debug}
resources: {cpus: 1, memory: 1g, disk: 10g, pids: 512}
lifecycle: {ttl: 1h, idle_timeout: 15m, on_exit: destroy, grace: 60s}
`

func runInit(a *app) error {
	f, err := os.OpenFile(initFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return &sandbox.Error{Kind: sandbox.KindConflict, Msg: initFile + " is there already", Hint: "podspawn validate checks it", Err: err}
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(initText)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			File string `json:"file"`
		}{initFile})
	}
	_, err = fmt.Fprintln(a.stdout, initFile)
	return err
}
