package sandbox

import (
	"context"
	"os"
)

// Runtime makes and removes containers. Methods are safe for concurrent use.
// Errors that a caller may act on are an *Error: KindImageNotFound,
// KindUnavailable (the engine does not answer, or its sandboxing runtime is
// missing), KindCapacity (it refused for lack of memory, disk or processes).
type Runtime interface {
	// Check reports whether sandboxes can be started at all: the engine answers and
	// the configured sandboxing runtime is registered with it. It never falls back.
	Check(ctx context.Context) error

	// Image resolves a reference to an immutable local image id.
	Image(ctx context.Context, ref string) (Image, error)

	// Start creates and starts the container of one sandbox with the guest as PID 1
	// and returns as soon as the engine says that it runs. Starting an id that
	// already has a container is an error of KindConflict. With EgressPublic the
	// sandbox gets a network of its own, and Start refuses (KindUnavailable) while the
	// host does not enforce what that may reach. When it fails, nothing is left; when its process dies in the middle, Destroy with the id cleans up.
	Start(ctx context.Context, p StartParams) (Container, error)

	// Destroy removes everything Start made. It is idempotent, and it succeeds for an
	// id that never existed. A canceled ctx stops the waiting, not the destruction.
	Destroy(ctx context.Context, id ID) error

	// List returns the containers that carry our label, running or not, and one that
	// does not run for each network of ours without a container.
	List(ctx context.Context) ([]Container, error)

	// Watch calls ended with the id of each of our containers that stops, until ctx
	// ends. It returns when ctx ends or the engine goes away; the caller calls it again.
	Watch(ctx context.Context, ended func(ID)) error
}

// Image is a local image.
type Image struct {
	ID   string // immutable: "sha256:…"
	User string // the image's default user, "" for root
}

// Container is what the runtime knows of one sandbox.
type Container struct {
	Sandbox ID
	ID      string
	Running bool
}

// StartParams is what a runtime needs to start a sandbox. Everything that a user
// controls reaches it only through the fields of Resources.
type StartParams struct {
	Sandbox   ID
	ImageID   string // from Image
	SocketDir string // host directory to show to the guest as its socket directory
	Resources Resources
	Egress    Egress
	Deadline  int64 // unix seconds at which the guest exits by itself
}

// Host is what a sandbox has on the host besides its container: a login name in
// the system's user database, a portal (the network namespace that its SSH
// connections are put into) and processes under its uid. Methods are safe for
// concurrent use.
type Host interface {
	// Open makes portal and login. It is idempotent and returns what identifies
	// the portal's network namespace, for ever: no later namespace has the same number.
	Open(ctx context.Context, login string, uid int) (portal uint64, err error)

	// Close removes both, in an order in which nothing of them can be used halfway:
	// every process of the uid is killed and gone, what they left in the host's
	// temporary folders and SysV IPC is removed, then the portal, then the login. The
	// processes of a user's uid are not: Sessions.End has ended those of the sandbox. It
	// is idempotent and succeeds for a login that never existed.
	Close(ctx context.Context, login string, uid int) error

	// Share makes the portal of a user the one that Open(login) will find. It is
	// idempotent; the user keeps hers when login is closed.
	Share(ctx context.Context, user, login string) error

	// OpenAlias gives what Open made a second login, and CloseAlias removes that. Both are
	// idempotent.
	OpenAlias(ctx context.Context, login, alias string, uid int) error
	CloseAlias(ctx context.Context, alias string) error

	// List returns the logins of which there is anything on the host, with their uids
	// where those are known (0 otherwise).
	List(ctx context.Context) (map[string]int, error)
}

// Sockets owns the directories through which host and guest talk. The socket in
// one is never opened by path once foreign code can run in the sandbox: see the
// implementation for the attack. Methods are safe for concurrent use.
type Sockets interface {
	// Prepare makes the directory for a sandbox, a small tmpfs, and returns its path.
	Prepare(id ID) (dir string, err error)

	// Seal waits until the guest listens, identifies the socket, makes the directory
	// read-only, and returns the socket's identity. From then on Dial works.
	Seal(ctx context.Context, id ID) (dev, ino uint64, err error)

	// Reopen is Seal after a restart of this process: it fails unless the socket is
	// still the one that Seal identified.
	Reopen(id ID, dev, ino uint64) error

	// Dial connects to the sealed socket, without blocking on a full backlog for
	// longer than ctx, and returns the connected descriptor.
	Dial(ctx context.Context, id ID) (*os.File, error)

	// Remove unmounts and removes the directory. It is idempotent and succeeds for an
	// id that never existed.
	Remove(id ID) error

	// List returns the ids that have a directory.
	List() ([]ID, error)
}
