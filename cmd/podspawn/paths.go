package main

import (
	"log/slog"
	"strings"
)

// Where things are installed. sshd refuses hooks in folders that others than
// root can write, so these are not settings.
const (
	hookBinary  = "/usr/libexec/podspawn/podspawn-hook"
	guestBinary = "/usr/libexec/podspawn/podspawn-guest"
	runscBinary = "/usr/libexec/podspawn/runsc"
	sshDir      = "/etc/podspawn/ssh"
	auditFile   = "/var/log/podspawn/audit.jsonl"
	keysDir     = "/etc/podspawn/keys"         // of users
	userPodfile = "/etc/podspawn/default.yaml" // what their sandboxes are made from

	authUser = "podspawn-auth"
	apiUser  = "podspawn-api"
	dnsUser  = "podspawn-dns"
)

// logger writes structured lines to stderr: for the service processes, not for
// commands that talk to a person.
func (a *app) logger(c *config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(c.Log.Level))); err != nil {
		level = slog.LevelInfo // checked when the configuration was loaded
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}
