package localapi

import (
	"encoding/json"
	"time"

	"github.com/podspawn/podspawn/sandbox"
)

// Version of the protocol. The daemon refuses any other with a clear error, so
// that binaries of two releases never misunderstand each other.
const Version = 1

// MaxFrame bounds a frame, in bytes.
const MaxFrame = 1 << 20

// SocketPath is where the daemon listens.
const SocketPath = "/run/podspawn/daemon.sock"

// Op is an operation.
type Op string

// The operations, by who may call them.
const (
	OpPrincipals Op = "hook.principals" // uid of podspawn-auth
	OpPAMOpen    Op = "hook.pam-open"   // uid 0, below an sshd
	OpPAMClose   Op = "hook.pam-close"  // uid 0, below an sshd
	OpSession    Op = "hook.session"    // a sandbox's uid, below a claimed sshd; answers with a descriptor
	OpChannel    Op = "hook.channel"    // the same, about a channel that is open already
	OpForward    Op = "hook.forward"    // a sandbox's uid: its relay, or, for an agent, below a claimed sshd; answers with a descriptor
	OpLoginKey   Op = "hook.keys"       // uid of podspawn-auth

	// uid 0: the users of classic mode.
	OpUserAdd    Op = "user.add"
	OpUserRemove Op = "user.remove"
	OpUserList   Op = "user.list"
	OpUserKeys   Op = "user.keys" // what OpLoginKey would answer, for each of a user's keys

	OpPool Op = "host.pool" // uid 0; answers with a sandbox.PoolStatus

	// uid of podspawn-api; all but the first three with the caller's Auth.
	OpAccept  Op = "api.accept" // wait for a caller on podspawn.sock; answers with the descriptor
	OpKeys    Op = "api.keys"   // public keys that tokens are signed with
	OpReady   Op = "api.ready"  // can sandboxes be made
	OpWhoAmI  Op = "api.whoami"
	OpCreate  Op = "api.create"
	OpGet     Op = "api.get"
	OpList    Op = "api.list"
	OpExtend  Op = "api.extend"
	OpDestroy Op = "api.destroy"
	OpExec    Op = "api.exec" // answers with a descriptor
	OpIssue   Op = "api.issue"
	OpCA      Op = "api.ca"
	OpToken   Op = "api.token-create"

	OpValidate Op = "api.validate" // a CreateRequest that makes nothing
)

// Request is a call.
type Request struct {
	V    int             `json:"v"`
	Op   Op              `json:"op"`
	Auth Auth            `json:"auth,omitzero"`
	Body json.RawMessage `json:"body,omitempty"`
}

// Auth is the caller on whose behalf podspawn-api asks: exactly one field is
// set. The daemon verifies it anew for each request.
type Auth struct {
	Bearer Secret `json:"bearer,omitempty"` // an API token
	Peer   string `json:"peer,omitempty"`   // handle that OpAccept gave for a connection still open
}

