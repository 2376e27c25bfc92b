// Podspawn-hook is what sshd runs for a sandbox login, and the login's shell.
// It is a program of its own because a login starts it five times: it links
// little and starts fast. Package sshhook says what it does.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/localapi"
	"github.com/podspawn/podspawn/sshhook"
)

func main() {
	fault.Load()
	refuses := len(os.Args) > 1 && os.Args[1] == "pam-session" // may have to start sshhook.EndParent's copy
	files := uint64(256)
	if len(os.Args) > 1 && os.Args[1] == "relay" { // two for each of its connections
		files = 1024
	}
	if err := sshhook.Confine(refuses, files); err != nil {
		fmt.Fprintln(os.Stderr, "podspawn: error: the hook can't limit itself; podspawn doctor on the host says why")
		os.Exit(1)
	}
	env := sshhook.ParseEnv(os.Environ())
	os.Clearenv()
	h := &sshhook.Hook{
		Daemon: &localapi.Client{},
		Env:    env,
		Stdin:  os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		EndConnection: sshhook.EndParent, InPortal: sshhook.InPortal,
	}
	os.Exit(h.Run(context.Background(), os.Args))
}
