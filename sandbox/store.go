package sandbox

import (
	"context"
	"time"
)

// Store keeps the state. Every method that changes something takes the audit
// events that belong to the change and commits both in one transaction, so the
// log and the state can't disagree; the Store seals them (Event.Seal). Methods are safe
// for concurrent use, also by several processes on one state.
//
// Errors: a row that does not exist is an *Error of KindNotFound. A state that
// can't be read or written is KindUnavailable. Anything else a method returns
// is said in its comment. After an error nothing has changed.
type Store interface {
	// Insert adds a sandbox in StateAccepted and gives it a free UID: the next of
	// the round robin over MinUID..MaxSandboxUID that no living sandbox has and that has
	// rested for UIDQuarantine. A UID that is set already is a user's and is kept:
	// KindConflict when she has a living sandbox. It returns the row with its UID. In the same transaction it
	// enforces the quotas: KindQuota when the tenant already has quota.PerTenant
	// living (not final) sandboxes, KindCapacity when there are quota.Total in all, when
	// the memory limits of all and this one add up to more than quota.Memory, or
	// no uid is free, KindConflict when a living sandbox of the tenant has the Name.
	// What nobody owns counts only when s is nobody's either: the pool never keeps a
	// tenant from a sandbox.
	Insert(ctx context.Context, s Sandbox, quota Quota, ev Event) (Sandbox, error)

	// ClaimPooled gives the sandbox s.ID, which waits in StatePooled under the key
	// s.Pool, to its first and only owner: in one transaction it takes Tenant, Subject,
	// Name, Labels, Spec, Digest, User, CreatedAt, ExpiresAt and LastActivity from s,
	// clears Pool, sets ReadyAt to s.CreatedAt and the state to StateReady, and writes the
	// events. Of N parallel claims of one sandbox exactly one succeeds; the others, and one
	// for a sandbox that is in another state or under another key, fail with KindNotFound.
	// Quotas and the name are enforced as by Insert. When key is not empty, what Remember
	// keeps under (s.Tenant, key) becomes the sandbox's id.
	ClaimPooled(ctx context.Context, s Sandbox, quota Quota, key string, ev ...Event) (Sandbox, error)

	// Pooled returns the living sandboxes that nobody owns, oldest first: those in
	// StatePooled, those on the way there, and those being destroyed unclaimed.
	Pooled(ctx context.Context) ([]Sandbox, error)

	// Get returns one sandbox, also a final one.
	Get(ctx context.Context, id ID) (Sandbox, error)

	// ByUID returns the sandbox that is not final and has the uid.
	ByUID(ctx context.Context, uid int) (Sandbox, error)

	// ByName returns the tenant's living sandbox of that name.
	ByName(ctx context.Context, tenant, name string) (Sandbox, error)

	// List returns sandboxes by creation time, newest first, at most f.Limit (100
	// when 0).
	List(ctx context.Context, f Filter) ([]Sandbox, error)

	// AddUser registers a user and gives her a uid: one that no user or living sandbox
	// has and that has rested for UIDQuarantine. Its time is u.CreatedAt. KindConflict
	// when she is registered already, KindCapacity when no uid is free.
	AddUser(ctx context.Context, u User, ev Event) (User, error)

	// UserByName, UserByUID and Users return registered users; Users sorts by name.
	UserByName(ctx context.Context, name string) (User, error)
	UserByUID(ctx context.Context, uid int) (User, error)
	Users(ctx context.Context) ([]User, error)

	// ChangeUser replaces the Portal and the Spec of a registered user.
	ChangeUser(ctx context.Context, u User, ev ...Event) error

	// RemoveUser ends a registration at now.
	RemoveUser(ctx context.Context, name string, now time.Time, ev Event) error

	// Enter opens a connection of a user, who has proved her key: Serial is 0, and
	// Sandbox is set when it is known already what she enters. It fails with
	// KindNotFound unless c.User is registered, KindGone when Sandbox is ending, and KindQuota at
	// MaxConnections of one user.
	Enter(ctx context.Context, c Connection, ev Event) error

	// Bind says which sandbox an open connection of a user has entered; one that
	// entered it before is no error. A usable sandbox becomes StateRunning, and its GraceUntil is
	// cleared. KindGone when it is ending or the connection has closed, KindConflict when
	// the connection is in another.
	Bind(ctx context.Context, connection string, id ID) (Sandbox, error)

	// Update reads the sandbox, lets change edit the copy, and writes it with the
	// events that change returned, all in one transaction. When change returns an
	// error nothing is written and that error is returned as it is. change may not
	// touch ID, Tenant, Spec, Digest, UID, Alias, Pool or CreatedAt; it may run more than once.
	// A row that it makes StateReady while connections to it are open becomes StateRunning.
	Update(ctx context.Context, id ID, change func(*Sandbox) ([]Event, error)) (Sandbox, error)

	// Issue takes the next serial (contiguous from 1; 0 and 2^64-1 are never issued),
	// calls sign with it, and stores the certificate that sign returned and its event.
	// When sign fails the serial is not used up.
	Issue(ctx context.Context, sign func(serial uint64) (Certificate, Event, error)) (Certificate, error)

	// Certificate returns what was issued under the serial.
	Certificate(ctx context.Context, serial uint64) (Certificate, error)

	// Certificates returns those that the filter selects, by serial.
	Certificates(ctx context.Context, f CertificateFilter) ([]Certificate, error)

	// RevokeCertificate marks it revoked at now. It is idempotent.
	RevokeCertificate(ctx context.Context, serial uint64, now time.Time, ev Event) error

	// Claim opens a connection under a certificate, atomically: of N parallel claims
	// of a one-use certificate exactly one succeeds. It fails with
	// KindGone when the sandbox is not Usable, KindPolicy when the certificate is
	// revoked or another sandbox's or its uses are used up, and KindQuota at
	// MaxConnections. On success the certificate's Used grows, the sandbox becomes
	// StateRunning, and its GraceUntil is cleared.
	Claim(ctx context.Context, c Connection, ev Event) (Sandbox, error)

	// CloseConnection ends it at now. It is idempotent: the second call changes
	// nothing and reports closed=false. When it was the sandbox's last, a running sandbox becomes
	// StateReady, LastActivity is now, and GraceUntil is now + grace if the
	// sandbox's OnExit is OnExitDestroy and exited is true.
	CloseConnection(ctx context.Context, id string, now time.Time, exited bool, note string, ev Event) (closed bool, err error)

	// OpenConnections returns the open connections of a sandbox, or of all when id is "".
	OpenConnections(ctx context.Context, id ID) ([]Connection, error)

	// AddToken, Token, Tokens, RevokeToken keep the register of API tokens.
	// Tokens returns newest first; a tenant of "" means all. RevokeToken is idempotent.
	AddToken(ctx context.Context, t APIToken, ev Event) error
	Token(ctx context.Context, id string) (APIToken, error)
	Tokens(ctx context.Context, tenant string) ([]APIToken, error)
	RevokeToken(ctx context.Context, id string, now time.Time, ev Event) error

	// Remember returns the value kept under (tenant, key) together with the digest of
	// the request that made it, or stores the given ones when there are none: it
	// carries Idempotency-Key. fresh reports that it stored. Entries older than 24 h are forgotten.
	Remember(ctx context.Context, tenant, key, digest, value string, now time.Time) (gotDigest, gotValue string, fresh bool, err error)

	// Append writes events that belong to no change of state.
	Append(ctx context.Context, ev ...Event) error

	// Events returns at most limit events with Seq > after, in order.
	Events(ctx context.Context, after int64, limit int) ([]Event, error)

	// RefusalsOf returns the newest events of kind cert.refused for the sandbox, newest first.
	RefusalsOf(ctx context.Context, id ID, limit int) ([]Event, error)

	Close() error
}

// Quota bounds Insert. Zero means no bound.
type Quota struct {
	PerTenant int
	Total     int
	Memory    int64 // bytes
}

// CertificateFilter selects certificates. Zero values select everything.
type CertificateFilter struct {
	Tenant  string
	Sandbox ID
	KeyID   string
	Token   string // id of the API token that asked for them
	// ValidAfter selects those that are valid beyond this time.
	ValidAfter time.Time
	Revoked    bool // only those that are revoked
}

// MaxList is the most that one List returns, whatever the filter's limit; it is far
// above any host's capacity.
const MaxList = 100_000

// Filter selects sandboxes. Zero values select everything.
type Filter struct {
	Tenant string
	// Living leaves out sandboxes in a final state.
	Living bool
	// Labels must all be present with these values.
	Labels map[string]string
	// Before selects those created before the sandbox with this id (a cursor).
	Before ID
	Limit  int
}
