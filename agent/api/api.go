package api

import (
	"context"
	"time"
)

// API is what one caller can ask for. The service implements it on the daemon,
// the Go client over HTTP; the HTTP handlers, the MCP tools and the command line
// are written against it. Every error that a caller may act on is a
// *sandbox.Error. Implementations are safe for concurrent use.
//
// A sandbox is named by its id or by a name unique in the caller's tenant.
type API interface {
	// Create makes a sandbox and waits until it is ready or could not be started.
	Create(ctx context.Context, r CreateRequest) (Sandbox, error)
	// Validate says what Create would make of r, and makes nothing.
	Validate(ctx context.Context, r CreateRequest) (Validation, error)
	Get(ctx context.Context, ref string) (Sandbox, error)
	List(ctx context.Context, r ListRequest) (List, error)
	// Extend sets the end to now + ttl, never earlier than it is.
	Extend(ctx context.Context, ref string, ttl time.Duration) (Sandbox, error)
	// Destroy is idempotent. It waits for up to 10 s; the state of what it returns
	// tells whether the sandbox is gone (Final) or going.
	Destroy(ctx context.Context, ref string) (Sandbox, error)
	// Certificate signs r.PublicKey for the sandbox.
	Certificate(ctx context.Context, ref string, r CertificateRequest) (SSH, error)
	// Exec runs a command to its end, or as far as r says. Cancelling ctx kills its
	// process group unless r.Background.
	Exec(ctx context.Context, ref string, r ExecRequest) (ExecResult, error)
	// StreamExec runs a command and calls emit, from one goroutine, with its output as
	// it comes; the process waits for emit. It ends with the command, with ctx and with an
	// error of emit, and kills the command in these cases.
	StreamExec(ctx context.Context, ref string, r ExecRequest, emit func(ExecEvent) error) error
	// PollExec, InputExec and SignalExec act on a command that outlived its call. ref
	// may be "": the exec id is enough. They are known for 10 minutes after their end.
	PollExec(ctx context.Context, ref, exec string, r ExecPoll) (ExecResult, error)
	InputExec(ctx context.Context, ref, exec string, r ExecInput) (ExecAccepted, error)
	SignalExec(ctx context.Context, ref, exec string, r ExecSignal) (ExecAccepted, error)
	Files
	CA(ctx context.Context) (CA, error)
	// CreateToken needs sandbox.ScopeAdmin.
	CreateToken(ctx context.Context, r TokenRequest) (Token, error)
}