// Response is the answer: an error, or a body.
type Response struct {
	V     int             `json:"v"`
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// Error is a sandbox.Error on the wire, without its private cause.
type Error struct {
	Kind sandbox.Kind `json:"kind"`
	Msg  string       `json:"msg"`
	Hint string       `json:"hint,omitempty"`
}

// PrincipalsRequest is what sshd tells the principals hook: %u, %t and %k.
type PrincipalsRequest struct {
	User    string `json:"user"`
	KeyType string `json:"key_type"`
	Key     string `json:"key"` // base64 of the certificate
}

// PrincipalsResponse is the line to print for sshd.
type PrincipalsResponse struct {
	Line string `json:"line"`
}

// LoginKeyRequest is what sshd tells the keys hook: %u, %t and %k. Its answer is
// the line to print for sshd: options, and the same type and key.
type LoginKeyRequest struct {
	User    string `json:"user"`
	KeyType string `json:"key_type"`
	Key     string `json:"key"` // base64
}

// LoginKeyResponse is the line to print for sshd.
type LoginKeyResponse struct {
	Line string `json:"line"`
}

// UserRequest names a user. Keys and Spec are OpUserAdd's.
type UserRequest struct {
	Name string        `json:"name"`
	Keys string        `json:"keys,omitempty"` // lines of authorized_keys form
	Spec *sandbox.Spec `json:"spec,omitempty"` // complete; nil is the host's default
}

// UserResponse is one user as an administrator sees her.
type UserResponse struct {
	Name      string     `json:"name"`
	UID       int        `json:"uid"`
	Image     string     `json:"image,omitempty"` // of her own spec
	CreatedAt time.Time  `json:"created_at"`
	Keys      []UserKey  `json:"keys"`
	Problem   string     `json:"problem,omitempty"` // why her keys can't be read, or lines that count for nothing
	Sandbox   sandbox.ID `json:"sandbox,omitempty"` // the living one that her login enters
}

// UserKey is one key of a user.
type UserKey struct {
	Fingerprint string `json:"fingerprint"`
	Type        string `json:"type"`
	Comment     string `json:"comment,omitempty"`
}

// UsersResponse is sorted by name.
type UsersResponse struct {
	Users []UserResponse `json:"users"`
}

// UserKeysResponse is OpUserKeys': lines as for sshd, and what keeps her out.
type UserKeysResponse struct {
	Lines    []string `json:"lines"`
	Problems []string `json:"problems,omitempty"`
}

// PAMOpenRequest is what PAM tells the hook at open_session: PAM_USER,
// SSH_AUTH_INFO_0 and PAM_RHOST.
type PAMOpenRequest struct {
	User     string `json:"user"`
	AuthInfo string `json:"auth_info"`
	Source   string `json:"source"`
}

// PAMCloseRequest is PAM's close_session.
type PAMCloseRequest struct {
	User string `json:"user"`
}

// SessionRequest asks for one channel of a claimed connection.
type SessionRequest struct {
	PTY bool `json:"pty"`
	// Command is for the audit log, bounded by the daemon; "" is a shell.
	Command string `json:"command,omitempty"`
	// Wait lets the answer take as long as a sandbox takes to start. Without it one
	// that is not ready is KindNotReady, and nothing is started.
	Wait bool `json:"wait,omitempty"`
}

// SessionResponse comes with a descriptor: a guest connection whose preamble
// is written and answered.
type SessionResponse struct {
	Sandbox    sandbox.ID `json:"sandbox"`
	Connection string     `json:"connection"`
	ExpiresAt  time.Time  `json:"expires_at"`
	// SFTPCommand is the host's Subsystem text for sftp: only exactly this in
	// SSH_ORIGINAL_COMMAND means the subsystem. "" when the spec grants no sftp.
	SFTPCommand string `json:"sftp_command,omitempty"`
	Forwarding  bool   `json:"forwarding,omitempty"` // the relay mirrors ports: wait for it
	Agent       bool   `json:"agent,omitempty"`      // the client's agent may be carried in
}

// ForwardRequest asks for a guest connection that carries one forwarded
// connection, or listens for some.
type ForwardRequest struct {
	Want   Forward `json:"want"`
	Target string  `json:"target,omitempty"` // of ForwardDial, host:port, for the audit log
}

// Forward is what a ForwardRequest is for.
type Forward string

// The kinds of forwarding.
const (
	ForwardDial   Forward = "dial"   // out of the client: relay
	ForwardListen Forward = "listen" // a port that sshd listens on in the portal, and what it accepts: relay
	ForwardAgent  Forward = "agent"  // the client's agent, and what its socket accepts: a session
)

// AcceptResponse comes with the accepted connection's descriptor.
type AcceptResponse struct {
	Peer string `json:"peer"` // handle for Auth, valid while the connection is open
	UID  int    `json:"uid"`
}

// KeysResponse is the issuer and audience of API tokens and the keys to verify them.
type KeysResponse struct {
	Issuer   string     `json:"issuer"`
	Audience string     `json:"audience"`
	Keys     []TokenKey `json:"keys"`
}

// TokenKey is an Ed25519 public key.
type TokenKey struct {
	ID  string `json:"id"`
	Key []byte `json:"key"`
}

// WhoAmIResponse is the caller as the daemon sees it.
type WhoAmIResponse struct {
	Caller sandbox.Caller `json:"caller"`
}

// CreateRequest asks for a sandbox. Spec is complete: defaults are applied by
// the caller, limits by the daemon.
type CreateRequest struct {
	Name           string            `json:"name,omitempty"`
	Labels         map[string]string `json:"labels,omitempty"`
	Spec           sandbox.Spec      `json:"spec"`
	DefaultTTL     bool              `json:"default_ttl,omitempty"` // nobody asked for Spec's ttl: lower it to what is allowed
	IdempotencyKey string            `json:"idempotency_key,omitempty"`
	RequestDigest  string            `json:"request_digest,omitempty"` // of what the caller's caller sent, for IdempotencyKey
}

// ValidateResponse is what OpCreate would make of the request.
type ValidateResponse struct {
	Digest sandbox.Digest `json:"digest"`
	TTL    time.Duration  `json:"ttl"`              // lowered to what is allowed when nobody asked for it
	Denied []Error        `json:"denied,omitempty"` // what the policy or the quota would refuse now

	MaxSandboxes int           `json:"max_sandboxes"` // of the caller's; 0 is no limit
	Living       int           `json:"living"`
	MaxTTL       time.Duration `json:"max_ttl"` // 0 is no limit
}

// SandboxRef names a sandbox by id or by name within the caller's tenant.
type SandboxRef struct {
	Sandbox string `json:"sandbox"`
}

// SandboxResponse is a sandbox as its tenant may see it.
type SandboxResponse struct {
	Sandbox sandbox.Sandbox `json:"sandbox"`
	// Connections are the open SSH connections.
	Connections int       `json:"connections"`
	Refusals    []Refusal `json:"refusals,omitempty"` // newest first; OpGet only
	// Note is one line for people on why a destruction has to wait; OpDestroy only.
	Note string `json:"note,omitempty"`
}

// Refusal is a refused login.
type Refusal struct {
	Time   time.Time `json:"time"`
	Serial uint64    `json:"serial,omitempty"`
	Source string    `json:"source,omitempty"`
	Reason string    `json:"reason"`
}

// ListRequest selects sandboxes of the caller's tenant.
type ListRequest struct {
	Labels map[string]string `json:"labels,omitempty"`
	Final  bool              `json:"final,omitempty"`  // also those that ended
	Before sandbox.ID        `json:"before,omitempty"` // cursor
	Limit  int               `json:"limit,omitempty"`
	// AllTenants is for root on the host.
	AllTenants bool `json:"all_tenants,omitempty"`
}

// ListResponse is newest first.
type ListResponse struct {
	Sandboxes []SandboxResponse `json:"sandboxes"`
}

// ExtendRequest sets the end to now + TTL, never earlier than it is.
type ExtendRequest struct {
	Sandbox string        `json:"sandbox"`
	TTL     time.Duration `json:"ttl"`
}

// DestroyRequest destroys a sandbox and waits for at most Wait.
type DestroyRequest struct {
	Sandbox string        `json:"sandbox"`
	Wait    time.Duration `json:"wait"`
}

// ExecRequest asks for a guest connection to start one process with.
type ExecRequest struct {
	Sandbox string        `json:"sandbox"`
	PTY     bool          `json:"pty"`
	Command string        `json:"command"` // for the audit log, bounded by the daemon
	Wait    time.Duration `json:"wait"`    // for a sandbox that is still starting
	// Files makes the connection good for one operation on files instead of a command.
	Files *FilesRequest `json:"files,omitempty"`
}

// FilesRequest says what an operation on files is about.
type FilesRequest struct {
	Write bool   `json:"write,omitempty"` // it changes something: recorded, with Path
	Path  string `json:"path"`            // for the audit log, bounded by the daemon
}

// ExecResponse comes with the descriptor. The connection to the daemon stays
// open while the process runs: it is the lease that keeps the sandbox from being idle.
type ExecResponse struct {
	Sandbox sandbox.Sandbox `json:"sandbox"`
	Exec    string          `json:"exec"` // "exe_" and 16 characters
}

// IssueRequest asks for a certificate for PublicKey.
type IssueRequest struct {
	Sandbox       string        `json:"sandbox"`
	PublicKey     string        `json:"public_key"` // one line of authorized_keys form
	TTL           time.Duration `json:"ttl,omitempty"`
	Uses          int           `json:"uses,omitempty"`
	SourceAddress string        `json:"source_address,omitempty"` // comma-separated CIDRs
}

// IssueResponse is the certificate and what a client needs to connect.
type IssueResponse struct {
	Sandbox     sandbox.Sandbox `json:"sandbox"`
	Certificate string          `json:"certificate"` // one line of authorized_keys form
	Serial      uint64          `json:"serial"`
	ValidBefore time.Time       `json:"valid_before"`
	Host        HostInfo        `json:"host"`
}

// HostInfo says where sshd listens and how to know it.
type HostInfo struct {
	Host       string `json:"host"`
	Port       int    `json:"port"`
	KnownHosts string `json:"known_hosts"` // @cert-authority line
}

// CAResponse is public.
type CAResponse struct {
	UserCA string `json:"user_ca"` // one line of authorized_keys form
	// Trusted are all user CAs whose certificates are accepted, the signing one first.
	Trusted []TrustedCA `json:"trusted,omitempty"`
	Host    HostInfo    `json:"host"`
}

// TokenRequest asks for an API token (ScopeAdmin).
type TokenRequest struct {
	Tenant  string          `json:"tenant,omitempty"` // "" is Subject
	Subject string          `json:"subject"`
	Scopes  []sandbox.Scope `json:"scopes,omitempty"`
	Caps    sandbox.Caps    `json:"caps,omitzero"`
	TTL     time.Duration   `json:"ttl,omitempty"`
}

// TokenResponse is the only time that the token is shown.
type TokenResponse struct {
	Token     Secret    `json:"token"`
	ID        string    `json:"id"`
	ExpiresAt time.Time `json:"expires_at"`
}

// ReadyResponse lists what keeps sandboxes from being made; empty is ready.
type ReadyResponse struct {
	Problems []string `json:"problems,omitempty"`
}
