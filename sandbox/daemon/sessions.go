package daemon

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podspawn/podspawn/sandbox"
	"github.com/podspawn/podspawn/sandbox/fault"
)

// killAfter is how long an sshd has to end after TERM before it is killed.
const killAfter = 500 * time.Millisecond

// Sessions watches and ends SSH connections. A connection lives as long as its
// sshd monitor, the process that PAM's session step ran under: that is liveness
// by the kernel's word, also over a restart of the daemon, and not a count that
// can leak. It implements sandbox.Sessions and is safe for concurrent use.
//
// A connection ends by exit or by loss. sshd behaves the same in both cases, down
// to its exit status and PAM's close_session, so the channels tell: a connection
// that has ended was left by exit when no channel was open any more and the last
// one's command had ended by itself, as its hook said. Everything else is a loss:
// a client that vanished or was cut off, a killed hook or sshd, a connection that
// never had a channel (ssh -N), and whatever we can't know.
type Sessions struct {
	store sandbox.Store
	kick  func() // after a connection closed
	log   *slog.Logger

	mu       sync.Mutex // guards what follows
	watching map[string]context.CancelFunc
	channels map[sandbox.ID]int       // open channels
	conns    map[string]*channels     // of the connections that had one, by their id
	notes    map[string]string        // why we ended a connection, by its id
	refused  map[sandbox.Process]bool // monitors of connections that are hearing why they are refused
	closing  chan struct{}
	wg       sync.WaitGroup
}

var _ sandbox.Sessions = (*Sessions)(nil)

// NewSessions returns a Sessions. kick is called after a connection closed.
func NewSessions(store sandbox.Store, kick func(), log *slog.Logger) *Sessions {
	return &Sessions{
		store: store, kick: kick, log: log,
		watching: map[string]context.CancelFunc{}, channels: map[sandbox.ID]int{},
		conns: map[string]*channels{}, notes: map[string]string{},
		refused: map[sandbox.Process]bool{}, closing: make(chan struct{}),
	}
}

// Resume watches the connections that an earlier daemon left open, closes those
// that ended meanwhile, and ends those that it had not let in.
func (s *Sessions) Resume(ctx context.Context) error {
	conns, err := s.store.OpenConnections(ctx, "")
	if err != nil {
		return err
	}
	for _, c := range conns {
		row, err := s.store.Get(ctx, c.Sandbox)
		if err != nil {
			return err
		}
		s.Watch(row, c)
	}
	rows, err := s.store.List(ctx, sandbox.Filter{Living: true, Limit: 100_000})
	if err != nil {
		return err
	}
	var errs []error
	for _, row := range rows {
		errs = append(errs, s.sweep(ctx, row, ""))
	}
	return errors.Join(errs...)
}

// EndRefused ends a connection that no claim was made for, after it had time to
// say why.
func (s *Sessions) EndRefused(row sandbox.Sandbox, monitor sandbox.Process, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[monitor] = true
	s.wg.Go(func() {
		t := time.NewTimer(after)
		defer t.Stop()
		select {
		case <-t.C:
		case <-s.closing: // now, or nobody will
		}
		s.mu.Lock()
		delete(s.refused, monitor)
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(endMonitor(ctx, monitor), s.sweep(ctx, row, "")); err != nil {
			s.log.Error("refused connection not ended", "sandbox", row.ID, "err", err)
		}
	})
}

// Watch closes the connection in the state when its monitor ends.
func (s *Sessions) Watch(row sandbox.Sandbox, c sandbox.Connection) {
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watching[c.ID] != nil {
		cancel()
		return
	}
	s.watching[c.ID] = cancel
	s.wg.Go(func() {
		defer cancel()
		err := waitProcess(ctx, c.Monitor)
		s.mu.Lock()
		delete(s.watching, c.ID)
		s.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.Error("connection not watched", "sandbox", row.ID, "connection", c.ID, "err", err)
			return
		}
		s.closed(row, c)
	})
}

// Why a connection closed, in the state and the audit log.
const (
	noteExit    = "exit"
	noteLost    = "lost"
	noteRevoked = "revoked"
)

// closed records the end of a connection and kills what it left: sshd's user
// process goes on serving the client when only the monitor was killed.
func (s *Sessions) closed(row sandbox.Sandbox, c sandbox.Connection) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.sweep(ctx, row, c.ID); err != nil {
		s.log.Error("processes of an ended connection not killed", "sandbox", row.ID, "connection", c.ID, "err", err)
	}
	note := s.howItEnded(c.ID)
	fault.At("daemon.session.ended")
	now := time.Now()
	ev := sessionEvent(sandbox.EventSessionClosed, now, row, c)
	ev.Reason = note
	ev.Detail = map[string]string{"seconds": strconv.FormatInt(int64(now.Sub(c.OpenedAt).Seconds()), 10)}
	if _, err := s.store.CloseConnection(ctx, c.ID, now, note == noteExit, note, ev); err != nil {
		s.log.Error("end of a connection not recorded", "sandbox", row.ID, "connection", c.ID, "err", err)
	}
	fault.At("daemon.session.closed")
	s.kick()
}

// channelsEnd is how long the leases of a connection's channels may take to be
// seen closed once all its processes are dead.
const channelsEnd = 2 * time.Second

