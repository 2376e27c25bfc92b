package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"syscall"
)

var (
	sshUserPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
	sshHostPattern = regexp.MustCompile(`^[A-Za-z0-9:][A-Za-z0-9.:_-]{0,252}$`)
)

// overSSH returns what connects to the service at ssh://USER@HOST[:PORT]: the
// system's ssh, with the user's own configuration and keys, running the one command
// there that speaks HTTP on stdin and stdout.
func (a *app) overSSH(server string) (func(context.Context) (net.Conn, error), error) {
	u, err := url.Parse(server)
	if err != nil || u.User == nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" ||
		!sshUserPattern.MatchString(u.User.Username()) || !sshHostPattern.MatchString(u.Hostname()) {
		return nil, &usageError{msg: "--server is no address over ssh", hint: "write it like ssh://alice@box or ssh://alice@box:2222"}
	}
	if _, secret := u.User.Password(); secret {
		return nil, &usageError{msg: "--server holds a password", hint: "leave it out; the registered key is asked for"}
	}
	args := []string{"-T", "-o", "ForwardX11=no", "-o", "ForwardAgent=no", "-o", "ClearAllForwardings=yes", "-l", u.User.Username()}
	if p := u.Port(); p != "" {
		args = append(args, "-p", p)
	}
	args = append(args, "--", u.Hostname(), "podspawn api")
	return func(context.Context) (net.Conn, error) {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("make a socket pair: %w", err)
		}
		ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "ssh")
		defer theirs.Close()
		defer ours.Close() // FileConn makes a copy
		cmd := exec.Command("ssh", args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, a.stderr
		if err := cmd.Start(); err != nil {
			return nil, withHint(fmt.Errorf("run ssh: %w", err), "install OpenSSH's client (package openssh-client)")
		}
		go func() { _ = cmd.Wait() }() // ends with our side of the socket; its stderr has said what was wrong
		return net.FileConn(ours)
	}, nil
}
