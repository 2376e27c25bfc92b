package sandbox

import "time"

// State is where a sandbox is in its life.
//
//	accepted → starting → ready → running → draining → destroyed | expired | failed
//	                    ↘ pooled ↗
//
// pooled: made ahead, complete, and nobody's (see Sandbox.Pool); it becomes ready
// when it is claimed.
// ready: container, portal and login exist, and nobody is connected over SSH
// (commands may run). running: at least one SSH connection is open. draining:
// being destroyed. The last three are final, and are written only when nothing
// of the sandbox is left on the host.
type State string

// The states.
const (
	StateAccepted  State = "accepted"
	StateStarting  State = "starting"
	StatePooled    State = "pooled"
	StateReady     State = "ready"
	StateRunning   State = "running"
	StateDraining  State = "draining"
	StateDestroyed State = "destroyed"
	StateExpired   State = "expired"
	StateFailed    State = "failed"
)

// Final reports whether nothing can happen to a sandbox in this state any more.
func (s State) Final() bool {
	return s == StateDestroyed || s == StateExpired || s == StateFailed
}

// Usable reports whether sessions and commands are accepted in this state.
func (s State) Usable() bool { return s == StateReady || s == StateRunning }

// Reason says why a sandbox ended.
type Reason string

// The reasons.
const (
	ReasonRequested Reason = "requested" // somebody called destroy
	ReasonExited    Reason = "exited"    // the last session left and grace has passed
	ReasonIdle      Reason = "idle"      // nothing happened for idle_timeout
	ReasonDeadline  Reason = "deadline"  // ttl
	ReasonStart     Reason = "start"     // it could not be started
	ReasonLost      Reason = "lost"      // its container went away under it
	ReasonRetired   Reason = "retired"   // it waited in the pool, and is of no use there any more
)

// Final returns the state in which a destruction for this reason ends.
func (r Reason) Final() State {
	switch r {
	case ReasonDeadline, ReasonIdle:
		return StateExpired
	case ReasonStart, ReasonLost:
		return StateFailed
	default:
		return StateDestroyed
	}
}

// Sandbox is one row of the state. Copies are values: changing one changes
// nothing else.
type Sandbox struct {
	ID      ID
	Tenant  string
	Subject string // who created it, within the tenant
	Name    string // unique among the tenant's living sandboxes, or ""
	Labels  map[string]string
	Spec    Spec
	Digest  Digest // of Spec, frozen at creation
	UID     int    // its own uid on the host, 70000-97999; its user's in classic mode
	// Alias is a login name that it has besides its own: its user's, or "user+name";
	// "" is none.
	Alias string

	State  State
	Reason Reason // set from draining on

	// User is who sessions and commands run as: Spec.User, else the image's user.
	User string
	// ImageID is the immutable id that Spec.Image named when the sandbox was made.
	ImageID string
	// Pool is set while nobody owns the sandbox: it is being made ahead or waits in
	// StatePooled, and Pool names what it can be used for (see PoolKey). Tenant,
	// Subject, Name and Labels are empty then, so that no tenant sees it, and no
	// certificate can be issued for it. The claim clears Pool for ever; one that ends unclaimed keeps it.
	Pool string
	// Container is the runtime's id of the container; "" before it was created.
	Container string
	// Portal identifies the portal's network namespace: what the PAM step's peer must
	// be in. 0 before the portal exists.
	Portal uint64
	// SocketDev and SocketIno identify the guest's socket as it was before any
	// other code ran in the sandbox; a different one is never connected to.
	SocketDev, SocketIno uint64

	CreatedAt    time.Time
	ReadyAt      time.Time // zero before
	ExpiresAt    time.Time // nothing outlives this
	LastActivity time.Time // the last end of a connection, exec or call
	// GraceUntil is when the grace period that the last exit started runs out;
	// zero while none is running.
	GraceUntil time.Time
	DrainingAt time.Time // when Destroy began; zero before
	EndedAt    time.Time // when the final state was written; zero before
}

