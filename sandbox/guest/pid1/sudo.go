package pid1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/podspawn/podspawn/sandbox/guest"
)

// sudo runs as any user in the sandbox, where no-new-privileges rules setuid
// programs out. It asks PID 1 on the guest's socket:
//
//  1. eight bytes, sudoHello, with its three streams attached;
//  2. a FrameRequest and what follows, as the host does.
//
// The command gets the very streams, so that sudo never reads input that is meant
// for somebody else (a loop around it, say). Only when all three are a terminal,
// the command gets a terminal of its own, for job control, and sudo carries it.
const sudoHello = "PSUDO\x00\x00\x01"

// Exit code of sudo's own failures.
const codeSudo = 1

// sudoOptions is a parsed command line.
type sudoOptions struct {
	user        string
	preserveEnv bool
	login       bool // -i
	shell       bool // -s
	nothing     bool // -v, -k, -K: there is no password to remember
	env         map[string]string
	command     []string
}

var errSudoUsage = errors.New("usage: sudo [-EHins] [-u user] [NAME=VALUE…] command…")

func parseSudo(args []string) (sudoOptions, error) {
	o := sudoOptions{user: "root", env: make(map[string]string)}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && args[0] != "-" {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			break
		}
		if long, ok := strings.CutPrefix(arg, "--"); ok {
			name, value, hasValue := strings.Cut(long, "=")
			switch name {
			case "user":
				if !hasValue {
					if len(args) == 0 {
						return o, errSudoUsage
					}
					value, args = args[0], args[1:]
				}
				o.user = value
			case "preserve-env": // a list of names is as good as all: the caller may become root
				o.preserveEnv = true
			case "login":
				o.login = true
			case "shell":
				o.shell = true
			case "non-interactive", "set-home", "stdin":
			case "validate", "reset-timestamp", "remove-timestamp":
				o.nothing = true
			default:
				return o, fmt.Errorf("unknown option --%s; %w", clip(name), errSudoUsage)
			}
			continue
		}
		for i := 1; i < len(arg); i++ {
			switch arg[i] {
			case 'u':
				value := arg[i+1:]
				if value == "" {
					if len(args) == 0 {
						return o, errSudoUsage
					}
					value, args = args[0], args[1:]
				}
				o.user, i = value, len(arg)
			case 'E':
				o.preserveEnv = true
			case 'i':
				o.login = true
			case 's':
				o.shell = true
			case 'v', 'k', 'K':
				o.nothing = true
			case 'n', 'H', 'S': // never a password; HOME is always the target's
			default:
				return o, fmt.Errorf("unknown option -%c; %w", arg[i], errSudoUsage)
			}
		}
	}
	o.user = strings.TrimPrefix(o.user, "#") // sudo's form of a uid
	for len(args) > 0 {
		name, value, ok := strings.Cut(args[0], "=")
		if !ok || !validName(name) {
			break
		}
		o.env[name] = value
		args = args[1:]
	}
	o.command = args
	if len(args) == 0 && !o.login && !o.shell && !o.nothing {
		return o, errSudoUsage
	}
	return o, nil
}

// sudoMain is the sudo command.
func sudoMain(args []string, environ []string, stdio Stdio) int {
	fail := func(err error) int {
		fmt.Fprintf(stdio.Err, "sudo: %v\n", err)
		return codeSudo
	}
	o, err := parseSudo(args)
	if err != nil {
		return fail(err)
	}
	if o.nothing && len(o.command) == 0 {
		return codeOK
	}
	exit, err := sudo(o, environ, stdio)
	switch {
	case err != nil:
		return fail(err)
	case exit.Error != "":
		return fail(errors.New(exit.Error))
	}
	return exit.Code
}