// howItEnded says why a connection whose processes are gone has closed, and
// forgets what is known of it.
func (s *Sessions) howItEnded(id string) string {
	s.mu.Lock()
	ch := s.conns[id]
	s.mu.Unlock()
	if ch != nil {
		// A hook's last word may still be on its way.
		t := time.NewTimer(channelsEnd)
		select {
		case <-ch.none():
		case <-t.C:
		}
		t.Stop()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	note := s.notes[id]
	delete(s.notes, id)
	delete(s.conns, id)
	switch {
	case note != "":
		return note
	case ch != nil && ch.finished():
		return noteExit
	default:
		return noteLost
	}
}

// channels are those of one connection. Safe for concurrent use.
type channels struct {
	mu      sync.Mutex // guards what follows
	open    int
	last    bool          // the last to end did so by itself
	waiting chan struct{} // closed when open becomes 0; nil while nobody waits
}

func (c *channels) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	c.last = false
}

func (c *channels) end(finished bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	c.last = finished
	if c.open == 0 && c.waiting != nil {
		close(c.waiting)
		c.waiting = nil
	}
}

// none returns a channel that is closed when no channel is open.
func (c *channels) none() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		c.waiting = make(chan struct{})
	}
	w := c.waiting
	if c.open == 0 {
		close(c.waiting)
		c.waiting = nil
	}
	return w
}

func (c *channels) finished() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open == 0 && c.last
}

// sweep kills the sandbox's processes on the host that belong to no open
// connection other than without, nor to one that is hearing why it is refused.
func (s *Sessions) sweep(ctx context.Context, row sandbox.Sandbox, without string) error {
	conns, err := s.store.OpenConnections(ctx, row.ID)
	if err != nil {
		return err
	}
	s.mu.Lock()
	keep := maps.Clone(s.refused)
	s.mu.Unlock()
	for _, c := range conns {
		if c.ID != without {
			keep[c.Monitor] = true
		}
	}
	return killStrays(row.UID, keep, false)
}

// killStrays kills every process of the uid that has none of keep among its
// ancestors; the sandbox's relay, which serves all connections, only when asked.
func killStrays(uid int, keep map[sandbox.Process]bool, relay bool) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		has, gid, err := ownerOf(pid)
		if err != nil || has != uid || gid == sandbox.RelayGID && !relay {
			continue // gone, or somebody else's
		}
		st, err := statProc(pid)
		if err != nil {
			continue
		}
		up, err := ancestors(pid)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		stray := true
		for _, p := range up {
			stray = stray && !keep[p]
		}
		if stray {
			errs = append(errs, signalProcess(st.Process, unix.SIGKILL))
		}
	}
	return errors.Join(errs...)
}

// End ends connections: TERM to the monitor lets sshd close its session in
// order; what is left after killAfter is killed, the user's sshd included.
func (s *Sessions) End(ctx context.Context, row sandbox.Sandbox, conns []sandbox.Connection) error {
	var errs []error
	for _, c := range conns {
		errs = append(errs, endMonitor(ctx, c.Monitor))
	}
	errs = append(errs, killStrays(row.UID, nil, true))
	s.mu.Lock()
	for _, c := range conns {
		if cancel := s.watching[c.ID]; cancel != nil {
			cancel() // Destroy records the end itself
		}
		delete(s.conns, c.ID)
	}
	s.mu.Unlock()
	return errors.Join(errs...)
}

// endMonitor ends one connection's sshd monitor.
func endMonitor(ctx context.Context, p sandbox.Process) error {
	if err := signalProcess(p, unix.SIGTERM); err != nil {
		return err
	}
	tctx, cancel := context.WithTimeout(ctx, killAfter)
	defer cancel()
	if waitProcess(tctx, p) == nil {
		return nil
	}
	if err := signalProcess(p, unix.SIGKILL); err != nil {
		return err
	}
	return waitProcess(ctx, p)
}

// openChannel counts a channel of a sandbox, up to sandbox.MaxChannels, until
// done is called, once, with whether its command ended by itself.
func (s *Sessions) openChannel(id sandbox.ID, conn string) (done func(finished bool), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels[id] >= sandbox.MaxChannels {
		return nil, sandbox.Errorf(sandbox.KindQuota, "close some first", "sandbox %s has %d sessions already", id, sandbox.MaxChannels)
	}
	s.channels[id]++
	ch := s.conns[conn]
	if ch == nil {
		ch = &channels{}
		s.conns[conn] = ch
	}
	ch.begin()
	return func(finished bool) {
		ch.end(finished)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.channels[id]--; s.channels[id] <= 0 {
			delete(s.channels, id)
		}
	}, nil
}

// Close stops watching; the connections go on. Call it once.
func (s *Sessions) Close() {
	s.mu.Lock()
	for _, cancel := range s.watching {
		cancel()
	}
	close(s.closing)
	s.mu.Unlock()
	s.wg.Wait()
}

func sessionEvent(kind sandbox.EventKind, now time.Time, row sandbox.Sandbox, c sandbox.Connection) sandbox.Event {
	return sandbox.Event{
		Time: now, Event: kind, Tenant: row.Tenant, Sandbox: row.ID, SpecDigest: row.Digest,
		Serial: c.Serial, Source: c.Source, Session: c.ID,
	}
}
