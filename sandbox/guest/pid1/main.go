package pid1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/podspawn/podspawn/sandbox/fault"
	"github.com/podspawn/podspawn/sandbox/guest"
	"github.com/podspawn/podspawn/sandbox/guest/files"
)

// DeadlineEnv names the variable with the unix seconds at which the guest ends
// unless a preamble says otherwise.
const DeadlineEnv = "PODSPAWN_DEADLINE"

// maxLife stands in for a deadline that was not given: nothing lives longer.
const maxLife = 24 * time.Hour

// Exit codes of the guest itself.
const (
	codeOK     = 0
	codeFailed = 1
	codeUsage  = 2
)

// Main is podspawn-guest. args[0] is the name that it was started under: an image
// links sudo to it.
//
//	podspawn-guest init                      PID 1
//	podspawn-guest sudo [OPTIONS] COMMAND…   also as sudo
//	podspawn-guest file OPERATION            one guest.FileOp, as the user that it runs as
//	podspawn-guest sftp                      the SFTP server, for images without one
func Main(args, environ []string, stdio Stdio) int {
	if len(args) > 0 && filepath.Base(args[0]) == "sudo" {
		return sudoMain(args[1:], environ, stdio)
	}
	switch {
	case len(args) == 2 && args[1] == "init":
		if err := initMain(getenv(environ, DeadlineEnv), stdio.Err); err != nil {
			fmt.Fprintf(stdio.Err, "podspawn-guest: error: %v\n", err)
			return codeFailed
		}
		return codeOK
	case len(args) == 3 && args[1] == "file":
		return files.Main(args[2], stdio.In, stdio.Out)
	case len(args) >= 2 && args[1] == "sudo":
		return sudoMain(args[2:], environ, stdio)
	case len(args) == 2 && args[1] == "sftp":
		return sftpMain(stdio)
	}
	fmt.Fprintln(stdio.Err, "podspawn-guest: error: want init, sudo, file or sftp")
	fmt.Fprintln(stdio.Err, "podspawn-guest: hint: podspawn starts it as the first process of a sandbox; it is not run by hand")
	return codeUsage
}

// Stdio is the process's own streams: sudo hands them to another process.
type Stdio struct{ In, Out, Err *os.File }

// initMain is PID 1. It listens before anything else, so that no code of the
// image can take the socket's place.
func initMain(deadline string, stderr io.Writer) error {
	if os.Getpid() != 1 {
		return errors.New("init must be the first process of a sandbox")
	}
	// Any user may ask for sudo; who gets it is decided by credentials. The host's
	// directory around the socket is root's.
	syscall.Umask(0)
	l, err := listen(guest.SocketDir)
	syscall.Umask(0o022)
	if err != nil {
		return err
	}
	fault.At("guest.listening")
	end := time.Now().Add(maxLife).Unix()
	if deadline != "" {
		if end, err = strconv.ParseInt(deadline, 10, 64); err != nil {
			return fmt.Errorf("%s: %w", DeadlineEnv, err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	s := &server{
		end:     stop,
		log:     slog.New(slog.NewTextHandler(newLogWriter(stderr), nil)),
		users:   users{passwd: "/etc/passwd", group: "/etc/group"},
		dir:     guest.SocketDir,
		reaper:  &reaper{foreign: true},
		expires: newDeadline(end),
		isHost:  hostPeer,
		ourDisk: checkDisk,
	}
	go s.reaper.run(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.serve(ctx, l) }()
	go func() {
		if s.expires.wait(ctx) {
			ended <- nil
		}
	}()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	// No waiting for anybody: with PID 1 everything in the sandbox ends.
	_ = syscall.Kill(-1, syscall.SIGKILL)
	return err
}
