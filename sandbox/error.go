package sandbox

import (
	"errors"
	"fmt"
)

// Kind classifies an [Error]. Each edge (HTTP, MCP, exit codes) maps kinds to
// its own numbers in one exhaustive switch. The strings are the stable codes of
// the public contract.
type Kind string

// The kinds, as in the public contract.
const (
	KindInvalidSpec         Kind = "invalid_spec"
	KindUnknownField        Kind = "unknown_field"
	KindUnauthorized        Kind = "unauthorized"
	KindInsufficientScope   Kind = "insufficient_scope"
	KindNotFound            Kind = "not_found"
	KindGone                Kind = "gone"
	KindConflict            Kind = "conflict"
	KindQuota               Kind = "quota_exceeded"
	KindCapacity            Kind = "capacity"
	KindPolicy              Kind = "policy_denied"
	KindImageNotFound       Kind = "image_not_found"
	KindEgressDenied        Kind = "egress_denied"
	KindNotReady            Kind = "not_ready"
	KindTimeout             Kind = "timeout"
	KindUnavailable         Kind = "unavailable"
	KindIdempotencyMismatch Kind = "idempotency_mismatch"
	KindInternal            Kind = "internal"
)

// Error is a failure that a caller may act on. Msg and Hint are shown to people
// and agents as they are: one line, lower case, no period, no secret. Err is
// private: it is logged by whoever stops the error, and never shown.
type Error struct {
	Kind Kind
	Msg  string
	Hint string
	Err  error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Msg
	}
	return fmt.Sprintf("%s: %v", e.Msg, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an Error without a private cause.
func Errorf(kind Kind, hint, format string, args ...any) *Error {
	return &Error{Kind: kind, Hint: hint, Msg: fmt.Sprintf(format, args...)}
}

// KindOf returns the kind of the first Error in err's chain, and KindInternal
// for any other error that is not nil.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindInternal
}

// Public returns the Error to show for err: the first in its chain, or a
// constant internal error that gives nothing away.
func Public(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Kind: e.Kind, Msg: e.Msg, Hint: e.Hint}
	}
	return &Error{
		Kind: KindInternal,
		Msg:  "something went wrong on the server",
		Hint: "the daemon's log has the cause; run podspawn doctor on the host",
	}
}
