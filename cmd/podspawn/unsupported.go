package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// addUnsupported adds the commands that are planned and not there yet, so that
// whoever read about them gets one clear sentence and not a misspelling's hint.
func addUnsupported(root *cobra.Command) {
	for _, name := range []string{
		"push", "pull", "why", "setup", "connect", "open", "login",
		"project", "api", "trust",
	} {
		root.AddCommand(unsupported(name))
	}
}

func unsupported(name string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return notYet(cmd.CommandPath()) },
	}
}

func notYet(what string) error {
	return &usageError{
		msg:  fmt.Sprintf("%s is not supported in this version yet", what),
		hint: "podspawn --help lists what this version does",
	}
}

// laterFlags adds flags that are planned; refuseLater refuses them when given.
func laterFlags(cmd *cobra.Command, bools, values []string) {
	for _, name := range bools {
		cmd.Flags().Bool(name, false, "")
		_ = cmd.Flags().MarkHidden(name) // fails for a flag that was not just added
	}
	for _, name := range values {
		cmd.Flags().StringArray(name, nil, "")
		_ = cmd.Flags().MarkHidden(name) // as above
	}
}

func refuseLater(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			return notYet(fmt.Sprintf("%s --%s", cmd.CommandPath(), name))
		}
	}
	return nil
}
