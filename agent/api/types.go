package api

import (
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// CreateRequest is the body of POST /v1/sandboxes. At most one of Podfile, Spec
// and Image is set; none means the configured default image.
type CreateRequest struct {
	Podfile     string            `json:"podfile,omitempty"` // text of a podfile.yaml
	Spec        map[string]any    `json:"spec,omitempty"`    // the same as an object
	Image       string            `json:"image,omitempty"`
	Name        string            `json:"name,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Env         map[string]string `json:"env,omitempty"` // on top of the Podfile's
	PublicKey   string            `json:"public_key,omitempty"`
	TTL         Duration          `json:"ttl,omitempty"`
	IdleTimeout Duration          `json:"idle_timeout,omitempty"`
	OnExit      string            `json:"on_exit,omitempty"`
	Grace       *Duration         `json:"grace,omitempty"`
	Egress      string            `json:"egress,omitempty"`
	Start       string            `json:"start,omitempty"` // "now" (the default); "on_connect" is not supported yet

	// IdempotencyKey comes from the header or the tool's argument, never from the body.
	IdempotencyKey string `json:"-"`
	// Maker decides the defaults of the lifetime.
	Maker Maker `json:"-"`
}

// Maker is the way in by which a sandbox is created: it decides the defaults of
// its lifetime (the table under "Lifetime" in the public contract).
type Maker string

// MakerHeader is the HTTP header by which our own clients say who makes a
// sandbox. It decides nothing but defaults, so anybody may send it.
const MakerHeader = "Podspawn-Maker"

// The makers.
const (
	MakerHTTP Maker = "http" // and the command line's create
	MakerMCP  Maker = "mcp"
	MakerRun  Maker = "run"
)

// Sandbox is one sandbox as its tenant sees it.
type Sandbox struct {
	ID    sandbox.ID `json:"id"`
	Login string     `json:"login"`
	// Tenant is only told in a list of all tenants.
	Tenant      string            `json:"tenant,omitempty"`
	Name        string            `json:"name,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	State       sandbox.State     `json:"state"`
	Reason      sandbox.Reason    `json:"reason,omitempty"` // why it ended
	Image       string            `json:"image"`
	CreatedAt   time.Time         `json:"created_at"`
	ExpiresAt   time.Time         `json:"expires_at"`
	EndedAt     *time.Time        `json:"ended_at,omitempty"`
	SpecDigest  sandbox.Digest    `json:"spec_digest"`
	Limits      Limits            `json:"limits"`
	Lifecycle   Lifecycle         `json:"lifecycle"`
	Egress      sandbox.Egress    `json:"egress"`
	Connections int               `json:"connections"`
	// LastRefusals says why logins failed, newest first; only for one sandbox.
	LastRefusals []Refusal `json:"last_refusals,omitempty"`
	// Note says, in the answer to a destruction that is not finished, what it waits for.
	Note string `json:"note,omitempty"`
	// SSH is set when a public key came with the request.
	SSH *SSH `json:"ssh,omitempty"`
}

// Limits are the hard limits of a sandbox; sizes in bytes.
type Limits struct {
	CPUs   float64 `json:"cpus"`
	Memory int64   `json:"memory"`
	Disk   int64   `json:"disk"`
	PIDs   int64   `json:"pids"`
}

// Lifecycle is what decides its end.
type Lifecycle struct {
	IdleTimeout Duration       `json:"idle_timeout"`
	OnExit      sandbox.OnExit `json:"on_exit"`
	Grace       Duration       `json:"grace"`
}

// Refusal is a refused login.
type Refusal struct {
	Time   time.Time `json:"time"`
	Serial uint64    `json:"serial,omitempty"`
	Source string    `json:"source,omitempty"`
	Reason string    `json:"reason"`
}

// SSH is everything that a client needs to connect with stock OpenSSH.
type SSH struct {
	Host        string    `json:"host"`
	Port        int       `json:"port"`
	User        string    `json:"user"`
	Command     string    `json:"command"`     // complete, for a shell
	Config      string    `json:"config"`      // a complete ssh_config
	KnownHosts  string    `json:"known_hosts"` // one line
	Certificate string    `json:"certificate"` // one line
	ValidBefore time.Time `json:"valid_before"`
	Serial      uint64    `json:"serial"`
	ExpiresAt   time.Time `json:"expires_at"` // of the sandbox
}

// Validation is the answer of POST /v1/validate.
type Validation struct {
	Podfile    string         `json:"podfile"` // the resolved spec, every value spelled out
	SpecDigest sandbox.Digest `json:"spec_digest"`
	// Denied is what the policy or the quota would refuse now; empty means that it would be made.
	Denied []Denial `json:"denied"`
	Caps   Caps     `json:"caps"`
}

// Denial is one reason why something would be refused.
type Denial struct {
	Code    sandbox.Kind `json:"code"`
	Message string       `json:"message"`
	Hint    string       `json:"hint,omitempty"`
}

// Caps is what the caller may have; 0 is no limit.
type Caps struct {
	MaxSandboxes  int      `json:"max_sandboxes"`
	SandboxesLeft int      `json:"sandboxes_left"` // −1 without a limit
	MaxTTL        Duration `json:"max_ttl"`
}

// List is the body of GET /v1/sandboxes, newest first.
type List struct {
	Sandboxes []Sandbox `json:"sandboxes"`
	Next      string    `json:"next_cursor,omitempty"`
}

// ListRequest selects sandboxes.
type ListRequest struct {
	Labels map[string]string
	Final  bool // also those that ended
	// AllTenants is for root on the host.
	AllTenants bool
	Cursor     string
	Limit      int
}

// CertificateRequest is the body of POST /v1/sandboxes/{id}/certificates.
type CertificateRequest struct {
	PublicKey     string   `json:"public_key"`
	TTL           Duration `json:"ttl,omitempty"`
	Uses          int      `json:"uses,omitempty"` // 0: unlimited until valid_before
	SourceAddress string   `json:"source_address,omitempty"`
	// ConfigDir is where the client keeps key and certificate: the paths in the
	// returned config. Default "~/.ssh/podspawn/ID".
	ConfigDir string `json:"config_dir,omitempty"`
}

// ExtendRequest is the body of PATCH /v1/sandboxes/{id}.
type ExtendRequest struct {
	TTL Duration `json:"ttl"`
}

// ExecRequest is the body of POST /v1/sandboxes/{id}/exec. Exactly one of
// Command and Argv is set.
type ExecRequest struct {
	Command string            `json:"command,omitempty"` // run by sh
	Argv    []string          `json:"argv,omitempty"`
	Cwd     string            `json:"cwd,omitempty"`
	Env     map[string]string `json:"env,omitempty"`
	User    string            `json:"user,omitempty"`
	Stdin   string            `json:"stdin,omitempty"`
	Timeout Duration          `json:"timeout,omitempty"`
	// MaxOutputBytes caps each stream in the answer; head and tail are kept.
	MaxOutputBytes int `json:"max_output_bytes,omitempty"`
	// Background lets the command outlive the call: it answers at once, or after
	// WaitSeconds, and the rest comes with PollExec. Without Stdin its input stays open.
	Background bool `json:"background,omitempty"`
	// WaitSeconds is how long to wait for the end before the answer says running. Set,
	// the command goes on after that; cancelling the call before kills it unless Background.
	WaitSeconds *float64 `json:"wait_seconds,omitempty"`
	// StdinOpen keeps the input open behind Stdin, for InputExec. A terminal's always is.
	StdinOpen bool `json:"stdin_open,omitempty"`
	// TTY gives it a terminal: for Background and StreamExec.
	TTY *TTY `json:"tty,omitempty"`
	// Destroy destroys the sandbox once the result was read, 10 minutes after the end
	// at the latest. It needs WaitSeconds or Background.
	Destroy bool `json:"destroy,omitempty"`
}

// TTY asks for a terminal.
type TTY struct {
	Term string `json:"term,omitempty"`
	Rows int    `json:"rows,omitempty"`
	Cols int    `json:"cols,omitempty"`
}

// ExecPoll asks for what a command did since Cursor.
type ExecPoll struct {
	Cursor      string        // of an earlier answer; "" is the beginning
	Wait        time.Duration // for its end or, with a Cursor, for more output
	MaxOutput   int           // bytes a stream; 0 is all that there is
	WaitForData bool          // return as soon as there is output
}

// ExecInput is the body of POST …/exec/{exec_id}/input.
type ExecInput struct {
	Data     string `json:"data,omitempty"`
	Encoding string `json:"encoding,omitempty"` // utf-8, the default, or base64
	EOF      bool   `json:"eof,omitempty"`      // after Data
	Rows     int    `json:"rows,omitempty"`     // of the terminal
	Cols     int    `json:"cols,omitempty"`
}

// ExecSignal is the body of POST …/exec/{exec_id}/signal.
type ExecSignal struct {
	Signal string `json:"signal"` // such as INT, TERM or KILL, to the process group
}

// ExecAccepted is the answer to input and signals.
type ExecAccepted struct {
	ExecID    string    `json:"exec_id"`
	Running   bool      `json:"running"`
	ExpiresAt time.Time `json:"expires_at"`
}

// ExecEvent is one piece of StreamExec: started, stdout, stderr, exit, or ping
// when nothing else was to say for a while.
type ExecEvent struct {
	Kind   string
	ExecID string      // of started
	Data   []byte      // of stdout and stderr; valid during the call
	Result *ExecResult // of exit, without output
}

// ExecResult is a command. A non-zero exit is data, not an error.
type ExecResult struct {
	ExecID     string    `json:"exec_id"`
	ExitCode   int       `json:"exit_code"`
	Signal     string    `json:"signal,omitempty"`
	Stdout     string    `json:"stdout"`
	Stderr     string    `json:"stderr"`
	Truncated  bool      `json:"truncated"`
	DurationMS int64     `json:"duration_ms"`
	ExpiresAt  time.Time `json:"expires_at"` // of the sandbox
	TimedOut   bool      `json:"timed_out,omitempty"`
	// Running says that it goes on: ExitCode is then −1, and what it wrote after Cursor
	// comes with PollExec.
	Running bool   `json:"running,omitempty"`
	Cursor  string `json:"cursor,omitempty"`
}

// CA is the body of GET /v1/ca.
type CA struct {
	UserCA     string `json:"user_ca"`
	Host       string `json:"host"`
	Port       int    `json:"port"`
	KnownHosts string `json:"known_hosts"`
	// Trusted are all user CAs whose certificates are accepted, the signing one first.
	Trusted []TrustedCA `json:"trusted,omitempty"`
}

// TokenRequest is the body of POST /v1/tokens.
type TokenRequest struct {
	Subject      string          `json:"subject"`
	Tenant       string          `json:"tenant,omitempty"` // default: the subject
	Scopes       []sandbox.Scope `json:"scopes,omitempty"` // default: read and run
	MaxSandboxes int             `json:"max_sandboxes,omitempty"`
	MaxTTL       Duration        `json:"max_ttl,omitempty"`
	TTL          Duration        `json:"ttl,omitempty"` // of the token
}

// Token is the answer: the only time that the token is shown.
type Token struct {
	Token     string    `json:"token"`
	ID        string    `json:"id"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Problem is an error, RFC 9457 (application/problem+json).
type Problem struct {
	Type   string       `json:"type"` // "about:blank"
	Title  string       `json:"title"`
	Status int          `json:"status"`
	Detail string       `json:"detail"`
	Code   sandbox.Kind `json:"code"`
	Hint   string       `json:"hint,omitempty"`
}

// StreamData is the data of the events stdout and stderr of a stream.
type StreamData struct {
	Data     string `json:"data"`
	Encoding string `json:"encoding,omitempty"` // base64 when it is not UTF-8
}
