package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version of the next or current release; the build's commit is added to it.
const version = "0.1.0"

type versionResult struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", GroupID: groupAdmin, Args: exact(),
		RunE: func(*cobra.Command, []string) error { return runVersion(a) },
	}
}

func runVersion(a *app) error {
	v := versionResult{Version: version, Commit: commit(), Go: runtime.Version()}
	if a.json {
		return a.printJSON(v)
	}
	line := "podspawn " + v.Version
	if v.Commit != "" && !a.quiet {
		line += " (" + v.Commit + ")"
	}
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}

func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return ""
}

func userAgent() string { return "podspawn/" + version }