// Connection is one claimed SSH connection, from PAM open to sshd's end.
type Connection struct {
	ID        string // "con_" and 16 characters
	Sandbox   ID     // "" while a user's connection has not entered one
	Serial    uint64 // of the certificate that opened it; 0 when a user's key did
	User      string // whose key opened it; "" when a certificate did
	Key       string // that key's fingerprint, "SHA256:…"
	Source    string // the client's address as sshd gave it to PAM
	Monitor   Process
	OpenedAt  time.Time
	ClosedAt  time.Time // zero while open
	CloseNote string    // why it closed: "exit", "lost", "destroyed", …
}

// Process identifies a process for ever: pids are reused, (pid, start time) are not.
type Process struct {
	PID   int
	Start uint64 // field 22 of /proc/PID/stat, in clock ticks since boot; proc(5)
}

// Certificate is what was issued under one serial.
type Certificate struct {
	Serial      uint64
	Sandbox     ID
	Tenant      string
	Subject     string
	Token       string // id of the API token that asked, or ""
	KeyID       string
	Blob        []byte // the certificate's wire form (ssh.PublicKey.Marshal), compared byte for byte
	Fingerprint string // of the public key, "SHA256:…", for people
	Uses        int    // allowed connections; 0 is unlimited until ValidBefore
	Used        int    // claimed so far
	IssuedAt    time.Time
	ValidBefore time.Time
	RevokedAt   time.Time // zero while not revoked
}

// APIToken is the record of a bearer token; the token itself is never stored.
type APIToken struct {
	ID        string // the token's jti: "tok_" and 16 characters
	Tenant    string
	Subject   string
	Scopes    []Scope
	Caps      Caps
	IssuedAt  time.Time
	ExpiresAt time.Time
	RevokedAt time.Time // zero while not revoked
}

// Caps bound what a caller may ask for. Zero values mean: the configuration's limit.
type Caps struct {
	MaxSandboxes int           `json:"max_sandboxes,omitempty"`
	MaxTTL       time.Duration `json:"max_ttl,omitempty"`
}

// Scope is a permission of a caller.
type Scope string

// The scopes. Each stands alone; run does not imply read.
const (
	ScopeRead  Scope = "sandbox:read"
	ScopeRun   Scope = "sandbox:run"
	ScopeAdmin Scope = "sandbox:admin"
)

// ActorKind says what kind of party acts, for the audit log.
type ActorKind string

// The kinds of actors.
const (
	ActorHuman  ActorKind = "human"
	ActorAgent  ActorKind = "agent"
	ActorCI     ActorKind = "ci"
	ActorAdmin  ActorKind = "admin"
	ActorSystem ActorKind = "system"
)

// Caller is an authenticated party, as the daemon derived it from a token that
// it verified or from credentials that the kernel vouches for.
type Caller struct {
	Tenant  string
	Subject string
	Kind    ActorKind
	Token   string // id of its API token, or ""
	Scopes  []Scope
	Caps    Caps
}

// Can reports whether the caller has the scope.
func (c Caller) Can(s Scope) bool {
	for _, have := range c.Scopes {
		if have == s {
			return true
		}
	}
	return false
}

// UIDs of sandboxes on the host. The range and the group are fixed: PAM, sshd's
// Match block and the host's firewall rule name them.
const (
	MinUID   = 70000
	MaxUID   = 98999
	LoginGID = 69999
	// RelayGID is the group of the processes that carry forwarded connections. Only
	// the daemon starts any, so a peer with a sandbox's uid and this group is its relay.
	RelayGID = 69998
	// UIDQuarantine is how long a uid rests before another sandbox gets it.
	UIDQuarantine = 24 * time.Hour
)

// Per-sandbox limits of SSH.
const (
	MaxConnections = 16 // open connections
	MaxChannels    = 64 // sessions over all connections
)
