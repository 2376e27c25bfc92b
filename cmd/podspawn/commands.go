package main

import "github.com/spf13/cobra"

// commandsOf makes every command of this version, in the order of the help.
func commandsOf(a *app) []*cobra.Command {
	return []*cobra.Command{
		newConfigCommand(a),
		newVersionCommand(a),
	}
}
