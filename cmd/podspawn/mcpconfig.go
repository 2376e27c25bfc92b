package main

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// mcpClients are the clients that mcp config knows, each with the file that its
// configuration goes to.
func mcpClients() map[string]string {
	return map[string]string{
		"claude": ".mcp.json in the project, or claude mcp add podspawn -- podspawn mcp",
		"cursor": "~/.cursor/mcp.json",
		"codex":  "~/.codex/config.toml",
		"vscode": ".vscode/mcp.json",
	}
}

func newMCPConfigCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "config claude|cursor|codex|vscode", Short: "print a client's configuration for the bridge", Args: exact("the name of a client"),
		RunE: func(_ *cobra.Command, args []string) error { return runMCPConfig(a, args[0]) },
	}
}

type mcpServerEntry struct {
	Type    string            `json:"type,omitempty"`
	Command string            `json:"command"`
	Args    []string          `json:"args"`
	Env     map[string]string `json:"env,omitempty"`
}

func runMCPConfig(a *app, client string) error {
	file, ok := mcpClients()[client]
	if !ok {
		names := sortedKeys(mcpClients())
		return &usageError{msg: fmt.Sprintf("%q is not a client that podspawn mcp config knows", client), hint: "it knows " + strings.Join(names, ", ")}
	}
	entry := mcpServerEntry{Command: "podspawn", Args: []string{"mcp"}, Env: a.mcpEnv()}
	a.say("goes to %s", file)
	switch client {
	case "codex":
		return a.printTOML(entry)
	case "vscode":
		entry.Type = "stdio"
		return a.printJSON(map[string]any{"servers": map[string]any{"podspawn": entry}})
	default:
		return a.printJSON(map[string]any{"mcpServers": map[string]any{"podspawn": entry}})
	}
}

// mcpEnv is where the bridge must connect to, when it is not this machine. A
// token is named by its file and never printed.
func (a *app) mcpEnv() map[string]string {
	env := make(map[string]string)
	if server := cmp.Or(a.server, a.getenv(envServer)); server != "" && server != defaultServer {
		env[envServer] = server
	}
	if file := a.getenv(envTokenFile); file != "" {
		env[envTokenFile] = file
	}
	return env
}

func (a *app) printTOML(e mcpServerEntry) error {
	args := make([]string, len(e.Args))
	for i, arg := range e.Args {
		args[i] = tomlString(arg)
	}
	text := fmt.Sprintf("[mcp_servers.podspawn]\ncommand = %s\nargs = [%s]\n", tomlString(e.Command), strings.Join(args, ", "))
	if len(e.Env) > 0 {
		pairs := make([]string, 0, len(e.Env))
		for _, k := range sortedKeys(e.Env) {
			pairs = append(pairs, k+" = "+tomlString(e.Env[k]))
		}
		text += "env = { " + strings.Join(pairs, ", ") + " }\n"
	}
	_, err := fmt.Fprint(a.stdout, text)
	return err
}

// tomlString is a basic string of TOML.
func tomlString(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(oneLine(s)) + `"`
}
