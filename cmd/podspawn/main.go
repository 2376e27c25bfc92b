package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// A closed terminal (HUP) must end a session like ^C does: temporary keys are
	// removed and what run made is destroyed.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	getenv, err := takeSecrets(os.Getenv, os.Unsetenv)
	if err != nil {
		fmt.Fprintln(os.Stderr, "podspawn: error:", err)
		os.Exit(exitFailed)
	}
	os.Exit(run(ctx, os.Args[1:], getenv, os.Stdin, os.Stdout, os.Stderr))
}

// takeSecrets moves the variables that hold or name a token out of the process
// environment, so that no child (ssh, a ProxyCommand of the user's) inherits
// them. The function that it returns still knows their values.
func takeSecrets(getenv func(string) string, unset func(string) error) (func(string) string, error) {
	kept := make(map[string]string)
	for _, name := range []string{envToken, envTokenFile} {
		kept[name] = getenv(name)
		if err := unset(name); err != nil {
			return nil, fmt.Errorf("remove %s from the environment: %w", name, err)
		}
	}
	return func(name string) string {
		if v, ok := kept[name]; ok {
			return v
		}
		return getenv(name)
	}, nil
}
