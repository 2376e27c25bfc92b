package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/podspawn/podspawn/agent/api"
)

// Names of environment variables.
const (
	envConfig    = "PODSPAWN_CONFIG"
	envServer    = "PODSPAWN_SERVER"
	envToken     = "PODSPAWN_TOKEN"
	envTokenFile = "PODSPAWN_TOKEN_FILE"
)

// app is what the commands share: the outside world, and the global flags. It
// is made once per run and not changed after the flags were parsed.
type app struct {
	getenv func(string) string
	stdin  io.Reader
	stdout io.Writer // results, and nothing else
	stderr io.Writer // words for people

	configFile string
	server     string
	json       bool
	quiet      bool
}

// run is the program. It returns the exit status.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{getenv: getenv, stdin: stdin, stdout: stdout, stderr: stderr}
	root := newRootCommand(a)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	return a.report(err)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "podspawn",
		Short: "short-lived sandboxes under gVisor, reached by plain ssh",
		Long: `Podspawn gives an agent, a CI job or a person a sandbox under gVisor and a
short-lived SSH certificate for it. The machine's own sshd lets the certificate
in; the sandbox goes away by itself.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.configFile, "config", "", "`FILE` that configures the service (default "+defaultConfigFile+")")
	f.StringVar(&a.server, "server", "", "`URL` of the service, unix:///PATH, https://HOST or ssh://USER@HOST (default "+defaultServer+")")
	f.BoolVar(&a.json, "json", false, "print the result as JSON; docs/json.md has the shapes")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print only what a script needs, and no words on stderr but errors")
	root.SetFlagErrorFunc(flagError)
	root.SetUsageTemplate(root.UsageTemplate() + "\n" + exitCodesHelp)

	root.AddGroup(
		&cobra.Group{ID: groupPeople, Title: "Sandboxes:"},
		&cobra.Group{ID: groupAdmin, Title: "Administration:"},
	)
	for _, c := range commandsOf(a) {
		root.AddCommand(c)
	}
	addUnsupported(root)
	return root
}

const (
	groupPeople = "people"
	groupAdmin  = "admin"
)

// exact is cobra.ExactArgs with an error that names what is missing.
func exact(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef(cmd, "%s needs %s", cmd.CommandPath(), strings.Join(names[len(args):], " and "))
		}
		if len(args) > len(names) {
			return usagef(cmd, "%s takes %d argument(s), and %q is one too many", cmd.CommandPath(), len(names), args[len(names)])
		}
		return nil
	}
}

// atLeast asks for one argument or more.
func atLeast(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef(cmd, "%s needs %s", cmd.CommandPath(), name)
		}
		return nil
	}
}

// parent is a command that only has subcommands.
func parent(use, short, group string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, GroupID: group, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return usagef(cmd, "%s needs a subcommand", cmd.CommandPath())
		},
	}
	c.AddCommand(children...)
	return c
}

func unknownCommand(parent *cobra.Command, name string) error {
	var names []string
	for _, c := range parent.Commands() {
		if c.IsAvailableCommand() {
			names = append(append(names, c.Name()), c.Aliases...)
		}
	}
	hint := parent.CommandPath() + " --help lists the commands"
	if near := api.Nearest(name, names); near != "" {
		hint = fmt.Sprintf("did you mean %s %s?", parent.CommandPath(), near)
	}
	return &usageError{msg: fmt.Sprintf("unknown command %q for %q", name, parent.CommandPath()), hint: hint}
}

// flagError turns pflag's errors into ours. pflag repeats foreign text (the
// flag, its value), which report escapes.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	hint := cmd.CommandPath() + " --help lists the flags"
	if missing, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		name := missing.GetSpecifiedName()
		if near := api.Nearest(name, names); near != "" && missing.GetSpecifiedShortnames() == "" {
			hint = fmt.Sprintf("did you mean --%s?", near)
		}
	}
	return &usageError{msg: err.Error(), hint: hint}
}

// isTerminal reports whether a stream is an interactive terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