// sudo asks PID 1 and waits for the command.
func sudo(o sudoOptions, environ []string, stdio Stdio) (guest.Exit, error) {
	e := sudoRequest(o, environ)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(guest.SocketDir, guest.SocketName), Net: "unix"})
	if err != nil {
		return guest.Exit{}, fmt.Errorf("the sandbox's guest does not answer: %w", err)
	}
	defer conn.Close()
	fds := []int{int(stdio.In.Fd()), int(stdio.Out.Fd()), int(stdio.Err.Fd())}
	_ = conn.SetDeadline(time.Now().Add(preambleTime))
	if _, _, err := conn.WriteMsgUnix([]byte(sudoHello), unix.UnixRights(fds...), nil); err != nil {
		return guest.Exit{}, fmt.Errorf("the sandbox's guest does not answer: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	f, err := conn.File()
	if err != nil {
		return guest.Exit{}, err
	}

	signals := make(chan os.Signal, 8) // a burst while one is being sent
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	s := guest.Streams{}
	if !slices.ContainsFunc(fds, func(fd int) bool { return !term.IsTerminal(fd) }) {
		e.PTY = &guest.Terminal{Term: getenv(environ, "TERM"), Window: windowOf(fds[0])}
		old, err := term.MakeRaw(fds[0])
		if err != nil {
			return guest.Exit{}, fmt.Errorf("terminal: %w", err)
		}
		defer func() { _ = term.Restore(fds[0], old) }() // it may have hung up
		s.Stdin, s.Stdout, s.Stderr = stdio.In, stdio.Out, stdio.Err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	names, sizes := make(chan string), make(chan guest.Window)
	s.Signals, s.Resize = names, sizes
	go forward(ctx, signals, names, sizes, e.PTY != nil, fds[0])
	return guest.Run(ctx, f, e, s)
}

// forward passes on the signals that sudo gets.
func forward(ctx context.Context, signals <-chan os.Signal, names chan<- string, sizes chan<- guest.Window, tty bool, fd int) {
	for {
		var sig os.Signal
		select {
		case <-ctx.Done():
			return
		case sig = <-signals:
		}
		if sig == syscall.SIGWINCH {
			if tty {
				select {
				case sizes <- windowOf(fd):
				case <-ctx.Done():
				}
			}
			continue
		}
		if n, ok := sig.(syscall.Signal); ok {
			select {
			case names <- signalName(n):
			case <-ctx.Done():
			}
		}
	}
}

// windowOf returns the size of a terminal, or a zero Window.
func windowOf(fd int) guest.Window {
	w, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return guest.Window{}
	}
	return guest.Window{Rows: w.Row, Cols: w.Col, X: w.Xpixel, Y: w.Ypixel}
}

// sudoRequest says what PID 1 is asked for.
func sudoRequest(o sudoOptions, environ []string) guest.Exec {
	e := guest.Exec{User: o.user, Env: make(map[string]string)}
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok && validName(name) && keepEnv(name, o.preserveEnv) {
			e.Env[name] = value
		}
	}
	for name, value := range o.env {
		e.Env[name] = value
	}
	if dir, err := os.Getwd(); err == nil && !o.login {
		e.Dir = dir
	}
	switch {
	case len(o.command) > 0 && !o.login && !o.shell:
		e.Argv = o.command
	case len(o.command) > 0:
		e.Command = shellJoin(o.command)
	case o.login:
		e.LoginShell = true
	default:
		e.Argv = []string{first(getenv(environ, "SHELL"), "/bin/sh")}
	}
	return e
}

// keepEnv says what of the caller's environment the command sees.
func keepEnv(name string, all bool) bool {
	switch name {
	case "HOME", "USER", "LOGNAME", "SHELL", "PATH", "PWD", "OLDPWD", "SHLVL", "_":
		return false // the target's own
	case "TERM", "LANG", "COLORTERM", "NO_COLOR", "DEBIAN_FRONTEND",
		"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY":
		return true
	}
	return all || strings.HasPrefix(name, "LC_")
}

// shellJoin makes one command of words, each quoted.
func shellJoin(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}
