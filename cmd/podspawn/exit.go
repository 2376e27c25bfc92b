package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/podspawn/podspawn/sandbox"
)

// The exit codes of the public contract.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitDenied      = 4
	exitConflict    = 5
	exitUnreachable = 6
	exitOurs        = 255 // of ssh, exec and run, whose status is else the remote command's
)

const exitCodesHelp = `Exit codes: 0 ok, 1 failed, 2 usage, 3 not found or gone, 4 denied,
5 conflict or quota, 6 service unreachable; ssh, exec and run: the command's
status, or 255 when the failure is ours.
`

// usageError is a command line that can't be carried out as it stands.
type usageError struct{ msg, hint string }

func (e *usageError) Error() string { return e.msg }

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{msg: fmt.Sprintf(format, args...), hint: cmd.CommandPath() + " --help shows how to use it"}
}

// statusError is a status to exit with after everything was said.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// sessionError is a failure of ours in a command whose status is a remote
// command's.
type sessionError struct{ err error }

func (e *sessionError) Error() string { return e.err.Error() }
func (e *sessionError) Unwrap() error { return e.err }

// hinted is a local failure with a remedy.
type hinted struct {
	err  error
	hint string
}

func (e *hinted) Error() string { return e.err.Error() }
func (e *hinted) Unwrap() error { return e.err }

func withHint(err error, hint string) error { return &hinted{err: err, hint: hint} }

// exitCode maps an error to the process's status.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if status, ok := errors.AsType[statusError](err); ok {
		return int(status)
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*sessionError](err); ok {
		return exitOurs
	}
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		return kindCode(e.Kind)
	}
	return exitFailed
}

func kindCode(kind sandbox.Kind) int {
	switch kind {
	case sandbox.KindInvalidSpec, sandbox.KindUnknownField:
		return exitUsage
	case sandbox.KindNotFound, sandbox.KindGone, sandbox.KindImageNotFound:
		return exitNotFound
	case sandbox.KindUnauthorized, sandbox.KindInsufficientScope, sandbox.KindPolicy, sandbox.KindEgressDenied:
		return exitDenied
	case sandbox.KindConflict, sandbox.KindQuota, sandbox.KindCapacity, sandbox.KindIdempotencyMismatch:
		return exitConflict
	case sandbox.KindUnavailable:
		return exitUnreachable
	case sandbox.KindNotReady, sandbox.KindTimeout, sandbox.KindInternal:
		return exitFailed
	default: // of a newer service
		return exitFailed
	}
}

// report says what went wrong, if anything did, and returns the status.
func (a *app) report(err error) int {
	code := exitCode(err)
	if _, ok := errors.AsType[statusError](err); ok || err == nil {
		return code
	}
	msg, hint := words(err)
	fmt.Fprintf(a.stderr, "podspawn: error: %s\n", oneLine(msg))
	if hint != "" {
		fmt.Fprintf(a.stderr, "podspawn: hint: %s\n", oneLine(hint))
	}
	return code
}

// words are the message and the hint to show for an error.
func words(err error) (msg, hint string) {
	if e, ok := errors.AsType[*usageError](err); ok {
		return e.msg, e.hint
	}
	if e, ok := errors.AsType[*hinted](err); ok {
		return err.Error(), e.hint
	}
	if e, ok := errors.AsType[*sandbox.Error](err); ok {
		if e.Hint == "" {
			return e.Msg, kindHint(e.Kind)
		}
		return e.Msg, e.Hint
	}
	if errors.Is(err, context.Canceled) {
		return "interrupted", ""
	}
	return err.Error(), "podspawn doctor, as root on the host, checks everything that this needs"
}

// kindHint is the remedy when the service sent none.
func kindHint(kind sandbox.Kind) string {
	switch kindCode(kind) {
	case exitUsage:
		return "docs/podfile.md says what a spec may hold"
	case exitNotFound:
		return "podspawn list shows the sandboxes that exist"
	case exitDenied:
		return "ask an administrator for a token that may do this"
	case exitConflict:
		return "podspawn list shows what there is; podspawn destroy makes room"
	case exitUnreachable:
		return "podspawn doctor, as root on the host, shows what does not run"
	default:
		return "the daemon's log on the host has the cause"
	}
}

// publicError is a local failure as a *sandbox.Error, for those who show only
// such errors to a model.
func publicError(err error) error {
	if _, ok := errors.AsType[*sandbox.Error](err); ok {
		return err
	}
	msg, hint := words(err)
	return &sandbox.Error{Kind: sandbox.KindUnavailable, Msg: oneLine(msg), Hint: oneLine(hint), Err: err}
}
